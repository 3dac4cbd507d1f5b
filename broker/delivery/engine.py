"""The delivery engine of one process: pending deliveries become attempts, attempts become recorded outcomes.

    woken / swept ──► feeder (reads beyond each cursor) ──► run queues ──► turns ──► attempt ──► recorder
                          ▲                                    │  ▲                     │
                          └─────────── wants more ─────────────┘  └─── done / retry ────┘

Every subscription has a runner with its own run queue, pace and breaker, so a sink that is slow, dead or hostile costs
nobody else anything (promise 7). A subscription belongs to the shard `key % shards`; attempts are made only while the
shard's lease is surely ours, and outcomes count only under its epoch.

An attempt is an object that is called back, not a task. Its way, all in this file (what comes of it is in `settling`,
and the way of several deliveries in one request in `batches`):

    _look ──► line up ──► _serve ──► _begin ──► (body) ──► _send ──► (the sink) ──► _ended ──► leave ──► _look

`_look` asks whether a runner has something that may go now, `_serve` gives turns while there are places, `_send` asks
for the last time whether the delivery may still be sent.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import asyncpg

from broker.delivery.batches import HINDERED_SECONDS, Batch, Batches, batch_id
from broker.delivery.bodies import Bodies, Body, BodyWanted
from broker.delivery.feeder import Feeder, Ownership
from broker.delivery.lanes import Delivery
from broker.delivery.outcomes import OURS, Outcome, Reason, Verdict
from broker.delivery.pace import BreakerState
from broker.delivery.recorder import Recorder
from broker.delivery.replay_runs import Replayed, ReplayRun
from broker.delivery.runners import Office, Runner, Runners
from broker.delivery.sender import Sender, Sending, Sink
from broker.delivery.settings import DeliverySettings
from broker.delivery.settling import SINK_GONE, Settling
from broker.delivery.turns import PATIENCE, Place, Rank, Turns
from broker.storage.tables import CANCELLED, KEY_SHIFT
from broker.telemetry import ATTEMPTS, HELD, IN_FLIGHT, WORKER_ERRORS, log

_THROTTLE_SECONDS = 0.05
_DATABASE_SECONDS = 0.5
_UNREADABLE_SECONDS = 60.0
_HELD_SECONDS = 2.0
_FRESH_SECONDS = 5.0
"""An event that was accepted longer ago is no longer fresh: it goes behind those that are."""


class Attempt(Sending, BodyWanted):
    """One attempt on its way: it waits for its body, then for the sink's answer."""

    __slots__ = ("begun_at", "delivery", "engine", "epoch", "place", "runner")
    place: Place[Runner]

    def __init__(self, engine: "Engine", runner: Runner, delivery: Delivery, epoch: int, now: float) -> None:
        super().__init__()
        self.engine = engine
        self.runner = runner
        self.delivery = delivery
        self.epoch = epoch
        self.begun_at = now

    def opened(self, body: Body | None) -> None:
        """The event's body is here; None: it no longer exists."""
        self.engine._send(self, body)

    def unreadable(self) -> None:
        """No key opens it. A key that is missing comes back, so this is no end: the delivery waits, visibly."""
        WORKER_ERRORS.labels("bodies").inc()
        log().error("body-unreadable", subscription=str(self.runner.sink.config.id), sequence=self.delivery.sequence)
        self.engine._put_off(self, _UNREADABLE_SECONDS)

    def not_read(self, error: Exception) -> None:
        """The database can't be read now."""
        WORKER_ERRORS.labels("bodies").inc()
        log().warning("body-not-read", error=type(error).__name__)
        self.engine._put_off(self, _DATABASE_SECONDS)

    def may_go(self) -> bool:
        """A connection is there, which took time: whether the shard is still ours."""
        if self.engine.is_ours(self.runner):
            return True
        self.engine._give_back(self)
        return False

    def ended(self, outcome: Outcome) -> None:
        """What came of it."""
        self.engine._ended(self, outcome)


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
        grant_clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings
        self._ownership = ownership
        self._office = office
        self._sender = sender
        self._bodies = bodies
        self._recorder = recorder
        self._clock = clock
        self._grant_clock = grant_clock
        self._runners = Runners(settings, office, recorder)
        self._turns: Turns[Runner] = Turns(settings.at_once)
        self.feeder = Feeder(
            pool, settings, ownership, self._runners, self._look, self._serve, bodies.read_ahead, office, clock
        )
        self._settling = Settling(settings, office, recorder, self._runners, self.feeder.wake, jitter)
        self.disable = self._settling.disable
        self._batches = Batches(self, bodies, sender, self._settling, clock)
        self._attempts: set[Attempt | Batch] = set()
        self._all_ended = asyncio.Event()
        self._serving = False
        self._serving_later: asyncio.TimerHandle | None = None
        IN_FLIGHT.set_function(lambda: len(self._attempts))
        HELD.set_function(lambda: sum(runner.queue.passed_over for runner in self._runners))

    # what others tell the engine

    def changed(self, subscription: int) -> None:
        """The subscription was changed: what is in memory of it is read anew."""
        self._runners.drop(subscription)
        self.feeder.wake([subscription])

    def failing_starts_anew(self) -> None:
        """A hold has ended: sinks are judged by what they do from now on."""
        self._runners.failing_starts_anew()

    def forget(self) -> None:
        """Anything may have changed: all that is in memory is read anew."""
        self.feeder.wake(self._runners.drop_all())

    def sink_is_gone(self, sink: Sink) -> None:
        """It answered 410 to something else than a notification: the subscription is disabled."""
        self._settling.give_up_sink(sink, SINK_GONE)

    def resting(self, subscription: int) -> bool:
        """Whether the sink's pace, as far as this process knows it, lets nothing go now."""
        pace = self._runners.pace_of(subscription)
        return pace is not None and (pace.state is not BreakerState.CLOSED or pace.wait(self._clock()) > 0)

    def replay(self, subscription: int, run: ReplayRun | None) -> None:
        """Send this again when nothing else of the subscription is due; None: no more of it."""
        self._runners.replay(subscription, run)
        if run is not None:
            self.feeder.wake([subscription])  # it may have no runner

    def look_at(self, subscription: int) -> None:
        """There is more to send again, or may be."""
        runner = self._runners.get(subscription)
        if runner is None:
            self.feeder.wake([subscription])  # nobody else does, when nothing is pending
        else:
            self._look(runner)
            self._serve()

    async def released(self, shards: Iterable[int]) -> None:
        """These shards are no longer ours: stop sending for them and let attempts under way be recorded."""
        gone = set(shards)
        self._runners.drop_shards(gone)
        try:
            async with asyncio.timeout(self._settings.lease_seconds / 4):
                await self._runners.left(gone)
        except TimeoutError:
            pass  # these may be made again by the next owner
        try:
            async with asyncio.timeout(self._settings.lease_seconds / 4):
                await self._recorder.drained()
        except TimeoutError:
            log().warning("shards-released-early", unrecorded=self._recorder.unrecorded)

    async def stop(self) -> None:
        """Make no new attempts; wait for those under way, up to the grace; the rest is made again elsewhere."""
        self._runners.accepting = False
        self._runners.drop_all()
        try:
            async with asyncio.timeout(self._settings.grace_seconds):
                while self._attempts:
                    self._all_ended.clear()
                    await self._all_ended.wait()
        except TimeoutError:
            for attempt in list(self._attempts):
                attempt.abandon()
                if isinstance(attempt, Batch):
                    attempt.give_up(self._clock())
                else:
                    self._give_up(attempt)

    # who may go, and when

    def _look(self, runner: Runner) -> None:
        """Line a runner up if something may go now, else look again when it may; ask for more when it runs low."""
        if not self.is_ours(runner):
            return
        now = self._clock()
        queue, pace = runner.queue, runner.pace
        first = queue.first(now)
        if queue.wants_lanes or queue.wants_taking or (queue.more and self._runners.has_room(runner)):
            self.feeder.want(runner)
        if runner.in_line or runner.in_flight >= pace.limit:
            return  # its turn, or the end of an attempt, looks again
        if first is not None:
            pause = pace.wait(now)
            if runner.sink.config.batch is not None:
                pause = max(pause, self._batches.lingers(runner, now))
            if pause > 0:
                runner.look_after(pause, self._look_and_serve)
            else:
                bulk = queue.behind or now - (first.event_key >> KEY_SHIFT) / 1000 > _FRESH_SECONDS
                self._turns.line_up(runner, Rank.BULK if bulk else Rank.FRESH)
        else:
            if (due := queue.next_due()) is not None:
                runner.look_after(due - now, self._look_and_serve)
            if runner.replay is not None:
                self._look_at_replay(runner, runner.replay, now)

    def _look_at_replay(self, runner: Runner, run: ReplayRun, now: float) -> None:
        """The same for what is sent again: nothing else may go now."""
        wait = run.wait(now)
        if wait is None:
            return
        pause = max(wait, runner.pace.wait(now))
        if pause > 0:
            runner.look_after(pause, self._look_and_serve)
        else:
            self._turns.line_up(runner, Rank.BULK)

    def _look_and_serve(self, runner: Runner) -> None:
        runner.timer = None
        self._look(runner)
        self._serve()

    def _serve(self) -> None:
        """Give turns while there are places, and come back when that may change by time alone."""
        if self._serving:  # what ends at once calls this from within: the turns go on below
            return
        self._serving = True
        try:
            wait = self._give_turns()
        finally:
            self._serving = False
        if wait and self._serving_later is None:
            self._serving_later = asyncio.get_running_loop().call_later(wait, self._serve_later)

    def _give_turns(self) -> float:
        """Give turns while there are places; seconds after which to go on, 0: when something happens."""
        turns = self._turns
        while True:
            if self._recorder.unrecorded > self._settings.unrecorded_max:
                return _THROTTLE_SECONDS  # the database is slow or away: go on when outcomes have been recorded
            now = self._clock()
            runner = turns.next(now)
            if runner is None:
                return PATIENCE / 4 if turns.waiting else 0.0
            if self.is_ours(runner):
                if runner.in_flight < runner.pace.limit and runner.pace.wait(now) <= 0:
                    self._begin_next(runner, now)
                self._look(runner)

    def _begin_next(self, runner: Runner, now: float) -> None:
        """Begin what is due; if nothing is, what is to be sent again."""
        delivery: Delivery | None
        if runner.queue.first(now) is None:
            delivery = None if runner.replay is None else runner.replay.take(now)
        elif runner.sink.config.batch is not None:
            self._begin_batch(runner, now)
            return
        else:
            delivery = runner.queue.take(now)
        if delivery is not None:
            self._begin(runner, delivery, now)

    def _serve_later(self) -> None:
        self._serving_later = None
        self._serve()

    def is_ours(self, runner: Runner) -> bool:
        """Whether the runner's shard is surely ours now, and the runner the present one."""
        return not runner.stopped and self._ownership.holds(runner.shard)

    # the way of an attempt

    def _begin(self, runner: Runner, delivery: Delivery, now: float) -> None:
        """Take a place for it, and its body from memory or from the database."""
        attempt = Attempt(self, runner, delivery, self._ownership.epoch(runner.shard), now)
        runner.pace.begin(now)
        runner.in_flight += 1
        attempt.place = self._turns.begin(runner, now)
        self._attempts.add(attempt)
        body = self._bodies.kept(delivery.event_key)
        if body is None:
            self._bodies.ask(delivery.event_key, attempt)
        else:
            self._send(attempt, body)

    def _begin_batch(self, runner: Runner, now: float) -> None:
        """The same for several deliveries, which take one place together."""
        deliveries = self._batches.take(runner, now)
        if deliveries:
            runner.pace.begin(now)
            runner.in_flight += 1
            epoch = self._ownership.epoch(runner.shard)
            batch = Batch(self._batches, runner, deliveries, epoch, self._turns.begin(runner, now), now)
            self._attempts.add(batch)
            batch.gather()

    def _send(self, attempt: Attempt, body: Body | None) -> None:
        """Send it, unless it may no longer be (promise 6: checked before each attempt)."""
        runner, delivery = attempt.runner, attempt.delivery
        if not self.is_ours(runner):  # the lease ran out while we waited
            self._give_back(attempt)
            return
        reason = self.hindrance(runner, body)
        if body is None or reason is not None:
            now = self._clock()
            if isinstance(delivery, Replayed):
                delivery.run.skipped(delivery, reason or "")
            else:
                self._settling.end(runner, delivery, attempt.epoch, Verdict(CANCELLED, reason=reason), now)
                if not runner.stopped:
                    runner.queue.done(delivery, now)
            self._give_up(attempt)
            return
        if isinstance(delivery, Replayed) and self._is_held(delivery):
            self._put_off(attempt, _HELD_SECONDS)  # the replay waits for it until the hold ends
            return
        attempt.begun_at = self._clock()
        if runner.sink.config.batch is None:
            self._sender.begin(runner.sink, delivery.sequence, delivery.event_key, body.content, attempt)
        else:  # sent again, to a sink that expects batches: a batch of one
            sink, number = runner.sink, delivery.sequence
            content = sink.alone(sink.envelope.compose(body.content, number))
            self._sender.begin_content(sink, batch_id(sink.config.id, [number]), delivery.event_key, content, attempt)

    def _is_held(self, delivery: Replayed) -> bool:
        """Whether its event is held. Of what is pending such a one isn't taken; a replay may have been read before."""
        if not self._office.holds_events or delivery.source is None or delivery.type is None:
            return False
        return bool(self._office.held_events({delivery.event_key: (delivery.source, delivery.type)}))

    def hindrance(self, runner: Runner, body: Body | None) -> str | None:
        """Why a delivery may no longer be sent at all."""
        if body is None:
            return "payload-expired"
        if self._office.granted(runner.sink.config.organisation_id, body.type, self._grant_clock()) is None:
            return "grant-ended"
        return None

    def _ended(self, attempt: Attempt, outcome: Outcome) -> None:
        """The sink has answered, or hasn't: record it, then the lane and the sink go on."""
        now = self._clock()
        runner, delivery = attempt.runner, attempt.delivery
        due = None
        if outcome.reason in OURS:
            self._hindered(attempt, outcome.reason, now)
            return
        if isinstance(delivery, Replayed):
            try:
                self._settling.replayed(runner, delivery, attempt.epoch, outcome, attempt.begun_at, now)
            finally:
                self.leave(attempt, now)
            return
        try:
            if outcome.reason is None:
                self._settling.succeeded(runner, (delivery,), attempt.epoch, outcome.status, attempt.begun_at, now)
            else:
                again = self._settling.failed(runner, (delivery,), attempt.epoch, outcome, attempt.begun_at, now)
                due = again.get(delivery.sequence)
            if not runner.stopped:
                if due is None:
                    runner.queue.done(delivery, now)
                else:
                    runner.queue.retry(delivery, due)
        finally:
            self.leave(attempt, now)

    def _hindered(self, attempt: Attempt, reason: Reason, now: float) -> None:
        """It was not sent for a reason of ours: the sink rests for a while, and neither it nor the delivery pays."""
        ATTEMPTS.labels(reason).inc()
        attempt.runner.pace.rest(now, HINDERED_SECONDS)
        self._put_off(attempt, HINDERED_SECONDS)

    def _put_off(self, attempt: Attempt, seconds: float) -> None:
        """It was never sent, through no fault of the sink: again after a while."""
        delivery, due = attempt.delivery, self._clock() + seconds
        if isinstance(delivery, Replayed):
            delivery.run.retry(delivery, due)
        elif not attempt.runner.stopped:
            attempt.runner.queue.retry(delivery, due)
        self._give_up(attempt)

    def _give_back(self, attempt: Attempt) -> None:
        """It was not sent, because its shard isn't surely ours: the next owner sends it, or we when we are sure again.

        Then the shard has the same epoch and the runner lives on, so its lane must not stay closed.
        """
        runner, delivery = attempt.runner, attempt.delivery
        if not runner.stopped and not isinstance(delivery, Replayed):
            runner.queue.give_back([delivery])
        self._give_up(attempt)

    def _give_up(self, attempt: Attempt) -> None:
        """It was not sent, or its end is not awaited."""
        attempt.runner.pace.abandoned()
        if isinstance(attempt.delivery, Replayed):
            attempt.delivery.run.returned(attempt.delivery)
        self.leave(attempt, self._clock())

    def leave(self, attempt: Attempt | Batch, now: float) -> None:
        """Free its place: whose turn is it now?"""
        if attempt not in self._attempts:
            return
        self._attempts.discard(attempt)
        if not self._attempts:
            self._all_ended.set()
        self._turns.end(attempt.place, now)
        self._runners.ended(attempt.runner)
        self._look(attempt.runner)
        self._serve()
