"""The management API under `/v1`: subscriptions, grants, organisations with their keys, and domains."""

from fastapi import APIRouter, FastAPI

from subscriptions.context import API_PREFIX, Context
from subscriptions.cors import Cors
from subscriptions.edge import Edge
from subscriptions.failures import handle_problems
from subscriptions.http import Route
from subscriptions.openapi import describe
from subscriptions.routes import (
    asyncapi,
    domains,
    event_types,
    grants,
    handshakes,
    history,
    holds,
    keys,
    organisations,
    requests,
    subscriptions,
    trials,
)

_PARTS = (
    subscriptions,
    history,
    trials,
    requests,
    grants,
    domains,
    event_types,
    asyncapi,
    organisations,
    keys,
    handshakes,
    holds,
)


def build_router() -> APIRouter:
    """Makes the router of everything that people manage, under the API's prefix."""
    router = APIRouter(prefix=API_PREFIX, route_class=Route, redirect_slashes=False)
    for part in _PARTS:
        router.include_router(part.router)
    return router


def install(app: FastAPI, context: Context) -> None:
    """Gives an application the management API, problems for every failure, and the headers of every answer.

    Other routes of the application join in by `http.Route`, `http.operation` and `context_of`.
    """
    app.state.context = context
    app.router.redirect_slashes = False
    app.include_router(build_router())
    handle_problems(app)
    app.add_middleware(Edge, version=app.version, cors=Cors(context.settings.cors_origins))
    describe(app, context.settings)
