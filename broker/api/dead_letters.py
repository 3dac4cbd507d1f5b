"""Dead letters: deliveries that were given up, kept until their provider or the operator decides about them.

| who | sees | decides |
|---|---|---|
| a provider | its own, with attempts and the first bytes of its sink's answers | its own |
| the operator | all, with attempts, without what sinks answered | all |
"""

import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Request
from sqlalchemy import Row, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.api.context import broker_context_of
from broker.delivery.sender import delivery_id
from broker.ingest.view import View
from broker.storage import dead_letters
from broker.storage.dead_letters import DISCARDED, Portion, Selection
from broker.storage.sealing import excerpt_purpose
from broker.storage.tables import DEAD, accepted_at
from schemas.problems import Conflict, InvalidInput, NotFound, Unavailable
from schemas.resources.dead_letters import (
    DeadLetterDetail,
    DeadLetterDiscard,
    DeadLetterDiscards,
    DeadLettersDiscarded,
    DeadLetterSelection,
    DeadLettersRetried,
)
from schemas.resources.evidence import FailedAttempt
from schemas.resources.outcomes import DeadLetter, DeadLetterPage
from subscriptions.callers import Caller, Scope
from subscriptions.change_log import read_head
from subscriptions.context import Context
from subscriptions.database import AnyRow
from subscriptions.http import ByCaller, InContext, Route, operation
from subscriptions.paging import Paging
from subscriptions.secrets import KeyRing
from subscriptions.tables import Status, subscriptions

router = APIRouter(route_class=Route, tags=["dead-letters"])

MOST_AT_ONCE: Final = 10_000
_ID: Final = re.compile(r"dlv_([0-9a-f]{32})_([1-9][0-9]{0,18})")
_BOTH: Final = (Scope.CONSUME, Scope.OPERATE)
_TRIES: Final = 5
_SERIALIZATION: Final = ("40P01", "40001")

Id = Annotated[str, Path(description="`id` of the dead letter.", max_length=60)]


@router.get(
    "/dead-letters",
    response_model=DeadLetterPage,
    **operation("listDeadLetters", "List dead letters", scopes=_BOTH, problems=(404,)),
)
async def list_dead_letters(
    caller: ByCaller,
    context: InContext,
    paging: Annotated[Paging, Depends()],
    subscription: Annotated[UUID | None, Query(description="Those of this subscription only.")] = None,
) -> DeadLetterPage:
    """List deliveries that were given up, by subscription and number: your own, or, for the operator, all of them."""
    organisation_id = _visible_to(caller)
    async with context.engine.connect() as connection:
        if subscription is not None:
            await _subscription(connection, subscription, organisation_id)
        statement = dead_letters.of(organisation_id, subscription)
        page = await paging.read(connection, statement, dead_letters.ORDER)
    return DeadLetterPage(
        count=page.count,
        next=page.next,
        previous=page.previous,
        results=[DeadLetter(**_members(row)) for row in page.rows],
    )


@router.get(
    "/dead-letters/{id}",
    response_model=DeadLetterDetail,
    **operation("getDeadLetter", "Read a dead letter", scopes=_BOTH, problems=(404,)),
)
async def get_dead_letter(id: Id, caller: ByCaller, context: InContext) -> DeadLetterDetail:
    """Reads a dead letter with its attempts; what your sink answered is shown to you, not to the operator.

    Once it is decided about it is no longer here: a trace of its event tells what became of it.
    """
    subscription_id, sequence = _parsed(id)
    async with context.engine.connect() as connection:
        row = await dead_letters.find(connection, subscription_id, sequence, _visible_to(caller))
        if row is None:
            raise NotFound
        attempts = await dead_letters.read_attempts(connection, row.subscription, sequence)
    keys = None if caller.is_operator else context.keys
    failed = [_attempt(attempt, subscription_id, keys) for attempt in attempts]
    return DeadLetterDetail(**_members(row), failed_attempts=failed)


