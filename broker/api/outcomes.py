"""What became of messages that are no events: rejections, for their registries."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from sqlalchemy import Row

from broker.storage import people
from schemas.resources.outcomes import Rejection, RejectionPage
from subscriptions.callers import Scope
from subscriptions.http import ByCaller, InContext, Route, operation
from subscriptions.paging import Paging

router = APIRouter(route_class=Route)

Pages = Annotated[Paging, Depends()]
_REJECTIONS = operation("listRejections", "List rejections", scopes=(Scope.PUBLISH, Scope.MANAGE, Scope.OPERATE))


@router.get("/rejections", tags=["rejections"], **_REJECTIONS)
async def list_rejections(caller: ByCaller, context: InContext, paging: Pages) -> RejectionPage:
    """List messages that became no event: a registry's own, or, for the operator, all of them."""
    organisation_id = None if caller.is_operator else caller.own.id
    async with context.engine.connect() as connection:
        page = await paging.read(connection, people.rejections_of(organisation_id), people.REJECTIONS_ORDER)
    return RejectionPage(
        count=page.count, next=page.next, previous=page.previous, results=[rejection_of(row) for row in page.rows]
    )


def rejection_of(row: Row[Any]) -> Rejection:
    """A rejection as the API says it."""
    return Rejection(
        id=row.id,
        rejected_at=row.rejected_at,
        times=row.times,
        code=row.code,
        detail=row.detail,
        attribute=row.attribute,
        source=row.source,
        event_id=row.event_id,
        event_type=row.event_type,
        bytes=row.bytes,
    )
