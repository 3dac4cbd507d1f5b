"""Conditions to conjunctions: the form in which the index holds them.

A condition becomes a bounded disjunction of conjunctions. Each has `keys` (looked up in hash tables), at most one
`span` (looked up among sorted thresholds), and `guards` (what must be evaluated). Whatever would exceed the bound
is left whole as a guard: the meaning never changes, only the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Final, cast

from broker.matching.accessors import GRAM, Accessor, accessor, scalar_key
from broker.matching.atoms import REQUIRED, Computed, ComputedNumber, Contains, Literal, Number, NumberIs, Term
from broker.matching.lowering import lower
from schemas.filters import limits
from schemas.filters.algebra import (
    All,
    Any,
    Bound,
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
    Scalar,
    Sql,
    Suffix,
    Within,
)
from schemas.filters.evaluation import attribute_holds, data_holds

Key = tuple[Accessor, object]
Value = str | Scalar
MAX_PRODUCT: Final = 256
"""Conjunctions that `any` inside `all` may multiply to; lists of values have the larger `MAX_DISJUNCTS`."""
TYPE: Final = accessor("attribute", "type")


@dataclass(frozen=True, slots=True)
class Span:
    """A range on one accessor: `low` and `high` are (threshold, -1, 0 or 1) so that `<` and `<=` differ.

    `literals` say the same, for where it is evaluated instead.
    """

    accessor: Accessor
    low: tuple[int | float, int] | None
    high: tuple[int | float, int] | None
    literals: tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class Conjunction:
    """All of it must hold: the keys, the span, the guards. `event_type` is the key on `type`, if there is one."""

    event_type: str | None
    keys: tuple[Key, ...]
    span: Span | None
    guards: tuple[Literal, ...]


def conjunctions(condition: Term) -> tuple[list[Conjunction], bool]:
    """The conjunctions of a condition, and whether more than one of them may hold for the same event."""
    if (quick := _plain(condition)) is not None:
        return [quick], False
    budget = limits.MAX_DISJUNCTS
    found: list[Conjunction] = []
    for literals in _disjuncts(condition, True):
        found.extend(_resolve(literals, max(1, budget - len(found))))
    found = list(dict.fromkeys(found))
    return found, len(found) > 1 and not _disjoint(found)


def _plain(condition: Term) -> Conjunction | None:
    """The shortcut for equality on distinct attributes, which most subscriptions are."""
    if isinstance(condition, Exact):
        operands: tuple[Term, ...] = (condition,)
    elif isinstance(condition, All):
        operands = condition.operands
    else:
        return None
    event_type = None
    keys: dict[Accessor, object] = {}
    for operand in operands:
        if not isinstance(operand, Exact):
            return None
        if operand.attribute == "type":
            if event_type is not None:
                return None
            event_type = operand.value
        else:
            keys[accessor("attribute", operand.attribute)] = operand.value
    if len(keys) + (event_type is not None) != len(operands):
        return None
    return Conjunction(event_type, tuple(keys.items()), None, ())


def _disjuncts(term: Term, positive: bool) -> list[tuple[Literal, ...]]:
    """Disjunctive form of the term or its negation, with at most `MAX_PRODUCT` conjunctions of each `all`."""
    match term:
        case Sql():
            return _disjuncts(lower(term), positive)
        case Not(operand):
            return _disjuncts(operand, not positive)
        case All(operands) | Any(operands) if isinstance(term, All) is positive:
            return _multiply([(operand, _disjuncts(operand, positive)) for operand in operands], positive)
        case All(operands) | Any(operands):
            together = [literals for operand in operands for literals in _disjuncts(operand, positive)]
            return together if len(together) <= limits.MAX_DISJUNCTS else [((term, positive),)]
    return [((term, positive),)]


def _multiply(factors: list[tuple[Term, list[tuple[Literal, ...]]]], positive: bool) -> list[tuple[Literal, ...]]:
    result: list[tuple[Literal, ...]] = [()]
    for term, choices in sorted(factors, key=lambda factor: len(factor[1])):
        if len(result) > 1 and len(choices) > 1 and len(result) * len(choices) > MAX_PRODUCT:
            choices = [((term, positive),)]
        result = [before + after for before in result for after in choices]
    return result


def _resolve(literals: Iterable[Literal], budget: int) -> Iterator[Conjunction]:
    """Work out one conjunction: fold what is decided, drop contradictions, spread lists of values."""
    texts: dict[str, frozenset[str]] = {}
    scalars: dict[Pointer, frozenset[Scalar]] = {}
    rest: list[Literal] = []
    for term, positive in dict.fromkeys(literals):
        match term:
            case Exact() | OneOf() if positive:
                values = frozenset({term.value}) if isinstance(term, Exact) else term.values
                texts[term.attribute] = texts.get(term.attribute, values) & values
            case DataOneOf() if positive:
                scalars[term.pointer] = scalars.get(term.pointer, term.values) & term.values
            case Present() if term.attribute in REQUIRED:
                if not positive:
                    return
            case _:
                rest.append((term, positive))
    kept: list[Literal] = []
    for term, positive in rest:
        match term:
            case Exact() | OneOf() | Prefix() | Suffix() | Within() | Present() if term.attribute in texts:
                texts[term.attribute] = frozenset(
                    value for value in texts[term.attribute] if attribute_holds(term, value, _never_asked) is positive
                )
            case Contains() if term.attribute in texts:
                texts[term.attribute] = frozenset(
                    value for value in texts[term.attribute] if (term.value in value) is positive
                )
            case DataOneOf() | DataCompare() | DataPrefix() | DataPresent() if term.pointer in scalars:
                scalars[term.pointer] = frozenset(
                    scalar for scalar in scalars[term.pointer] if data_holds(term, scalar[1]) is positive
                )
            case _:
                kept.append((term, positive))
    yield from _spread(texts, scalars, kept, budget)


def _never_asked(list_id: str, subject: str) -> bool:
    raise AssertionError("follow lists are not folded")


def _spread(
    texts: dict[str, frozenset[str]], scalars: dict[Pointer, frozenset[Scalar]], kept: list[Literal], budget: int
) -> Iterator[Conjunction]:
    choices: list[tuple[Accessor, Sequence[object], Term]] = [
        *((accessor("attribute", name), list(values), OneOf(name, values)) for name, values in texts.items()),
        *(
            (accessor("data", pointer), [scalar_key(scalar) for scalar in values], DataOneOf(pointer, values))
            for pointer, values in scalars.items()
        ),
    ]
    choices.sort(key=lambda choice: len(choice[1]))
    spread: list[list[Key]] = []
    total = 1
    for reading, values, term in choices:
        if total * len(values) > budget and len(values) > 1:
            kept.append((term, True))
            continue
        total *= len(values)
        spread.append([(reading, value) for value in values])
    if not total:
        return
    more, span, guards = _sort_out(kept)
    for chosen in product(*spread):
        event_type = next((value for reading, value in chosen if reading is TYPE), None)
        # In fixed order, so that the same alternative written twice is one: an id stands in a place once.
        keys = sorted((*(key for key in chosen if key[0] is not TYPE), *more), key=lambda key: key[0].number)
        yield Conjunction(cast("str | None", event_type), tuple(keys), span, guards)


def _sort_out(literals: list[Literal]) -> tuple[tuple[Key, ...], Span | None, tuple[Literal, ...]]:
    """Which of the remaining literals can be keys, whether they make a span, and what is left to evaluate."""
    keys: dict[Accessor, object] = {}
    places: set[tuple[str, object]] = set()
    guards: list[Literal] = []
    # The longest prefix of an attribute is its key; any others stay guards. At most one key may have several values.
    for term, positive in sorted(literals, key=_length, reverse=True):
        key, exact = _key(term) if positive else (None, False)
        if key is not None:
            reading = key[0]
            subject = reading.pointer or reading.expression or reading.name
            place = ("several", None) if reading.several else (reading.kind, subject)
            if place not in places:
                places.add(place)
                keys[reading] = key[1]
                if exact:
                    continue
        guards.append((term, positive))
    keyed = {reading.name for reading in keys if reading.name}
    keyed |= {term.attribute for term, positive in guards if positive and isinstance(term, Number | Contains)}
    guards = [
        (term, positive)
        for term, positive in guards
        if not (isinstance(term, Present) and positive and term.attribute in keyed)
    ]
    span = _span(guards)
    return tuple(keys.items()), span, () if span else tuple(guards)


def _length(literal: Literal) -> int:
    term = literal[0]
    if isinstance(term, Follows):
        return limits.MAX_VALUE + 1  # before any run of characters: it is the most selective
    return len(term.value) if isinstance(term, Prefix | Suffix | Contains | DataPrefix) else 0


def _key(term: Term) -> tuple[Key | None, bool]:
    """The key that the term gives, and whether the key says all that the term does."""
    match term:
        case Prefix(attribute, value) if value:
            return (accessor("prefix", attribute, len(value)), value), True
        case Suffix(attribute, value) if value:
            return (accessor("suffix", attribute, len(value)), value), True
        case Within(attribute, domain):
            return (accessor("label", attribute, len(domain) + 1), domain + "."), True
        case NumberIs(attribute, operand):
            return (accessor("integer", attribute), operand), True
        case Follows(attribute, list_id):
            return (accessor("list", attribute), list_id), True
        case Contains(attribute, value) if len(value) >= GRAM:
            return (accessor("gram", attribute), value), len(value) == GRAM
        case Computed(how, expression, operand):
            size = 0 if how == "computed" else len(str(operand))
            return (accessor(how, expression, size), operand), True
        case DataPrefix(pointer, value) if value:
            return (accessor("data-prefix", pointer, len(value)), value), True
    return None, False


def _span(guards: list[Literal]) -> Span | None:
    """A span, if the guards are nothing but one lower bound, one upper bound, or both, on one accessor."""
    found: dict[str, tuple[int | float, int]] = {}
    readings: set[Accessor] = set()
    for term, positive in guards:
        if not positive or not isinstance(term, Number | DataCompare | ComputedNumber):
            return None
        side, edge = _edge(term.bound, term.operand)
        if side in found:
            return None
        found[side] = edge
        match term:
            case Number(attribute):
                readings.add(accessor("integer", attribute))
            case DataCompare(pointer):
                readings.add(accessor(term.measure, pointer))
            case ComputedNumber(expression):
                readings.add(accessor("computed", expression))
    if len(readings) != 1:
        return None
    return Span(readings.pop(), found.get("low"), found.get("high"), tuple(guards))


def _edge(bound: Bound, operand: int | float) -> tuple[str, tuple[int | float, int]]:
    match bound:
        case "ge":
            return "low", (operand, 0)
        case "gt":
            return "low", (operand, 1)
        case "le":
            return "high", (operand, 0)
        case _:
            return "high", (operand, -1)


_WHOLE_VALUES: Final = frozenset({"attribute", "data", "integer", "computed"})


def _disjoint(found: list[Conjunction]) -> bool:
    """Whether no two can hold at once, because they differ in what some shared attribute must equal."""
    rows = [
        {
            **{reading: value for reading, value in each.keys if reading.kind in _WHOLE_VALUES},
            **({TYPE: each.event_type} if each.event_type is not None else {}),
        }
        for each in found
    ]
    shared = [reading for reading in rows[0] if all(reading in row for row in rows)]
    return len({tuple(row[reading] for reading in shared) for row in rows}) == len(rows)
