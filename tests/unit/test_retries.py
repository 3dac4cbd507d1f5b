"""The retry schedule as DESIGN gives it."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.delivery.retries import DEFAULT, JITTER, Schedule

DAY = timedelta(days=1)


def test_default_schedule_begins_as_designed() -> None:
    seconds = [1, 2, 5, 15, 60, 300, 1800, 7200]
    assert [wait.total_seconds() for wait in DEFAULT.waits[:8]] == seconds
    assert all(wait > timedelta(hours=2) for wait in DEFAULT.waits[8:])


def test_default_waits_never_get_shorter() -> None:
    assert list(DEFAULT.waits) == sorted(DEFAULT.waits)


def test_default_schedule_spans_five_days_even_when_every_wait_is_as_short_as_can_be() -> None:
    shortest = [DEFAULT.wait(attempt, -1) for attempt in range(1, len(DEFAULT.waits) + 1)]
    assert sum((wait for wait in shortest if wait is not None), timedelta(0)) >= 5 * DAY
    assert DEFAULT.horizon >= 5 * DAY


@given(st.integers(1, len(DEFAULT.waits)), st.floats(-1, 1))
def test_wait_varies_by_a_fifth_at_most(attempts: int, jitter: float) -> None:
    wait, plain = DEFAULT.wait(attempts, jitter), DEFAULT.waits[attempts - 1]
    assert wait is not None
    assert abs(wait - plain) <= plain * JITTER + timedelta(microseconds=1)
    assert JITTER == 0.2


@pytest.mark.parametrize("beyond", [1, 2, 100])
def test_there_is_no_wait_beyond_the_schedule(beyond: int) -> None:
    assert DEFAULT.wait(len(DEFAULT.waits) + beyond, 0) is None


def test_schedule_of_a_subscription_is_given_in_seconds() -> None:
    schedule = Schedule.of_seconds([0.5, 60])
    assert schedule.waits == (timedelta(seconds=0.5), timedelta(minutes=1))
    assert schedule.horizon == timedelta(seconds=60.5)
    assert schedule.wait(3, 0) is None


def test_schedule_without_waits_allows_one_attempt() -> None:
    assert Schedule(()).wait(1, 0) is None
    assert Schedule(()).horizon == timedelta(0)
