"""The delivery engine of one process: pending deliveries become attempts, attempts become recorded outcomes.

    woken / swept ──► feed (read beyond each cursor) ──► run queues ──► pump ──► attempt ──► recorder
                          ▲                                  │  ▲                   │
                          └────────── wants more ────────────┘  └── done / retry ───┘

Every subscription has a runner with its own run queue and its own limit of attempts under way, so a sink that is slow,
dead or hostile costs nobody else anything (promise 7). A subscription belongs to the shard `key % shards`; attempts are
made only while the shard's lease is surely ours, and outcomes count only under its epoch.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Final, Protocol
from uuid import UUID

import asyncpg
from sqlalchemy.exc import SQLAlchemyError

from broker.delivery.bodies import Bodies, Body
from broker.delivery.lanes import LANE_WINDOW, Delivery, RunQueue
from broker.delivery.outcomes import GONE, Outcome, Reason, Verdict, conclude
from broker.delivery.pace import BreakerState, Pace
from broker.delivery.recorder import Recorder
from broker.delivery.sender import Sender, Sink
from broker.delivery.settings import DeliverySettings
from broker.storage import records
from broker.storage.records import AttemptRow, OutcomeRow
from broker.storage.tables import CANCELLED, DELIVERED, PENDING, accepted_at
from broker.telemetry import (
    ATTEMPT_SECONDS,
    ATTEMPTS,
    BREAKERS_OPEN,
    DELIVERIES,
    IN_FLIGHT,
    LATENCY,
    OLDEST_PENDING,
    WORKER_ERRORS,
    log,
)
from subscriptions.sinks import SinkConfig
from subscriptions.tables import Status

DATABASE_TROUBLE: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, SQLAlchemyError, OSError, TimeoutError)
_FEED_AT_ONCE: Final = 64
_HEADS_AT_ONCE: Final = 10_000
_TIMED_MAX: Final = 10_000
"""Lanes of one sink that wait for a retry in memory; above it nothing new is read for the sink."""


class Ownership(Protocol):
    """What the engine asks of the leases."""

    def holds(self, number: int) -> bool:
        """Whether the shard is surely ours now."""

    def epoch(self, number: int) -> int:
        """The epoch under which we own it."""


class Office(Protocol):
    """What the engine asks of the subscriptions and grants."""

    async def load_sinks(self, keys: list[int]) -> list[SinkConfig]:
        """The sinks of these subscriptions."""

    def granted(self, organisation_id: UUID, event_type: str, now: datetime) -> UUID | None:
        """The grant on which this may be sent now, if any."""

    def seal_excerpt(self, subscription_id: UUID, excerpt: bytes) -> bytes:
        """Seal the first bytes of an answer, which only the provider may read."""

    async def sink_is_gone(self, subscription_id: UUID) -> None:
        """Disable the subscription: its sink answered 410."""


_attempts = cache(ATTEMPTS.labels)
_deliveries = cache(DELIVERIES.labels)


@dataclass(slots=True)
class _Runner:
    """A subscription that has, or may have, something to send."""

    sink: Sink
    shard: int
    queue: RunQueue = field(default_factory=RunQueue)
    pace: Pace = field(kw_only=True)
    in_flight: int = 0
    timer: asyncio.TimerHandle | None = None
    stopped: bool = False

    def stop(self) -> None:
        self.stopped = True
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Engine:
    """Sends what is pending in the shards that this process owns."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        settings: DeliverySettings,
        ownership: Ownership,
        office: Office,
        sender: Sender,
        bodies: Bodies,
        recorder: Recorder,
        *,
        jitter: Callable[[], float] = lambda: random.uniform(-1, 1),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._ownership = ownership
        self._office = office
        self._sender = sender
        self._bodies = bodies
        self._recorder = recorder
        self._jitter = jitter
        self._clock = clock
        self._runners: dict[int, _Runner] = {}
        self._hungry: dict[int, None] = {}
        self._opening: set[int] = set()
        self._fed = asyncio.Event()
        self._attempts: set[asyncio.Task[None]] = set()
        self._under_way: Counter[int] = Counter()
        self._paces: dict[int, tuple[str, Pace]] = {}
        self._accepting = True
        self._throttled = False

    # what others tell the engine

    def wake(self, subscriptions: Iterable[int]) -> None:
        """There may be something new for these; those of other processes are ignored."""
        for key in subscriptions:
            if self._ownership.holds(self._shard(key)):
                runner = self._runners.get(key)
                if runner is not None:
                    runner.queue.more = True
                self._hungry[key] = None
        self._fed.set()

    def changed(self, subscription: int) -> None:
        """The subscription was changed: what is in memory of it is read anew."""
        self._opening.discard(subscription)
        self._drop(subscription)
        self.wake([subscription])

    def forget(self) -> None:
        """Anything may have changed: all that is in memory is read anew."""
        known = [*self._runners, *self._opening]
        self._opening.clear()
        for key in known:
            self._drop(key)
        self.wake(known)

    async def released(self, shards: Iterable[int]) -> None:
        """These shards are no longer ours: stop sending for them and let attempts under way be recorded."""
        gone = set(shards)
        for key in [key for key, runner in self._runners.items() if runner.shard in gone]:
            self._drop(key)
        patience = self._settings.lease_seconds / 4
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=patience)
        try:
            async with asyncio.timeout(patience):
                await self._recorder.drained()
        except TimeoutError:
            log().warning("shards-released-early", unrecorded=self._recorder.unrecorded)

    async def stop(self) -> None:
        """Make no new attempts; wait for those under way, up to the grace; the rest is made again elsewhere."""
        self._accepting = False
        for key in list(self._runners):
            self._drop(key)
        if self._attempts:
            _, late = await asyncio.wait(self._attempts, timeout=self._settings.grace_seconds)
            for task in late:
                task.cancel()

    # workers

    async def feed(self) -> None:
        """Fill run queues from the database until cancelled; the worker that `wake` wakes."""
        while True:
            await self._fed.wait()
            keys = [key for key, _ in zip(list(self._hungry), range(_FEED_AT_ONCE), strict=False)]
            for key in keys:
                del self._hungry[key]
            if not self._hungry:
                self._fed.clear()
            try:
                await self._feed([key for key in keys if self._ownership.holds(self._shard(key))])
            except DATABASE_TROUBLE as error:
                WORKER_ERRORS.labels("feed").inc()
                log().warning("feed-failed", error=type(error).__name__)
                self._hungry.update(dict.fromkeys(keys))
                self._fed.set()
                await asyncio.sleep(0.2)

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
        """Wake every subscription of ours that has something pending; forget runners that have nothing."""
        after, oldest, found = 0, None, list[int]()
        while True:
            async with self._pool.acquire() as connection:
                heads = await records.pending_heads(connection, after, _HEADS_AT_ONCE)
            for key, event_key in heads:
                if self._ownership.holds(self._shard(key)):
                    found.append(key)
                    oldest = event_key if oldest is None else min(oldest, event_key)
            if len(heads) < _HEADS_AT_ONCE:
                break
            after = heads[-1][0]
        age = 0.0 if oldest is None else max(self._clock() - accepted_at(oldest).timestamp(), 0.0)
        OLDEST_PENDING.set(age)
        self.wake(found)
        for key in [key for key, runner in self._runners.items() if runner.queue.idle and not runner.in_flight]:
            if key not in self._hungry:
                self._drop(key)
                self._forget_pace(key)

    # feeding

    async def _feed(self, keys: list[int]) -> None:
        await self._open([key for key in keys if key not in self._runners])
        runners = {key: self._runners[key] for key in keys if key in self._runners}
        for runner in runners.values():
            await self._feed_lanes(runner)
        wanting = {key: runner for key, runner in runners.items() if runner.queue.more and self._has_room(runner)}
        if wanting:
            limit = self._settings.window
            cursors = [(key, runner.queue.cursor) for key, runner in wanting.items()]
            for runner in wanting.values():
                runner.queue.more = False  # a wake-up during the query asks again
            try:
                async with self._pool.acquire() as connection:
                    rows = await records.pending_after(connection, cursors, limit)
            except DATABASE_TROUBLE:
                for runner in wanting.values():
                    runner.queue.more = True
                raise
            offered: dict[int, list[Delivery]] = {key: [] for key in wanting}
            for row in rows:
                offered[row[0]].append(Delivery(*row))
            now = self._clock()
            for key, runner in wanting.items():
                if len(offered[key]) == limit:
                    runner.queue.more = True
                runner.queue.offer(offered[key], now)
        for runner in runners.values():
            self._pump(runner)

    async def _open(self, keys: list[int]) -> None:
        # what a former runner has under way or unrecorded still looks pending: opening now would send it twice
        unsettled = [key for key in keys if self._under_way[key] or self._recorder.holds(key)]
        if unsettled:
            asyncio.get_running_loop().call_later(0.02, self.wake, unsettled)
        keys = [key for key in keys if key not in unsettled]
        if not keys:
            return
        self._opening = set(keys)
        for config in await self._office.load_sinks(keys):
            if config.key not in self._opening:
                continue  # changed while it was read: what was read may be from before
            if config.status is Status.ACTIVE and config.key not in self._runners and self._accepting:
                try:
                    sink = Sink.of(config)
                except ValueError:
                    log().error("sink-unusable", subscription=str(config.id))
                    continue
                self._runners[config.key] = _Runner(sink, self._shard(config.key), pace=self._pace(config))

    async def _feed_lanes(self, runner: _Runner) -> None:
        asked = runner.queue.lanes_to_fetch()
        if not asked:
            return
        key, cursor = runner.sink.config.key, runner.queue.cursor
        try:
            async with self._pool.acquire() as connection:
                rows = await records.pending_of_lanes(
                    connection, [(key, lane, after, cursor) for lane, after in asked], LANE_WINDOW
                )
        except DATABASE_TROUBLE:
            runner.queue.ask_again(asked)  # else these lanes would stand still for ever
            raise
        found: dict[int, list[Delivery]] = {lane: [] for lane, _ in asked}
        for row in rows:
            delivery = Delivery(*row)
            if delivery.lane is not None:
                found[delivery.lane].append(delivery)
        now = self._clock()
        for lane, after in asked:
            complete = len(found[lane]) < LANE_WINDOW
            runner.queue.offer_lane(lane, found[lane], after=after, complete=complete, now=now)

    def _drop(self, key: int) -> None:
        runner = self._runners.pop(key, None)
        if runner is not None:
            runner.stop()

    def _has_room(self, runner: _Runner) -> bool:
        queue = runner.queue
        if runner.pace.state is not BreakerState.CLOSED:
            return queue.buffered == 0  # a sick sink needs its next delivery in memory, and no more
        return queue.buffered <= self._settings.window // 2 and queue.timed < _TIMED_MAX

    def _shard(self, key: int) -> int:
        return key % self._settings.shards

    # sending

    def _pump(self, runner: _Runner) -> None:
        """Start attempts up to the sink's limit; ask for more when the queue runs low."""
        if runner.stopped or not self._accepting or not self._ownership.holds(runner.shard):
            return
        if self._recorder.unrecorded > self._settings.unrecorded_max:
            self._throttle()
            return
        now = self._clock()
        queue = runner.queue
        pace = runner.pace
        pause = 0.0
        while runner.in_flight < pace.limit:
            pause = pace.wait(now)
            if pause > 0:
                break
            delivery = queue.take(now)
            if delivery is None:
                break
            pace.begin(now)
            runner.in_flight += 1
            self._under_way[delivery.subscription] += 1
            IN_FLIGHT.inc()
            task = asyncio.create_task(self._attempt(runner, delivery))
            self._attempts.add(task)
            task.add_done_callback(self._attempts.discard)
        if queue.wants_lanes or (queue.more and self._has_room(runner)):
            self._hungry[runner.sink.config.key] = None
            self._fed.set()
        if runner.timer is not None:
            runner.timer.cancel()
            runner.timer = None
        due = queue.next_due()
        if pause > 0 or due is not None:
            # a lane that waits for its time doesn't make the others wait as long
            delay = pause if pause > 0 or due is None else max(due - now, 0.001)
            runner.timer = asyncio.get_running_loop().call_later(min(delay, 3600), self._pump, runner)

    def _throttle(self) -> None:
        """Outcomes pile up (the database is slow or away): go on when they have been recorded."""
        if not self._throttled:
            self._throttled = True
            asyncio.get_running_loop().call_later(0.05, self._unthrottle)

    def _unthrottle(self) -> None:
        self._throttled = False
        for runner in list(self._runners.values()):
            self._pump(runner)

    async def _attempt(self, runner: _Runner, delivery: Delivery) -> None:
        """Make one attempt and put its outcome where it is recorded; then the lane and the sink go on."""
        try:
            epoch = self._ownership.epoch(runner.shard)
            try:
                body = await self._bodies.get(delivery.event_key)
            except DATABASE_TROUBLE as error:
                WORKER_ERRORS.labels("bodies").inc()
                log().warning("body-not-read", error=type(error).__name__)
                runner.pace.abandoned()
                if not runner.stopped:
                    runner.queue.retry(delivery, self._clock() + 0.5)
                return
            if runner.stopped or not self._ownership.holds(runner.shard):
                runner.pace.abandoned()
                return  # the lease ran out while we waited: the next owner sends it
            reason = self._hindrance(runner.sink, body)
            if body is None or reason is not None:
                runner.pace.abandoned()
                self._end(runner, delivery, Verdict(CANCELLED, reason=reason), epoch)
                return
            started = time.perf_counter()
            outcome = await self._sender.send(runner.sink, delivery.sequence, delivery.event_key, body.content)
            await self._settle(runner, delivery, outcome, epoch, time.perf_counter() - started)
        finally:
            runner.in_flight -= 1
            self._under_way[delivery.subscription] -= 1
            if not self._under_way[delivery.subscription]:
                del self._under_way[delivery.subscription]
            IN_FLIGHT.dec()
            self._pump(runner)

    def _hindrance(self, sink: Sink, body: Body | None) -> str | None:
        """Why a delivery may no longer be sent (promise 6: checked before each attempt)."""
        if body is None:
            return "payload-expired"
        if self._office.granted(sink.config.organisation_id, body.type, datetime.now(UTC)) is None:
            return "grant-ended"
        return None

    async def _settle(self, runner: _Runner, delivery: Delivery, outcome: Outcome, epoch: int, seconds: float) -> None:
        ATTEMPT_SECONDS.observe(seconds)
        _attempts(outcome.reason or "success").inc()
        delivery.attempts += 1
        now = self._clock()
        self._judge_sink(runner, outcome, now)
        age = now - accepted_at(delivery.event_key).timestamp()
        verdict = conclude(outcome, delivery.attempts, timedelta(seconds=age), runner.sink.schedule, self._jitter())
        attempt: AttemptRow | None = None
        if outcome.reason is None:
            LATENCY.observe(max(age, 0))
        else:
            attempt = (
                delivery.subscription, delivery.sequence, delivery.event_key, delivery.attempts,
                datetime.fromtimestamp(now - seconds, UTC), int(seconds * 1000), outcome.status, outcome.reason,
                self._office.seal_excerpt(runner.sink.config.id, outcome.excerpt) if outcome.excerpt else None,
            )  # fmt: skip
        if outcome.status == GONE:
            # the delivery stays, and goes on when the subscription is resumed
            self._record(delivery, Verdict(PENDING, timedelta(0), verdict.reason), epoch, outcome.status, attempt)
            self._drop(runner.sink.config.key)
            await self._disable(runner.sink.config.id)
            return
        if verdict.wait is not None:
            delivery.due = now + verdict.wait.total_seconds()
            self._record(delivery, verdict, epoch, outcome.status, attempt)
            if not runner.stopped:
                runner.queue.retry(delivery, delivery.due)
            return
        self._end(runner, delivery, verdict, epoch, outcome.status, attempt)

    def _judge_sink(self, runner: _Runner, outcome: Outcome, now: float) -> None:
        """Tell the pace; when the breaker opens, what waits in memory goes back to the database."""
        if outcome.reason is None:
            if runner.pace.succeeded():
                BREAKERS_OPEN.dec()
                log().info("breaker-closed", subscription=str(runner.sink.config.id))
            return
        retry_after = outcome.retry_after if outcome.reason is Reason.THROTTLED else None
        if runner.pace.failed(now, retry_after, self._jitter()):
            BREAKERS_OPEN.inc()
            log().warning("breaker-opened", subscription=str(runner.sink.config.id), reason=outcome.reason)

    def _pace(self, config: SinkConfig) -> Pace:
        """The pace of a sink, which outlives its runner; a sink that was changed starts anew."""
        known = self._paces.get(config.key)
        if known is None or known[0] != config.sink:
            self._forget_pace(config.key)
            known = self._paces[config.key] = (config.sink, Pace(self._settings.concurrency))
        known[1].per_minute = config.allowed_rate
        return known[1]

    def _forget_pace(self, key: int) -> None:
        _, pace = self._paces.pop(key, ("", None))
        if pace is not None and pace.state is not BreakerState.CLOSED:
            BREAKERS_OPEN.dec()

    def _end(
        self,
        runner: _Runner,
        delivery: Delivery,
        verdict: Verdict,
        epoch: int,
        status: int | None = None,
        attempt: AttemptRow | None = None,
    ) -> None:
        _deliveries(verdict.state).inc()
        self._record(delivery, verdict, epoch, status, attempt)
        if verdict.state != DELIVERED:
            log().warning(
                "delivery-ended",
                subscription=str(runner.sink.config.id),
                sequence=delivery.sequence,
                state=verdict.state,
                reason=verdict.reason,
                attempts=delivery.attempts,
            )
        if not runner.stopped:
            runner.queue.done(delivery, self._clock())

    def _record(
        self, delivery: Delivery, verdict: Verdict, epoch: int, status: int | None, attempt: AttemptRow | None
    ) -> None:
        now = self._clock()
        pending = verdict.state == PENDING
        due = None
        if pending and verdict.wait:
            due = datetime.fromtimestamp(delivery.due, UTC)
        self._recorder.put(
            OutcomeRow(
                delivery.subscription,
                delivery.sequence,
                delivery.event_key,
                verdict.state,
                delivery.attempts,
                due,
                None if pending else datetime.fromtimestamp(now, UTC),
                status,
                verdict.reason,
                epoch,
            ),
            attempt,
        )

    async def _disable(self, subscription_id: UUID) -> None:
        try:
            await self._office.sink_is_gone(subscription_id)
        except DATABASE_TROUBLE as error:
            # the next attempt finds the sink gone again
            WORKER_ERRORS.labels("disable").inc()
            log().warning("disable-failed", subscription=str(subscription_id), error=type(error).__name__)
