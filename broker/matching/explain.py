"""Why a subscription matches an event or not, told from the compiled form that the index itself uses."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from broker.matching.accessors import Accessor
from broker.matching.atoms import Computed, ComputedNumber, Contains, Literal, Number, NumberIs, Reads, Whole
from broker.matching.context import Context
from broker.matching.guards import holds_key, literal_test
from broker.matching.plan import TYPE, Conjunction, conjunctions
from schemas.filters import Condition, values
from schemas.filters.algebra import (
    All,
    Any,
    DataCompare,
    DataOneOf,
    DataPrefix,
    DataPresent,
    Exact,
    Follows,
    Not,
    OneOf,
    Pointer,
    Prefix,
    Present,
    Sql,
    Suffix,
    Within,
)

_SIGNS = {"lt": "<", "le": "≤", "gt": ">", "ge": "≥"}


@dataclass(frozen=True, slots=True)
class Check:
    """One condition in words, and whether the event meets it."""

    text: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Alternative:
    """Conditions that must hold together."""

    checks: tuple[Check, ...]
    evaluated_always: bool
    """Whether no table helps here: it is evaluated for every event of its type."""

    @property
    def holds(self) -> bool:
        """Whether all of them do."""
        return all(check.holds for check in self.checks)


@dataclass(frozen=True, slots=True)
class Explanation:
    """A subscription matches if one of its alternatives holds; without alternatives it can never match."""

    alternatives: tuple[Alternative, ...]

    @property
    def matched(self) -> bool:
        """Whether the subscription matches the event."""
        return any(alternative.holds for alternative in self.alternatives)

    @property
    def lines(self) -> tuple[str, ...]:
        """The same for people, one line for each condition."""
        if not self.alternatives:
            return ("no: these conditions contradict each other; no event meets them",)
        several = len(self.alternatives) > 1
        found = []
        for number, alternative in enumerate(self.alternatives, 1):
            head = f"alternative {number}: " if several else ""
            if not alternative.checks:
                found.append(f"{head}yes: every event")
            found += [f"{head}{'yes' if check.holds else 'no'}: {check.text}" for check in alternative.checks]
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Planned:
    """How an alternative is found: by what is looked up, and what must then be evaluated."""

    looked_up: tuple[str, ...]
    evaluated: tuple[str, ...]
    evaluated_always: bool
    has_type: bool


def plan_of(condition: Condition) -> tuple[Planned, ...]:
    """The alternatives of a condition as an index would hold them; none: no event can match."""
    found, _ = conjunctions(condition)
    return tuple(_planned(each) for each in found)


def _planned(conjunction: Conjunction) -> Planned:
    looked_up = [_key(reading, value) for reading, value in conjunction.keys]
    if conjunction.event_type is not None:
        looked_up.insert(0, _key(TYPE, conjunction.event_type))
    if conjunction.span is not None:
        looked_up += [describe(literal) for literal in conjunction.span.literals]
    return Planned(
        tuple(looked_up),
        tuple(describe(literal) for literal in conjunction.guards),
        not conjunction.keys and conjunction.span is None and bool(conjunction.guards),
        conjunction.event_type is not None,
    )


def alternative(conjunction: Conjunction, context: Context) -> Alternative:
    """Explain one conjunction."""
    checks = []
    if conjunction.event_type is not None:
        checks.append(Check(_key(TYPE, conjunction.event_type), context.text("type") == conjunction.event_type))
    checks += [Check(_key(reading, value), holds_key(reading, value, context)) for reading, value in conjunction.keys]
    literals = conjunction.span.literals if conjunction.span else conjunction.guards
    checks += [Check(describe(literal), literal_test(literal)(context)) for literal in literals]
    return Alternative(tuple(checks), not conjunction.keys and bool(conjunction.guards))


def describe(literal: Literal) -> str:
    """A literal in words."""
    term, positive = literal
    if not positive:
        return f"not ({describe((term, True))})"
    match term:
        case All(operands) | Any(operands):
            word = " and " if isinstance(term, All) else " or "
            return "(" + word.join(describe((operand, True)) for operand in operands) + ")"
        case Not(operand):
            return describe((operand, False))
        case Sql(expression) | Whole(expression):
            return (
                f"the expression {expression.text} is true" if expression.text else "a part of the expression is true"
            )
        case Exact(name, value):
            return f"{name} is {value!r}"
        case OneOf(name, options):
            return f"{name} is one of {len(options)} values"
        case Prefix(name, value):
            return f"{name} starts with {value!r}"
        case Suffix(name, value):
            return f"{name} ends with {value!r}"
        case Within(name, value):
            return f"{name} lies in {value!r}"
        case Contains(name, value):
            return f"{name} contains {value!r}"
        case Present(name):
            return f"{name} is present"
        case Follows(name, list_id):
            return f"{name} is on follow list {list_id}"
        case Number(name, bound, operand):
            return f"{name} as an integer {_SIGNS[bound]} {operand}"
        case NumberIs(name, operand):
            return f"{name} as an integer is {operand}"
        case Computed() | ComputedNumber():
            return "a part of the expression is true"
        case Reads(reading, value):
            return _key(reading, value)
        case DataOneOf(pointer, options):
            return f"{_place(pointer)} is one of {len(options)} values"
        case DataPrefix(pointer, value):
            return f"{_place(pointer)} starts with {value!r}"
        case DataPresent(pointer):
            return f"{_place(pointer)} is present"
        case DataCompare(pointer, bound, "date", operand):
            return f"{_place(pointer)} {_SIGNS[bound]} {date.fromordinal(int(operand)).isoformat()}"
        case DataCompare(pointer, bound, "instant", operand):
            return f"{_place(pointer)} {_SIGNS[bound]} {values.rfc3339(int(operand))}"
        case DataCompare(pointer, bound, _, operand):
            return f"{_place(pointer)} {_SIGNS[bound]} {operand}"


def _place(pointer: Pointer) -> str:
    return "data" + "".join("/" + token.replace("~", "~0").replace("/", "~1") for token in pointer)


def _key(reading: Accessor, value: object) -> str:
    name = reading.name or _place(reading.pointer or ())
    match reading.kind:
        case "prefix" | "data-prefix":
            return f"{name} starts with {value!r}"
        case "computed" | "computed-prefix" | "computed-suffix":
            return f"a part of the expression gives {value!r}"
        case "suffix":
            return f"{name} ends with {value!r}"
        case "label":
            return f"{name} lies in {str(value)[:-1]!r}"
        case "integer":
            return f"{name} as an integer is {value}"
        case "list":
            return f"{name} is on follow list {value}"
        case "gram":
            return f"{name} contains {value!r}"
    return f"{name} is {value!r}"
