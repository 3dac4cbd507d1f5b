from datetime import timedelta

import pytest

from broker.delivery.pace import FAILURES_TO_OPEN, LONGEST_OPEN_SECONDS, BreakerState, Pace


def attempt(pace: Pace, now: float, *, success: bool, retry_after: float | None = None) -> None:
    assert pace.wait(now) == 0
    pace.begin(now)
    if success:
        pace.succeeded()
    else:
        pace.failed(now, None if retry_after is None else timedelta(seconds=retry_after), 0)


def opened(now: float = 1000.0) -> Pace:
    pace = Pace(16)
    for _ in range(FAILURES_TO_OPEN):
        attempt(pace, now, success=False)
    return pace


def test_nothing_slows_down_before_ten_failures_in_a_row() -> None:
    pace = Pace(16)
    for _ in range(5):
        for _ in range(FAILURES_TO_OPEN - 1):
            attempt(pace, 1000, success=False)
        assert pace.limit == 16
        assert pace.state is BreakerState.CLOSED
        attempt(pace, 1000, success=True)


def test_tenth_failure_in_a_row_opens() -> None:
    pace = opened()
    assert pace.state is BreakerState.OPEN
    assert pace.wait(1000) == pytest.approx(5)


def test_open_breaker_lets_a_single_probe_through_when_its_time_is_over() -> None:
    pace = opened()
    assert pace.wait(1005.1) == 0
    pace.begin(1005.1)
    assert pace.state is BreakerState.HALF_OPEN
    assert pace.wait(1005.2) > 0


def test_failed_probe_doubles_the_time_up_to_five_minutes() -> None:
    pace, now = opened(), 1000.0
    waits = []
    for _ in range(8):
        wait = pace.wait(now)
        waits.append(wait)
        now += wait
        attempt(pace, now, success=False)
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300]
    assert max(waits) <= LONGEST_OPEN_SECONDS


def test_success_closes_and_concurrency_grows_from_one() -> None:
    pace = opened()
    attempt(pace, 1006, success=True)
    assert pace.state is BreakerState.CLOSED
    assert pace.limit == 1
    for _ in range(40):
        attempt(pace, 1006, success=True)
    assert pace.limit == 16


def test_attempts_that_were_under_way_when_it_opened_do_not_prolong_it() -> None:
    pace = opened()
    before = pace.wait(1000)
    pace.failed(1000, None, 0)
    assert pace.wait(1000) == before


def test_retry_after_stops_the_whole_sink_until_then() -> None:
    pace = Pace(16)
    attempt(pace, 1000, success=False, retry_after=30)
    assert pace.wait(1000) == 30
    assert pace.wait(1030) == 0


def test_allowed_rate_is_kept() -> None:
    pace, now, sent = Pace(16, per_minute=60), 1000.0, 0
    while now < 1060:
        wait = pace.wait(now)
        if wait == 0:
            attempt(pace, now, success=True)
            sent += 1
        else:
            now += wait
    assert 59 <= sent <= 61


def test_abandoned_probe_is_made_again() -> None:
    pace = opened()
    pace.begin(1006)
    pace.abandoned()
    assert pace.wait(1006) == 0


def answers(pace: Pace, seconds: float, count: int) -> None:
    for _ in range(count):
        pace.succeeded(seconds)


def test_sink_that_becomes_slower_gets_fewer_side_by_side_and_more_again_when_it_recovers() -> None:
    pace = Pace(16)
    answers(pace, 0.05, 50)
    assert pace.limit == 16
    answers(pace, 1.0, 40)
    assert pace.limit <= 4
    answers(pace, 1.0, 20)
    assert pace.limit >= 1
    answers(pace, 0.05, 400)
    assert pace.limit == 16


def test_sink_that_is_slow_as_always_keeps_its_places() -> None:
    pace = Pace(16)
    answers(pace, 3.0, 500)
    assert pace.limit == 16


def test_what_is_usual_is_measured_anew() -> None:
    pace = Pace(16)
    answers(pace, 0.1, 100)
    answers(pace, 1.0, 100)
    assert pace.limit == 1
    answers(pace, 1.0, 500)
    assert pace.limit == 16, "it is slower for good, and not because of us"


def test_differences_below_a_tenth_of_a_second_slow_nobody_down() -> None:
    pace = Pace(16)
    answers(pace, 0.001, 50)
    answers(pace, 0.09, 500)
    assert pace.limit == 16


def test_slow_failures_slow_nothing_down_before_the_tenth() -> None:
    pace = Pace(16)
    answers(pace, 0.05, 50)
    for _ in range(20):
        for _ in range(FAILURES_TO_OPEN - 1):
            attempt(pace, 1000, success=False)
        attempt(pace, 1000, success=True)
    assert pace.limit == 16


def test_sink_fails_since_its_first_failure_without_a_success() -> None:
    pace = Pace(16)
    for now in (1000, 1500, 2000):
        attempt(pace, now, success=False)
    assert pace.failing_since == 1000
    attempt(pace, 2001, success=True)
    assert pace.failing_since is None


def test_success_of_what_was_under_way_does_not_cut_short_what_the_sink_asked_for() -> None:
    pace = opened(1000)
    pace.begin(1006)
    pace.failed(1006, timedelta(seconds=600), 0)
    pace.succeeded()
    assert pace.state is BreakerState.CLOSED
    assert pace.wait(1007) == pytest.approx(599)


def test_clock_that_is_set_back_prolongs_no_pause() -> None:
    pace = opened(1000)
    assert 0 < pace.wait(1000 - 3600) <= 5 * 1.2
    limited = Pace(16, per_minute=60)
    limited.begin(1000)
    assert limited.wait(1000 - 3600) <= 1
