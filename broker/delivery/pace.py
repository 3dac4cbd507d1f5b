"""The pace of one sink and its circuit breaker. Pure: times are seconds by the caller's clock.

One pace unites what the sink says: the rate that its handshake allowed, and `Retry-After` on a failure, which stops
the whole sink until then (CloudEvents HTTP webhook 1.0.2, sections 2.2 and 4.2). Beside it stands one breaker:

    closed ──10 failures in a row──► open ──its time is over──► half-open ──success──► closed, concurrency from 1 up
       ▲                              ▲                            │ one probe
       └── any success                └──────────failure───────────┘  twice the time, to five minutes

While the breaker is open no attempt is made, so the waiting deliveries burn none. Below ten failures in a row nothing
slows down: a sink that fails now and then is not a sick one.
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Final

FAILURES_TO_OPEN: Final = 10
FIRST_OPEN_SECONDS: Final = 5.0
LONGEST_OPEN_SECONDS: Final = 300.0
_SPREAD: Final = 0.2


class BreakerState(StrEnum):
    """Whether attempts are made."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


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
    _limit: float = 0.0
    _not_before: float = 0.0
    _open_seconds: float = 0.0
    _probing: bool = False
    _tokens: float = 1.0
    _filled_at: float = 0.0

    def __post_init__(self) -> None:
        self._limit = float(self.concurrency)

    @property
    def limit(self) -> int:
        """Attempts that may be under way now."""
        return 1 if self.state is not BreakerState.CLOSED else max(int(self._limit), 1)

    def wait(self, now: float) -> float:
        """Seconds until the next attempt may begin; 0: now."""
        if self.state is BreakerState.HALF_OPEN and self._probing:
            return 1.0  # until the probe is answered, whose answer asks again
        wait = self._not_before - now
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

    def succeeded(self) -> bool:
        """The sink accepted a notification. Whether this closed the breaker."""
        closed = self.state is not BreakerState.CLOSED
        if closed:
            self.state = BreakerState.CLOSED
            self._limit = 1.0
            self._open_seconds = 0.0
            self._not_before = 0.0
        elif self._limit < self.concurrency:
            self._limit = min(self._limit + 0.5, self.concurrency)
        self._probing = False
        self.failures = 0
        return closed

    def failed(self, now: float, retry_after: timedelta | None, jitter: float) -> bool:
        """The sink failed; `jitter` is a random number in [-1, 1]. Whether the breaker opened just now."""
        self.failures += 1
        self._probing = False
        if retry_after is not None:
            self._not_before = max(self._not_before, now + retry_after.total_seconds())
        if self.state is BreakerState.CLOSED and self.failures < FAILURES_TO_OPEN:
            return False
        opened = self.state is BreakerState.CLOSED
        if opened or self.state is BreakerState.HALF_OPEN:
            self._open_seconds = min(max(self._open_seconds * 2, FIRST_OPEN_SECONDS), LONGEST_OPEN_SECONDS)
            self._not_before = max(self._not_before, now + self._open_seconds * (1 + _SPREAD * jitter))
        self.state = BreakerState.OPEN
        return opened

    def abandoned(self) -> None:
        """An attempt ended without an answer of the sink: it was cancelled, or was never sent."""
        self._probing = False

    def _fill(self, now: float) -> None:
        assert self.per_minute is not None
        burst = max(self.per_minute / 60, 1.0)
        if self._filled_at:
            self._tokens = min(self._tokens + (now - self._filled_at) * self.per_minute / 60, burst)
        self._filled_at = now
