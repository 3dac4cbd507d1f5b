"""A wall clock that jumps: libfaketime, preloaded into our processes and PostgreSQL, reads the offset from a file.

The monotonic clock stays as it is, as it does when a real wall clock is set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_SEEN_SECONDS = 1.5
"""Within this a process sees that its clock was set."""
_LIBRARIES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib*/faketime/libfaketimeMT.so.1")


def library() -> Path | None:
    """Debian's libfaketime, if it is installed (`apt-get install libfaketime`)."""
    for pattern in _LIBRARIES:
        for found in Path("/").glob(pattern.lstrip("/")):
            return found
    return None


class Clock:
    """The clock of one process, or of PostgreSQL."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._library = library()
        file.write_text("+0\n")
        file.chmod(0o644)

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process look at it."""
        if self._library is None:
            return {}
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, seconds: int) -> None:
        """Show the true time plus so many seconds, from within a second from now on."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.chmod(0o644)
        new.replace(self._file)


@dataclass(slots=True)
class Jump:
    """How long PostgreSQL's clock was to show another time. By the monotonic clock."""

    seconds: int
    since: float
    until: float = float("inf")


@dataclass(frozen=True, slots=True)
class Readings:
    """What a clock that jumped can have shown when: `offset` is what the true time is ahead of the monotonic clock."""

    offset: float
    jumps: Sequence[Jump]

    def earliest(self, reading: float) -> float:
        """The first moment at which it can have shown this."""
        return min(self._moments(reading))

    def latest(self, reading: float) -> float:
        """The last moment at which it can have shown this."""
        return max(self._moments(reading))

    def jumped(self, since: float, until: float) -> bool:
        """Whether it may have shown another time than the true one, at some moment in between."""
        return bool(self._between(since, until))

    def furthest(self, since: float, until: float) -> float:
        """The highest that it can have shown in between."""
        return until + self.offset + max((0, *(jump.seconds for jump in self._between(since, until))))

    def _between(self, since: float, until: float) -> list[Jump]:
        return [jump for jump in self.jumps if jump.since <= until and since <= jump.until + _SEEN_SECONDS]

    def _moments(self, reading: float) -> list[float]:
        true = reading - self.offset
        shifted = ((jump, true - jump.seconds) for jump in self.jumps)
        return [true, *(moment for jump, moment in shifted if jump.since <= moment <= jump.until + _SEEN_SECONDS)]
