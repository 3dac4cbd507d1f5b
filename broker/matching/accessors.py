"""What a table looks an event up by: one value read from the event, and the values a condition puts against it."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias
from weakref import WeakValueDictionary

from schemas.filters.algebra import Pointer, Scalar

Kind: TypeAlias = Literal[
    "attribute",  # the canonical string
    "prefix",  # its first `size` characters
    "suffix",  # its last `size` characters
    "label",  # its first `size` characters, with a dot behind it
    "integer",  # the integer that CESQL casts it to
    "list",  # the follow lists that hold it: several values
    "gram",  # its runs of three characters: several values
    "data",  # the scalar at a pointer, see `data_key`
    "data-prefix",  # the first `size` characters of the string at a pointer
    "number",  # the number at a pointer
    "date",  # the calendar date at a pointer
    "instant",  # the instant at a pointer
]
SEVERAL: Final = frozenset({"list", "gram"})
GRAM: Final = 3


class Accessor:
    """One way to read an event. Two for the same reading are the same object, so they compare by identity."""

    __slots__ = ("__weakref__", "kind", "name", "pointer", "rank", "several", "size")

    def __init__(self, kind: Kind, name: str, pointer: Pointer | None, size: int) -> None:
        """Called by `accessor` only."""
        self.kind = kind
        self.name = name
        self.pointer = pointer
        self.size = size
        self.several = kind in SEVERAL
        self.rank = (kind, name, pointer or (), size)
        """A fixed order, so that conditions in any order share a table."""

    def __repr__(self) -> str:
        """For people."""
        return f"<{self.kind} of {self.name or self.pointer}>"


_known: WeakValueDictionary[tuple[str, str, Pointer | None, int], Accessor] = WeakValueDictionary()


def accessor(kind: Kind, operand: str | Pointer, size: int = 0) -> Accessor:
    """The one accessor for an attribute's name or a pointer into `data`."""
    name, pointer = (operand, None) if isinstance(operand, str) else ("", operand)
    found = _known.get((kind, name, pointer, size))
    if found is None:
        found = _known[kind, name, pointer, size] = Accessor(kind, name, pointer, size)
    return found


class _Word:
    """A JSON word as a table's key: in Python `True == 1`, and `None` stands for absent."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


_TRUE, _FALSE, _NULL, NO_SCALAR = _Word("true"), _Word("false"), _Word("null"), _Word("nothing")


def scalar_key(scalar: Scalar) -> object:
    """The key for a condition's scalar; equal keys mean equal kinds and values."""
    kind, value = scalar
    if kind == "boolean":
        return _TRUE if value else _FALSE
    return _NULL if kind == "null" else value


def data_key(value: object) -> object:
    """The key for what a pointer found in an event; objects, arrays and nothing give one that no table has."""
    if value.__class__ is str:
        return value
    if value is True:
        return _TRUE
    if value is False:
        return _FALSE
    if value is None:
        return _NULL
    return value if isinstance(value, int | float) else NO_SCALAR
