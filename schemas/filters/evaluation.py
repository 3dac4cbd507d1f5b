"""What a condition means, written as plainly as possible: the reference that the index must agree with."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, assert_never

from schemas.filters import values
from schemas.filters.algebra import (
    All,
    Any,
    Condition,
    DataCompare,
    DataOneOf,
    DataPrefix,
    DataPresent,
    Exact,
    Follows,
    Not,
    OneOf,
    Prefix,
    Present,
    Sql,
    Suffix,
    Within,
    canonical,
)

if TYPE_CHECKING:
    from schemas.cloudevents import Event

Membership = Callable[[str, str], bool]
"""Whether the follow list (first) holds the subject (second)."""
COMPARE: Final[dict[str, Callable[[int | float, int | float], bool]]] = {
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


class FollowListsMissing(LookupError):
    """A condition asks for a follow list where none can be consulted; never to be read as *no match*."""


def no_lists(list_id: str, subject: str) -> bool:
    """Stand in where there are no follow lists: asking is an error."""
    raise FollowListsMissing(list_id)


def evaluate(condition: Condition, event: Event, follows: Membership = no_lists) -> bool:
    """Whether the condition holds for the event.

    Raises:
        FollowListsMissing: the condition has a follow list and `follows` was not given.
    """
    match condition:
        case All(operands):
            return all(evaluate(operand, event, follows) for operand in operands)
        case Any(operands):
            return any(evaluate(operand, event, follows) for operand in operands)
        case Not(operand):
            return not evaluate(operand, event, follows)
        case Sql(expression):
            return expression.holds(event.attributes)
        case DataOneOf() | DataCompare() | DataPrefix() | DataPresent():
            return data_holds(condition, values.find(values.data_of(event.body), condition.pointer))
        case Exact() | OneOf() | Prefix() | Suffix() | Within() | Present() | Follows():
            value = event.attributes.get(condition.attribute)
            return value is not None and attribute_holds(condition, canonical(value), follows)
    assert_never(condition)


def attribute_holds(
    condition: Exact | OneOf | Prefix | Suffix | Within | Present | Follows, value: str, follows: Membership
) -> bool:
    """Whether an atom holds for a present attribute's canonical string."""
    match condition:
        case Exact():
            return value == condition.value
        case OneOf():
            return value in condition.values
        case Prefix():
            return value.startswith(condition.value)
        case Suffix():
            return value.endswith(condition.value)
        case Within():
            return value == condition.domain or value.startswith(condition.domain + ".")
        case Present():
            return True
        case Follows():
            return follows(condition.list, value)
    assert_never(condition)


def data_holds(condition: DataOneOf | DataCompare | DataPrefix | DataPresent, value: values.JsonValue) -> bool:
    """Whether an atom holds for what its pointer found in `data`, `ABSENT` included."""
    match condition:
        case DataOneOf():
            return values.scalar(value) in condition.values
        case DataCompare():
            measured = values.MEASURES[condition.measure](value)
            return measured is not None and COMPARE[condition.bound](measured, condition.operand)
        case DataPrefix():
            return isinstance(value, str) and value.startswith(condition.value)
        case DataPresent():
            return value is not values.ABSENT
    assert_never(condition)
