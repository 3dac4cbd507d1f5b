"""The ids of one place: a tuple while few, a list once the place is hot.

Where each id stands in a hot list is remembered, so that leaving it costs no search.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Final, TypeAlias

HOT: Final = 16
"""Ids from which it is a list."""
Ids: TypeAlias = tuple[int, ...] | list[int]


class Rooms:
    """Who stands where in the hot lists of one table or trie."""

    __slots__ = ("_places",)

    def __init__(self) -> None:
        """Start without hot lists."""
        self._places: dict[Hashable, dict[int, int]] = {}

    def joined(self, ids: Ids | None, place: Hashable, number: int) -> Ids:
        """The ids of a place with one more."""
        if ids is None:
            return (number,)
        if isinstance(ids, list):
            self._places[place][number] = len(ids)
            ids.append(number)
            return ids
        if len(ids) < HOT:
            return (*ids, number)
        self._places[place] = {each: at for at, each in enumerate((*ids, number))}
        return [*ids, number]

    def left(self, ids: Ids, place: Hashable, number: int) -> Ids | None:
        """The ids of a place without one; nothing if it was the last."""
        if isinstance(ids, list):
            places = self._places[place]
            at, last = places.pop(number), ids.pop()
            if last != number:
                ids[at] = last
                places[last] = at
            if len(ids) > HOT // 2:
                return ids
            del self._places[place]
            return tuple(ids)
        return tuple([each for each in ids if each != number]) or None

    def join(self, bucket: dict[Any, Ids], slot: Any, place: Hashable, number: int) -> bool:
        """Add an id to a slot of a bucket; says whether the slot is new."""
        ids = bucket.get(slot)
        bucket[slot] = self.joined(ids, place, number)
        return ids is None

    def leave(self, bucket: dict[Any, Ids], slot: Any, place: Hashable, number: int) -> bool:
        """Take an id out again; says whether the slot has gone with it."""
        ids = self.left(bucket[slot], place, number)
        if ids is None:
            del bucket[slot]
            return True
        bucket[slot] = ids
        return False
