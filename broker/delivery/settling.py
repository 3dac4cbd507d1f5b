"""What came of attempts: recorded, counted, and held against the sink's pace. No network.

An attempt ends for its delivery (delivered, dead, pending with a wait) and for its sink (it accepted, or failed). Both
are said apart, because the sink answers once for all deliveries of a batch.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from broker.delivery.lanes import Delivery
from broker.delivery.outcomes import GONE, Outcome, Reason, Verdict, conclude
from broker.delivery.pace import NOTED_AFTER_SECONDS
from broker.delivery.recorder import Recorder
from broker.delivery.replay_runs import SCHEDULE as REPLAY_SCHEDULE
from broker.delivery.replay_runs import Replayed
from broker.delivery.runners import Office, Runner, Runners
from broker.delivery.sender import Sink
from broker.delivery.settings import DeliverySettings
from broker.storage.pool import DATABASE_TROUBLE
from broker.storage.records import AttemptRow, FailingNote, OutcomeRow
from broker.storage.tables import DELIVERED, KEY_SHIFT, PENDING
from broker.telemetry import ATTEMPT_SECONDS, ATTEMPTS, BREAKERS_OPEN, DELIVERIES, LATENCY, WORKER_ERRORS, log

SINK_GONE: Final = "sink-gone: the sink answered 410"
_SUCCESSES: Final = ATTEMPTS.labels("success")
_DELIVERED: Final = DELIVERIES.labels(DELIVERED)


class Settling:
    """Settles the attempts of one process; `disable` is a worker."""

    def __init__(
        self,
        settings: DeliverySettings,
        office: Office,
        recorder: Recorder,
        runners: Runners,
        wake: Callable[[Sequence[int]], None],
        jitter: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._office = office
        self._recorder = recorder
        self._runners = runners
        self._wake = wake
        self._jitter = jitter
        self._disable_after = settings.disable_days * 86400
        self._to_disable: asyncio.Queue[tuple[Sink, str]] = asyncio.Queue()

    def succeeded(
        self,
        runner: Runner,
        deliveries: Sequence[Delivery],
        epoch: int,
        status: int | None,
        begun_at: float,
        now: float,
    ) -> None:
        """The sink has accepted these, in one request."""
        for delivery in deliveries:
            delivery.attempts += 1
            self._recorder.put_delivered(
                (delivery.subscription, delivery.sequence, delivery.event_key, delivery.attempts, status, now), epoch
            )
            delayed_until = delivery.due if delivery.attempts == 1 else 0
            LATENCY.observe(max(now - (delayed_until or (delivery.event_key >> KEY_SHIFT) / 1000), 0))
        _SUCCESSES.inc(len(deliveries))
        _DELIVERED.inc(len(deliveries))
        self._sink_accepted(runner, epoch, now - begun_at)

    def _sink_accepted(self, runner: Runner, epoch: int, seconds: float) -> None:
        pace = runner.pace
        if pace.noted:
            pace.noted = False
            self._recorder.note(FailingNote(runner.key, None, epoch))
        if pace.succeeded(seconds):
            BREAKERS_OPEN.dec()
            log().info("breaker-closed", subscription=str(runner.sink.config.id))
        ATTEMPT_SECONDS.observe(max(seconds, 0))

    def replayed(
        self, runner: Runner, delivery: Replayed, epoch: int, outcome: Outcome, begun_at: float, now: float
    ) -> None:
        """What came of one that was sent again: its replay is told, and what was recorded of it stays as it is."""
        if outcome.reason is None:
            _SUCCESSES.inc()
            delivery.run.sent(delivery, outcome.status, now)
            self._sink_accepted(runner, epoch, now - begun_at)
            return
        ATTEMPT_SECONDS.observe(max(now - begun_at, 0))
        ATTEMPTS.labels(outcome.reason).inc()
        delivery.attempts += 1
        verdict = conclude(outcome, delivery.attempts, timedelta(0), REPLAY_SCHEDULE, self._jitter())
        if verdict.wait is None:
            delivery.run.failed(delivery, verdict.reason)
        else:
            delivery.run.retry(delivery, now + verdict.wait.total_seconds(), verdict.reason)
        stop = None
        if outcome.reason is Reason.THROTTLED and outcome.retry_after is not None:
            stop = min(outcome.retry_after, runner.sink.schedule.horizon)
        self._sink_failed(runner, outcome.reason, stop, now)
        reason = self._reason_to_disable(runner, epoch, outcome, now)
        if reason is not None:
            self.give_up_sink(runner.sink, reason)

    def _sink_failed(self, runner: Runner, reason: Reason, stop: timedelta | None, now: float) -> None:
        if runner.pace.failed(now, stop, self._jitter()):
            BREAKERS_OPEN.inc()
            log().warning("breaker-opened", subscription=str(runner.sink.config.id), reason=reason)

    def failed(
        self, runner: Runner, deliveries: Sequence[Delivery], epoch: int, outcome: Outcome, begun_at: float, now: float
    ) -> dict[int, float]:
        """The sink has not accepted these, which went in one request: one failure of the sink, an attempt of each.

        Returns:
            When they go again, by number, for those that do; the others are dead letters.
        """
        assert outcome.reason is not None
        seconds = max(now - begun_at, 0)
        ATTEMPT_SECONDS.observe(seconds)
        ATTEMPTS.labels(outcome.reason).inc(len(deliveries))
        schedule = runner.sink.schedule
        jitter = self._jitter()
        started_at = datetime.fromtimestamp(now - seconds, UTC)
        excerpt = self._office.seal_excerpt(runner.sink.config.id, outcome.excerpt) if outcome.excerpt else None
        verdicts: list[Verdict] = []
        rows: list[AttemptRow] = []
        stop = None
        for delivery in deliveries:
            delivery.attempts += 1
            age = timedelta(seconds=now - (delivery.event_key >> KEY_SHIFT) / 1000)
            verdict = conclude(outcome, delivery.attempts, age, schedule, jitter)
            verdicts.append(verdict)
            rows.append(
                (
                    delivery.subscription, delivery.sequence, delivery.event_key, delivery.attempts, started_at,
                    int(seconds * 1000), outcome.status, outcome.reason, excerpt,
                )
            )  # fmt: skip
            if outcome.reason is Reason.THROTTLED and outcome.retry_after is not None:
                # not longer than the schedule: what waits must have its last attempt in the end
                latest = min(outcome.retry_after, max(schedule.horizon - age, verdict.wait or timedelta(0)))
                stop = latest if stop is None else min(stop, latest)
        self._sink_failed(runner, outcome.reason, stop, now)
        reason = self._reason_to_disable(runner, epoch, outcome, now)
        again: dict[int, float] = {}
        for delivery, verdict, row in zip(deliveries, verdicts, rows, strict=True):
            if reason is not None:
                # the delivery stays, and goes on when the subscription is resumed
                again[delivery.sequence] = now
                self._record(delivery, epoch, Verdict(PENDING, timedelta(0), verdict.reason), now, outcome.status, row)
            elif verdict.wait is not None:
                delivery.due = again[delivery.sequence] = now + verdict.wait.total_seconds()
                self._record(delivery, epoch, verdict, now, outcome.status, row)
            else:
                self.end(runner, delivery, epoch, verdict, now, outcome.status, row)
        if reason is not None:
            self.give_up_sink(runner.sink, reason)
        return again

    def end(
        self,
        runner: Runner,
        delivery: Delivery,
        epoch: int,
        verdict: Verdict,
        now: float,
        status: int | None = None,
        row: AttemptRow | None = None,
    ) -> None:
        """The delivery is dead or cancelled."""
        DELIVERIES.labels(verdict.state).inc()
        self._record(delivery, epoch, verdict, now, status, row)
        log().warning(
            "delivery-ended",
            subscription=str(runner.sink.config.id),
            sequence=delivery.sequence,
            state=verdict.state,
            reason=verdict.reason,
            attempts=delivery.attempts,
        )

    def _reason_to_disable(self, runner: Runner, epoch: int, outcome: Outcome, now: float) -> str | None:
        """Why no more is sent to this sink, if so; and take down since when it fails."""
        if outcome.status == GONE:
            return SINK_GONE
        pace = runner.pace
        if pace.failing_since is None:
            return None
        failing = now - pace.failing_since
        if not pace.noted and failing >= NOTED_AFTER_SECONDS:
            pace.noted = True
            self._recorder.note(FailingNote(runner.key, pace.failing_since, epoch))
        if self._disable_after and failing >= self._disable_after:
            return f"sink-failing: the sink has accepted nothing for {self._settings.disable_days:g} days"
        return None

    def _record(
        self,
        delivery: Delivery,
        epoch: int,
        verdict: Verdict,
        now: float,
        status: int | None,
        row: AttemptRow | None,
    ) -> None:
        pending = verdict.state == PENDING
        self._recorder.put(
            OutcomeRow(
                delivery.subscription,
                delivery.sequence,
                delivery.event_key,
                verdict.state,
                delivery.attempts,
                datetime.fromtimestamp(delivery.due, UTC) if pending and verdict.wait else None,
                None if pending else datetime.fromtimestamp(now, UTC),
                status,
                verdict.reason,
                epoch,
            ),
            row,
        )

    def give_up_sink(self, sink: Sink, reason: str) -> None:
        """Nothing more is sent to it: its subscription is about to be disabled."""
        self._runners.bar(sink.config.key)
        self._to_disable.put_nowait((sink, reason))

    async def disable(self) -> None:
        """Disable the subscriptions whose sinks are gone or have failed for too long, until cancelled."""
        while True:
            sink, reason = await self._to_disable.get()
            key, identity = sink.config.key, str(sink.config.id)
            try:
                await self._office.disable(sink.config.id, reason)
                log().warning("sink-disabled", subscription=identity, reason=reason.partition(":")[0])
            except DATABASE_TROUBLE as error:
                # the next attempt finds the sink as it was
                WORKER_ERRORS.labels("disable").inc()
                log().warning("disable-failed", subscription=identity, error=type(error).__name__)
            self._runners.unbar(key)
            self._wake([key])
