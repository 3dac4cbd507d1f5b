"""Pairs of an accessor and a value that conjunctions of rare combinations ask for, and how rare each is."""

from __future__ import annotations

from operator import itemgetter
from typing import Final

from broker.matching.accessors import Accessor
from broker.matching.plan import Key
from broker.matching.trie import Pair

MOST_PAIRED: Final = 128
"""Accessors whose values are paired: an event pays a look-up for each."""
_RARITY: Final = itemgetter(0)


class Directory:
    """The pairs in use, by accessor and value."""

    def __init__(self) -> None:
        """Start with none."""
        self.pairs: dict[Accessor, dict[object, Pair]] = {}
        self._uses: dict[Accessor, int] = {}

    def has(self, reading: Accessor) -> bool:
        """Whether the accessor's values are paired."""
        return reading in self.pairs

    def admit(self, reading: Accessor) -> bool:
        """Pair the accessor's values from now on, if there is room."""
        if len(self.pairs) >= MOST_PAIRED:
            return False
        self.pairs[reading] = {}
        self._uses[reading] = 0
        return True

    def use(self, keys: tuple[Key, ...]) -> tuple[Pair, ...]:
        """The pairs, one use more of each; first those that the fewest events will have.

        Events are taken to be spread over an accessor's values as conjunctions are.
        """
        found = []
        for reading, value in keys:
            known = self.pairs[reading]
            pair = known.get(value)
            if pair is None:
                pair = known[value] = Pair()
            pair.uses += 1
            uses = self._uses[reading] = self._uses[reading] + 1
            found.append((pair.uses / uses, pair))
        found.sort(key=_RARITY)
        return tuple([pair for _, pair in found])

    def release(self, keys: tuple[Key, ...]) -> None:
        """One use less of each."""
        for reading, value in keys:
            known = self.pairs[reading]
            pair = known[value]
            self._uses[reading] -= 1
            pair.uses -= 1
            if not pair.uses:
                del known[value]

    def tidy(self) -> None:
        """Forget accessors without values."""
        self.pairs = {reading: known for reading, known in self.pairs.items() if known}
