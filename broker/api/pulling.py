"""Pulling: the numbers of a subscription in order, to fetch what was missed or instead of being sent it (promise 5).

What a provider may no longer see is a tombstone, not a gap: grants are checked again for each event (promise 6).
"""

import asyncio
import base64
import binascii
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, NamedTuple
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import Row
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.api.context import BrokerContext, broker_context_of
from broker.delivery.envelopes import Envelope
from broker.storage import evidence, pulls
from broker.storage.pulls import Portion
from broker.storage.sealing import open_body
from schemas.problems import Conflict, InvalidInput, InvalidParam, Unavailable
from schemas.resources.evidence import Tombstone, TombstoneState
from schemas.resources.pulls import Acknowledged, Acknowledgement, PullCursor, PulledEvents
from subscriptions import subscriptions
from subscriptions.callers import Scope
from subscriptions.context import Context
from subscriptions.database import AnyRow
from subscriptions.http import ByCaller, InContext, Route, operation
from subscriptions.secrets import KeyRing, SealError

MOST_EVENTS: Final = 1_000
MOST_BYTES: Final = 4 << 20
LONGEST_WAIT: Final = 30
_DEADLOCKS: Final = 5
_SERIALIZATION: Final = ("40P01", "40001")

router = APIRouter(route_class=Route, tags=["subscriptions"])

_OWN: Final = (Scope.CONSUME,)


