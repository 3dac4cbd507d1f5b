"""Ranges on one measure, sorted: looking a value up costs what it yields, not how many ranges there are."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from math import floor
from typing import Final, TypeAlias

from broker.matching.plan import Span

Edge: TypeAlias = tuple[int | float, int]
Range: TypeAlias = tuple[int, Edge, Edge, int]
"""The lower edge in steps, both edges, the id."""

FINENESS: Final = 1 << 20
"""Steps to one; only how well ranges are told apart depends on it, not which are found."""
COARSENESS: Final = 2
"""Bits by which one width differs from the next."""
FEW: Final = 16
"""Two-sided ranges that are all compared: finding the slices would cost more."""


class Thresholds:
    """One-sided ranges in order of their edge; two-sided ones by width, and in order of their lower edge within it.

    A range less than 2ⁿ steps wide that holds a value begins less than 2ⁿ steps below it, so of each width only a
    slice is looked at. Widths are told apart by factors of four: fewer to look up, for some more to compare.
    """

    __slots__ = ("_below", "_below_ids", "_both", "_count", "_from", "_from_ids")

    def __init__(self) -> None:
        """Start empty."""
        self._from: list[Edge] = []
        self._from_ids: list[int] = []
        self._below: list[Edge] = []
        self._below_ids: list[int] = []
        self._both: dict[int | None, list[Range]] = {}
        self._count = 0

    def __bool__(self) -> bool:
        """Whether there are ranges."""
        return bool(self._from or self._below or self._both)

    def add(self, span: Span, number: int) -> None:
        """Add a range."""
        if span.low is not None and span.high is not None:
            width, entry = _two_sided(span.low, span.high, number)
            insort(self._both.setdefault(width, []), entry)
            self._count += 1
            return
        edges, ids, edge = self._side(span)
        at = bisect_right(edges, edge)
        edges.insert(at, edge)
        ids.insert(at, number)

    def remove(self, span: Span, number: int) -> None:
        """Take a range out again."""
        if span.low is not None and span.high is not None:
            width, entry = _two_sided(span.low, span.high, number)
            ranges = self._both[width]
            del ranges[bisect_left(ranges, entry)]
            self._count -= 1
            if not ranges:
                del self._both[width]
            return
        edges, ids, edge = self._side(span)
        at = ids.index(number, bisect_left(edges, edge))
        del edges[at]
        del ids[at]

    def match(self, value: int | float) -> list[int]:
        """The ids of the ranges that hold the value."""
        point = (value, 0)
        found = self._from_ids[: bisect_right(self._from, point)] if self._from else []
        if self._below:
            found += self._below_ids[bisect_left(self._below, point) :]
        if self._both:
            for ranges in self._both.values() if self._count <= FEW else self.near(value):
                found += [number for _, low, high, number in ranges if low <= point <= high]
        return found

    def near(self, value: int | float) -> Iterator[list[Range]]:
        """The two-sided ranges that are compared with the value, by width."""
        step = _steps(value)
        for width, ranges in self._both.items():
            if step is None or width is None:
                yield ranges
            else:
                start = bisect_right(ranges, (step - (1 << width) + 1,))
                yield ranges[start : bisect_left(ranges, (step + 1,), start)]

    def _side(self, span: Span) -> tuple[list[Edge], list[int], Edge]:
        if span.low is not None:
            return self._from, self._from_ids, span.low
        assert span.high is not None
        return self._below, self._below_ids, span.high


def _steps(value: int | float) -> int | None:
    """The value in whole steps, rounded down; nothing where that has no meaning (infinite, or past a double)."""
    try:
        return floor(value * FINENESS)
    except (OverflowError, ValueError):
        return None


def _two_sided(low: Edge, high: Edge, number: int) -> tuple[int | None, Range]:
    """The width, as how many bits its steps need, and the entry; without a width it is looked at always."""
    start, end = _steps(low[0]), _steps(high[0])
    if start is None or end is None:
        return None, (0, low, high, number)
    return -(-max(0, end - start).bit_length() // COARSENESS) * COARSENESS, (start, low, high, number)
