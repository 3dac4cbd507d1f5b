"""`/asyncapi.json`: the catalogue as an AsyncAPI 3 document.

A description like `/openapi.json`, and like that one it doesn't stand in the OpenAPI document: its name isn't that of a
resource.
"""

from typing import Any

from fastapi import APIRouter, Request

from subscriptions import asyncapi, catalogue
from subscriptions.callers import Scope
from subscriptions.context import api_url
from subscriptions.http import InContext, Route, operation
from subscriptions.tables import event_types

router = APIRouter(tags=["event-types"], route_class=Route)


@router.get(
    "/asyncapi.json",
    response_model=dict[str, Any],
    include_in_schema=False,
    **operation("getAsyncApi", "Read the catalogue as AsyncAPI", scopes=tuple(Scope)),
)
async def get_asyncapi(request: Request, context: InContext) -> dict[str, Any]:
    """Reads what is received and sent as an AsyncAPI 3.0 document, made of the catalogue.

    It has the 2,000 event types that were described first.
    """
    statement = catalogue.described().order_by(event_types.c.created_at, event_types.c.id).limit(asyncapi.MOST_TYPES)
    async with context.engine.connect() as connection:
        rows = (await connection.execute(statement)).all()
    return asyncapi.document(rows, api_url=api_url(request), api_version=request.app.version)
