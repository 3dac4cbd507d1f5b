"""What became of events and deliveries: rejections for registries, dead letters for providers."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from sqlalchemy import Row

from broker.delivery.sender import delivery_id
from broker.storage import people
from broker.storage.tables import accepted_at
from schemas.resources.outcomes import DeadLetter, DeadLetterPage, Rejection, RejectionPage
from subscriptions.callers import Scope
from subscriptions.http import ByCaller, InContext, Route, operation
from subscriptions.paging import Paging

router = APIRouter(route_class=Route)

Pages = Annotated[Paging, Depends()]
_REJECTIONS = operation("listRejections", "List rejections", scopes=(Scope.PUBLISH, Scope.MANAGE, Scope.OPERATE))
_DEAD_LETTERS = operation("listDeadLetters", "List dead letters", scopes=(Scope.CONSUME, Scope.OPERATE))


@router.get("/rejections", tags=["rejections"], **_REJECTIONS)
async def list_rejections(caller: ByCaller, context: InContext, paging: Pages) -> RejectionPage:
    """List messages that became no event: a registry's own, or, for the operator, all of them."""
    organisation_id = None if caller.is_operator else caller.own.id
    async with context.engine.connect() as connection:
        page = await paging.read(connection, people.rejections_of(organisation_id), people.REJECTIONS_ORDER)
    return RejectionPage(
        count=page.count, next=page.next, previous=page.previous, results=[rejection_of(row) for row in page.rows]
    )


@router.get("/dead-letters", tags=["dead-letters"], **_DEAD_LETTERS)
async def list_dead_letters(caller: ByCaller, context: InContext, paging: Pages) -> DeadLetterPage:
    """List deliveries that were given up: a provider's own, or, for the operator, all of them."""
    organisation_id = None if caller.is_operator else caller.own.id
    async with context.engine.connect() as connection:
        page = await paging.read(connection, people.dead_letters_of(organisation_id), people.DEAD_LETTERS_ORDER)
    return DeadLetterPage(
        count=page.count, next=page.next, previous=page.previous, results=[_dead_letter(row) for row in page.rows]
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


def _dead_letter(row: Row[Any]) -> DeadLetter:
    return DeadLetter(
        id=delivery_id(row.subscription_id, row.sequence),
        subscription=row.subscription_id,
        subscription_sequence=row.sequence,
        source=row.source,
        event_id=row.event_id,
        type=row.type,
        accepted_at=accepted_at(row.event_key),
        ended_at=row.ended_at,
        attempts=row.attempts,
        status=row.status,
        reason=row.reason,
    )
