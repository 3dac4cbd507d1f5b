"""What a table looks an event up by: one value read from the event, and the values a condition puts against it."""

from __future__ import annotations

from itertools import count
from typing import Final, Literal, TypeAlias
from weakref import WeakValueDictionary

from schemas.cesql import Expression
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
    "computed",  # the value of a CESQL expression, where it doesn't err
    "computed-prefix",  # the first `size` characters of such a string
    "computed-suffix",  # the last
]
Operand: TypeAlias = str | Pointer | Expression
SEVERAL: Final = frozenset({"list", "gram"})
GRAM: Final = 3


class Accessor:
    """One way to read an event. Two for the same reading are the same object, so they compare by identity."""

    __slots__ = ("__weakref__", "expression", "kind", "name", "number", "pointer", "several", "size")

    def __init__(self, kind: Kind, operand: Operand, size: int) -> None:
        """Called by `accessor` only."""
        self.kind = kind
        self.name = operand if isinstance(operand, str) else ""
        self.pointer = operand if isinstance(operand, tuple) else None
        self.expression = operand if isinstance(operand, Expression) else None
        self.size = size
        self.several = kind in SEVERAL
        self.number = next(_numbers)
        """A fixed order, so that conditions in any order share a table."""

    @property
    def names(self) -> frozenset[str]:
        """The attributes that it reads."""
        if self.expression is not None:
            return self.expression.names
        return frozenset({self.name}) if self.name else frozenset()


_numbers = count()
_known: WeakValueDictionary[tuple[str, Operand, int], Accessor] = WeakValueDictionary()


def accessor(kind: Kind, operand: Operand, size: int = 0) -> Accessor:
    """The one accessor for an attribute's name, a pointer into `data`, or an expression."""
    found = _known.get((kind, operand, size))
    if found is None:
        found = _known[kind, operand, size] = Accessor(kind, operand, size)
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
