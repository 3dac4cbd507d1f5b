"""Atoms that only the index knows: what parts of CloudEvents SQL mean, in two-valued form.

They arise from lowering (`lowering.py`) and never leave this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal as TypingLiteral
from typing import TypeAlias

from broker.matching.accessors import Accessor
from schemas.cesql import Expression
from schemas.cesql.values import Failure, to_integer
from schemas.filters.algebra import Bound, Condition

REQUIRED = frozenset({"id", "source", "specversion", "type"})
TEXTUAL = REQUIRED | {"subject", "time", "datacontenttype", "dataschema"}
"""Attributes that a valid event has as strings only."""


@dataclass(frozen=True, slots=True)
class Number:
    """The attribute is present, casts to an integer as CESQL does, and stands to `operand` as `bound` says."""

    attribute: str
    bound: Bound
    operand: int


@dataclass(frozen=True, slots=True)
class NumberIs:
    """The attribute is present, casts to an integer as CESQL does, and equals `operand`."""

    attribute: str
    operand: int


@dataclass(frozen=True, slots=True)
class Contains:
    """The attribute is present and its canonical string has `value` somewhere."""

    attribute: str
    value: str


@dataclass(frozen=True, slots=True)
class Computed:
    """The expression doesn't err, and its value equals `value`, or starts or ends with it."""

    how: TypingLiteral["computed", "computed-prefix", "computed-suffix"]
    expression: Expression
    value: str | int | bool


@dataclass(frozen=True, slots=True)
class ComputedNumber:
    """The integer expression doesn't err, and its value stands to `operand` as `bound` says."""

    expression: Expression
    bound: Bound
    operand: int


@dataclass(frozen=True, slots=True)
class Whole:
    """The expression is true without error, and is not to be taken apart any further."""

    expression: Expression


@dataclass(frozen=True, slots=True)
class Reads:
    """What the accessor reads is `value`, or has it among its values: a key where no table takes it."""

    accessor: Accessor
    value: object


Own: TypeAlias = Number | NumberIs | Contains | Computed | ComputedNumber | Whole | Reads
Term: TypeAlias = Condition | Own
Literal: TypeAlias = tuple[Term, bool]
"""A term and whether it must be true or false."""


def integer(value: str | int | bool | None) -> int | None:
    """The integer that CESQL casts the attribute to; nothing where it would err."""
    if value is None:
        return None
    try:
        return to_integer(value)
    except Failure:
        return None
