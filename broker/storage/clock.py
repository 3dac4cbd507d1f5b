"""PostgreSQL's clock, as a process knows it between two looks: one time for all, whatever a machine's own clock says.

Whether a grant holds depends on the time, and when a retry is due. A process whose clock is wrong by hours would else
match nothing, cancel what it should send, or put off a retry by these hours.
"""

import time
from datetime import UTC, datetime, timedelta


class DatabaseClock:
    """The time by PostgreSQL; before the first look that of the machine."""

    def __init__(self) -> None:
        self._told: datetime | None = None
        self._told_at = self._told_seconds = 0.0

    def told(self, now: datetime, asked_at: float) -> None:
        """PostgreSQL said that it is `now`, when asked at this moment of the monotonic clock."""
        self._told, self._told_at, self._told_seconds = now, asked_at, now.timestamp()

    def now(self) -> datetime:
        """What time it is: ahead by what the last question took, at most."""
        if self._told is None:
            return datetime.now(UTC)
        return self._told + timedelta(seconds=time.monotonic() - self._told_at)

    def seconds(self) -> float:
        """The same, in seconds since 1970."""
        return time.time() if self._told is None else self._told_seconds + time.monotonic() - self._told_at
