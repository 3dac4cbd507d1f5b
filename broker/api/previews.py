"""Previews: a filter tried on the events of the last days that the caller may see.

Counts only; of one event, the caller's own to see, also the conditions one by one. The work is bounded: rows looked at,
bodies opened, bytes and seconds, each day its share. What the type decides needs no body. Beyond the bounds the latest
events of a day stand for it, and the answer says so.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from fastapi import APIRouter, Request
from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.api.context import BrokerContext, broker_context_of
from broker.matching.explain import plan_of
from broker.matching.index import Index
from broker.matching.projection import all_attributes
from broker.storage import evidence, previews
from broker.storage.fingerprints import Fingerprints
from broker.storage.sealing import open_body
from broker.storage.tables import accepted_at, key_at
from schemas.cloudevents import Event
from schemas.filters import Condition, canonical
from schemas.filters.reading import decided_by_type
from schemas.notices import is_own
from schemas.problems import InvalidInput, TooManyRequests
from schemas.resources.evidence import Condition as Told
from schemas.resources.evidence import Explanation
from schemas.resources.previews import (
    EventReference,
    PlannedAlternative,
    Preview,
    PreviewBody,
    PreviewedDay,
    PreviewedType,
)
from subscriptions.callers import Scope
from subscriptions.directory import Directory
from subscriptions.http import ByCaller, InContext, Route, operation
from subscriptions.secrets import KeyRing

MOST_ROWS: Final = 50_000
MOST_OPENED: Final = 2_000
MOST_BYTES: Final = 16 << 20
_SECONDS: Final = 5.0
_AT_ONCE: Final = 2
_CHUNK: Final = 50
_NOTE: Final = "This filter is evaluated for every event of its type."
_NOTE_ANY: Final = "This filter is evaluated for every event that comes in: it names no type."

router = APIRouter(route_class=Route, tags=["subscription-previews"])


@dataclass(slots=True)
class Bounds:
    """What one preview may cost: each day its share, and a moment at which it ends."""

    days: int
    rows: int
    opened: int
    bytes: int
    ends_at: float

    @classmethod
    def of(cls, days: int) -> "Bounds":
        """Divide what one preview may cost over its days."""
        return cls(days, MOST_ROWS // days, MOST_OPENED // days, MOST_BYTES // days, time.monotonic() + _SECONDS)

    @property
    def over(self) -> bool:
        """Whether its time is up."""
        return time.monotonic() > self.ends_at


@router.post(
    "/subscription-previews",
    response_model=Preview,
    **operation("previewSubscription", "Try a filter", scopes=(Scope.CONSUME,), body=True),
)
async def preview_subscription(request: Request, body: PreviewBody, caller: ByCaller, context: InContext) -> Preview:
    """Tells what a subscription would have matched of the last days' events that you may see, by day and type.

    Also which of its conditions are looked up and which evaluated, and of one event why it matches or not. Nothing is
    stored or sent, and no payload shown. Each day's latest events stand for it where there are too many: `complete`.
    """
    own = caller.own
    broker = broker_context_of(request)
    state = request.app.state
    if getattr(state, "previews_under_way", 0) >= _AT_ONCE:
        raise TooManyRequests(1)
    state.previews_under_way = getattr(state, "previews_under_way", 0) + 1
    try:
        await broker.view.freshen()
        async with context.engine.connect() as connection:
            await connection.execute(text("SELECT set_config('statement_timeout', '5000', true)"))
            read = await context.filters.read(connection, body, organisation_id=own.id)
            trial = _Trial(connection, broker, context.keys, own.id, read.condition, follows=bool(read.lists))
            explained = None if body.event is None else await trial.explain(body.event)
            now = broker.view.clock.now()
            days = await trial.days(now, Bounds.of(body.days))
    finally:
        state.previews_under_way -= 1
    return Preview(
        since=datetime(now.year, now.month, now.day, tzinfo=UTC) - timedelta(days=body.days - 1),
        until=now,
        complete=all(day.complete for day in days),
        examined=sum(day.examined for day in days),
        matched=sum(day.matched for day in days),
        days=days,
        types=[
            PreviewedType(type=kind, examined=count, matched=trial.matched[kind])
            for kind, count in sorted(trial.examined.items(), key=lambda item: (-trial.matched[item[0]], item[0]))
        ],
        alternatives=_planned(read.condition),
        event=explained,
    )


def _planned(condition: Condition) -> list[PlannedAlternative]:
    return [
        PlannedAlternative(
            looked_up=list(each.looked_up),
            evaluated=list(each.evaluated),
            evaluated_always=each.evaluated_always,
            note=None if not each.evaluated_always else _NOTE if each.has_type else _NOTE_ANY,
        )
        for each in plan_of(condition)
    ]


class _Trial:
    """One condition, tried on events that one provider may see."""

    def __init__(
        self,
        connection: AsyncConnection,
        broker: BrokerContext,
        keys: KeyRing,
        provider_id: UUID,
        condition: Condition,
        *,
        follows: bool,
    ) -> None:
        self._connection = connection
        self._directory: Directory = broker.view.directory
        self._fingerprints: Fingerprints = broker.fingerprints
        self._keys = keys
        self._provider_id = provider_id
        self._condition = condition
        self._follows = follows
        self._followed: Mapping[str, tuple[str, ...]] = {}
        self._index = Index(lambda value: self._followed.get(value, ()))
        self._index.put(0, condition)
        self._now = broker.view.clock.now()
        self.examined: Counter[str] = Counter()
        self.matched: Counter[str] = Counter()

    async def days(self, now: datetime, bounds: Bounds) -> list[PreviewedDay]:
        """Try the events of today and the days before it, latest first."""
        today = now.date()
        return [await self._day(today - timedelta(days=back), bounds) for back in range(bounds.days)]

    async def explain(self, wanted: EventReference) -> Explanation:
        """Why an event matches or not.

        Raises:
            InvalidInput: the caller was not sent it, and may not be.
        """
        for row in await evidence.find_events(self._connection, wanted.id, wanted.source):
            sent = await evidence.read_deliveries(self._connection, row.key, self._provider_id)
            if self._may_see(row, sent=bool(sent)):
                (event,) = await self._open([(row.key, row.body)])
                explained = self._index.explain(0, event)
                return Explanation(
                    matches=explained.matched,
                    alternatives=[
                        [Told(text=check.text, holds=check.holds) for check in alternative.checks]
                        for alternative in explained.alternatives
                    ],
                )
        raise InvalidInput.field("/event", "event", "must be an event that you were or may be sent")

    async def _day(self, day: date, bounds: Bounds) -> PreviewedDay:
        start = datetime(day.year, day.month, day.day, tzinfo=UTC)
        low, high = key_at(start), key_at(start + timedelta(days=1))
        if bounds.over:
            return PreviewedDay(date=day, examined=0, matched=0, complete=False)
        rows = await previews.latest(self._connection, low, high, bounds.rows + 1)
        complete = len(rows) <= bounds.rows
        counted: list[tuple[str, bool]] = []
        waiting: list[Row[Any]] = []
        size = 0
        for row in rows[: bounds.rows]:
            if not self._may_see(row):
                continue
            decided = decided_by_type(self._condition, row.type)
            if decided is not None:
                counted.append((row.type, decided))
                continue
            size += row.bytes
            if len(waiting) >= bounds.opened or size > bounds.bytes:
                complete = False  # what is older is left out, whatever decides it, so that the sample is the latest
                break
            waiting.append(row)
        for start_at in range(0, len(waiting), _CHUNK):
            if bounds.over:
                complete = False
                break
            chunk = waiting[start_at : start_at + _CHUNK]
            counted += await self._try(chunk)
            await asyncio.sleep(0)  # others' requests come in between
        matched = [kind for kind, matches in counted if matches]
        self.examined.update(kind for kind, _ in counted)
        self.matched.update(matched)
        return PreviewedDay(date=day, examined=len(counted), matched=len(matched), complete=complete)

    async def _try(self, rows: Sequence[Row[Any]]) -> list[tuple[str, bool]]:
        found = await previews.bodies(self._connection, [row.key for row in rows])
        events = await self._open([(row.key, row.body) for row in found])
        return [(event.type, bool(self._index.match(event))) for event in events]

    async def _open(self, sealed: Sequence[tuple[int, bytes]]) -> list[Event]:
        bodies = [open_body(self._keys, key, body) for key, body in sealed]
        events = [Event(all_attributes(body), body) for body in bodies]
        if self._follows:
            self._followed = await self._lists_of(events)
        return events

    async def _lists_of(self, events: Sequence[Event]) -> Mapping[str, tuple[str, ...]]:
        texts = {canonical(value) for event in events for value in event.attributes.values()}
        digests = {self._fingerprints.subject(value): value for value in texts}
        lists: dict[str, tuple[str, ...]] = {}
        for list_id, digest in await evidence.read_followed(self._connection, self._provider_id, list(digests)):
            value = digests[digest]
            lists[value] = (*lists.get(value, ()), str(list_id))
        return lists

    def _may_see(self, row: Row[Any], *, sent: bool = False) -> bool:
        """Whether an event may be seen now, and might be when it was accepted (or was `sent` then)."""
        if is_own(row.type):
            mine: bool = row.organisation_id == self._provider_id
            return mine
        if self._directory.granted(self._provider_id, row.type, self._now) is None:
            return False
        return sent or self._directory.granted_then(self._provider_id, row.type, accepted_at(row.key))
