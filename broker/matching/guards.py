"""Conditions that no table can answer: compiled to closures, shared, and evaluated at most once for each event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, assert_never, cast

from broker.matching.accessors import Accessor, accessor, data_key
from broker.matching.atoms import (
    Computed,
    ComputedNumber,
    Contains,
    Literal,
    Number,
    NumberIs,
    Reads,
    Term,
    Whole,
    integer,
)
from broker.matching.context import Context
from schemas.filters import values
from schemas.filters.algebra import (
    All,
    Any,
    DataCompare,
    DataOneOf,
    DataPrefix,
    DataPresent,
    Exact,
    Follows,
    Measure,
    Not,
    OneOf,
    Pointer,
    Prefix,
    Present,
    Sql,
    Suffix,
    Within,
)
from schemas.filters.evaluation import COMPARE, attribute_holds, data_holds, no_lists

Test = Callable[[Context], bool]
_SMALL: Final = 8
"""Operators and operands of an expression that is sooner evaluated again than remembered."""


class Guard:
    """A conjunction of literals. Equal ones are one object in an index; `test` remembers once it has two homes."""

    __slots__ = ("__weakref__", "_plain", "homes", "literals", "pointers", "test")

    def __init__(self, literals: tuple[Literal, ...]) -> None:
        """Compile the literals."""
        self.literals = literals
        self.homes = 0
        self._plain: Test = _every([literal_test(literal) for literal in sorted(literals, key=_is_costly)])
        self.test: Test = self._plain
        self.pointers = frozenset(pointer for term, _ in literals for pointer in pointers_of(term))

    def add_home(self, count: int) -> None:
        """Count the buckets that hold this guard: only a shared one is worth remembering."""
        self.homes += count
        self.test = self._remembering if self.homes > 1 else self._plain

    def _remembering(self, context: Context) -> bool:
        known = context.known.get(self)
        if known is None:
            known = context.known[self] = self._plain(context)
        return known


def _is_costly(literal: Literal) -> bool:
    return isinstance(literal[0], Sql | Whole | Computed | ComputedNumber | All | Any | Not)


def _every(tests: list[Test]) -> Test:
    """All of them, in order; one or two, as most guards have, without a generator."""
    if len(tests) == 1:
        return tests[0]
    if len(tests) == 2:
        first, second = tests
        return lambda context: first(context) and second(context)
    return lambda context: all(test(context) for test in tests)


def pointers_of(term: Term) -> list[Pointer]:
    """The pointers into `data` that a term reads."""
    match term:
        case All(operands) | Any(operands):
            return [pointer for operand in operands for pointer in pointers_of(operand)]
        case Not(operand):
            return pointers_of(operand)
        case DataOneOf() | DataCompare() | DataPrefix() | DataPresent():
            return [term.pointer]
        case Reads(reading) if reading.pointer is not None:
            return [reading.pointer]
    return []


def names_in(term: Term) -> set[str]:
    """The attributes that a term reads."""
    match term:
        case All(operands) | Any(operands):
            return {name for operand in operands for name in names_in(operand)}
        case Not(operand):
            return names_in(operand)
        case Sql(expression) | Whole(expression):
            return set(expression.names)
        case Computed() | ComputedNumber():
            return set(term.expression.names)
        case Reads(reading):
            return set(reading.names)
        case DataOneOf() | DataCompare() | DataPrefix() | DataPresent():
            return set()
    return {term.attribute}


def follows_in(term: Term) -> set[tuple[str, str]]:
    """The attributes and follow lists that a term asks for."""
    match term:
        case All(operands) | Any(operands):
            return {found for operand in operands for found in follows_in(operand)}
        case Not(operand):
            return follows_in(operand)
        case Follows(name, list_id):
            return {(name, list_id)}
        case Reads(reading, value) if reading.kind == "list":
            return {(reading.name, str(value))}
    return set()


def literal_test(literal: Literal) -> Test:
    """Compile a term that must be true, or false."""
    term, positive = literal
    test = term_test(term)
    return test if positive else lambda context: not test(context)


def term_test(term: Term) -> Test:
    """Compile a term."""
    match term:
        case All(operands):
            return _every([term_test(operand) for operand in operands])
        case Any(operands):
            some = [term_test(operand) for operand in operands]
            return lambda context: any(test(context) for test in some)
        case Not(operand):
            inner = term_test(operand)
            return lambda context: not inner(context)
        case Sql(expression) | Whole(expression):
            if expression.size > _SMALL or expression.scans:
                return lambda context: context.value(expression) is True
            holds = expression.holds
            return lambda context: holds(context.attributes)
        case Exact(name, value):
            return lambda context: context.text(name) == value
        case Follows(name, list_id):
            return lambda context: context.follows(name, list_id)
        case Contains():
            return _contains(term)
        case NumberIs(name, operand):
            return lambda context: integer(context.attributes.get(name)) == operand
        case Number():
            return _number(term)
        case Computed(how, expression, value):
            reading = accessor(how, expression, 0 if how == "computed" else len(str(value)))
            return lambda context: holds_key(reading, value, context)
        case ComputedNumber():
            return _computed_number(term)
        case Reads(reading, value):
            return lambda context: holds_key(reading, value, context)
        case DataOneOf() | DataCompare() | DataPrefix() | DataPresent():
            atom, pointer = term, term.pointer
            return lambda context: data_holds(atom, context.field(pointer))
        case OneOf() | Prefix() | Suffix() | Within() | Present():
            return _text(term)
    assert_never(term)


def read(reading: Accessor, context: Context) -> object:
    """What an accessor reads, as a probe would; nothing where it is absent."""
    size = reading.size
    if reading.pointer is not None:
        field = context.field(reading.pointer)
        if reading.kind == "data":
            return data_key(field)
        if reading.kind == "data-prefix":
            return field[:size] if isinstance(field, str) else None
        return values.MEASURES[cast(Measure, reading.kind)](field)
    if reading.expression is not None:
        value = context.value(reading.expression)
        if reading.kind == "computed" or value is None:
            return value
        return str(value)[:size] if reading.kind == "computed-prefix" else str(value)[-size:]
    if reading.kind == "integer":
        return integer(context.attributes.get(reading.name))
    text = context.text(reading.name)
    if text is None or reading.kind == "attribute":
        return text
    match reading.kind:
        case "prefix":
            return text[:size]
        case "suffix":
            return text[-size:]
        case "label":
            return (text + ".")[:size]
    raise ValueError(f"{reading.kind} has several values")


def holds_key(reading: Accessor, value: object, context: Context) -> bool:
    """Whether a look-up by this key would find the event."""
    if reading.kind == "list":
        return context.follows(reading.name, str(value))
    if reading.kind == "gram":
        return str(value) in (context.text(reading.name) or "")
    return read(reading, context) == value


def _text(term: OneOf | Prefix | Suffix | Within | Present) -> Test:
    name = term.attribute

    def test(context: Context) -> bool:
        value = context.text(name)
        return value is not None and attribute_holds(term, value, no_lists)

    return test


def _contains(term: Contains) -> Test:
    name, value = term.attribute, term.value
    return lambda context: value in (context.text(name) or "")


def _computed_number(term: ComputedNumber) -> Test:
    expression, compare, operand = term.expression, COMPARE[term.bound], term.operand

    def test(context: Context) -> bool:
        value = context.value(expression)
        return isinstance(value, int) and compare(value, operand)

    return test


def _number(term: Number) -> Test:
    name, compare, operand = term.attribute, COMPARE[term.bound], term.operand

    def test(context: Context) -> bool:
        value = integer(context.attributes.get(name))
        return value is not None and compare(value, operand)

    return test
