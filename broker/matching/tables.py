"""Hash tables of subscriptions: what a probe looks up, and how entries come and go in a few microseconds."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from broker.matching.accessors import Accessor
from broker.matching.ids import Rooms
from broker.matching.thresholds import Thresholds

Mode: TypeAlias = Literal["plain", "guarded", "span"]
Signature: TypeAlias = tuple[Accessor, ...]


@dataclass(frozen=True, slots=True)
class Form:
    """What kind of table: its accessors in fixed order, and what its buckets hold.

    plain: ids. guarded: ids by guard. span: thresholds on `measure`. `shared` tables hold the conjunctions of
    subscriptions that may match by more than one.
    """

    signature: Signature
    mode: Mode
    shared: bool
    measure: Accessor | None = None


class Table:
    """Entries of one form, by key: the one value, or the tuple of values, or `()` without accessors."""

    __slots__ = ("_rooms", "buckets", "form", "moved", "size")

    def __init__(self, form: Form) -> None:
        """Start empty."""
        self.form = form
        self.buckets: dict[Any, Any] = {}
        self.size = 0
        self.moved: dict[tuple[int, Hashable, Any], Any] | None = None
        """Where entries have gone that left for another structure, by id, key and part."""
        self._rooms = Rooms()

    def add(self, key: Hashable, part: Any, number: int) -> bool:
        """Add an id under a key and, unless plain, its guard or span; says whether the part is new there."""
        self.size += 1
        if self.form.mode == "plain":
            return self._rooms.join(self.buckets, key, key, number)
        if self.form.mode == "span":
            thresholds = self.buckets.get(key)
            if thresholds is None:
                thresholds = self.buckets[key] = Thresholds()
            thresholds.add(part, number)
            return True
        bucket = self.buckets.get(key)
        if bucket is None:
            bucket = self.buckets[key] = {}
        return self._rooms.join(bucket, part, (key, part), number)

    def remove(self, key: Hashable, part: Any, number: int) -> bool:
        """Take an id out again; says whether the part has gone with it."""
        self.size -= 1
        if self.form.mode == "plain":
            return self._rooms.leave(self.buckets, key, key, number)
        bucket = self.buckets[key]
        if self.form.mode == "span":
            bucket.remove(part, number)
            gone = True
        else:
            gone = self._rooms.leave(bucket, part, (key, part), number)
        if not bucket:
            del self.buckets[key]
        return gone

    def entries(self) -> Iterator[tuple[Hashable, Any, int]]:
        """Every key, part and id of a table that isn't one of spans."""
        for key, bucket in self.buckets.items():
            for part, ids in ((None, bucket),) if self.form.mode == "plain" else bucket.items():
                for number in ids:
                    yield key, part, number
