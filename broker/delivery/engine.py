"""The delivery engine of one process: pending deliveries become attempts, attempts become recorded outcomes.

    woken / swept ──► feeder (reads beyond each cursor) ──► run queues ──► pump ──► attempt ──► recorder
                          ▲                                    │  ▲                   │
                          └─────────── wants more ─────────────┘  └── done / retry ───┘

Every subscription has a runner with its own run queue, pace and breaker, so a sink that is slow, dead or hostile costs
nobody else anything (promise 7). A subscription belongs to the shard `key % shards`; attempts are made only while the
shard's lease is surely ours, and outcomes count only under its epoch.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import cache
from uuid import UUID

import asyncpg

from broker.delivery.bodies import Bodies, Body
from broker.delivery.feeder import DATABASE_TROUBLE, Feeder, Ownership
from broker.delivery.lanes import Delivery
from broker.delivery.outcomes import GONE, Outcome, Reason, Verdict, conclude
from broker.delivery.recorder import Recorder
from broker.delivery.runners import Office, Runner, Runners
from broker.delivery.sender import Sender, Sink
from broker.delivery.settings import DeliverySettings
from broker.storage.records import AttemptRow, OutcomeRow
from broker.storage.tables import CANCELLED, DELIVERED, PENDING, accepted_at
from broker.telemetry import (
    ATTEMPT_SECONDS,
    ATTEMPTS,
    BREAKERS_OPEN,
    DELIVERIES,
    IN_FLIGHT,
    LATENCY,
    WORKER_ERRORS,
    log,
)
from subscriptions.secrets import SealError

_THROTTLE_SECONDS = 0.05
_LONGEST_TIMER = 3600.0
_UNREADABLE_SECONDS = 60.0
_attempts = cache(ATTEMPTS.labels)
_deliveries = cache(DELIVERIES.labels)


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
        self._settings = settings
        self._ownership = ownership
        self._office = office
        self._sender = sender
        self._bodies = bodies
        self._recorder = recorder
        self._jitter = jitter
        self._clock = clock
        self._runners = Runners(settings, office, recorder)
        self.feeder = Feeder(pool, settings, ownership, self._runners, self._pump, clock)
        self._attempts: set[asyncio.Task[None]] = set()
        self._throttled = False

    # what others tell the engine

    def changed(self, subscription: int) -> None:
        """The subscription was changed: what is in memory of it is read anew."""
        self._runners.drop(subscription)
        self.feeder.wake([subscription])

    def forget(self) -> None:
        """Anything may have changed: all that is in memory is read anew."""
        self.feeder.wake(self._runners.drop_all())

    async def released(self, shards: Iterable[int]) -> None:
        """These shards are no longer ours: stop sending for them and let attempts under way be recorded."""
        gone = set(shards)
        for runner in self._runners:
            if runner.shard in gone:
                self._runners.drop(runner.key)
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
        self._runners.accepting = False
        self._runners.drop_all()
        if self._attempts:
            _, late = await asyncio.wait(self._attempts, timeout=self._settings.grace_seconds)
            for task in late:
                task.cancel()

    # sending

    def _pump(self, runner: Runner) -> None:
        """Start attempts up to the sink's limit; ask for more when the queue runs low."""
        if runner.stopped or not self._ownership.holds(runner.shard):
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
            self._runners.began(runner)
            IN_FLIGHT.inc()
            task = asyncio.create_task(self._attempt(runner, delivery))
            self._attempts.add(task)
            task.add_done_callback(self._attempts.discard)
        if queue.wants_lanes or (queue.more and self._runners.has_room(runner)):
            self.feeder.want(runner)
        runner.cancel_timer()
        due = queue.next_due()
        if pause > 0 or due is not None:
            # a lane that waits for its time doesn't make the others wait as long
            delay = pause if pause > 0 or due is None else max(due - now, 0.001)
            runner.timer = asyncio.get_running_loop().call_later(min(delay, _LONGEST_TIMER), self._pump, runner)

    def _throttle(self) -> None:
        """Outcomes pile up (the database is slow or away): go on when they have been recorded."""
        if not self._throttled:
            self._throttled = True
            asyncio.get_running_loop().call_later(_THROTTLE_SECONDS, self._unthrottle)

    def _unthrottle(self) -> None:
        self._throttled = False
        for runner in self._runners:
            self._pump(runner)

    async def _attempt(self, runner: Runner, delivery: Delivery) -> None:
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
            except SealError:
                # a key that is missing comes back, so this is no end: the delivery waits, visibly
                WORKER_ERRORS.labels("bodies").inc()
                log().error("body-unreadable", subscription=str(runner.sink.config.id), sequence=delivery.sequence)
                runner.pace.abandoned()
                if not runner.stopped:
                    runner.queue.retry(delivery, self._clock() + _UNREADABLE_SECONDS)
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
            self._runners.ended(runner)
            IN_FLIGHT.dec()
            self._pump(runner)

    def _hindrance(self, sink: Sink, body: Body | None) -> str | None:
        """Why a delivery may no longer be sent (promise 6: checked before each attempt)."""
        if body is None:
            return "payload-expired"
        if self._office.granted(sink.config.organisation_id, body.type, datetime.now(UTC)) is None:
            return "grant-ended"
        return None

    async def _settle(self, runner: Runner, delivery: Delivery, outcome: Outcome, epoch: int, seconds: float) -> None:
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
            self._runners.drop(runner.key)
            await self._disable(runner.sink.config.id)
            return
        if verdict.wait is not None:
            delivery.due = now + verdict.wait.total_seconds()
            self._record(delivery, verdict, epoch, outcome.status, attempt)
            if not runner.stopped:
                runner.queue.retry(delivery, delivery.due)
            return
        self._end(runner, delivery, verdict, epoch, outcome.status, attempt)

    def _judge_sink(self, runner: Runner, outcome: Outcome, now: float) -> None:
        """Tell the pace how the sink did."""
        if outcome.reason is None:
            if runner.pace.succeeded():
                BREAKERS_OPEN.dec()
                log().info("breaker-closed", subscription=str(runner.sink.config.id))
            return
        retry_after = outcome.retry_after if outcome.reason is Reason.THROTTLED else None
        if runner.pace.failed(now, retry_after, self._jitter()):
            BREAKERS_OPEN.inc()
            log().warning("breaker-opened", subscription=str(runner.sink.config.id), reason=outcome.reason)

    def _end(
        self,
        runner: Runner,
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
