"""Filters: what a subscription wants, as a condition with one exact meaning.

`parse` turns the members of a subscription into a condition or refuses with the place of the error;
`evaluate` says by the plainest route whether an event meets it. Grammar and decisions: docs/filters.md.
"""

from schemas.filters.algebra import All, Any, Condition, Not, Sql, canonical, intern
from schemas.filters.dialects import DATA, FOLLOWS, parse_subscription
from schemas.filters.evaluation import FollowListsMissing, Membership, evaluate
from schemas.filters.problems import FilterError

__all__ = [
    "DATA",
    "FOLLOWS",
    "Condition",
    "FilterError",
    "FollowListsMissing",
    "Membership",
    "canonical",
    "evaluate",
    "parse",
    "warnings",
]


def parse(filters: object, *, source: object = None, types: object = None, domain: object = None) -> Condition:
    """Read the members of a subscription that say which events it wants; all of them must hold.

    `types`: any of them, exactly; `source`: exactly; `domain`: the type is the domain or lies under it.
    Equal subscriptions give the same object.

    Raises:
        FilterError: with a JSON Pointer from the subscription (`/filters/0/exact/subject`).
    """
    return intern(parse_subscription(filters, source, types, domain))


def warnings(condition: Condition) -> tuple[str, ...]:
    """What in the filter may not mean what it looks like: codes, listed in docs/filters.md."""
    match condition:
        case All(operands) | Any(operands):
            return tuple(dict.fromkeys(code for operand in operands for code in warnings(operand)))
        case Not(operand):
            return warnings(operand)
        case Sql(expression):
            return expression.warnings
    return ()
