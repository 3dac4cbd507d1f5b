"""Filters as people write them (JSON) to conditions: the six required dialects, `sql`, and two of our own.

Nothing is guessed: what is unknown, empty or mistyped is a `FilterError` that points at the place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from schemas.cesql import CesqlSyntaxError, compile_expression
from schemas.filters import data, limits
from schemas.filters.algebra import (
    All,
    Condition,
    Exact,
    Follows,
    Not,
    OneOf,
    Prefix,
    Sql,
    Suffix,
    Within,
    conjunction,
    disjunction,
)
from schemas.filters.problems import FilterError, member

DATA: Final = "urn:bode:filter:data"
FOLLOWS: Final = "urn:bode:filter:follows"
NAME_CHARACTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789._-")
NOT_ATTRIBUTES: Final = frozenset({"data", "data_base64"})


class Reader:
    """Reads one subscription's filters, counting what it sees against the limits."""

    def __init__(self) -> None:
        """Start with nothing counted."""
        self._nodes = 0
        self._characters = 0
        self._expression_nodes = 0
        self._scans = 0
        self._follow_depth = 0

    def filters(self, value: object, pointer: str) -> list[Condition]:
        """The top-level array; nothing and an empty array ask for nothing."""
        if value is None:
            return []
        if not isinstance(value, list):
            raise FilterError(pointer, "must be an array of filters")
        self._bound_operands(value, pointer)
        return [self.filter(entry, member(pointer, str(i)), 1) for i, entry in enumerate(value)]

    def filter(self, value: object, pointer: str, depth: int) -> Condition:
        """One filter: an object with exactly one dialect."""
        if depth > limits.MAX_DEPTH:
            raise FilterError(pointer, f"filters may be nested at most {limits.MAX_DEPTH} levels deep")
        if not isinstance(value, dict) or not value:
            raise FilterError(pointer, "must be an object with one dialect as its only member")
        if len(value) > 1:
            raise FilterError(pointer, "has more than one dialect; join filters with `all`")
        ((dialect, content),) = value.items()
        self._count(1)
        here = member(pointer, dialect)
        read = self._readers().get(dialect)
        if read is None:
            known = ", ".join(self._readers())
            raise FilterError(here, f"is not a supported dialect; these are: {known}")
        return read(content, here, depth)

    def text(self, value: object, pointer: str, *, empty: bool = True) -> str:
        """One string within the limits."""
        if not isinstance(value, str):
            raise FilterError(pointer, "must be a string")
        if not value and not empty:
            raise FilterError(pointer, "must not be empty")
        if len(value) > limits.MAX_VALUE:
            raise FilterError(pointer, f"is longer than {limits.MAX_VALUE} characters")
        if not _is_unicode(value):
            raise FilterError(pointer, "is not valid Unicode")
        self._count(1, len(value), pointer)
        return value

    def texts(self, value: object, pointer: str) -> frozenset[str]:
        """An array of strings that aren't empty."""
        if not isinstance(value, list):
            raise FilterError(pointer, "must be an array of strings")
        self._bound_operands(value, pointer)
        return frozenset(self.text(entry, member(pointer, str(i)), empty=False) for i, entry in enumerate(value))

    def _readers(self) -> dict[str, Callable[[object, str, int], Condition]]:
        return {
            "exact": lambda value, at, _: self._attributes(value, at, Exact),
            "prefix": lambda value, at, _: self._attributes(value, at, Prefix),
            "suffix": lambda value, at, _: self._attributes(value, at, Suffix),
            "all": lambda value, at, depth: conjunction(self._operands(value, at, depth)),
            "any": lambda value, at, depth: disjunction(self._operands(value, at, depth)),
            "not": self._negation,
            "sql": lambda value, at, _: self._sql(value, at),
            DATA: lambda value, at, _: self._data(value, at),
            FOLLOWS: lambda value, at, _: self._follows(value, at),
        }

    def _attributes(self, value: object, pointer: str, atom: type[Exact] | type[Prefix] | type[Suffix]) -> Condition:
        if not isinstance(value, dict) or not value:
            raise FilterError(pointer, "must be an object of at least one attribute name with a string")
        self._bound_operands(value, pointer)
        parts: list[Condition] = []
        for name, wanted in value.items():
            here = member(pointer, name)
            attribute, text = self._name(name, here), self.text(wanted, here)
            # An empty operand means "present and empty" (Dutch Notification API), in every dialect.
            parts.append(atom(attribute, text) if text else Exact(attribute, ""))
        return conjunction(parts)

    def _operands(self, value: object, pointer: str, depth: int) -> list[Condition]:
        if not isinstance(value, list) or not value:
            raise FilterError(pointer, "must be an array of at least one filter")
        self._bound_operands(value, pointer)
        return [self.filter(entry, member(pointer, str(i)), depth + 1) for i, entry in enumerate(value)]

    def _negation(self, value: object, pointer: str, depth: int) -> Condition:
        self._follow_depth += 1
        operand = self.filter(value, pointer, depth + 1)
        self._follow_depth -= 1
        return operand.operand if isinstance(operand, Not) else Not(operand)

    def _sql(self, value: object, pointer: str) -> Condition:
        text = self.text(value, pointer, empty=False)
        try:
            expression = compile_expression(text)
        except CesqlSyntaxError as error:
            raise FilterError(pointer, f"{error.detail} (line {error.line}, column {error.column})") from None
        self._expression_nodes += expression.size
        self._scans += expression.scans
        if self._expression_nodes > limits.MAX_EXPRESSION_NODES:
            most = f"{limits.MAX_EXPRESSION_NODES} operators and operands"
            raise FilterError(pointer, f"the expressions together have more than {most}")
        if self._scans > limits.MAX_SCANS:
            most = f"{limits.MAX_SCANS} LIKE patterns with a _ between two %"
            raise FilterError(pointer, f"the expressions together have more than {most}")
        return Sql(expression)

    def _data(self, value: object, pointer: str) -> Condition:
        if not isinstance(value, dict) or not value:
            raise FilterError(pointer, "must be an object of at least one JSON Pointer with a test")
        self._bound_operands(value, pointer)
        parts = []
        for name, test in value.items():
            here = member(pointer, name)
            self._count(1, len(name), here)
            if not _is_unicode(name):
                raise FilterError(pointer, "a JSON Pointer is not valid Unicode")
            parts.append(data.read(data.pointer_tokens(name, here), test, here, self))
        return conjunction(parts)

    def _follows(self, value: object, pointer: str) -> Condition:
        if not isinstance(value, dict) or not value:
            raise FilterError(pointer, "must be an object of at least one attribute name with a follow list's id")
        if self._follow_depth:
            # A fingerprint that hits wrongly would silence an event here, and nothing would ever verify it.
            raise FilterError(pointer, "a follow list can't stand under `not`")
        self._bound_operands(value, pointer)
        return conjunction(
            [
                Follows(self._name(name, member(pointer, name)), self.text(list_id, member(pointer, name), empty=False))
                for name, list_id in value.items()
            ]
        )

    def _name(self, name: str, pointer: str) -> str:
        lowered = name.lower()
        if not lowered or len(lowered) > limits.MAX_NAME or not NAME_CHARACTERS.issuperset(lowered):
            raise FilterError(pointer, f"is not an attribute name (letters, digits, at most {limits.MAX_NAME})")
        if lowered in NOT_ATTRIBUTES:
            raise FilterError(pointer, f"`{lowered}` is not an attribute; use the dialect {DATA}")
        self._count(1, len(lowered), pointer)
        return lowered

    def _bound_operands(self, value: list[object] | dict[str, object], pointer: str) -> None:
        if len(value) > limits.MAX_OPERANDS:
            raise FilterError(pointer, f"has more than {limits.MAX_OPERANDS} members")

    def _count(self, nodes: int, characters: int = 0, pointer: str = "/filters") -> None:
        self._nodes += nodes
        self._characters += characters
        if self._nodes > limits.MAX_NODES:
            raise FilterError(pointer, f"the filters together have more than {limits.MAX_NODES} parts")
        if self._characters > limits.MAX_CHARACTERS:
            raise FilterError(pointer, f"the filters together have more than {limits.MAX_CHARACTERS} characters")


def _is_unicode(text: str) -> bool:
    """Whether it has no lone surrogate, which no event in UTF-8 can have."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_subscription(filters: object, source: object, types: object, domain: object) -> Condition:
    """Join `filters` with the subscription's own `source`, `types` and `domain`."""
    reader = Reader()
    parts: list[Condition] = []
    if types is not None and (wanted := reader.texts(types, "/types")):
        parts.append(Exact("type", *wanted) if len(wanted) == 1 else OneOf("type", wanted))
    if source is not None:
        parts.append(Exact("source", reader.text(source, "/source", empty=False)))
    if domain is not None:
        text = reader.text(domain, "/domain", empty=False).rstrip(".")
        if not text:
            raise FilterError("/domain", "must be a reverse domain name")
        parts.append(Within("type", text))
    parts.extend(reader.filters(filters, "/filters"))
    return conjunction(parts) if parts else All(())
