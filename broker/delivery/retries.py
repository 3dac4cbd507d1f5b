"""The retry schedule as data: how long to wait after each failed attempt. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Final

JITTER: Final = 0.2
_SECOND, _MINUTE, _HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)


@dataclass(frozen=True)
class Schedule:
    """Waits between attempts; the delivery becomes a dead letter when they have run out.

    Each wait varies by ±20 %, so that sinks which came back are not hit by all their backlogs at the same moment.
    """

    waits: tuple[timedelta, ...]

    @classmethod
    def of_seconds(cls, seconds: Sequence[float]) -> "Schedule":
        """Make a schedule from waits in seconds, as a subscription's `retry` gives them."""
        return cls(tuple(timedelta(seconds=value) for value in seconds))

    @cached_property
    def horizon(self) -> timedelta:
        """The sum of all waits: the time within which a sink that is down can come back and lose nothing."""
        return sum(self.waits, timedelta(0))

    def wait(self, attempts: int, jitter: float) -> timedelta | None:
        """The wait after attempt number `attempts` (from 1), or None when there is no further attempt.

        `jitter` is a random number in [-1, 1].
        """
        if attempts > len(self.waits):
            return None
        return self.waits[attempts - 1] * (1 + JITTER * jitter)


DEFAULT: Final = Schedule(
    (
        *(n * _SECOND for n in (1, 2, 5, 15)),
        *(n * _MINUTE for n in (1, 5, 30)),
        *(n * _HOUR for n in (2, 4, 8, 12, 24, 24, 24, 24, 24, 24)),
    )
)
"""Seventeen retries over 7.1 days: even with every wait 20 % short it spans five days (ebMS's horizon, DOMAIN)."""
