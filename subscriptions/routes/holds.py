"""`/holds`: the operator's, and each registry's for its own sources and types."""

from typing import Annotated, Final
from uuid import UUID

import structlog
from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.resources import Hold, HoldBody, HoldCancellation, HoldPage, HoldRelease, HoldStatus
from subscriptions import holds as service
from subscriptions.callers import Caller, Scope
from subscriptions.context import api_url
from subscriptions.database import AnyRow
from subscriptions.holds import Registry
from subscriptions.http import ByCaller, InContext, Route, operation
from subscriptions.idempotency import Repeatable
from subscriptions.paging import Paging
from subscriptions.tables import holds

router = APIRouter(prefix="/holds", tags=["holds"], route_class=Route)

_LOGGER: Final = "bode.holds"
_SCOPES = (Scope.OPERATE, Scope.MANAGE)


@router.post(
    "",
    response_model=Hold,
    **operation(
        "placeHold",
        "Hold what may not leave",
        scopes=_SCOPES,
        problems=(409,),
        body=True,
        success=201,
        headers=("Location",),
    ),
)
async def place_hold(
    request: Request,
    response: Response,
    body: HoldBody,
    caller: ByCaller,
    context: InContext,
    once: Repeatable,
) -> Hold:
    """Holds a source, an event type, what goes to an organisation, or a subscription; a registry only its own.

    When this answers, nothing that is held starts to leave any more: not by a notification, a pull, a replay or a test.
    What was being sent at that moment may still end. Events go on being accepted, matched and numbered; all is kept
    until its retention ends.
    """
    async with context.changing(caller.acting_as("registry")) as connection, once.within(connection):
        registry = await _registry(connection, caller)
        placed = await service.place(connection, body, registry=registry, actor=caller.acting_as("registry"))
        hold = _hold(request, await service.get(connection, placed.id, registry=registry))
        response.headers["Location"] = hold.url
        await once.keep(connection, hold, response)
    structlog.get_logger(_LOGGER).warning("hold-placed", hold=str(hold.id), scope=hold.scope.value)
    return hold


@router.get("", response_model=HoldPage, **operation("listHolds", "List holds", scopes=_SCOPES))
async def list_holds(
    request: Request,
    caller: ByCaller,
    context: InContext,
    paging: Annotated[Paging, Depends()],
    status: Annotated[HoldStatus | None, Query(description="Only those that are so far.")] = None,
) -> HoldPage:
    """Lists holds, those that ended too, in order of placing; a registry's are those of its sources and types."""
    async with context.engine.connect() as connection:
        statement = service.visible_to(await _registry(connection, caller))
        if status is not None:
            statement = statement.where(holds.c.status == status.value)
        page = await paging.read(connection, statement, (holds.c.placed_at, holds.c.id))
    results = [_hold(request, row) for row in page.rows]
    return HoldPage(count=page.count, next=page.next, previous=page.previous, results=results)


@router.get("/{id}", response_model=Hold, **operation("getHold", "Read a hold", scopes=_SCOPES, problems=(404,)))
async def get_hold(request: Request, id: UUID, caller: ByCaller, context: InContext) -> Hold:
    """Reads a hold, and how far its cancellation is."""
    async with context.engine.connect() as connection:
        return _hold(request, await service.get(connection, id, registry=await _registry(connection, caller)))


@router.post(
    "/{id}/release",
    response_model=Hold,
    **operation("releaseHold", "Release a hold", scopes=_SCOPES, problems=(404, 409), body=True),
)
async def release_hold(
    request: Request, id: UUID, caller: ByCaller, context: InContext, body: HoldRelease | None = None
) -> Hold:
    """Ends a hold: what it kept goes, in order, unless another hold covers it."""
    actor = caller.acting_as("registry")
    async with context.changing(actor) as connection:
        registry = await _registry(connection, caller)
        row = await service.get(connection, id, registry=registry)
        service.check_may_end(row, registry)
        await service.release(connection, row, None if body is None else body.reason, actor)
        hold = _hold(request, await service.get(connection, id, registry=registry))
    structlog.get_logger(_LOGGER).warning("hold-released", hold=str(hold.id), scope=hold.scope.value)
    return hold


@router.post(
    "/{id}/cancellation",
    response_model=Hold,
    **operation("cancelHold", "Cancel what a hold kept", scopes=_SCOPES, problems=(404, 409), body=True, success=202),
)
async def cancel_hold(request: Request, id: UUID, body: HoldCancellation, caller: ByCaller, context: InContext) -> Hold:
    """Cancels what is pending and covered by a hold at this moment, with this reason, and then ends the hold.

    Cancelling goes in portions, and until it is done the hold stands. What is accepted meanwhile is kept, and goes when
    it has ended. Providers see the reason where the numbers are.
    """
    actor = caller.acting_as("registry")
    async with context.changing(actor) as connection:
        registry = await _registry(connection, caller)
        row = await service.get(connection, id, registry=registry)
        service.check_may_end(row, registry)
        await service.cancel(connection, row, body.reason, actor)
        hold = _hold(request, await service.get(connection, id, registry=registry))
    structlog.get_logger(_LOGGER).warning("hold-cancelling", hold=str(hold.id), scope=hold.scope.value)
    return hold


async def _registry(connection: AsyncConnection, caller: Caller) -> Registry | None:
    """The registry that calls; None: the operator does."""
    return None if caller.is_operator else await service.registry_of(connection, caller.own.id)


def _hold(request: Request, row: AnyRow) -> Hold:
    return Hold(
        url=f"{api_url(request)}/holds/{row.id}",
        id=row.id,
        scope=row.scope,
        value=row.value,
        status=row.status,
        reason=row.reason,
        placed_at=row.placed_at,
        placed_by=row.placing_oin,
        end_reason=row.end_reason,
        end_asked_at=row.end_asked_at,
        ended_at=row.ended_at,
        ended_by=row.ending_oin,
        cancelled=row.cancelled,
    )
