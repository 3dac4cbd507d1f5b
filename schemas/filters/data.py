"""The dialect for fields of `data`: a JSON Pointer and what must be true of what it finds.

filter   = { pointer: test, … }                 every one must hold
test     = scalar | { operator: operand, … }    every one must hold
operator = "in": [scalar, …] | "prefix": string | "exists": boolean
| "lt" | "le" | "gt" | "ge": number, date ("2025-01-31") or date-time ("2025-01-31T12:00:00+01:00")
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final, cast

from schemas.filters import limits, values
from schemas.filters.algebra import (
    Bound,
    Condition,
    DataCompare,
    DataOneOf,
    DataPrefix,
    DataPresent,
    Measure,
    Not,
    Pointer,
    Scalar,
    conjunction,
)
from schemas.filters.problems import FilterError, member

if TYPE_CHECKING:
    from schemas.filters.dialects import Reader

_BAD_ESCAPE: Final = re.compile(r"~(?![01])")
OPERATORS: Final = ("in", "prefix", "exists", "lt", "le", "gt", "ge")


def pointer_tokens(text: str, pointer: str) -> Pointer:
    """Read a JSON Pointer relative to `data`; the empty one is `data` itself."""
    if text and (not text.startswith("/") or _BAD_ESCAPE.search(text)):
        raise FilterError(pointer, "is not a JSON Pointer (RFC 6901)")
    tokens = tuple(token.replace("~1", "/").replace("~0", "~") for token in text.split("/")[1:])
    if len(tokens) > limits.MAX_POINTER_TOKENS or len(text) > limits.MAX_VALUE:
        raise FilterError(pointer, f"has more than {limits.MAX_POINTER_TOKENS} steps")
    return tokens


def read(tokens: Pointer, test: object, pointer: str, reader: Reader) -> Condition:
    """The condition for one pointer and its test."""
    if not isinstance(test, dict):
        return DataOneOf(tokens, frozenset({_scalar(test, pointer, reader)}))
    if not test:
        raise FilterError(pointer, f"needs an operator: {', '.join(OPERATORS)}")
    parts: list[Condition] = []
    for operator, operand in test.items():
        here = member(pointer, operator)
        match operator:
            case "in":
                parts.append(DataOneOf(tokens, _scalars(operand, here, reader)))
            case "prefix":
                parts.append(DataPrefix(tokens, reader.text(operand, here)))
            case "exists":
                if not isinstance(operand, bool):
                    raise FilterError(here, "must be true or false")
                parts.append(DataPresent(tokens) if operand else Not(DataPresent(tokens)))
            case "lt" | "le" | "gt" | "ge":
                measure, bound = _measured(operand, here, reader)
                parts.append(DataCompare(tokens, cast(Bound, operator), measure, bound))
            case _:
                raise FilterError(here, f"is not an operator; these are: {', '.join(OPERATORS)}")
    return conjunction(parts)


def _scalar(value: object, pointer: str, reader: Reader) -> Scalar:
    found = values.scalar(value)
    if found is None:
        raise FilterError(pointer, "must be a string, number, boolean or null")
    if isinstance(value, str):
        reader.text(value, pointer)
    elif found[0] == "number":
        _finite(value, pointer)
    return found


def _scalars(value: object, pointer: str, reader: Reader) -> frozenset[Scalar]:
    if not isinstance(value, list) or not value:
        raise FilterError(pointer, "must be an array of at least one string, number, boolean or null")
    if len(value) > limits.MAX_OPERANDS:
        raise FilterError(pointer, f"has more than {limits.MAX_OPERANDS} members")
    return frozenset(_scalar(entry, member(pointer, str(i)), reader) for i, entry in enumerate(value))


def _finite(value: object, pointer: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise FilterError(pointer, "is beyond the range of a number")


def _measured(value: object, pointer: str, reader: Reader) -> tuple[Measure, int | float]:
    if (plain := values.number(value)) is not None:
        _finite(plain, pointer)
        return "number", plain
    if isinstance(value, str):
        reader.text(value, pointer)
        if len(value) == 10 and (day := values.calendar_date(value)) is not None:
            return "date", day
        if (moment := values.instant(value)) is not None:
            return "instant", moment
    raise FilterError(pointer, "must be a number, a date (2025-01-31) or a date-time with its offset (RFC 3339)")
