"""Filling run queues from the database: when told, when a queue runs low, and regularly without being told.

Reads are bounded and batched: some subscriptions at once, each from its cursor on, up to its window. What a read costs
doesn't depend on how much more is waiting (promise 7).
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol

import asyncpg

from broker.delivery.lanes import LANE_WINDOW, Delivery
from broker.delivery.runners import Office, Runner, Runners
from broker.delivery.settings import DeliverySettings
from broker.storage import corrections, records
from broker.storage.pool import DATABASE_TROUBLE
from broker.storage.records import OutcomeRow, PendingRow
from broker.storage.tables import PENDING, accepted_at
from broker.telemetry import OLDEST_PENDING, WORKER_ERRORS, log

_FEED_AT_ONCE: Final = 64
_HEADS_AT_ONCE: Final = 10_000
_UNSETTLED_SECONDS: Final = 0.02
_TROUBLE_SECONDS: Final = 0.2
_TOO_EARLY_SECONDS: Final = 1.0
"""Within about this a process hears of a clock that was set."""


class Ownership(Protocol):
    """What delivery asks of the leases."""

    def holds(self, number: int) -> bool:
        """Whether the shard is surely ours now."""

    def epoch(self, number: int) -> int:
        """The epoch under which we own it."""


def _bring_up_to_date(delivery: Delivery, outcome: OutcomeRow) -> bool:
    """Make of a delivery what will have been recorded of it; whether it is pending."""
    delivery.attempts, delivery.delayed = outcome.attempts, False
    delivery.due = 0.0 if outcome.next_attempt_at is None else outcome.next_attempt_at.timestamp()
    return outcome.state == PENDING


class Feeder:
    """Fills the queues of `runners`; calls `look` for each that it looked at, and then `serve` once."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        settings: DeliverySettings,
        ownership: Ownership,
        runners: Runners,
        look: Callable[[Runner], None],
        serve: Callable[[], None],
        read_ahead: Callable[[Iterable[int]], None],
        office: Office,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._ownership = ownership
        self._runners = runners
        self._look = look
        self._serve = serve
        self._read_ahead = read_ahead
        self._office = office
        self._clock = clock
        self._hungry: dict[int, None] = {}
        self._asked = asyncio.Event()

    def wake(self, subscriptions: Iterable[int]) -> None:
        """There may be something new for these; those of other processes, and of which nothing goes, are ignored."""
        for key in subscriptions:
            if self._ownership.holds(self._runners.shard_of(key)) and not self._office.kept_back(key):
                runner = self._runners.get(key)
                if runner is not None:
                    runner.queue.more = True
                self._hungry[key] = None
        self._asked.set()

    def want(self, runner: Runner) -> None:
        """The queue runs low: read on."""
        self._hungry[runner.key] = None
        self._asked.set()

    async def run(self) -> None:
        """Fill queues until cancelled."""
        while True:
            await self._asked.wait()
            keys = [key for key, _ in zip(list(self._hungry), range(_FEED_AT_ONCE), strict=False)]
            for key in keys:
                del self._hungry[key]
            if not self._hungry:
                self._asked.clear()
            try:
                await self._feed([key for key in keys if self._ownership.holds(self._runners.shard_of(key))])
            except DATABASE_TROUBLE as error:
                WORKER_ERRORS.labels("feed").inc()
                log().warning("feed-failed", error=type(error).__name__)
                self._hungry.update(dict.fromkeys(keys))
                self._asked.set()
                await asyncio.sleep(_TROUBLE_SECONDS)

    async def sweep(self) -> None:
        """Find what is pending though nobody told, and how old the oldest is, until cancelled."""
        while True:
            try:
                await self.sweep_once()
            except DATABASE_TROUBLE as error:
                WORKER_ERRORS.labels("sweep").inc()
                log().warning("sweep-failed", error=type(error).__name__)
            await asyncio.sleep(self._settings.sweep_seconds)

    async def sweep_once(self) -> None:
        """Wake every subscription of ours that has something to send; forget those that have nothing or are stuck."""
        after, oldest, found, of = 0, None, list[int](), self._settings.shards
        shards = [number for number in range(of) if self._ownership.holds(number)]
        while True:
            async with self._pool.acquire() as connection:
                heads = await records.pending_heads(connection, after, _HEADS_AT_ONCE, shards, of)
            for key, event_key in heads:
                if self._ownership.holds(self._runners.shard_of(key)) and not self._office.pulled(key):
                    if self._office.sends(key):
                        found.append(key)
                    oldest = event_key if oldest is None else min(oldest, event_key)
            if len(heads) < _HEADS_AT_ONCE:
                break
            after = heads[-1][0]
        age = 0.0 if oldest is None else max(self._clock() - accepted_at(oldest).timestamp(), 0.0)
        OLDEST_PENDING.set(age)
        for runner in self._runners.drop_stuck():
            log().error("lanes-stood-still", subscription=str(runner.sink.config.id), cursor=runner.queue.cursor)
        self.wake(found)
        self._runners.drop_idle(but=self._hungry)

    async def _feed(self, keys: list[int]) -> None:
        new = [key for key in keys if self._runners.get(key) is None]
        # what a former runner has unsettled still looks pending: opening now would send it twice
        unsettled = [key for key in new if self._runners.unsettled(key)]
        if unsettled:
            asyncio.get_running_loop().call_later(_UNSETTLED_SECONDS, self.wake, unsettled)
        with self._runners.feeding(keys):
            if opening := [key for key in new if key not in unsettled]:
                await self._runners.open(opening)
            runners = [runner for runner in map(self._runners.get, keys) if runner is not None]
            for runner in runners:
                await self._feed_lanes(runner)
            await self._take_delayed([runner for runner in runners if runner.queue.wants_taking])
            await self._feed_windows([r for r in runners if r.queue.more and self._runners.has_room(r)])
        for runner in runners:
            self._look(runner)
        self._serve()

    async def _feed_windows(self, wanting: list[Runner]) -> None:
        by_window: dict[int, list[Runner]] = {}
        for runner in wanting:
            by_window.setdefault(self._runners.window(runner), []).append(runner)
        for limit, those in by_window.items():
            await self._feed_up_to(limit, those)

    async def _feed_up_to(self, limit: int, wanting: list[Runner]) -> None:
        cursors = [(runner.key, runner.queue.cursor) for runner in wanting]
        for runner in wanting:
            runner.queue.more = False  # a wake-up during the query asks again
        try:
            async with self._pool.acquire() as connection:
                rows = await records.pending_after(connection, cursors, limit)
                held = await self._held(connection, rows)
        except DATABASE_TROUBLE:
            for runner in wanting:
                runner.queue.more = True
            raise
        offered: dict[int, list[Delivery]] = {runner.key: [] for runner in wanting}
        for row in rows:
            offered[row[0]].append(_delivery(row, held))
        # what waits for its time is read in its time
        self._read_ahead({row[2] for row in rows if not row[5] and row[2] not in held})
        now = self._clock()
        for runner in wanting:
            runner.queue.behind = len(offered[runner.key]) == limit
            if runner.queue.behind:
                runner.queue.more = True
            runner.queue.offer(offered[runner.key], now)

    async def _held(self, connection: asyncpg.Connection, rows: Sequence[PendingRow]) -> dict[int, bool]:
        """Which events of rows are held; what they are is read only where something is."""
        if not rows or not self._office.holds_events:
            return {}
        return self._office.held_events(await records.described(connection, list({row[2] for row in rows})))

    async def _take_delayed(self, runners: list[Runner]) -> None:
        """Take what has waited for its delay; what a correction cancelled meanwhile is not there any more."""
        if not runners:
            return
        asked = [(runner, runner.queue.delayed_to_take()) for runner in runners]
        wanted = [(d.subscription, d.sequence, d.event_key) for _, deliveries in asked for d in deliveries]
        try:
            async with self._pool.acquire() as connection:
                found = await corrections.take(connection, wanted)
        except DATABASE_TROUBLE:
            for runner, deliveries in asked:
                runner.queue.take_again(deliveries)
            raise
        now = self._clock()
        for runner, deliveries in asked:
            for delivery in deliveries:
                answer = found[delivery.subscription, delivery.sequence]
                if answer.taken:
                    runner.queue.taken(delivery)
                elif answer.due is None:
                    runner.queue.not_taken(delivery, None, now)
                else:
                    # Our idea of PostgreSQL's clock is ahead of it, for how long is not known: so not by that clock.
                    wait = min(max(answer.early, _UNSETTLED_SECONDS), _TOO_EARLY_SECONDS)
                    asyncio.get_running_loop().call_later(wait, self._was_too_early, runner, delivery, answer.due)

    def _was_too_early(self, runner: Runner, delivery: Delivery, due: float) -> None:
        runner.queue.not_taken(delivery, due, self._clock())
        self._look(runner)
        self._serve()

    async def _feed_lanes(self, runner: Runner) -> None:
        asked = runner.queue.lanes_to_fetch()
        if not asked:
            return
        key, cursor, window = runner.key, runner.queue.cursor, self._of_each_lane(runner, len(asked))
        # of a batch that failed all but the first wait in the database, which may not know yet that it failed
        unrecorded = {} if runner.sink.config.batch is None else self._runners.unrecorded(runner)
        try:
            async with self._pool.acquire() as connection:
                rows = await records.pending_of_lanes(
                    connection, [(key, lane, after, cursor) for lane, after in asked], window
                )
                held = await self._held(connection, rows)
        except DATABASE_TROUBLE:
            runner.queue.ask_again(asked)  # else these lanes would stand still for ever
            raise
        found: dict[int, list[Delivery]] = {lane: [] for lane, _ in asked}
        read = Counter[int]()
        for row in rows:
            if row[3] is not None:
                read[row[3]] += 1
                delivery = _delivery(row, held)
                if delivery.sequence in unrecorded and not _bring_up_to_date(delivery, unrecorded[delivery.sequence]):
                    continue
                found[row[3]].append(delivery)
        now = self._clock()
        for lane, after in asked:
            complete = read[lane] < window
            runner.queue.offer_lane(lane, found[lane], after=after, complete=complete, now=now)

    def _of_each_lane(self, runner: Runner, lanes: int) -> int:
        """How many of each of so many lanes are read: what there is room for, so that memory knows no backlog."""
        room = self._runners.window(runner) - runner.queue.buffered
        return max(min(runner.queue.lane_window, room // lanes), LANE_WINDOW)


def _delivery(row: PendingRow, held: Mapping[int, bool]) -> Delivery:
    delivery = Delivery(*row)
    delivery.delayed = delivery.due > 0 and not delivery.attempts
    by_source = held.get(delivery.event_key)
    if by_source is not None:
        delivery.held = True
        if by_source and delivery.lane:  # all of its lane has this source, so the lane need not be remembered
            delivery.lane = None
    return delivery
