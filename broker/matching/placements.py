"""Where conjunctions stand in a partition, and what conjunctions with the same accessors have in common."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, TypeAlias, cast

from broker.matching.plan import Conjunction, Key
from broker.matching.tables import Signature, Table
from broker.matching.trie import Entry, Pair

Exact: TypeAlias = tuple[Table, Hashable, Any]
"""A table, the key in it, and the guard or span there."""


class Behind:
    """Where a conjunction of a rare combination stands; changed in place when the combination moves."""

    __slots__ = ("conjunction", "moved", "paired", "path", "rest", "shape", "shared")

    def __init__(self, conjunction: Conjunction, shape: Shape, shared: bool) -> None:
        """Not placed yet."""
        self.conjunction = conjunction
        self.shape = shape
        self.shared = shared
        self.paired: tuple[Key, ...] = ()
        self.path: tuple[Pair, ...] = ()
        self.rest: Entry = ((), None, shared)
        self.moved: Exact | None = None
        """The place in a table of its own, once its combination has one."""


Placement: TypeAlias = Exact | Behind


class Shape:
    """Conjunctions with the same accessors: how many, and, while they stand behind others, which."""

    __slots__ = ("behind", "count", "exact", "signature")

    def __init__(self, signature: Signature, exact: bool) -> None:
        """Start with none."""
        self.signature = signature
        self.count = 0
        self.exact = exact
        self.behind: dict[Behind, int] = {}


def arrangement(order: Signature) -> tuple[int, ...]:
    """Which of the accessors comes when, so that conditions in any order share a table."""
    return tuple(sorted(range(len(order)), key=lambda at: order[at].number))


def keys_of(table: Table, key: Hashable) -> tuple[Key, ...]:
    """A table's key as accessors with their values."""
    signature = table.form.signature
    values = (key,) if len(signature) == 1 else cast("tuple[object, ...]", key)
    return tuple(zip(signature, values, strict=True))
