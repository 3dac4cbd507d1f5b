"""A wall clock that jumps: libfaketime, preloaded into our processes and PostgreSQL, reads the offset from a file.

The monotonic clock stays as it is, as it does when a real wall clock is set.
"""

from pathlib import Path

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
