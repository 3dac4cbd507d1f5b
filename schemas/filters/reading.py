"""What a condition reads of the events of one type: attributes, and fields of `data`, that its answer rests on."""

from schemas.filters.algebra import (
    All,
    Any,
    Condition,
    DataCompare,
    DataOneOf,
    DataPrefix,
    DataPresent,
    Exact,
    Not,
    OneOf,
    Prefix,
    Sql,
    Suffix,
    Within,
)
from schemas.problems import pointer

ALWAYS_ALLOWED = frozenset({"type", "source"})
"""What a subscription's own members `types`, `domain` and `source` read."""


def read_of_type(condition: Condition, event_type: str) -> frozenset[str]:
    """The names and pointers (`/adres/postcode`) that decide about events of this type.

    Parts that hold for no event of the type, or for every one, are left out: of "a death, or a move within 9999"
    nothing but the type is read of a death.
    """
    found: set[str] = set()
    _collect(condition, event_type, found)
    return frozenset(found)


def not_among(read: frozenset[str], allowed: frozenset[str]) -> list[str]:
    """What is read without being allowed, in order of name; a pointer allows what lies under it."""
    return sorted(name for name in read if not _is_allowed(name, allowed))


def _is_allowed(name: str, allowed: frozenset[str]) -> bool:
    if name in ALWAYS_ALLOWED or name in allowed:
        return True
    return name.startswith("/") and any(name.startswith(f"{place}/") for place in allowed if place.startswith("/"))


def _collect(condition: Condition, event_type: str, found: set[str]) -> None:
    if decided_by_type(condition, event_type) is not None:
        return
    match condition:
        case All(operands) | Any(operands):
            for operand in operands:
                _collect(operand, event_type, found)
        case Not(operand):
            _collect(operand, event_type, found)
        case Sql(expression):
            found.update(expression.names)
        case DataOneOf(place) | DataCompare(place) | DataPrefix(place) | DataPresent(place):
            found.add(pointer(place) or "/")
        case _:
            found.add(condition.attribute)


def decided_by_type(condition: Condition, event_type: str) -> bool | None:
    """The answer about events of a type where the type alone gives it; None: it rests on more."""
    match condition:
        case All(operands):
            answers = [decided_by_type(operand, event_type) for operand in operands]
            return False if False in answers else None if None in answers else True
        case Any(operands):
            answers = [decided_by_type(operand, event_type) for operand in operands]
            return True if True in answers else None if None in answers else False
        case Not(operand):
            answer = decided_by_type(operand, event_type)
            return None if answer is None else not answer
        case Exact("type", value):
            return event_type == value
        case OneOf("type", values):
            return event_type in values
        case Prefix("type", value):
            return event_type.startswith(value)
        case Suffix("type", value):
            return event_type.endswith(value)
        case Within("type", domain):
            return event_type == domain or event_type.startswith(domain + ".")
    return None
