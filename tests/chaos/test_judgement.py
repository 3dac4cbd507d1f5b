"""The judge itself: a run without fault passes, and each kind of trouble is named."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.chaos.evidence import Database, Delivery, Evidence
from tests.chaos.faults import Window
from tests.chaos.judgement import judge
from tests.chaos.providers import Asked, Held
from tests.chaos.publishers import Publication
from tests.chaos.receivers import Arrival
from tests.chaos.schedule import KINDS, Cast, plan
from tests.chaos.subscribers import Event, Wanted

WANTED = Wanted("all", "gemeente", {}, lambda event: event.registry == "bag")


def evidence() -> Evidence:
    """Three events in one lane, delivered in order; and one that is rejected."""
    publications = [
        Publication(f"bag-{n}", Event("bag", "nl.bag.x", "s", 0), "urn:x", n, "bag s", n, True, 1, 10.0 + n)
        for n in range(3)
    ]
    publications.append(Publication("wrong", Event("bag", "nl.bag.x", "s", 0), "urn:y", 3, None, 0, False, 1, 13.0))
    arrivals = [Arrival("all", n + 1, f"bag-{n}", "deliver1.1", 20.0 + n, True, {}, 204, 20.1 + n) for n in range(3)]
    database = Database(
        {100 + n: ("urn:x", f"bag-{n}") for n in range(3)},
        {"wrong"},
        [Delivery("all", n + 1, 100 + n, "delivered", None, 1) for n in range(3)],
        {"all": 3},
        {"all": Counter(delivered=3)},
    )
    return Evidence(publications, arrivals, [], database, [WANTED])


def again(found: Evidence, *, by: str, at: float) -> None:
    found.arrivals = [*found.arrivals, replace(found.arrivals[0], sender=by, at=at, answered_at=at + 0.1)]


def test_a_run_without_trouble_has_no_complaints() -> None:
    judgement = judge(evidence())
    assert judgement.complaints == []
    assert judgement.duplicates == {}


def lose_an_event(found: Evidence) -> None:
    del found.database.events[101]
    found.database.deliveries.pop(1)


def accept_twice(found: Evidence) -> None:
    found.database.events[200] = ("urn:x", "bag-0")


def lose_a_rejection(found: Evidence) -> None:
    found.database.rejected.clear()


def lose_a_delivery(found: Evidence) -> None:
    found.database.deliveries.pop()


def match_too_much(found: Evidence) -> None:
    found.wanted = [replace(WANTED, matches=lambda _: False)]


def skip_a_number(found: Evidence) -> None:
    found.database.deliveries[2] = replace(found.database.deliveries[2], sequence=4)


def say_delivered_what_was_not(found: Evidence) -> None:
    found.arrivals = found.arrivals[:2]


def make_a_dead_letter(found: Evidence) -> None:
    found.database.deliveries[2] = replace(found.database.deliveries[2], state="dead", reason="timed-out")


def leave_pending(found: Evidence) -> None:
    found.database.deliveries[2] = replace(found.database.deliveries[2], state="pending")


def count_twice(found: Evidence) -> None:
    found.database.totals["all"]["delivered"] += 1


def forge(found: Evidence) -> None:
    found.arrivals[0].genuine = False


def send_what_is_not_there(found: Evidence) -> None:
    found.arrivals = [*found.arrivals, replace(found.arrivals[0], sequence=9)]


def exchange_arrivals(found: Evidence) -> None:
    found.arrivals = [found.arrivals[1], found.arrivals[0], found.arrivals[2]]


def exchange_numbers(found: Evidence) -> None:
    first, second = found.database.deliveries[:2]
    found.database.deliveries[:2] = [replace(first, event_key=101), replace(second, event_key=100)]


def send_again_without_cause(found: Evidence) -> None:
    again(found, by="deliver2.1", at=30.0)


def send_what_is_held(found: Evidence) -> None:
    found.arrivals[1].body["type"] = "nl.bag.x"
    found.held = [Held("nl.bag.x", 19.0, 25.0)]


def leave_a_replay_half_done(found: Evidence) -> None:
    found.asked = [Asked("all", 3, 30.0)]
    found.database.replays["all"] = "done", 2


def send_again_what_was_not_asked_for(found: Evidence) -> None:
    found.asked = [Asked("all", 3, 31.0)]
    found.database.replays["all"] = "done", 3
    again(found, by="deliver2.1", at=30.0)


TROUBLE: list[tuple[Callable[[Evidence], None], str]] = [
    (lose_an_event, "lost: bag-1 was confirmed and is neither accepted nor rejected"),
    (accept_twice, "accepted 2 times: bag-0"),
    (lose_a_rejection, "lost: wrong was confirmed, must be rejected"),
    (lose_a_delivery, "bag-2 has 0 deliveries for 'all', and should have 1"),
    (match_too_much, "bag-0 has 1 deliveries for 'all', and should have 0"),
    (skip_a_number, "numbers of 'all' are not 1 to 3"),
    (say_delivered_what_was_not, "recorded as delivered, and its receiver never accepted it: all number 3"),
    (make_a_dead_letter, "dead letter without a cause in its receiver: all number 3"),
    (leave_pending, "still pending when all was quiet: all number 3"),
    (count_twice, "accounting of 'all': 4 counted as delivered, 3 rows are"),
    (forge, "signature doesn't verify: 'all' number 1"),
    (send_what_is_not_there, "sent without a delivery in the database: 'all' number 9"),
    (exchange_arrivals, "order: 'all' number 1 arrived first after 2 of the same lane"),
    (exchange_numbers, "order of acceptance: 'all' number 2 is event 0 of bag s"),
    (send_again_without_cause, "duplicate without a fault: 'all' number 1"),
    (send_what_is_held, "came while its type was held: 'all' number 2, 2.0 s after"),
    (leave_a_replay_half_done, "replay of 'all' is done, with 2 of 3 numbers settled"),
    (send_again_what_was_not_asked_for, "duplicate without a fault: 'all' number 1"),
]


@pytest.mark.parametrize(("make", "complaint"), TROUBLE, ids=lambda value: getattr(value, "__name__", ""))
def test_trouble_is_named(make: Callable[[Evidence], None], complaint: str) -> None:
    found = evidence()
    make(found)
    assert any(said.startswith(complaint) for said in judge(found).complaints)


def test_a_duplicate_is_explained_by_a_fault_of_its_sender_while_it_was_under_way_only() -> None:
    for sender, began, explained in (("deliver1", 20.0, True), ("deliver2", 20.0, False), ("deliver1", 28.0, False)):
        found = evidence()
        found.windows = [Window("kill", began, began + 1, frozenset({sender}))]
        again(found, by="deliver2.1", at=30.0)
        judgement = judge(found)
        assert (judgement.complaints == []) is explained, (sender, began)
        assert judgement.duplicates == {"kill" if explained else "none": 1}


def test_what_was_asked_for_again_may_come_again() -> None:
    found = evidence()
    found.asked = [Asked("all", 3, 29.0)]
    found.database.replays["all"] = "done", 3
    again(found, by="deliver2.1", at=30.0)
    judgement = judge(found)
    assert judgement.complaints == []
    assert judgement.duplicates == {"replay": 1}


def test_a_seed_reproduces_its_schedule_and_each_kind_comes_in_two_minutes() -> None:
    cast = Cast(["all", "one"])
    assert plan(5, 120, cast) == plan(5, 120, cast)
    assert plan(5, 120, cast) != plan(6, 120, cast)
    for seed in range(30):
        missing = KINDS.keys() - {fault.kind for fault in plan(seed, 120, cast)}
        assert not missing, (seed, missing)
