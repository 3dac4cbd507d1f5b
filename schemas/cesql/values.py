"""Types, casts and errors of CloudEvents SQL (specification 3.1, 3.3, 3.7).

CesqlError
├── CesqlSyntaxError   found when compiling: parse errors, unknown functions, limits; says where
└── Failure            found when evaluating: math, cast, missingAttribute, functionEvaluation
"""

from __future__ import annotations

from typing import Final

from schemas.cesql.tree import Type, Value

MIN_INTEGER: Final = -(2**31)
MAX_INTEGER: Final = 2**31 - 1
MAX_STRING: Final = 4_096
"""Characters that a function may produce, or change to another case; past it, it fails with `functionEvaluation`."""
ZERO: Final[dict[Type | None, Value]] = {"boolean": False, "integer": 0, "string": "", None: False}


class CesqlError(Exception):
    """Anything wrong with an expression or its evaluation; `kind` is the specification's name for it."""

    def __init__(self, kind: str, detail: str) -> None:
        """Keep the kind of error and a sentence for people."""
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


class CesqlSyntaxError(CesqlError):
    """The expression can't be compiled; `line` and `column` count from 1."""

    def __init__(self, detail: str, line: int, column: int, kind: str = "parse") -> None:
        """Keep the place of the error."""
        super().__init__(kind, detail)
        self.line = line
        self.column = column


class Failure(CesqlError):
    """An operator or function erred; `value` is what it returns beside the error, if not its zero value."""

    def __init__(self, kind: str, detail: str, value: Value | None = None) -> None:
        """Keep the value that complete evaluation would have gone on with."""
        super().__init__(kind, detail)
        self.value = value


def type_of_value(value: Value) -> Type:
    """The CESQL type of a value."""
    if isinstance(value, str):
        return "string"
    return "boolean" if isinstance(value, bool) else "integer"


def to_boolean(value: Value) -> bool:
    """Cast to Boolean; a string must be `true` or `false` in any case."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value != 0
    lowered = value.lower()
    if lowered == "true":
        return True
    if lowered == "false":
        return False
    raise Failure("cast", "the string is neither true nor false")


def to_integer(value: Value) -> int:
    """Cast to a 32-bit integer; a string may have one sign, then ASCII digits only."""
    if isinstance(value, int):
        return checked(int(value), "cast")
    digits = value[1:] if value[:1] in ("+", "-") else value
    if not (digits.isascii() and digits.isdigit()):
        raise Failure("cast", "the string is not an integer")
    digits = digits.lstrip("0") or "0"
    if len(digits) > 10:
        raise Failure("cast", "the integer does not fit in 32 bits")
    return checked(-int(digits) if value[0] == "-" else int(digits), "cast")


def to_string(value: Value) -> str:
    """Cast to String: `true`, `false`, or the decimal digits."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def checked(value: int, kind: str = "math") -> int:
    """Pass a 32-bit integer on; anything wider is an error, never a wrapped number."""
    if MIN_INTEGER <= value <= MAX_INTEGER:
        return value
    raise Failure(kind, "the integer does not fit in 32 bits")
