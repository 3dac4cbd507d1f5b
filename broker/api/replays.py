"""`/subscriptions/{id}/replays`: having notifications sent again, under the same numbers and ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import Row
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.storage import evidence, replays
from broker.storage.replays import RUNNING
from schemas.problems import Conflict, InvalidInput, NotFound
from schemas.resources.replays import Replay, ReplayBody, ReplayPage
from subscriptions import subscriptions
from subscriptions.callers import Caller, Scope
from subscriptions.context import api_url
from subscriptions.database import AnyRow
from subscriptions.http import ByCaller, InContext, Route, operation
from subscriptions.idempotency import Repeatable
from subscriptions.paging import Paging
from subscriptions.tables import Protocol, Status

router = APIRouter(prefix="/subscriptions/{id}/replays", route_class=Route, tags=["subscriptions"])

_OWN: Final = (Scope.CONSUME,)
_BOTH: Final = (Scope.CONSUME, Scope.OPERATE)


@dataclass(frozen=True, slots=True)
class _Asked:
    first: int
    last: int
    numbers: Sequence[int] | None = None


@router.post(
    "",
    response_model=Replay,
    **operation(
        "startReplay",
        "Have notifications sent again",
        scopes=_OWN,
        problems=(404, 409),
        body=True,
        success=201,
        headers=("Location",),
    ),
)
async def start_replay(
    request: Request,
    response: Response,
    id: UUID,
    body: ReplayBody,
    caller: ByCaller,
    context: InContext,
    once: Repeatable,
) -> Replay:
    """Sends numbers of a subscription again: a range, what was accepted in a time, or a list of numbers or event ids.

    They come under their own numbers and `webhook-id`, in order within a subject, behind what is new. What was
    delivered stays so; a dead letter that is accepted is delivered. What can't be sent is skipped. One at a time.
    """
    async with context.engine.begin() as connection, once.within(connection):
        row = await subscriptions.get(connection, id, organisation_id=caller.own.id)
        if row.protocol == Protocol.PULL:
            raise Conflict("This subscription is pulled: pull from the number that you want.")
        if row.status != Status.ACTIVE:
            raise Conflict("Only to an active subscription can be sent: resume it first.")
        asked = await _asked(connection, row.key, body)
        try:
            async with connection.begin_nested():
                made = await replays.start(connection, row.key, asked.first, asked.last, asked.numbers, body.per_second)
        except IntegrityError as error:
            raise Conflict("A replay of this subscription is under way: wait for it, or cancel it.") from error
        replay = _replay(request, made, id)
        response.headers["Location"] = replay.url
        await once.keep(connection, replay, response)
    return replay


@router.get(
    "",
    response_model=ReplayPage,
    **operation("listReplays", "List the replays of a subscription", scopes=_BOTH, problems=(404,)),
)
async def list_replays(
    request: Request, id: UUID, caller: ByCaller, context: InContext, paging: Annotated[Paging, Depends()]
) -> ReplayPage:
    """Lists what was sent again of a subscription, or is being sent, in order of request."""
    async with context.engine.connect() as connection:
        row = await subscriptions.get(connection, id, organisation_id=_visible_to(caller))
        page = await paging.read(connection, replays.of(row.key), replays.ORDER)
    results = [_replay(request, each, id) for each in page.rows]
    return ReplayPage(count=page.count, next=page.next, previous=page.previous, results=results)


@router.get(
    "/{replayId}",
    response_model=Replay,
    **operation("getReplay", "Read a replay", scopes=_BOTH, problems=(404,)),
)
async def get_replay(request: Request, id: UUID, replayId: UUID, caller: ByCaller, context: InContext) -> Replay:
    """Tells how far a replay is: what was sent, failed and skipped, with reasons. It is some seconds behind."""
    return _replay(request, await _find(context.engine, id, replayId, caller), id)


@router.delete(
    "/{replayId}",
    response_class=Response,
    **operation("cancelReplay", "Cancel a replay", scopes=_BOTH, problems=(404, 409), success=204),
)
async def cancel_replay(id: UUID, replayId: UUID, caller: ByCaller, context: InContext) -> None:
    """Stops a replay within seconds; what was sent stays sent. Its figures can still be read."""
    await _find(context.engine, id, replayId, caller)
    async with context.engine.begin() as connection:
        if not await replays.cancel(connection, replayId):
            raise Conflict("This replay is not under way any more.")


async def _find(engine: Any, id: UUID, replay_id: UUID, caller: Caller) -> Row[Any]:
    async with engine.connect() as connection:
        row = await replays.find(connection, replay_id, id, _visible_to(caller))
    if row is None:
        raise NotFound
    return row


async def _asked(connection: AsyncConnection, key: int, body: ReplayBody) -> _Asked:
    """The numbers that are meant.

    Raises:
        InvalidInput: nothing, or more than one thing, is asked for; or none of it is there, or still kept.
    """
    by_number = body.first_sequence is not None or body.last_sequence is not None
    by_time = body.accepted_from is not None or body.accepted_until is not None
    if [by_number, by_time, body.numbers is not None, body.event_ids is not None].count(True) != 1:
        reason = "ask by firstSequence and lastSequence, by acceptedFrom and acceptedUntil, by numbers, or by eventIds"
        raise InvalidInput.field("", "one-of", reason)
    head, _ = await evidence.read_head(connection, key)
    await evidence.follow_indexes(connection)
    if by_number:
        asked, place = _range(body, head), "/firstSequence"
    elif by_time:
        asked, place = await _time(connection, key, body), "/acceptedFrom"
    else:
        asked, place = await _list(connection, key, body, head), "/numbers" if body.numbers else "/eventIds"
    if not await replays.any_kept(connection, key, asked.first, asked.last, asked.numbers):
        raise InvalidInput.field(place, "expired", "nothing of this is kept any more")
    return asked


def _range(body: ReplayBody, head: int) -> _Asked:
    first = body.first_sequence or 1
    if first > head:
        raise InvalidInput.field("/firstSequence", "range", "must not be beyond the subscription's last number")
    if body.last_sequence is not None and body.last_sequence < first:
        raise InvalidInput.field("/lastSequence", "range", "must not be lower than firstSequence")
    return _Asked(first, min(body.last_sequence or head, head))


async def _time(connection: AsyncConnection, key: int, body: ReplayBody) -> _Asked:
    since, until = body.accepted_from, body.accepted_until
    if since is not None and until is not None and until <= since:
        raise InvalidInput.field("/acceptedUntil", "range", "must be later than acceptedFrom")
    found = await replays.numbers_of_time(connection, key, since, until)
    if found is None:
        place = "/acceptedFrom" if since is not None else "/acceptedUntil"
        raise InvalidInput.field(place, "range", "nothing was accepted for this subscription then, or it is not kept")
    return _Asked(*found)


async def _list(connection: AsyncConnection, key: int, body: ReplayBody, head: int) -> _Asked:
    if body.numbers is not None:
        numbers = sorted(set(body.numbers))
        if numbers[-1] > head:
            raise InvalidInput.field("/numbers", "range", "must not be beyond the subscription's last number")
    else:
        numbers = await replays.numbers_of_events(connection, key, body.event_ids or [])
        if not numbers:
            raise InvalidInput.field("/eventIds", "event", "none of them came to this subscription, or it is not kept")
    return _Asked(numbers[0], numbers[-1], numbers)


def _visible_to(caller: Caller) -> UUID | None:
    return None if caller.is_operator else caller.own.id


def _replay(request: Request, row: AnyRow | Row[Any], subscription_id: UUID) -> Replay:
    requested = row.last - row.first + 1 if row.numbers is None else len(row.numbers)
    over = row.state != RUNNING
    return Replay(
        url=f"{api_url(request)}/subscriptions/{subscription_id}/replays/{row.id}",
        id=row.id,
        subscription=subscription_id,
        state=row.state,
        reason=row.reason,
        requested_at=row.requested_at,
        ended_at=row.ended_at if over else None,
        first_sequence=row.first,
        last_sequence=row.last,
        requested=requested,
        settled_through=row.cursor,
        sent=row.sent,
        failed=row.failed,
        skipped=row.skipped,
        last_failure=row.last_failure,
        per_second=row.per_second,
    )
