"""Which numbers of a subscription arrived: what proves that nothing is missing, and recognises what came twice.

Kept in a file that holds numbers and nothing else. A number is in the file before its notification is answered, so a
receiver that is killed knows again what it had confirmed.
"""

import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_PRIVATE: Final = 0o600
_NAMED_RANGES: Final = 8

Range = tuple[int, int]
"""First and last, both included."""


class Ledger:
    """The numbers received, as ranges in order; in memory only without a path."""

    def __init__(self, path: Path | None = None) -> None:
        self._ranges: list[Range] = []
        self._file: int | None = None
        self.closed = False
        self.duplicates = 0
        if path is not None:
            for first, last in _read(path):
                self._insert(first, last)
            self._file = _rewrite(path, self._ranges)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was added is in it already. Nothing can be added any more."""
        self.closed = True
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def add(self, number: int) -> bool:
        """Note a number; tells whether it is new. A number that is known counts as a duplicate.

        Raises:
            ValueError: the ledger is closed.
        """
        if self.closed:
            raise ValueError("the ledger is closed")
        if number in self:
            self.duplicates += 1
            return False
        if self._file is not None:
            os.write(self._file, b"%d\n" % number)
        self._insert(number, number)
        return True

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self._ranges, number, key=lambda known: known[0])
        return place > 0 and number <= self._ranges[place - 1][1]

    @property
    def highest(self) -> int:
        """The highest number received; 0: none was."""
        return self._ranges[-1][1] if self._ranges else 0

    @property
    def complete_through(self) -> int:
        """Every number from 1 up to this one was received."""
        return self._ranges[0][1] if self._ranges and self._ranges[0][0] == 1 else 0

    def missing(self, through: int | None = None) -> list[Range]:
        """The gaps from 1 up to `through`, by default the highest number received."""
        through = self.highest if through is None else through
        gaps, expected = [], 1
        for first, last in self._ranges:
            if expected > through:
                break
            if first > expected:
                gaps.append((expected, min(first - 1, through)))
            expected = last + 1
        if expected <= through:
            gaps.append((expected, through))
        return gaps

    def _insert(self, first: int, last: int) -> None:
        place = bisect_right(self._ranges, first, key=lambda known: known[0])
        if place and self._ranges[place - 1][1] >= first - 1:
            place -= 1
            first, last = self._ranges[place][0], max(last, self._ranges[place][1])
            del self._ranges[place]
        while place < len(self._ranges) and self._ranges[place][0] <= last + 1:
            last = max(last, self._ranges[place][1])
            del self._ranges[place]
        self._ranges.insert(place, (first, last))


def say(ranges: Sequence[Range]) -> str:
    """Ranges as people write them: `3, 5–7`; of many the first few."""
    rest = ranges[_NAMED_RANGES:]
    words = [str(first) if first == last else f"{first}–{last}" for first, last in ranges[:_NAMED_RANGES]]
    return ", ".join(words) + (f" and {sum(last - first + 1 for first, last in rest)} more" if rest else "")


def _read(path: Path) -> list[Range]:
    """What the file holds; a last line that was cut off is none."""
    try:
        *lines, _ = path.read_text().split("\n")
    except FileNotFoundError:
        return []
    ranges = []
    for line in lines:
        first, _, last = line.partition("-")
        ranges.append((int(first), int(last or first)))
    return ranges


def _rewrite(path: Path, ranges: Iterable[Range]) -> int:
    """Write the file anew, compact and in one step, and leave it open for adding."""
    temporary = path.with_name(path.name + ".new")
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, _PRIVATE)
    os.write(file, "".join(f"{first}-{last}\n" for first, last in ranges).encode())
    temporary.replace(path)
    return file
