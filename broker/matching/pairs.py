"""Numbered pairs of accessor and value: what a conjunction behind others asks beyond its table, as a set of numbers."""

from __future__ import annotations

from collections import Counter
from typing import Final

from broker.matching.accessors import Accessor
from broker.matching.plan import Key

MOST_PAIRED: Final = 64
"""Accessors whose values are numbered."""


class Pairs:
    """Numbers for pairs in use; a number is never given twice."""

    def __init__(self) -> None:
        """Start with none."""
        self.numbers: dict[Accessor, dict[object, int]] = {}
        self._uses: Counter[int] = Counter()
        self._readings: Counter[Accessor] = Counter()
        self._next = 0

    def has(self, reading: Accessor) -> bool:
        """Whether the accessor's values are numbered."""
        return reading in self.numbers

    def admit(self, reading: Accessor) -> bool:
        """Number the accessor's values from now on, if that is possible."""
        if reading.several or len(self.numbers) >= MOST_PAIRED:
            return False
        self.numbers[reading] = {}
        return True

    def use(self, key: Key) -> int:
        """The number of a pair, one use more."""
        reading, value = key
        numbers = self.numbers[reading]
        pair = numbers.get(value)
        if pair is None:
            pair = numbers[value] = self._next
            self._next += 1
        self._uses[pair] += 1
        self._readings[reading] += 1
        return pair

    def release(self, keys: tuple[Key, ...]) -> None:
        """One use less of each."""
        for reading, value in keys:
            pair = self.numbers[reading][value]
            self._uses[pair] -= 1
            self._readings[reading] -= 1
            if not self._uses[pair]:
                del self._uses[pair], self.numbers[reading][value]

    def share(self, key: Key) -> float:
        """The part of events that will have this pair, taking events to be spread as conjunctions are."""
        pair = self.numbers.get(key[0], {}).get(key[1])
        return (self._uses[pair] + 1 if pair is not None else 1) / (self._readings[key[0]] + 1)

    def tidy(self) -> None:
        """Forget accessors without values."""
        self.numbers = {reading: numbers for reading, numbers in self.numbers.items() if numbers}
