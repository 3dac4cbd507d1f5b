"""The built-in functions of CloudEvents SQL (specification 3.5), each with its parameter and result types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from schemas.cesql.tree import Type, Value
from schemas.cesql.values import MAX_INTEGER, MAX_STRING, MIN_INTEGER, Failure

# Unicode White_Space; str.strip() would also take the separators U+001C to U+001F, which are control characters.
_SPACES = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006"
    "\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)


@dataclass(frozen=True, slots=True)
class Function:
    """One definition: the types of its first parameters, the type of any further ones, its result, its body."""

    parameters: tuple[Type, ...]
    result: Type
    body: Callable[..., Value]
    further: Type | None = None


def find(name: str, arity: int) -> Function | None:
    """The definition for a name and a number of arguments; two definitions never share both."""
    for function in FUNCTIONS.get(name, ()):
        fixed = len(function.parameters)
        if arity == fixed or (function.further is not None and arity > fixed):
            return function
    return None


def _bounded(text: str) -> str:
    if len(text) > MAX_STRING:
        raise Failure("functionEvaluation", f"the text is longer than {MAX_STRING} characters", "")
    return text


def _join(delimiter: str, *parts: str) -> str:
    if sum(map(len, parts)) + len(delimiter) * len(parts) > MAX_STRING + len(delimiter):
        raise Failure("functionEvaluation", f"the result is longer than {MAX_STRING} characters", "")
    return delimiter.join(parts)


def _absolute(number: int) -> int:
    if number == MIN_INTEGER:
        raise Failure("math", "the absolute value does not fit in 32 bits", MAX_INTEGER)
    return abs(number)


def _left(text: str, length: int) -> str:
    if length < 0:
        raise Failure("functionEvaluation", "the length is negative", text)
    return text[:length]


def _right(text: str, length: int) -> str:
    if length < 0:
        raise Failure("functionEvaluation", "the length is negative", text)
    return text[max(0, len(text) - length) :]


def _substring(text: str, position: int, length: int = MAX_INTEGER) -> str:
    if abs(position) > len(text):
        raise Failure("functionEvaluation", "the position is outside the string", "")
    if length < 0:
        raise Failure("functionEvaluation", "the length is negative", "")
    if position == 0:
        return ""
    start = position - 1 if position > 0 else len(text) + position
    return text[start : start + length]


def _same(value: Any) -> Any:
    return value


FUNCTIONS: Final[dict[str, tuple[Function, ...]]] = {
    "LENGTH": (Function(("string",), "integer", len),),
    "CONCAT": (Function((), "string", lambda *parts: _join("", *parts), further="string"),),
    "CONCAT_WS": (Function(("string",), "string", _join, further="string"),),
    "LOWER": (Function(("string",), "string", lambda text: _bounded(_bounded(text).lower())),),
    "UPPER": (Function(("string",), "string", lambda text: _bounded(_bounded(text).upper())),),
    "TRIM": (Function(("string",), "string", lambda text: text.strip(_SPACES)),),
    "LEFT": (Function(("string", "integer"), "string", _left),),
    "RIGHT": (Function(("string", "integer"), "string", _right),),
    "SUBSTRING": (
        Function(("string", "integer"), "string", _substring),
        Function(("string", "integer", "integer"), "string", _substring),
    ),
    "ABS": (Function(("integer",), "integer", _absolute),),
    "INT": (Function(("integer",), "integer", _same),),
    "BOOL": (Function(("boolean",), "boolean", _same),),
    "STRING": (Function(("string",), "string", _same),),
}