@router.post(
    "/dead-letters/{id}/retries",
    response_model=DeadLettersRetried,
    **operation("retryDeadLetter", "Retry a dead letter", scopes=_BOTH, problems=(404, 409)),
)
async def retry_dead_letter(request: Request, id: Id, caller: ByCaller, context: InContext) -> DeadLettersRetried:
    """Makes a dead letter pending again, under its number and id; it has all attempts before it anew.

    It is sent late: recognise it by its lower number. What no grant covers any more is cancelled instead.
    """
    subscription_id, sequence = _parsed(id)
    row = await _one(context, caller, subscription_id, sequence)
    done = await _retry(request, context, row, Selection(sequences=[sequence]))
    if done.retried + done.cancelled == 0:
        raise Conflict(_NOT_DEAD)
    return done


@router.post(
    "/dead-letters/{id}/discards",
    response_model=DeadLettersDiscarded,
    **operation("discardDeadLetter", "Discard a dead letter", scopes=_BOTH, problems=(404, 409), body=True),
)
async def discard_dead_letter(
    id: Id, body: DeadLetterDiscard, caller: ByCaller, context: InContext
) -> DeadLettersDiscarded:
    """Gives a dead letter up for good: it is cancelled, and its reason is `discarded: ` and yours."""
    subscription_id, sequence = _parsed(id)
    row = await _one(context, caller, subscription_id, sequence)
    done = await _discard(context, row, Selection(sequences=[sequence]), body.reason)
    if done.discarded == 0:
        raise Conflict(_NOT_DEAD)
    return done


@router.post(
    "/subscriptions/{id}/dead-letters/retries",
    response_model=DeadLettersRetried,
    **operation("retryDeadLetters", "Retry dead letters", scopes=_BOTH, problems=(404, 409), body=True),
)
async def retry_dead_letters(
    request: Request, id: UUID, body: DeadLetterSelection, caller: ByCaller, context: InContext
) -> DeadLettersRetried:
    """Makes the dead letters of a subscription pending again: those of some numbers, reason or time, or all.

    They are sent in order of number, beside what is new. An answer does 10,000 at most.
    """
    selection = _selection(body)
    async with context.engine.connect() as connection:
        row = await _subscription(connection, id, _visible_to(caller))
    return await _retry(request, context, row, selection)


@router.post(
    "/subscriptions/{id}/dead-letters/discards",
    response_model=DeadLettersDiscarded,
    **operation("discardDeadLetters", "Discard dead letters", scopes=_BOTH, problems=(404,), body=True),
)
async def discard_dead_letters(
    id: UUID, body: DeadLetterDiscards, caller: ByCaller, context: InContext
) -> DeadLettersDiscarded:
    """Gives the dead letters of a subscription up for good: those of some numbers, reason or time, or all.

    Each is cancelled; its reason is `discarded: ` and yours. An answer does 10,000 at most.
    """
    selection = _selection(body)
    async with context.engine.connect() as connection:
        row = await _subscription(connection, id, _visible_to(caller))
    return await _discard(context, row, selection, body.because)


class _Behind(Exception):
    """The view isn't at the head of the change log, which stands still for this transaction."""


_NOT_DEAD: Final = "This delivery is no dead letter now."
_ENDED: Final = "The subscription has ended: nothing is sent to it any more."


async def _retry(request: Request, context: Context, row: AnyRow, selection: Selection) -> DeadLettersRetried:
    if row.status == Status.ENDED:
        raise Conflict(_ENDED)
    view = broker_context_of(request).view
    retried = cancelled = 0

    async def decide(connection: AsyncConnection, portion: Portion) -> None:
        nonlocal retried, cancelled
        head = await read_head(connection)
        if view.version < head:
            raise _Behind
        if await dead_letters.has_ended(connection, row.key):  # since it was read: nobody would end these any more
            raise Conflict(_ENDED)
        types = {each.type for each in portion.rows if each.type is not None}
        grants = {kind: view.directory.granted(row.organisation_id, kind, portion.chosen_at) for kind in types}
        again, ended = await dead_letters.retry(connection, row.key, portion, grants)
        retried, cancelled = retried + again, cancelled + ended

    more = await _decide(context, row.key, selection, decide, view)
    return DeadLettersRetried(subscription=row.id, retried=retried, cancelled=cancelled, more=more)


async def _discard(context: Context, row: AnyRow, selection: Selection, reason: str) -> DeadLettersDiscarded:
    discarded = 0

    async def decide(connection: AsyncConnection, portion: Portion) -> None:
        nonlocal discarded
        discarded += await dead_letters.discard(connection, row.key, portion, f"{DISCARDED}: {reason}")

    more = await _decide(context, row.key, selection, decide)
    return DeadLettersDiscarded(subscription=row.id, discarded=discarded, more=more)


