"""Hash tables of subscriptions: what a probe looks up, and how entries come and go in a few microseconds.

A bucket of ids is a tuple while small and a list once it is hot; `_places` then remembers where each id stands, so that
leaving a hot bucket costs no search.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from broker.matching.accessors import Accessor
from broker.matching.plan import Span

HOT: Final = 16
"""Ids in a bucket from which it is a list."""
Mode: TypeAlias = Literal["plain", "guarded", "counted", "both", "span"]
Signature: TypeAlias = tuple[Accessor, ...]
Ids: TypeAlias = tuple[int, ...] | list[int]


@dataclass(frozen=True, slots=True)
class Form:
    """What kind of table: its accessors in fixed order, and what its buckets hold.

    plain: ids. guarded: ids by guard. counted: ids by the set of further pairs that the event must have.
    both: ids by such a set and a guard. span: thresholds on `measure`. `shared` tables hold the
    conjunctions of subscriptions that may match by more than one.
    """

    signature: Signature
    mode: Mode
    shared: bool
    measure: Accessor | None = None


class Table:
    """Entries of one form, by key: the one value, or the tuple of values, or `()` without accessors."""

    __slots__ = ("_places", "buckets", "form", "size")

    def __init__(self, form: Form) -> None:
        """Start empty."""
        self.form = form
        self.buckets: dict[Any, Any] = {}
        self.size = 0
        self._places: dict[Hashable, dict[int, int]] = {}

    def add(self, key: Hashable, part: Any, number: int) -> bool:
        """Add an id under a key and, unless plain, its guard, set or span; says whether the part is new there."""
        self.size += 1
        if self.form.mode == "plain":
            return self._join(self.buckets, key, key, number)
        if self.form.mode == "span":
            thresholds = self.buckets.get(key)
            if thresholds is None:
                thresholds = self.buckets[key] = Thresholds()
            thresholds.add(part, number)
            return True
        bucket = self.buckets.get(key)
        if bucket is None:
            bucket = self.buckets[key] = {}
        return self._join(bucket, part, (key, part), number)

    def remove(self, key: Hashable, part: Any, number: int) -> bool:
        """Take an id out again; says whether the part has gone with it."""
        self.size -= 1
        if self.form.mode == "plain":
            return self._leave(self.buckets, key, key, number)
        bucket = self.buckets[key]
        if self.form.mode == "span":
            bucket.remove(part, number)
            gone = True
        else:
            gone = self._leave(bucket, part, (key, part), number)
        if not bucket:
            del self.buckets[key]
        return gone

    def weight(self, key: Hashable) -> int:
        """How many entries a bucket has: what an event pays that finds it."""
        bucket = self.buckets.get(key)
        return 0 if bucket is None else len(bucket)

    def _join(self, bucket: dict[Any, Ids], slot: Any, place: Hashable, number: int) -> bool:
        ids = bucket.get(slot)
        if ids is None:
            bucket[slot] = (number,)
            return True
        if isinstance(ids, list):
            self._places[place][number] = len(ids)
            ids.append(number)
        elif len(ids) < HOT:
            bucket[slot] = (*ids, number)
        else:
            bucket[slot] = [*ids, number]
            self._places[place] = {each: at for at, each in enumerate((*ids, number))}
        return False

    def _leave(self, bucket: dict[Any, Ids], slot: Any, place: Hashable, number: int) -> bool:
        ids = bucket[slot]
        if isinstance(ids, list):
            places = self._places[place]
            at, last = places.pop(number), ids.pop()
            if last != number:
                ids[at] = last
                places[last] = at
            if len(ids) <= HOT // 2:
                bucket[slot] = tuple(ids)
                del self._places[place]
        elif len(ids) == 1:
            del bucket[slot]
            return True
        else:
            bucket[slot] = tuple(each for each in ids if each != number)
        return False


Edge: TypeAlias = tuple[int | float, int]


class Thresholds:
    """Ranges on one measure, sorted: one-sided ones cost what they yield, two-sided ones a scan from below."""

    __slots__ = ("_below", "_below_ids", "_both", "_from", "_from_ids")

    def __init__(self) -> None:
        """Start empty."""
        self._from: list[Edge] = []
        self._from_ids: list[int] = []
        self._below: list[Edge] = []
        self._below_ids: list[int] = []
        self._both: list[tuple[Edge, Edge, int]] = []

    def __len__(self) -> int:
        """How many ranges there are."""
        return len(self._from) + len(self._below) + len(self._both)

    def add(self, span: Span, number: int) -> None:
        """Add a range."""
        if span.low is not None and span.high is not None:
            insort(self._both, (span.low, span.high, number))
            return
        edges, ids, edge = self._side(span)
        at = bisect_right(edges, edge)
        edges.insert(at, edge)
        ids.insert(at, number)

    def remove(self, span: Span, number: int) -> None:
        """Take a range out again."""
        if span.low is not None and span.high is not None:
            del self._both[bisect_left(self._both, (span.low, span.high, number))]
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
            candidates = self._both[: bisect_right(self._both, (point, (float("inf"), 2), 0))]
            found += [number for _, high, number in candidates if high >= point]
        return found

    def _side(self, span: Span) -> tuple[list[Edge], list[int], Edge]:
        if span.low is not None:
            return self._from, self._from_ids, span.low
        assert span.high is not None
        return self._below, self._below_ids, span.high
