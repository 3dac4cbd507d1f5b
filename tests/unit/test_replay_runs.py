"""A replay in memory: lanes keep their order, numbers are settled in order, and every number is settled once."""

from random import Random
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.delivery.replay_runs import Replayed, ReplayRun, Row
from broker.storage.replays import Running

STATES = ("delivered", "delivered", "delivered", "dead", "pending", "cancelled", None)


def run_of(first: int, last: int, numbers: tuple[int, ...] | None = None, per_second: int = 5_000) -> ReplayRun:
    return ReplayRun.of(Running(uuid4(), 7, first, last, numbers, per_second, first - 1, 0, 0, {}, None, False), 1)


def rows(*numbers: int, state: str = "delivered", lane: int | None = None) -> list[Row]:
    return [Row(number, 1000 + number, lane, state, None) for number in numbers]


def test_numbers_that_are_gone_cancelled_or_pending_are_skipped_with_their_reason() -> None:
    run = run_of(1, 10)
    found = rows(3, 4) + rows(6, state="pending") + [Row(7, 1007, None, "cancelled", "discarded: by hand")]
    run.offer(found, None, complete=True)
    now = 1.0
    while (delivery := run.take(now := now + 1)) is not None:
        run.sent(delivery, 204, now)
    assert run.over
    assert (run.cursor, run.sent_count) == (10, 2)
    assert run.skipped_counts == {"payload-expired": 6, "pending": 1, "discarded": 1}
    assert run.letters() == []


def test_list_of_numbers_is_read_in_portions_and_what_is_not_there_is_skipped() -> None:
    wanted = tuple(range(2, 2402, 2))
    run = run_of(2, wanted[-1], wanted)
    seen, now = [], 1.0
    while not run.over:
        if run.wants_more:
            numbers = run.next_numbers()
            assert numbers is not None
            run.offer([row for row in rows(*numbers) if row.sequence % 10], numbers, complete=False)
        while (delivery := run.take(now := now + 1)) is not None:
            seen.append(delivery.sequence)
            run.sent(delivery, 204, now)
    assert seen == [number for number in wanted if number % 10]
    assert run.skipped_counts == {"payload-expired": len(wanted) - len(seen)}


def test_a_lane_has_one_under_way_and_what_failed_goes_again_before_the_rest_of_its_lane() -> None:
    run = run_of(1, 4)
    run.offer([*rows(1, 2, 3, lane=5), *rows(4)], None, complete=True)
    first, other = run.take(1.0), run.take(2.0)
    assert first is not None
    assert other is not None
    assert (first.sequence, other.sequence) == (1, 4)
    assert run.take(3.0) is None
    run.retry(first, 10.0, "status-500")
    run.sent(other, 204, 3.0)
    assert run.cursor == 0, "a number counts once all before it do"
    assert run.wait(4.0) == 6.0
    again = run.take(10.0)
    assert again is first
    run.failed(again, "status-500")
    assert (run.cursor, run.failed_count, run.last_failure) == (1, 1, "status-500")
    following = run.take(11.0)
    assert following is not None
    assert following.sequence == 2


def test_what_comes_twice_counts_once() -> None:
    run = run_of(1, 1)
    run.offer(rows(1, state="dead"), None, complete=True)
    delivery = run.take(1.0)
    assert delivery is not None
    run.returned(delivery)
    assert run.take(2.0) is delivery
    run.sent(delivery, 204, 2.0)
    run.returned(delivery)
    run.failed(delivery, "late")
    assert (run.sent_count, run.failed_count, len(run.letters())) == (1, 0, 1)
    run.written(1)
    assert run.letters() == []


def test_rate_is_kept() -> None:
    run = run_of(1, 500, per_second=10)
    run.offer(rows(*range(1, 501)), None, complete=True)
    sent, now = 0, 100.0
    while now < 110.0:
        wait = run.wait(now)
        assert wait is not None
        if wait > 0:
            now += wait
            continue
        assert run.take(now) is not None
        sent += 1
    assert sent == pytest.approx(100, abs=2)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 40), lanes=st.integers(1, 4), from_list=st.booleans())
def test_every_number_is_settled_once_whatever_happens(seed: int, count: int, lanes: int, from_list: bool) -> None:
    random = Random(seed)
    stored = {number: random.choice(STATES) for number in range(1, count + 1)}
    asked = tuple(sorted(random.sample(range(1, count + 1), random.randint(1, count)))) if from_list else None
    wanted = list(asked or stored)
    run = run_of(wanted[0], wanted[-1], asked)
    under_way: list[Replayed] = []
    begun: dict[int | None, list[int]] = {}
    now = 0.0
    while not run.over:
        now += random.random()
        if run.wants_more:
            numbers = run.next_numbers()
            found = [
                Row(number, number, number % lanes, state, "grant-ended" if state == "cancelled" else None)
                for number, state in stored.items()
                if state is not None and number > run.read_through and (numbers is None or number in numbers)
            ][:7]  # fmt: skip
            if numbers is None:
                run.offer(found, None, complete=len(found) < 7)
            else:
                numbers = numbers[:7]
                run.offer([row for row in found if row.sequence in numbers], numbers, complete=False)
        delivery = run.take(now)
        if delivery is not None:
            assert delivery.lane not in {each.lane for each in under_way}
            under_way.append(delivery)
            begun.setdefault(delivery.lane, []).append(delivery.sequence)
        if under_way and random.random() < 0.7:
            ended = under_way.pop(random.randrange(len(under_way)))
            match random.randrange(5):
                case 0:
                    run.sent(ended, 204, now)
                case 1:
                    run.failed(ended, "x")
                case 2:
                    run.skipped(ended, "grant-ended")
                case 3:
                    run.retry(ended, now + 1)
                case _:
                    run.returned(ended)
    assert run.cursor == wanted[-1]
    assert run.sent_count + run.failed_count + run.skipped_counts.total() == len(wanted)
    for order in begun.values():
        firsts = list(dict.fromkeys(order))
        assert firsts == sorted(firsts)
    assert len(run.letters()) <= sum(stored[number] == "dead" for number in wanted)
