"""Which subscriptions match an event."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.cloudevents import Event
from schemas.filters import Condition, evaluate
from schemas.filters.algebra import All, Exact, OneOf


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a subscription matches an event or not, one line for each condition."""

    matched: bool
    lines: tuple[str, ...]


class Index:
    """Subscriptions by key; equal conditions are evaluated once for each event."""

    def __init__(self) -> None:
        """Start without subscriptions."""
        self._conditions: dict[int, Condition] = {}
        self._partitions: dict[str | None, dict[Condition, dict[int, None]]] = {}

    def put(self, key: int, condition: Condition) -> None:
        """Add a subscription or replace its condition."""
        self.discard(key)
        self._conditions[key] = condition
        for partition in _types(condition):
            self._partitions.setdefault(partition, {}).setdefault(condition, {})[key] = None

    def discard(self, key: int) -> None:
        """Remove a subscription, if it is there."""
        condition = self._conditions.pop(key, None)
        if condition is None:
            return
        for partition in _types(condition):
            keys = self._partitions[partition][condition]
            del keys[key]
            if not keys:
                del self._partitions[partition][condition]

    def match(self, event: Event) -> list[int]:
        """Every matching subscription once, in no particular order."""
        found: list[int] = []
        for partition in (event.type, None):
            for condition, keys in self._partitions.get(partition, {}).items():
                if evaluate(condition, event):
                    found.extend(keys)
        return found

    def explain(self, key: int, event: Event) -> Explanation:
        """Why the subscription matches the event or not.

        Raises:
            KeyError: there is no such subscription.
        """
        condition = self._conditions[key]
        parts = condition.operands if isinstance(condition, All) else (condition,)
        lines = tuple(f"{'yes' if evaluate(part, event) else 'no'}: {part}" for part in parts)
        return Explanation(evaluate(condition, event), lines)


def _types(condition: Condition) -> tuple[str | None, ...]:
    for part in condition.operands if isinstance(condition, All) else (condition,):
        if isinstance(part, Exact) and part.attribute == "type":
            return (part.value,)
        if isinstance(part, OneOf) and part.attribute == "type":
            return tuple(part.values)
    return (None,)
