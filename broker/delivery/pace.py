"""The pace of one sink and its circuit breaker. Pure: times are seconds by the caller's clock.

One pace unites what the sink says: the rate that its handshake allowed, and `Retry-After` on a failure, which stops
the whole sink until then (CloudEvents HTTP webhook 1.0.2, sections 2.2 and 4.2). Beside it stands one breaker:

    closed ──10 failures in a row──► open ──its time is over──► half-open ──success──► closed, concurrency from 1 up
       ▲                              ▲                            │ one probe
       └── any success                └──────────failure───────────┘  twice the time, to five minutes

While the breaker is open no attempt is made, so the waiting deliveries burn none. Below ten failures in a row nothing
slows down: a sink that fails now and then is not a sick one.

How many attempts go side by side follows how long the sink takes to accept. What it takes usually is the lowest that
the moving average was within its last 100 to 200 successes. When the average is more than twice that, and more than a
tenth of a second, more at once only makes it slower: half as many go side by side, down to one, and the effect is
awaited before it is judged again. While it isn't, one more goes for each round of successes, up to the limit. So a sink
that always takes two seconds keeps all its places, and one that chokes on them gets fewer. Failures, time-outs among
them, say nothing here: they count for the breaker.

A sink that has had no success since its first failure is failing since then; `failing_since` is what disables it in
the end, and is noted in the database once it is a minute old.
"""

from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Final

FAILURES_TO_OPEN: Final = 10
FIRST_OPEN_SECONDS: Final = 5.0
LONGEST_OPEN_SECONDS: Final = 300.0
NOTED_AFTER_SECONDS: Final = 60.0
_SPREAD: Final = 0.2
_NEVER_SLOW_SECONDS: Final = 0.1
_SLOWER: Final = 2.0
_WEIGHT: Final = 0.1
"""Of the newest in the moving average."""
_MEASURED_OVER: Final = 100
"""Successes after which what is usual is measured anew."""


class BreakerState(StrEnum):
    """Whether attempts are made."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


@dataclass(slots=True)
class _Pause:
    """Nothing goes until its end. A clock that is set back makes it no longer than it was to be."""

    until: float = 0.0
    seconds: float = 0.0

    def left(self, now: float) -> float:
        """Seconds that it still lasts."""
        return min(max(self.until - now, 0.0), self.seconds)

    def last(self, now: float, seconds: float) -> None:
        """It lasts for so many seconds from now, or as long as it does already."""
        if seconds > self.left(now):
            self.until, self.seconds = now + seconds, seconds


@dataclass(slots=True)
class Pace:
    """When and how many attempts a sink may have. Belongs to one subscription, also where hosts coincide."""

    concurrency: int
    """Most attempts side by side when all is well."""
    per_minute: int | None = None
    """What the handshake allowed; None: any rate."""
    state: BreakerState = BreakerState.CLOSED
    failures: int = 0
    """In a row."""
    failing_since: float | None = None
    """When the first of these was; it may be before the process started."""
    noted: bool = False
    """The database knows that it is failing."""
    _limit: float = 0.0
    _fast_below: float = 0.0
    """Below this limit it grows by a half for each success, else by one for each round."""
    _average: float = 0.0
    _usual: float = 0.0
    _lowest: float = 0.0
    _measured: int = 0
    _await: int = 0
    _asked: _Pause = field(default_factory=_Pause)
    """For which the sink asked, by `Retry-After`: no success of another attempt ends it."""
    _broken: _Pause = field(default_factory=_Pause)
    """Of the open breaker."""
    _open_seconds: float = 0.0
    _probing: bool = False
    _tokens: float = 1.0
    _filled_at: float = 0.0

    def __post_init__(self) -> None:
        self._limit = self._fast_below = float(self.concurrency)

    @property
    def limit(self) -> int:
        """Attempts that may be under way now."""
        return 1 if self.state is not BreakerState.CLOSED else max(int(self._limit), 1)

    def wait(self, now: float) -> float:
        """Seconds until the next attempt may begin; 0: now."""
        if self.state is BreakerState.HALF_OPEN and self._probing:
            return 1.0  # until the probe is answered, whose answer asks again
        wait = max(self._asked.left(now), self._broken.left(now))
        if self.per_minute is not None:
            self._fill(now)
            wait = max(wait, (1 - self._tokens) * 60 / self.per_minute)
        return max(wait, 0.0)

    def begin(self, now: float) -> None:
        """An attempt begins; `wait` was 0."""
        if self.state is BreakerState.OPEN:
            self.state = BreakerState.HALF_OPEN
        if self.state is BreakerState.HALF_OPEN:
            self._probing = True
        if self.per_minute is not None:
            self._fill(now)
            self._tokens -= 1

    def succeeded(self, seconds: float = 0.0) -> bool:
        """The sink accepted a notification, in so many seconds. Whether this closed the breaker."""
        self._probing = False
        self.failures = 0
        self.failing_since = None
        if self.state is not BreakerState.CLOSED:
            self.state = BreakerState.CLOSED
            self._limit = 1.0
            self._fast_below = float(self.concurrency)
            self._open_seconds = 0.0
            self._broken = _Pause()
            return True
        self._measure(seconds)
        return False

    def failed(self, now: float, retry_after: timedelta | None, jitter: float) -> bool:
        """The sink failed; `jitter` is a random number in [-1, 1]. Whether the breaker opened just now."""
        self.failures += 1
        self._probing = False
        if self.failing_since is None:
            self.failing_since = now
        if retry_after is not None:
            self._asked.last(now, retry_after.total_seconds())
        if self.state is BreakerState.CLOSED and self.failures < FAILURES_TO_OPEN:
            return False
        opened = self.state is BreakerState.CLOSED
        if opened or self.state is BreakerState.HALF_OPEN:
            self._open_seconds = min(max(self._open_seconds * 2, FIRST_OPEN_SECONDS), LONGEST_OPEN_SECONDS)
            self._broken.last(now, self._open_seconds * (1 + _SPREAD * jitter))
        self.state = BreakerState.OPEN
        return opened

    def rest(self, now: float, seconds: float) -> None:
        """Nothing goes for a while, for a reason that isn't the sink's: it says nothing about it."""
        self._broken.last(now, seconds)

    def abandoned(self) -> None:
        """An attempt ended without an answer of the sink: it was cancelled, or was never sent."""
        self._probing = False

    def _measure(self, seconds: float) -> None:
        """Follow how long the sink takes: additive increase, multiplicative decrease."""
        if self._measured:
            self._average += (seconds - self._average) * _WEIGHT
        else:
            self._average = self._usual = self._lowest = seconds
        self._measured += 1
        self._lowest = min(self._lowest, self._average)
        if self._measured % _MEASURED_OVER == 0:
            self._usual, self._lowest = self._lowest, self._average
        elif self._lowest < self._usual:
            self._usual = self._lowest
        if self._await:
            self._await -= 1
        elif self._average > _NEVER_SLOW_SECONDS and self._average > _SLOWER * self._usual:
            self._limit = self._fast_below = max(self._limit / 2, 1.0)
            self._await = max(2 * int(self._limit), int(1 / _WEIGHT))
        elif self._limit < self.concurrency:
            self._limit += 0.5 if self._limit < self._fast_below else 1 / self._limit
            self._limit = min(self._limit, float(self.concurrency))

    def _fill(self, now: float) -> None:
        assert self.per_minute is not None
        burst = max(self.per_minute / 60, 1.0)
        if self._filled_at:
            passed = max(now - self._filled_at, 0.0)
            self._tokens = min(self._tokens + passed * self.per_minute / 60, burst)
        self._filled_at = now
