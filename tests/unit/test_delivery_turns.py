"""Turns: what one sink has waiting, or doesn't answer, costs the others nothing."""

from collections import Counter, deque
from dataclasses import dataclass, field

import pytest

from broker.delivery.turns import PATIENCE, Place, Rank, Turns

PLACES = 16


@dataclass(eq=False)
class Sink:
    """Has something waiting, and answers after so many seconds; None: never, so it ends by the time limit."""

    name: str
    answers_after: float | None = 0.01
    waiting: int = 1
    rank: Rank = Rank.FRESH
    limit: int = 16
    in_line: bool = False
    late: int = 0
    suspect: bool = False
    begun: list[float] = field(default_factory=list)
    under_way: deque[tuple[float, Place["Sink"]]] = field(default_factory=deque)


TIME_LIMIT = 10.0


class Process:
    """A delivery process in time of its own."""

    def __init__(self, *sinks: Sink, places: int = PLACES) -> None:
        self.turns: Turns[Sink] = Turns(places)
        self.sinks = list(sinks)
        self.now = 0.0
        self.most_young = 0

    def run(self, seconds: float, step: float = 0.005) -> None:
        end = self.now + seconds
        while self.now < end:
            for sink in self.sinks:
                while sink.under_way and sink.under_way[0][0] <= self.now:
                    self.turns.end(sink.under_way.popleft()[1], self.now)
                if sink.waiting and len(sink.under_way) < sink.limit:
                    self.turns.line_up(sink, sink.rank)
            while (found := self.turns.next(self.now)) is not None:
                found.waiting -= 1
                found.begun.append(self.now)
                ends_at = self.now + (TIME_LIMIT if found.answers_after is None else found.answers_after)
                found.under_way.append((ends_at, self.turns.begin(found, self.now)))
                self.most_young = max(self.most_young, self.turns.young)
                if found.waiting and len(found.under_way) < found.limit:
                    self.turns.line_up(found, found.rank)
            self.now += step


def test_places_are_shared_out_in_turn_whatever_waits() -> None:
    sinks = [Sink("bulk", waiting=1_000_000), *(Sink(str(number), waiting=100) for number in range(3))]
    process = Process(*sinks)
    process.run(0.2)
    counts = Counter({sink.name: len(sink.begun) for sink in sinks})
    assert max(counts.values()) - min(counts.values()) <= 1
    assert process.most_young == PLACES


def test_fresh_event_goes_before_a_backlog_and_the_backlog_goes_on() -> None:
    bulk, fresh = Sink("bulk", waiting=10_000, rank=Rank.BULK), Sink("fresh", waiting=10_000)
    process = Process(bulk, fresh)
    process.run(1)
    assert 5 < len(fresh.begun) / len(bulk.begun) < 9


def test_who_waits_already_keeps_its_place_in_line() -> None:
    turns: Turns[Sink] = Turns(4)
    first, second = Sink("first"), Sink("second")
    for party in (first, second, first):
        turns.line_up(party, Rank.FRESH)
    assert [turns.next(0), turns.next(0), turns.next(0)] == [first, second, None]
    assert not turns.waiting


@pytest.mark.parametrize("silent", [1, 30, 200])
def test_silent_sinks_do_not_hold_the_places_of_the_others(silent: int) -> None:
    dead = [Sink(f"dead {number}", answers_after=None, waiting=1_000) for number in range(silent)]
    process = Process(*dead)
    # until each was found to be silent, half a second for as many as there are places
    process.run(PATIENCE * (silent / (PLACES / 2) + 2), step=0.05)
    alive, new = Sink("alive", waiting=1), Sink("new", waiting=1)
    process.sinks += [alive, new]
    arrived = process.now
    process.run(0.1)
    assert alive.begun[0] - arrived < 0.05
    assert new.begun[0] - arrived < 0.05


def test_sink_that_answers_late_but_always_keeps_going() -> None:
    slow, quick = Sink("slow", answers_after=2.0, waiting=1000), Sink("quick", waiting=1000)
    process = Process(slow, quick)
    process.run(20)
    assert len(slow.begun) >= 9 * slow.limit / 2
    assert len(quick.begun) == 1000


def test_late_attempts_are_bounded_and_a_sink_in_time_is_trusted_again() -> None:
    dead = [Sink(f"dead {number}", answers_after=None, waiting=1_000) for number in range(200)]
    process = Process(*dead)
    process.run(2 * TIME_LIMIT, step=0.05)  # until each was found to be silent
    most = 0
    for _ in range(40):
        process.run(0.5, step=0.05)
        most = max(most, process.turns.late)
    assert most <= 5 * PLACES
    for sink in dead:
        sink.answers_after, sink.waiting = 0.01, 3
    process.run(2 * TIME_LIMIT, step=0.05)
    assert all(not sink.waiting for sink in dead)
    assert not any(sink.suspect or sink.late for sink in dead)
    assert (process.turns.young, process.turns.late) == (0, 0)
