"""Conjunctions of rare combinations as sets of pairs (an accessor and a value); those within an event's set are found.

    rarest pair ── node: one set of what else is asked, waiting ── next pair ── node …

A node is visited only by events that have every pair on the way to it, and leads on by one intersection of sets,
so an event pays for what agrees with it, whatever combinations there are. What costs here is memory that isn't at
hand: so pairs are themselves the first nodes, and a path goes only as deep as it must to tell sets apart.
"""

from __future__ import annotations

from typing import Final

from broker.matching.guards import Guard
from broker.matching.ids import Ids, Rooms

ROOM: Final = 4
"""Guarded or shared entries that a node takes; any others go a pair deeper, as long as they have one."""


class Node:
    """What is asked beyond the pairs on the way here; whatever it hasn't got is None."""

    __slots__ = ("below", "children", "ids", "others", "rest", "waiting")

    def __init__(self) -> None:
        """Start empty."""
        self.ids: Ids | None = None
        """They ask nothing more."""
        self.rest: Pairs | None = None
        self.waiting: Ids | None = None
        """They ask `rest` too: the first that came by. Others go a pair deeper."""
        self.others: dict[Entry, Ids] | None = None
        """Those with a guard, and the shared ones."""
        self.children: dict[Pair, Node] | None = None
        self.below: set[Pair] | None = None
        """The children's pairs again: a set is intersected in a fifth of the time of a dictionary's view."""

    def bare(self) -> bool:
        """Whether nothing is left in it or below."""
        return self.ids is None and self.rest is None and not self.others and not self.children


class Pair(Node):
    """An accessor with a value, and how many conjunctions ask for it: the node of those for which it is the rarest."""

    __slots__ = ("uses",)

    def __init__(self) -> None:
        """Start unused."""
        super().__init__()
        self.uses = 0


Pairs = tuple[Pair, ...]
Entry = tuple[Pairs, Guard | None, bool]
"""The pairs asked beyond the path, the guard, and whether the subscription may match by another conjunction too."""


class Trie:
    """All such conjunctions of one partition."""

    __slots__ = ("_rooms", "root", "size")

    def __init__(self) -> None:
        """Start empty."""
        self.root = Node()
        """For those without any pair."""
        self.size = 0
        self._rooms = Rooms()

    def add(self, pairs: Pairs, guard: Guard | None, shared: bool, number: int) -> tuple[Pairs, Entry, bool]:
        """Add an id under its pairs, rarest first; gives its path and entry, and whether the entry is new there."""
        self.size += 1
        node, depth = (pairs[0], 1) if pairs else (self.root, 0)
        entry: Entry = (pairs[depth:], guard, shared)
        while not _takes(node, entry):
            node = _child(node, pairs[depth])
            depth += 1
            entry = (pairs[depth:], guard, shared)
        place, new = (node, entry), False
        if not _is_plain(entry):
            if node.others is None:
                node.others = {}
            new = self._rooms.join(node.others, entry, place, number)
        elif not entry[0]:
            node.ids = self._rooms.joined(node.ids, place, number)
        else:
            node.rest = entry[0]
            node.waiting = self._rooms.joined(node.waiting, place, number)
        return pairs[:depth], entry, new

    def remove(self, path: Pairs, entry: Entry, number: int) -> bool:
        """Take an id out again; says whether a guarded entry has gone with it."""
        self.size -= 1
        way: list[Node] = [path[0] if path else self.root]
        for pair in path[1:]:
            way.append((way[-1].children or {})[pair])
        node, gone = way[-1], False
        place = (node, entry)
        if not _is_plain(entry):
            gone = self._rooms.leave(node.others or {}, entry, place, number)
            node.others = node.others or None
        elif not entry[0]:
            node.ids = self._rooms.left(node.ids or (), place, number)
        else:
            node.waiting = self._rooms.left(node.waiting or (), place, number)
            node.rest = node.rest if node.waiting else None
        while len(way) > 1 and way.pop().bare():
            _without(way[-1], path[len(way)])
        return gone


def _is_plain(entry: Entry) -> bool:
    return entry[1] is None and not entry[2]


def _takes(node: Node, entry: Entry) -> bool:
    if not entry[0]:
        return True
    if _is_plain(entry):
        return node.rest is None or node.rest == entry[0]
    return node.others is None or len(node.others) < ROOM or entry in node.others


def _child(node: Node, pair: Pair) -> Node:
    if node.children is None or node.below is None:
        node.children, node.below = {}, set()
    child = node.children.get(pair)
    if child is None:
        child = node.children[pair] = Node()
        node.below.add(pair)
    return child


def _without(node: Node, pair: Pair) -> None:
    if node.children is not None and node.below is not None:
        del node.children[pair]
        node.below.discard(pair)
        if not node.children:
            node.children = node.below = None