async def _decide(
    context: Context,
    key: int,
    selection: Selection,
    decide: Callable[[AsyncConnection, Portion], Awaitable[None]],
    view: View | None = None,
) -> bool:
    """Decide about what is selected, portion by portion, each in a transaction; whether there may be more."""
    after = done = 0
    while done < MOST_AT_ONCE:
        portion = await _decide_portion(context, key, selection, after, decide, view)
        if portion.complete:
            return False
        done += len(portion.rows)
        after = portion.last
    return True


async def _decide_portion(
    context: Context,
    key: int,
    selection: Selection,
    after: int,
    decide: Callable[[AsyncConnection, Portion], Awaitable[None]],
    view: View | None,
) -> Portion:
    for _ in range(_TRIES):
        if view is not None:
            await view.freshen()  # not within: who holds a connection and waits for another holds up all
        try:
            async with context.engine.begin() as connection:
                await dead_letters.keep_changes_out(connection)
                portion = await dead_letters.choose(connection, key, selection, after=after)
                if portion.rows:
                    await decide(connection, portion)
                return portion
        except _Behind:
            pass  # something was changed in between
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) not in _SERIALIZATION:
                raise
    raise Unavailable("These dead letters were being changed all the time; what is done stays done. Try again.")


async def _subscription(connection: AsyncConnection, id: UUID, organisation_id: UUID | None) -> AnyRow:
    """A subscription that may have ended: its dead letters outlive it.

    Raises:
        NotFound: there is none, or it is another's.
    """
    statement = select(subscriptions).where(subscriptions.c.id == id)
    if organisation_id is not None:
        statement = statement.where(subscriptions.c.organisation_id == organisation_id)
    row: AnyRow | None = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise NotFound
    return row


async def _one(context: Context, caller: Caller, subscription_id: UUID, sequence: int) -> AnyRow:
    """The subscription of a dead letter.

    Raises:
        NotFound: there is no such delivery, or it is another's.
        Conflict: it is no dead letter.
    """
    async with context.engine.connect() as connection:
        row = await _subscription(connection, subscription_id, _visible_to(caller))
        state = await dead_letters.state_of(connection, subscription_id, sequence, _visible_to(caller))
    if state is None:
        raise NotFound
    if state != DEAD:
        raise Conflict(_NOT_DEAD)
    return row


def _selection(body: DeadLetterSelection) -> Selection:
    if body.ended_from is not None and body.ended_until is not None and body.ended_until <= body.ended_from:
        raise InvalidInput.field("/endedUntil", "range", "must be later than endedFrom")
    return Selection(body.numbers, body.reason, body.ended_from, body.ended_until)


def _visible_to(caller: Caller) -> UUID | None:
    return None if caller.is_operator else caller.own.id


def _parsed(id: str) -> tuple[UUID, int]:
    """The subscription and the number that an id names.

    Raises:
        NotFound: it names none.
    """
    found = _ID.fullmatch(id)
    if found is None or int(found[2]) >= 2**63:
        raise NotFound
    return UUID(found[1]), int(found[2])


def _members(row: Row[Any]) -> dict[str, Any]:
    return {
        "id": delivery_id(row.subscription_id, row.sequence),
        "subscription": row.subscription_id,
        "subscription_sequence": row.sequence,
        "source": row.source,
        "event_id": row.event_id,
        "type": row.type,
        "accepted_at": accepted_at(row.event_key),
        "ended_at": row.ended_at,
        "attempts": row.attempts,
        "status": row.status,
        "reason": row.reason,
    }


def _attempt(row: Row[Any], subscription_id: UUID, keys: KeyRing | None) -> FailedAttempt:
    """A failed attempt; with `keys` also what the sink answered."""
    said: dict[str, Any] = {}
    if keys is not None and row.excerpt is not None:
        said["excerpt"] = keys.open(row.excerpt, excerpt_purpose(subscription_id)).decode(errors="replace")
    return FailedAttempt(
        attempt=row.attempt,
        started_at=row.started_at,
        milliseconds=row.milliseconds,
        status=row.status,
        reason=row.reason,
        **said,
    )
