"""The judge of delays and corrections: what is lawful passes, and each kind of trouble is named."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.chaos.clock import Jump
from tests.chaos.evidence import Database, Delivery, Evidence
from tests.chaos.judgement import judge
from tests.chaos.providers import PULL, QUEUE, Stone
from tests.chaos.publishers import Publication
from tests.chaos.receivers import Arrival
from tests.chaos.subscribers import Event, Wanted

WALL = 1_000_000.0
"""What the true time is ahead of the monotonic clock."""


def published(n: int, name: str, corrects: str | None = None, correction: str | None = None) -> Publication:
    event = Event("bag", f"nl.bag.{name}", "s", 0)
    return Publication(f"bag-{n}", event, "urn:x", n, "bag s", n, True, 1, 10.0, corrects, correction)


def evidence() -> Evidence:
    """In one lane, each accepted half a second after the former: what waits for three, and what comes of it.

    1 waits and is delivered; 2 waits and is replaced by 3 in time; 4 waits and is withdrawn by 5 in time; 6 waits and
    is withdrawn by 7 too late. The pulled subscription has the same numbers.
    """
    publications = [
        published(1, "beeindigd"),
        published(2, "beeindigd"),
        published(3, "hersteld", "bag-2", "replace"),
        published(4, "beeindigd"),
        published(5, "hersteld", "bag-4", "withdraw"),
        published(6, "beeindigd"),
        published(7, "hersteld", "bag-6", "withdraw"),
    ]
    accepted = {n: 20.0 + n / 2 + (3.0 if n == 7 else 0) for n in range(1, 8)}
    reasons = {2: "corrected: by bag-3", 4: "withdrawn: by bag-5", 5: "withdrawal: bag-4 was not delivered"}
    deliveries = [
        Delivery(path, n, n, "cancelled" if n in reasons else "delivered", reasons.get(n), int(n not in reasons))
        for path in ("all", "pulled")
        for n in range(1, 8)
    ]
    arrivals = [
        Arrival(path, n, f"bag-{n}", sender, at, True, {}, 204, at)
        for path, sender in (("all", "deliver1.1"), ("pulled", PULL))
        for n, at in ((1, 23.51), (3, 23.6), (6, 26.01), (7, 26.6))
    ]
    database = Database(
        {n: ("urn:x", f"bag-{n}") for n in range(1, 8)},
        accepted={n: WALL + at for n, at in accepted.items()},
        committed={n: WALL + at + 0.1 for n, at in accepted.items()},
        deliveries=deliveries,
        last_numbers={"all": 7, "pulled": 7},
        totals={path: Counter(delivered=4, cancelled=3) for path in ("all", "pulled")},
    )
    stones = {("pulled", n): Stone("cancelled", reason) for n, reason in reasons.items()}
    wanted = [Wanted("all", "gemeente", {}, lambda _: True), Wanted("pulled", "gemeente", {}, lambda _: True)]
    return Evidence(publications, arrivals, [], database, wanted, stones=stones, wall_offset=WALL)


def end(found: Evidence, number: int, state: str, reason: str | None = None) -> None:
    """Let the delivery to `all` have ended otherwise, and the totals say so."""
    rows, totals = found.database.deliveries, found.database.totals["all"]
    totals[rows[number - 1].state] -= 1
    totals[state] += 1
    rows[number - 1] = replace(rows[number - 1], state=state, reason=reason)


def arrive(found: Evidence, number: int, at: float, path: str = "all", sender: str = "deliver1.1") -> None:
    found.arrivals = sorted(
        [*found.arrivals, Arrival(path, number, f"bag-{number}", sender, at, True, {}, 204, at)],
        key=lambda arrival: (arrival.at, arrival.sequence),
    )


def without(found: Evidence, number: int, path: str = "all") -> None:
    found.arrivals = [each for each in found.arrivals if (each.path, each.sequence) != (path, number)]


def test_what_is_delivered_in_its_time_or_corrected_in_time_is_as_it_should_be() -> None:
    assert judge(evidence()).complaints == []


def send_too_early(found: Evidence) -> None:
    found.arrivals[0].at = 23.3


def pull_too_early(found: Evidence) -> None:
    found.arrivals[4].at = 23.3


def deliver_what_was_replaced(found: Evidence) -> None:
    end(found, 2, "delivered")
    arrive(found, 2, 24.1)


def deliver_what_was_withdrawn(found: Evidence) -> None:
    end(found, 4, "delivered")
    arrive(found, 4, 25.1)


def cancel_and_send(found: Evidence) -> None:
    arrive(found, 4, 25.1)


def cancel_and_pull(found: Evidence) -> None:
    arrive(found, 4, 25.1, "pulled", PULL)


def cancel_and_queue(found: Evidence) -> None:
    arrive(found, 4, 25.1, "all", QUEUE)


def cancel_without_a_correction(found: Evidence) -> None:
    end(found, 1, "cancelled", "grant-ended")
    without(found, 1)


def cancel_by_the_correction_of_another(found: Evidence) -> None:
    end(found, 1, "cancelled", "corrected: by bag-3")
    without(found, 1)


def say_the_wrong_kind(found: Evidence) -> None:
    end(found, 2, "cancelled", "withdrawn: by bag-3")


def cancel_by_a_correction_that_is_lost(found: Evidence) -> None:
    del found.database.events[3]


def cancel_too_late(found: Evidence) -> None:
    end(found, 6, "cancelled", "withdrawn: by bag-7")
    end(found, 7, "cancelled", "withdrawal: bag-6 was not delivered")
    without(found, 6)
    without(found, 7)


def send_a_withdrawal_of_nothing(found: Evidence) -> None:
    end(found, 5, "delivered")
    arrive(found, 5, 25.2)


def hide_a_withdrawal(found: Evidence) -> None:
    end(found, 7, "cancelled", "withdrawal: bag-6 was not delivered")
    without(found, 7)


def go_past_what_waits(found: Evidence) -> None:
    without(found, 3)
    arrive(found, 3, 22.0)


def pull_a_tombstone_of_what_was_delivered(found: Evidence) -> None:
    found.stones = {**found.stones, ("pulled", 1): Stone("cancelled", "grant-ended")}


def pull_a_tombstone_with_another_reason(found: Evidence) -> None:
    found.stones = {**found.stones, ("pulled", 2): Stone("cancelled", "withdrawn: by bag-3")}


def leave_what_waits(found: Evidence) -> None:
    end(found, 1, "pending")


TROUBLE: list[tuple[Callable[[Evidence], None], str]] = [
    (send_too_early, "came before its delay was over: 'all' number 1, 0.20 s too early"),
    (pull_too_early, "came before its delay was over: 'pulled' number 1, 0.20 s too early"),
    (deliver_what_was_replaced, "corrected in time, and delivered all the same: 'all' number 2, by bag-3"),
    (deliver_what_was_withdrawn, "corrected in time, and delivered all the same: 'all' number 4, by bag-5"),
    (cancel_and_send, "cancelled, and sent all the same: 'all' number 4"),
    (cancel_and_pull, "cancelled, and sent all the same: 'pulled' number 4"),
    (cancel_and_queue, "cancelled, and sent all the same: 'all' number 4"),
    (cancel_without_a_correction, "cancelled without a correction: 'all' number 1, grant-ended"),
    (cancel_by_the_correction_of_another, "cancelled without a correction: 'all' number 1, corrected: by bag-3"),
    (say_the_wrong_kind, "cancelled without a correction: 'all' number 2, withdrawn: by bag-3"),
    (cancel_by_a_correction_that_is_lost, "cancelled without a correction: 'all' number 2, corrected: by bag-3"),
    (cancel_too_late, "cancelled by a correction that came too late: 'all' number 6"),
    (send_a_withdrawal_of_nothing, "withdrawal of what was not delivered is delivered: 'all' number 5"),
    (hide_a_withdrawal, "cancelled without a correction: 'all' number 7, withdrawal: bag-6 was not delivered"),
    (go_past_what_waits, "order: 'all' number 1 arrived first after 3 of the same lane"),
    (pull_a_tombstone_of_what_was_delivered, "pulled as a tombstone: 'pulled' number 1, cancelled (grant-ended), is"),
    (pull_a_tombstone_with_another_reason, "pulled as a tombstone: 'pulled' number 2, cancelled (withdrawn: by bag-3)"),
    (leave_what_waits, "still pending when all was quiet: all number 1"),
]


@pytest.mark.parametrize(("make", "complaint"), TROUBLE, ids=lambda value: getattr(value, "__name__", ""))
def test_trouble_is_named(make: Callable[[Evidence], None], complaint: str) -> None:
    found = evidence()
    make(found)
    assert any(said.startswith(complaint) for said in judge(found).complaints), judge(found).complaints


def ahead_when_it_was_taken(found: Evidence) -> list[Jump]:
    send_too_early(found)
    return [Jump(90, 22.0, 23.0)]


def ahead_when_the_correction_came(found: Evidence) -> list[Jump]:
    deliver_what_was_withdrawn(found)
    send_a_withdrawal_of_nothing(found)
    return [Jump(7200, 22.1, 22.2)]


def behind_when_the_correction_came(found: Evidence) -> list[Jump]:
    cancel_too_late(found)
    return [Jump(-7200, 26.0, 26.2)]


def set_back_after_it_was_pulled(found: Evidence) -> list[Jump]:
    cancel_and_pull(found)
    return [Jump(90, 22.1, 22.3)]


@pytest.mark.parametrize(
    "make",
    [
        ahead_when_it_was_taken,
        ahead_when_the_correction_came,
        behind_when_the_correction_came,
        set_back_after_it_was_pulled,
    ],
)
def test_what_was_in_time_is_judged_where_postgres_s_clock_went_as_time_goes_and_only_there(
    make: Callable[[Evidence], list[Jump]],
) -> None:
    found = evidence()
    jumps = make(found)
    assert judge(found).complaints != [], "no jump"
    found.jumps = [replace(jump, since=jump.since - 15, until=jump.until - 15) for jump in jumps]
    assert judge(found).complaints != [], "a jump that was over before"
    found.jumps = jumps
    assert judge(found).complaints == []


@pytest.mark.parametrize("make", [cancel_and_send, cancel_and_queue])
def test_nothing_is_both_cancelled_and_sent_whatever_the_clock_shows(make: Callable[[Evidence], None]) -> None:
    found = evidence()
    make(found)
    found.jumps = [Jump(7200, 20.0, 30.0)]
    assert any(said.startswith("cancelled, and sent all the same") for said in judge(found).complaints)


def test_what_was_accepted_while_the_clock_was_ahead_waits_as_long_as_it_was_to() -> None:
    """It is accepted two hours ahead, and goes when that clock is there again, or when it is still there."""
    for arrived, complains in ((23.3, True), (23.51, False)):
        found = evidence()
        found.jumps = [Jump(7200, 20.0, 30.0)]
        for key in found.database.accepted:
            found.database.accepted[key] += 7200
            found.database.committed[key] += 7200
        found.arrivals[0].at = arrived
        assert (judge(found).complaints != []) is complains
