"""The conditions that filters become: values with exact two-valued meaning.

Every condition is true or false for every event; nothing errs and nothing is unknown. An absent
attribute makes an atom false, so that `Not` of that atom is true (CloudEvents Subscriptions 3.2.4.1).
Conditions are immutable and hashable; `intern` makes equal ones the same object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias
from weakref import WeakValueDictionary

from schemas.cesql import Expression

Scalar: TypeAlias = tuple[Literal["string", "number", "boolean", "null"], str | int | float | bool | None]
"""A JSON scalar under its kind, because in Python `True == 1 == 1.0`."""
Pointer: TypeAlias = tuple[str, ...]
"""The reference tokens of a JSON Pointer (RFC 6901), unescaped."""
Bound: TypeAlias = Literal["lt", "le", "gt", "ge"]
Measure: TypeAlias = Literal["number", "date", "instant"]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Exact:
    """The attribute is present and its canonical string is `value`."""

    attribute: str
    value: str


@dataclass(frozen=True, slots=True, weakref_slot=True)
class OneOf:
    """The attribute is present and its canonical string is one of `values`."""

    attribute: str
    values: frozenset[str]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Prefix:
    """The attribute is present and its canonical string starts with `value`."""

    attribute: str
    value: str


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Suffix:
    """The attribute is present and its canonical string ends with `value`."""

    attribute: str
    value: str


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Within:
    """The attribute is `domain` itself or lies under it: `nl.brp` holds `nl.brp.x`, not `nl.brpx`."""

    attribute: str
    domain: str


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Present:
    """The event has the attribute."""

    attribute: str


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Sql:
    """The CloudEvents SQL expression gives the Boolean true without any error."""

    expression: Expression


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Follows:
    """The attribute is present and the follow list `list` holds its canonical string."""

    attribute: str
    list: str


@dataclass(frozen=True, slots=True, weakref_slot=True)
class DataOneOf:
    """The field of `data` is present and equals one of `values` in JSON kind and value."""

    pointer: Pointer
    values: frozenset[Scalar]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class DataCompare:
    """The field of `data` is comparable by `measure` and stands to `operand` as `bound` says."""

    pointer: Pointer
    bound: Bound
    measure: Measure
    operand: int | float


@dataclass(frozen=True, slots=True, weakref_slot=True)
class DataPrefix:
    """The field of `data` is a string that starts with `value`."""

    pointer: Pointer
    value: str


@dataclass(frozen=True, slots=True, weakref_slot=True)
class DataPresent:
    """The field of `data` is there, be it null."""

    pointer: Pointer


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Not:
    """True where `operand` is false."""

    operand: Condition


@dataclass(frozen=True, slots=True, weakref_slot=True)
class All:
    """True where every operand is; without operands true for every event."""

    operands: tuple[Condition, ...]


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Any:
    """True where at least one operand is; without operands false for every event."""

    operands: tuple[Condition, ...]


Atom: TypeAlias = (
    Exact
    | OneOf
    | Prefix
    | Suffix
    | Within
    | Present
    | Sql
    | Follows
    | DataOneOf
    | DataCompare
    | DataPrefix
    | DataPresent
)
Condition: TypeAlias = Atom | Not | All | Any

EVERYTHING = All(())
NOTHING = Any(())

_interned: WeakValueDictionary[Condition, Condition] = WeakValueDictionary()


def intern(condition: Condition) -> Condition:
    """Give the one object that stands for this condition, as long as anyone holds it."""
    return _interned.setdefault(condition, condition)


def conjunction(operands: list[Condition]) -> Condition:
    """Join by *and*, flattening and dropping repetitions."""
    if NOTHING in operands:
        return NOTHING
    flat: dict[Condition, None] = {}
    for operand in operands:
        for part in operand.operands if isinstance(operand, All) else (operand,):
            flat[part] = None
    return next(iter(flat)) if len(flat) == 1 else All(tuple(flat))


def disjunction(operands: list[Condition]) -> Condition:
    """Join by *or*, flattening and dropping repetitions."""
    if EVERYTHING in operands:
        return EVERYTHING
    flat: dict[Condition, None] = {}
    for operand in operands:
        for part in operand.operands if isinstance(operand, Any) else (operand,):
            flat[part] = None
    return next(iter(flat)) if len(flat) == 1 else Any(tuple(flat))


def canonical(value: str | int | bool) -> str:
    """The string form of an attribute (CloudEvents 3.1, type system): `true`, `false`, decimal, or itself."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