@router.get(
    "/subscriptions/{id}/events",
    response_model=PulledEvents,
    **operation("pullEvents", "Pull events", scopes=_OWN, problems=(404,)),
)
async def pull_events(
    request: Request,
    id: UUID,
    caller: ByCaller,
    context: InContext,
    after: Annotated[
        int | None, Query(ge=0, le=2**63 - 1, description="Numbers beyond this one; by default beyond your cursor.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=MOST_EVENTS, description="Most numbers in the answer.")] = 100,
    wait: Annotated[
        int, Query(ge=0, le=LONGEST_WAIT, description="Seconds to wait for something when there is nothing yet.")
    ] = 0,
) -> Response:
    """Gives the numbers beyond `after`, in order, whatever became of their delivery.

    An answer holds up to `limit` numbers and four MiB of events, but one event at least; go on with `after` =
    `through`. Pulling alone changes nothing: acknowledge what you took over by its `cursor`. Where a number is held, or
    waits for the delay of its type, the answer ends before it, and says so in `held` or `delayedUntil`.
    """
    broker = broker_context_of(request)
    deadline = asyncio.get_running_loop().time() + wait
    while True:
        async with context.engine.connect() as connection:
            row = await subscriptions.get(connection, id, organisation_id=caller.own.id)
            start = await pulls.read_cursor(connection, row.key) if after is None else after
            head = await evidence.read_head(connection, row.key)
            await evidence.follow_indexes(connection)
            numbers = await pulls.read_log(connection, row.key, start, limit)
        if start > head[0]:
            reason = "must not be beyond the subscription's last number"
            raise InvalidInput(params=[InvalidParam(location="query", name="after", code="range", reason=reason)])
        remaining = deadline - asyncio.get_running_loop().time()
        last = remaining <= 0 or broker.arrivals.full
        if start < head[0] or numbers or last:
            await broker.view.freshen()  # after reading: what was held meanwhile is not shown
            content, through = await _answer(context, broker, row, numbers, start, head)
            if through > start or last:
                return Response(content, media_type="application/json")
        await broker.arrivals.wait(row.key, remaining)


@router.get(
    "/subscriptions/{id}/cursor",
    response_model=PullCursor,
    **operation("getCursor", "Read the cursor of a subscription", scopes=_OWN, problems=(404,)),
)
async def get_cursor(id: UUID, caller: ByCaller, context: InContext) -> PullCursor:
    """Tells up to which number you acknowledged."""
    async with context.engine.connect() as connection:
        row = await subscriptions.get(connection, id, organisation_id=caller.own.id)
        through = await pulls.read_cursor(connection, row.key)
        last, _ = await evidence.read_head(connection, row.key)
    return PullCursor(subscription=id, through=through, last_sequence=last)


@router.put(
    "/subscriptions/{id}/cursor",
    response_model=Acknowledged,
    **operation("acknowledge", "Acknowledge what was pulled", scopes=_OWN, problems=(404, 409), body=True),
)
async def acknowledge(
    request: Request, id: UUID, body: Acknowledgement, caller: ByCaller, context: InContext
) -> Acknowledged:
    """Says that you took over everything up to a pull's `through`: what of it was pending or dead is delivered.

    It is not sent any more, but for what is being sent this moment. What the pull showed as a tombstone is cancelled.
    Saying it again, or of an earlier place, does no harm. Before what is held, or waits for the delay of its type, the
    cursor stops: 409.
    """
    broker = broker_context_of(request)
    async with context.engine.connect() as connection:
        row = await subscriptions.get(connection, id, organisation_id=caller.own.id)
    through = _open_cursor(context.keys, id, body.cursor)
    ended, complete = 0, False
    while not complete:
        await broker.view.freshen()  # not within: who holds a connection and waits for another holds up all
        if broker.view.directory.holds.of_subscription(row.organisation_id, id) is not None:
            raise Conflict("The subscription is held: nothing of it can be acknowledged until that ends.")
        portion = await _acknowledge_portion(context, broker, row, through)
        if portion.kept_back is not None:
            raise Conflict(
                f"Number {portion.kept_back} is held, or waits for the delay of its type. What comes before it is "
                "acknowledged."
            )
        ended += portion.ended
        complete = portion.complete
    async with context.engine.connect() as connection:
        moved = await pulls.read_cursor(connection, row.key)
        last, _ = await evidence.read_head(connection, row.key)
    return Acknowledged(subscription=id, through=moved, last_sequence=last, ended=ended)


async def _acknowledge_portion(context: Context, broker: BrokerContext, row: AnyRow, through: int) -> Portion:
    """One portion in a transaction of its own; outcomes that are recorded at the same time may be in its way."""
    directory = broker.view.directory

    def granted(event_type: str, now: datetime) -> bool:
        return directory.granted(row.organisation_id, event_type, now) is not None

    for _ in range(_DEADLOCKS):
        try:
            async with context.engine.begin() as connection:
                await evidence.follow_indexes(connection)
                return await pulls.acknowledge_portion(
                    connection, row.key, through, granted=granted, holds=directory.holds
                )
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in _SERIALIZATION:
                raise
    raise Unavailable("What you acknowledged was being changed all the time; what is done stays done. Try again.")


async def _answer(
    context: Context,
    broker: BrokerContext,
    row: AnyRow,
    numbers: Sequence[Row[Any]],
    start: int,
    head: tuple[int, int],
) -> tuple[bytes, int]:
    """The answer, and its last number."""
    now = broker.view.clock.now()
    holds = broker.view.directory.holds
    held = holds.of_subscription(row.organisation_id, row.id)
    if held is not None:
        numbers = []
    shown: list[Row[Any]] = []
    hidden: list[_Hidden] = []
    size, through, delayed_until = 0, start, None
    for number in numbers:
        why = _hindrance(broker, row.organisation_id, number, now)
        if why is None:
            held = holds.of_source(number.source) or holds.of_type(number.type)
            delayed_until = number.delayed_until
            if held is not None or delayed_until is not None:
                break
        if why is None and shown and size + number.bytes > MOST_BYTES:
            break
        if number.sequence > through + 1:
            hidden.append(_Hidden(through + 1, number.sequence - 1, *_EXPIRED))
        if why is None:
            shown.append(number)
            size += number.bytes
        else:
            hidden.append(_Hidden(number.sequence, number.sequence, *why))
        through = number.sequence
    if not numbers and held is None and head[0] > start:  # all that there was is no longer kept
        hidden.append(_Hidden(start + 1, head[0], *_EXPIRED))
        through = head[0]
    async with context.engine.connect() as connection:
        events, gone = await _compose(connection, context.keys, row, shown)
    hidden = sorted([*hidden, *(_Hidden(sequence, sequence, *_EXPIRED) for sequence in gone)])
    members: dict[str, Any] = {
        "subscription": str(row.id),
        "lastSequence": max(head[0], through),
        "completeThrough": head[1],
        "events": orjson.Fragment(b"[" + b",".join(events) + b"]"),
        "tombstones": [stone.model_dump(mode="json") for stone in _tombstones(hidden)],
        "through": through,
        "cursor": _seal_cursor(context.keys, row.id, through),
        "delayedUntil": delayed_until,
        "held": None if held is None else {"scope": held.scope, "since": held.placed_at},
    }
    return orjson.dumps(members), through


class _Hidden(NamedTuple):
    """Adjacent numbers whose content can't be shown."""

    first: int
    last: int
    state: TombstoneState
    reason: str | None


_EXPIRED: Final = (TombstoneState.EXPIRED, "payload-expired")


def _hindrance(
    broker: BrokerContext, organisation_id: UUID, number: Row[Any], now: datetime
) -> tuple[TombstoneState, str | None] | None:
    """The state and reason of a number whose content can't be shown; None: it can."""
    if number.state == TombstoneState.CANCELLED:
        return TombstoneState.CANCELLED, number.reason
    if number.type is None:
        return _EXPIRED
    if broker.view.directory.granted(organisation_id, number.type, now) is None:
        return TombstoneState.CANCELLED, "grant-ended"
    return None


async def _compose(
    connection: AsyncConnection, keys: KeyRing, row: AnyRow, numbers: Sequence[Row[Any]]
) -> tuple[list[bytes], list[int]]:
    """The events of numbers as notifications, and the numbers whose event went away meanwhile."""
    bodies = await pulls.read_bodies(connection, [number.event_key for number in numbers])
    envelope = Envelope.of(row.id, row.subscriber_reference)
    events, gone = [], []
    for number in numbers:
        sealed = bodies.get(number.event_key)
        if sealed is None:
            gone.append(number.sequence)
        else:
            events.append(envelope.compose(open_body(keys, number.event_key, sealed), number.sequence))
    return events, gone


def _tombstones(hidden: Sequence[_Hidden]) -> list[Tombstone]:
    stones: list[Tombstone] = []
    for run in hidden:
        last = stones[-1] if stones else None
        if last is not None and (last.to + 1, last.state, last.reason) == (run.first, run.state, run.reason):
            stones[-1] = last.model_copy(update={"to": run.last})
        else:
            stones.append(Tombstone(from_=run.first, to=run.last, state=run.state, reason=run.reason))
    return stones


def _purpose(subscription_id: UUID) -> bytes:
    return b"pull cursor " + subscription_id.bytes


def _seal_cursor(keys: KeyRing, subscription_id: UUID, through: int) -> str:
    sealed = keys.seal(through.to_bytes(8, "big"), _purpose(subscription_id))
    return base64.urlsafe_b64encode(sealed).decode().rstrip("=")


def _open_cursor(keys: KeyRing, subscription_id: UUID, cursor: str) -> int:
    """The number that a cursor stands for.

    Raises:
        InvalidInput: it isn't one of this subscription's.
    """
    try:
        sealed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return int.from_bytes(keys.open(sealed, _purpose(subscription_id)), "big")
    except (binascii.Error, ValueError, SealError):
        raise InvalidInput.field("/cursor", "cursor", "must be taken from a pull of the same subscription") from None
