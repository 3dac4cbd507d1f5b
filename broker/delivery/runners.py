"""The subscriptions that have something to send in this process, each with its sink, run queue and pace.

A runner lives from the first wake-up until its queue is empty, its shard goes, or its subscription is changed; then
what is in memory is read anew. The pace outlives it, so that a sick sink doesn't look healthy after a change.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Protocol
from uuid import UUID

from broker.delivery.lanes import RunQueue
from broker.delivery.pace import BreakerState, Pace
from broker.delivery.recorder import Recorder
from broker.delivery.sender import Sink
from broker.delivery.settings import DeliverySettings
from broker.telemetry import BREAKERS_OPEN, log
from subscriptions.sinks import SinkConfig
from subscriptions.tables import Status

_TIMED_MAX: Final = 10_000
"""Lanes of one sink that wait for a retry in memory; above it nothing new is read for the sink."""


class Office(Protocol):
    """What delivery asks of the subscriptions and grants."""

    async def load_sinks(self, keys: list[int]) -> list[SinkConfig]:
        """The sinks of these subscriptions."""

    def granted(self, organisation_id: UUID, event_type: str, now: datetime) -> UUID | None:
        """The grant on which this may be sent now, if any."""

    def seal_excerpt(self, subscription_id: UUID, excerpt: bytes) -> bytes:
        """Seal the first bytes of an answer, which only the provider may read."""

    async def sink_is_gone(self, subscription_id: UUID) -> None:
        """Disable the subscription: its sink answered 410."""


@dataclass(slots=True)
class Runner:
    """A subscription that has, or may have, something to send."""

    sink: Sink
    shard: int
    pace: Pace
    queue: RunQueue = field(default_factory=RunQueue)
    in_flight: int = 0
    timer: asyncio.TimerHandle | None = None
    stopped: bool = False

    @property
    def key(self) -> int:
        """The subscription's internal key."""
        return self.sink.config.key

    def stop(self) -> None:
        """Nothing starts any more; attempts under way end by themselves."""
        self.stopped = True
        self.cancel_timer()

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
        self._under_way: Counter[int] = Counter()
        self._paces: dict[int, tuple[str, Pace]] = {}
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

    def has_room(self, runner: Runner) -> bool:
        """Whether more may be read for it. A sick sink needs its next delivery in memory, and no more."""
        if runner.pace.state is not BreakerState.CLOSED:
            return runner.queue.buffered == 0
        return runner.queue.buffered <= self._settings.window // 2 and runner.queue.timed < _TIMED_MAX

    def began(self, runner: Runner) -> None:
        """An attempt is under way."""
        runner.in_flight += 1
        self._under_way[runner.key] += 1

    def ended(self, runner: Runner) -> None:
        """It no longer is."""
        runner.in_flight -= 1
        self._under_way[runner.key] -= 1
        if not self._under_way[runner.key]:
            del self._under_way[runner.key]

    def unsettled(self, key: int) -> bool:
        """Whether a former runner has attempts under way or unrecorded, which still look pending."""
        return self._under_way[key] > 0 or self._recorder.holds(key)

    async def open(self, keys: list[int]) -> None:
        """Make runners for those of the subscriptions that are active.

        Raises:
            SQLAlchemyError, OSError: when the sinks can't be read; there are no new runners then.
        """
        self._opening = set(keys)
        for config in await self._office.load_sinks(keys):
            if config.key not in self._opening:
                continue  # changed while it was read: what was read may be from before
            if config.status is Status.ACTIVE and config.key not in self._runners and self.accepting:
                try:
                    sink = Sink.of(config)
                except ValueError:
                    log().error("sink-unusable", subscription=str(config.id))
                    continue
                self._runners[config.key] = Runner(sink, self.shard_of(config.key), self._pace(config))
                if config.secrets_change_at is not None:  # then it is read anew, at the next sweep at the latest
                    seconds = (config.secrets_change_at - datetime.now(UTC)).total_seconds()
                    asyncio.get_running_loop().call_later(max(seconds, 0) + 0.01, self.drop, config.key)

    def drop(self, key: int) -> None:
        """Forget what is in memory of a subscription; what is under way ends by itself."""
        self._opening.discard(key)
        runner = self._runners.pop(key, None)
        if runner is not None:
            runner.stop()

    def drop_all(self) -> list[int]:
        """Forget everything; the keys of what there was."""
        known = [*self._runners, *self._opening]
        for key in known:
            self.drop(key)
        return known

    def drop_idle(self, but: dict[int, None]) -> None:
        """Forget those that have nothing to do and won't have, with their paces."""
        for key, runner in list(self._runners.items()):
            if runner.queue.idle and not runner.in_flight and key not in but:
                self.drop(key)
                self._forget_pace(key)

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
