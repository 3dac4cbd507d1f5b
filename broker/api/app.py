"""The application that `bode api` serves: people's resources, the broker's own, and the status pages beside `/v1`."""

from collections.abc import Sequence

from fastapi import APIRouter, FastAPI
from starlette.routing import Route

from broker.api import dead_letters, events, outcomes, previews, pulling, reconciliation, replays, traces
from broker.api.context import BrokerContext
from subscriptions.context import API_PREFIX, Context
from subscriptions.routes import install

TITLE = "Bode"
VERSION = "0.1.0"
_DESCRIPTION = """Notification broker for the Dutch base registries. Registries publish CloudEvents; providers
subscribe with filters and receive signed notifications, numbered so that they can prove that nothing is missing."""


def create_app(context: Context, broker_context: BrokerContext, status_pages: Sequence[Route]) -> FastAPI:
    """Make the application; it opens nothing by itself."""
    app = FastAPI(
        title=TITLE,
        version=VERSION,
        description=_DESCRIPTION,
        openapi_url=f"{API_PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        license_info={"name": "EUPL-1.2", "identifier": "EUPL-1.2"},
    )
    app.state.broker_context = broker_context
    router = APIRouter(prefix=API_PREFIX, redirect_slashes=False)
    router.include_router(events.router)
    router.include_router(outcomes.router)
    router.include_router(dead_letters.router)
    router.include_router(reconciliation.router)
    router.include_router(pulling.router)
    router.include_router(replays.router)
    router.include_router(traces.router)
    router.include_router(previews.router)
    app.include_router(router)
    install(app, context)
    app.router.routes.extend(status_pages)
    return app
