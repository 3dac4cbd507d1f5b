"""Whose turn it is: the attempts of one process are bounded, and its places are shared out in turn. Pure.

Everybody who has something that may go stands in line and gets one place at a time, so that what a sink has waiting
doesn't matter to the others (promise 7). Fresh events go before backlogs, but for every eighth turn, so that neither
waits for ever.

A sink that doesn't answer would hold its places until the time limit. So only young attempts count against the bound:

    began ──► young ──ended──► the sink is trusted
                │
                └─unanswered for half a second──► late ──ended──► the sink is suspect until it answers in time

Suspects share half of the places; who has late attempts gets no more while these are as many as there are places, and
no suspect does when they are four times as many. A sink that never answers has thus a few places for half a second,
and hundreds of such sinks leave half of the places to the others.
"""

from collections import deque
from enum import IntEnum
from typing import Final, Generic, Protocol, TypeVar

PATIENCE: Final = 0.5
"""Seconds after which an attempt without answer is late."""
_ROOM_FOR_LATE: Final = 4
_BULK_EVERY: Final = 8
_LOOKED_AT: Final = 8
"""Suspects that are passed over in one turn at most, however many there are."""


class Rank(IntEnum):
    """Who goes first."""

    FRESH = 0
    BULK = 1


class Party(Protocol):
    """Who stands in line: a sink's runner. The members belong to `Turns`."""

    in_line: bool
    late: int
    """Its attempts that are late."""
    suspect: bool


P = TypeVar("P", bound=Party)


class Place(Generic[P]):
    """The place of one attempt, from its beginning to its end."""

    __slots__ = ("begun_at", "late", "of_suspect", "over", "party")

    def __init__(self, party: P, now: float) -> None:
        self.party = party
        self.begun_at = now
        self.of_suspect = party.suspect
        self.late = False
        self.over = False


class Turns(Generic[P]):
    """Lines of parties, and places for their attempts. Times are seconds by the caller's clock."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._lines: tuple[tuple[deque[P], deque[P]], ...] = tuple((deque(), deque()) for _ in Rank)
        """By rank: those that are trusted, and the suspects."""
        self._young: deque[Place[P]] = deque()
        self._turn = 0
        self.young = 0
        self.late = 0
        self._of_suspects = 0

    @property
    def waiting(self) -> bool:
        """Whether anybody stands in line."""
        return any(line for lines in self._lines for line in lines)

    def line_up(self, party: P, rank: Rank) -> None:
        """Stand in line for one attempt; who stands there already stays where it is."""
        if not party.in_line:
            party.in_line = True
            self._lines[rank][party.suspect].append(party)

    def next(self, now: float) -> P | None:
        """The party whose turn it is, out of its line; None: nobody's."""
        if self.young >= self._places:
            self._look_for_late(now)
            if self.young >= self._places:
                return None
        self._turn += 1
        fresh, bulk = self._lines
        if self._turn % _BULK_EVERY:
            return self._first_of(fresh) or self._first_of(bulk)
        return self._first_of(bulk) or self._first_of(fresh)

    def begin(self, party: P, now: float) -> Place[P]:
        """Take the place for an attempt."""
        place = Place(party, now)
        self._young.append(place)
        self.young += 1
        self._of_suspects += place.of_suspect
        if len(self._young) > 2 * self._places:
            self._look_for_late(now)
        return place

    def end(self, place: Place[P], now: float) -> None:
        """The attempt has ended, however it did."""
        place.over = True
        if not place.late and now - place.begun_at >= PATIENCE:
            self._becomes_late(place)
        party = place.party
        if place.late:
            self.late -= 1
            party.late -= 1
        else:
            self._no_longer_young(place)
            party.suspect = party.late > 0

    def _first_of(self, lines: tuple[deque[P], deque[P]]) -> P | None:
        trusted, suspects = lines
        while trusted:
            party = trusted.popleft()
            if not party.suspect:
                party.in_line = False
                return party
            suspects.append(party)
        if self._of_suspects >= self._places // 2 or self.late >= _ROOM_FOR_LATE * self._places:
            return None
        for _ in range(min(len(suspects), _LOOKED_AT)):
            party = suspects.popleft()
            if self.late < self._places or not party.late:
                party.in_line = False
                return party
            suspects.append(party)
        return None

    def _look_for_late(self, now: float) -> None:
        young = self._young
        while young and (young[0].over or now - young[0].begun_at >= PATIENCE):
            place = young.popleft()
            if not place.over:
                self._becomes_late(place)

    def _becomes_late(self, place: Place[P]) -> None:
        self._no_longer_young(place)
        place.late = True
        self.late += 1
        place.party.late += 1
        place.party.suspect = True

    def _no_longer_young(self, place: Place[P]) -> None:
        self.young -= 1
        self._of_suspects -= place.of_suspect
