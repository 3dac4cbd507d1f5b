"""The subscriptions that have something to send in this process, each with its sink, run queue and pace.

A runner lives from the first wake-up until its queue is empty, its shard goes, or its subscription is changed; then
what is in memory is read anew. The pace outlives it, so that a sick sink doesn't look healthy after a change.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol
from uuid import UUID

from broker.delivery.lanes import RunQueue
from broker.delivery.pace import BreakerState, Pace
from broker.delivery.queues import MOST_UNCONFIRMED
from broker.delivery.recorder import Recorder
from broker.delivery.replay_runs import ReplayRun
from broker.delivery.sender import Sink
from broker.delivery.settings import DeliverySettings
from broker.storage.records import OutcomeRow
from broker.telemetry import BREAKERS_OPEN, log
from subscriptions.sinks import SinkConfig
from subscriptions.tables import Status

_LONGEST_TIMER: Final = 3600.0
_EARLY_ENOUGH: Final = 0.001
_BARRED_MAX: Final = 100_000
"""Lanes of one subscription in which something is held, in memory; above it nothing new is read for it."""
_TIMED_MAX: Final = 10_000
"""Lanes of one sink that wait for a retry in memory; above it nothing new is read for the sink."""


class Office(Protocol):
    """What delivery asks of the subscriptions and grants."""

    async def load_sinks(self, keys: list[int]) -> list[SinkConfig]:
        """The sinks of these subscriptions."""

    def sends(self, key: int) -> bool:
        """Whether something may be sent to this subscription at all now, as far as this process knows."""

    def pulled(self, key: int) -> bool:
        """Whether its provider fetches what is pending."""

    def kept_back(self, key: int) -> bool:
        """Whether nothing of it is to be read for sending: it is pulled, or held as a whole."""

    def held_events(self, described: Mapping[int, tuple[str, str]]) -> dict[int, bool]:
        """Which of these events (by key, with source and type) are held: true: by source."""

    @property
    def holds_events(self) -> bool:
        """Whether any source or type is held."""

    def granted(self, organisation_id: UUID, event_type: str, now: datetime) -> UUID | None:
        """The grant on which this may be sent now, if any."""

    def seal_excerpt(self, subscription_id: UUID, excerpt: bytes) -> bytes:
        """Seal the first bytes of an answer, which only the provider may read."""

    async def disable(self, subscription_id: UUID, reason: str) -> None:
        """Disable the subscription because of what its sink did."""


@dataclass(slots=True, eq=False)
class Runner:
    """A subscription that has, or may have, something to send. How it stands in line is said in `turns`."""

    sink: Sink
    shard: int
    pace: Pace
    queue: RunQueue = field(default_factory=RunQueue)
    in_flight: int = 0
    timer: asyncio.Handle | None = None
    _timer_at: float = 0.0
    stopped: bool = False
    in_line: bool = False
    late: int = 0
    suspect: bool = False
    lingers_since: float | None = None
    """Since when what is ready waits for more, to be one batch."""
    replay: ReplayRun | None = None
    """What is sent again on request, when nothing else is due."""

    @property
    def key(self) -> int:
        """The subscription's internal key."""
        return self.sink.config.key

    def stop(self) -> None:
        """Nothing starts any more; attempts under way end by themselves."""
        self.stopped = True
        self.cancel_timer()

    def look_after(self, seconds: float, look: Callable[["Runner"], None]) -> None:
        """Look again after so many seconds at the latest; `look` forgets the timer."""
        loop = asyncio.get_running_loop()
        wait = max(min(seconds, _LONGEST_TIMER), _EARLY_ENOUGH)
        at = loop.time() + wait
        if self.timer is not None:
            if self._timer_at <= at + _EARLY_ENOUGH:
                return
            self.timer.cancel()
        self._timer_at = at  # not asked of the timer: where it is due at once, uvloop gives a handle that doesn't know
        self.timer = loop.call_later(wait, look, self)

    def cancel_timer(self) -> None:
        """Forget when to look again."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Runners:
    """All runners of a process, by subscription."""

    def __init__(self, settings: DeliverySettings, office: Office, recorder: Recorder) -> None:
        self._settings = settings
        self._office = office
        self._recorder = recorder
        self._runners: dict[int, Runner] = {}
        self._opening: set[int] = set()
        self._leaving: Counter[int] = Counter()
        """Attempts under way of runners that were dropped, by subscription."""
        self._left = asyncio.Event()
        self._feeding: set[int] = set()
        self._barred: set[int] = set()
        self._paces: dict[int, tuple[str, Pace]] = {}
        self._replays: dict[int, ReplayRun] = {}
        self.accepting = True

    def __iter__(self) -> Iterator[Runner]:
        """Those there are now; they may be dropped meanwhile."""
        return iter(list(self._runners.values()))

    def get(self, key: int) -> Runner | None:
        """The runner of a subscription, if it has one."""
        return self._runners.get(key)

    def shard_of(self, key: int) -> int:
        """The shard that a subscription belongs to."""
        return key % self._settings.shards

    def window(self, runner: Runner) -> int:
        """Deliveries of it that are in memory at most: two batches at least."""
        batch = runner.sink.config.batch
        return self._settings.window if batch is None else max(self._settings.window, 2 * batch.max_count)

    def unrecorded(self, runner: Runner) -> dict[int, OutcomeRow]:
        """What the database doesn't know yet of its attempts, but for successes, by number."""
        return self._recorder.unrecorded_of(runner.key)

    def has_room(self, runner: Runner) -> bool:
        """Whether more may be read for it. A sick sink needs its next delivery in memory, and no more."""
        if runner.queue.barred >= _BARRED_MAX:
            return False
        if runner.pace.state is not BreakerState.CLOSED:
            return runner.queue.buffered == 0
        return runner.queue.buffered <= self.window(runner) // 2 and runner.queue.timed < _TIMED_MAX

    def ended(self, runner: Runner) -> None:
        """An attempt of it is no longer under way."""
        runner.in_flight -= 1
        if runner.stopped:
            self._leaving[runner.key] -= 1
            if not self._leaving[runner.key]:
                del self._leaving[runner.key]
                self._left.set()

    def unsettled(self, key: int) -> bool:
        """Whether a former runner has attempts under way or unrecorded, which still look pending."""
        return key in self._leaving or key in self._barred or self._recorder.holds(key)

    async def left(self, shards: Collection[int]) -> None:
        """Wait until no attempt of the runners that were dropped in these shards is under way."""
        while any(self.shard_of(key) in shards for key in self._leaving):
            self._left.clear()
            await self._left.wait()

    def bar(self, key: int) -> None:
        """Until `unbar`, the subscription has no runner: it is about to be disabled, and not yet."""
        self._barred.add(key)
        self.drop(key)

    def unbar(self, key: int) -> None:
        """It may have a runner again, if it is active."""
        self._barred.discard(key)

    @contextmanager
    def feeding(self, keys: Collection[int]) -> Iterator[None]:
        """While rows are read for these they are not idle, though nothing is in memory of them."""
        self._feeding.update(keys)
        try:
            yield
        finally:
            self._feeding.difference_update(keys)

    async def open(self, keys: list[int]) -> None:
        """Make runners for those of the subscriptions that are active.

        Raises:
            SQLAlchemyError, OSError: when the sinks can't be read; there are no new runners then.
        """
        self._opening = set(keys)
        for config in await self._office.load_sinks(keys):
            if config.key not in self._opening:
                continue  # changed while it was read: what was read may be from before
            if config.status is not Status.ACTIVE:
                self._forget_pace(config.key)
            elif not self._office.sends(config.key):
                continue  # held as a whole
            elif config.key not in self._runners and self.accepting:
                try:
                    sink = Sink.of(config, self._settings.origin)
                except ValueError:
                    log().error("sink-unusable", subscription=str(config.id))
                    continue
                self._runners[config.key] = Runner(
                    sink,
                    self.shard_of(config.key),
                    self._pace(config),
                    RunQueue(0 if config.batch is None else config.batch.max_count),
                    replay=self._replays.get(config.key),
                )
                if config.secrets_change_in is not None:  # then it is read anew, at the next sweep at the latest
                    asyncio.get_running_loop().call_later(config.secrets_change_in + 0.01, self.drop, config.key)

    def replay(self, key: int, run: ReplayRun | None) -> None:
        """What the runner of a subscription, this one and those after it, sends again on request."""
        if run is None:
            self._replays.pop(key, None)
        else:
            self._replays[key] = run
        runner = self._runners.get(key)
        if runner is not None:
            runner.replay = run

    def drop(self, key: int) -> None:
        """Forget what is in memory of a subscription; what is under way ends by itself."""
        self._opening.discard(key)
        runner = self._runners.pop(key, None)
        if runner is not None:
            runner.stop()
            if runner.in_flight:
                self._leaving[key] += runner.in_flight

    def drop_shards(self, shards: Collection[int]) -> None:
        """Forget what is in memory of these shards.

        Also what is being opened: a runner that came of it would keep what it read while others own the shard, and
        send it again when the shard comes back.
        """
        for key in {*self._runners, *self._opening}:
            if self.shard_of(key) in shards:
                self.drop(key)

    def drop_all(self) -> list[int]:
        """Forget everything; the keys of what there was."""
        known = [*self._runners, *self._opening]
        for key in known:
            self.drop(key)
        return known

    def drop_stuck(self) -> list[Runner]:
        """Forget those whose lanes stand still though nothing is under way, so that they are read anew.

        There are none, but for a defect of ours; and a defect must not keep a notification back for ever.
        """
        stuck = [
            runner
            for key, runner in self._runners.items()
            if runner.queue.stands_still and not runner.in_flight and key not in self._feeding
        ]
        for runner in stuck:
            self.drop(runner.key)
        return stuck

    def drop_idle(self, but: dict[int, None]) -> None:
        """Forget those that have nothing to do and won't have, with their paces."""
        for key, runner in list(self._runners.items()):
            idle = runner.queue.idle and runner.replay is None and not runner.in_flight
            if idle and key not in but and key not in self._feeding:
                self.drop(key)
                if runner.pace.failing_since is None:  # else it is still needed, when something comes again
                    self._forget_pace(key)

    def _pace(self, config: SinkConfig) -> Pace:
        """The pace of a sink, which outlives its runner; a sink that was changed, or resumed, starts anew."""
        since = None if config.failing_since is None else config.failing_since.timestamp()
        known = self._paces.get(config.key)
        if known is None or known[0] != config.sink or (known[1].noted and since is None):
            self._forget_pace(config.key)
            most = self._settings.concurrency
            if config.queue is not None:
                most = min(most, MOST_UNCONFIRMED)
            known = self._paces[config.key] = (config.sink, Pace(most))
        pace = known[1]
        pace.per_minute = config.allowed_rate
        if since is not None:
            pace.failing_since, pace.noted = since, True
        return pace

    def pace_of(self, key: int) -> Pace | None:
        """The pace of a sink, if anything was sent to it lately."""
        known = self._paces.get(key)
        return None if known is None else known[1]

    def failing_starts_anew(self) -> None:
        """Something was held until now: that time must not count as time that sinks accepted nothing."""
        for _, pace in self._paces.values():
            pace.failing_since, pace.noted = None, False

    def _forget_pace(self, key: int) -> None:
        _, pace = self._paces.pop(key, ("", None))
        if pace is not None and pace.state is not BreakerState.CLOSED:
            BREAKERS_OPEN.dec()
