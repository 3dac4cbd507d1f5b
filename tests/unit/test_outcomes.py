"""What an answer means, and what follows from it."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.delivery.outcomes import Outcome, Reason, Verdict, conclude, judge, parse_retry_after
from broker.delivery.retries import DEFAULT, Schedule

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)
SHORT = Schedule((SECOND, 10 * SECOND, 100 * SECOND))


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_success_is_four_statuses(status: int) -> None:
    assert judge(status, None, b"no matter what", NOW) == Outcome(None, status)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (203, Reason.STATUS),
        (205, Reason.STATUS),
        (206, Reason.STATUS),
        (299, Reason.STATUS),
        (300, Reason.REDIRECT),
        (301, Reason.REDIRECT),
        (304, Reason.REDIRECT),
        (307, Reason.REDIRECT),
        (308, Reason.REDIRECT),
        (400, Reason.STATUS),
        (401, Reason.STATUS),
        (404, Reason.STATUS),
        (409, Reason.STATUS),
        (410, Reason.GONE),
        (413, Reason.STATUS),
        (415, Reason.STATUS),
        (429, Reason.THROTTLED),
        (500, Reason.STATUS),
        (502, Reason.STATUS),
        (503, Reason.THROTTLED),
        (599, Reason.STATUS),
        (999, Reason.STATUS),
    ],
)
def test_every_other_status_is_a_failure(status: int, reason: Reason) -> None:
    assert judge(status, None, b"x", NOW) == Outcome(reason, status, None, b"x")


@pytest.mark.parametrize(
    ("value", "wait"),
    [
        ("0", timedelta(0)),
        ("120", timedelta(seconds=120)),
        (" 120 ", timedelta(seconds=120)),
        ("9" * 400, timedelta(seconds=10**8)),
        (format_datetime(NOW + HOUR, usegmt=True), HOUR),
        ("Mon, 23 Nov 2026 13:00:00 GMT", HOUR),
        ("Monday, 23-Nov-26 13:00:00 GMT", HOUR),
        ("Sun, 22 Nov 2026 12:00:00 GMT", timedelta(0)),
    ],
)
def test_retry_after_is_seconds_or_a_date(value: str, wait: timedelta) -> None:
    assert parse_retry_after(value, NOW) == wait
    assert judge(503, value, b"", NOW).retry_after == wait


@pytest.mark.parametrize(
    "value",
    [None, "", " ", "-1", "1.5", "+5", "0x10", "١٢", "soon", "2026-11-23T13:00:00Z", "Mon, 31 Nov 2026 13:00:00 GMT",
     "Mon, 23 Nov 2026 99:00:00 GMT", "Mon, 23 Nov 99999999999 13:00:00 GMT", ",", "GMT", "1 2 3 4 5 6 7"],
)  # fmt: skip
def test_retry_after_that_says_nothing_counts_as_absent(value: str | None) -> None:
    assert parse_retry_after(value, NOW) is None


@given(st.text(max_size=40) | st.from_regex(r"[A-Z][a-z]{2}, [0-9]{1,3} [A-Z][a-z]{2} [0-9]{1,6} [0-9:+-]{1,12} \w*"))
def test_no_retry_after_makes_a_delivery_fail_to_be_judged(value: str) -> None:
    wait = parse_retry_after(value, NOW)
    assert wait is None or wait >= timedelta(0)


def conclude_default(outcome: Outcome, attempts: int = 1, age: timedelta = SECOND, jitter: float = 0) -> Verdict:
    return conclude(outcome, attempts, age, DEFAULT, jitter)


def test_success_ends_a_delivery() -> None:
    assert conclude_default(Outcome(None, 204)) == Verdict("delivered")


def test_failure_is_tried_again_by_the_schedule() -> None:
    outcome = Outcome(Reason.STATUS, 500)
    assert conclude(outcome, 1, SECOND, SHORT, 0) == Verdict("pending", SECOND, "status-500")
    assert conclude(outcome, 2, SECOND, SHORT, 0) == Verdict("pending", 10 * SECOND, "status-500")
    assert conclude(outcome, 2, SECOND, SHORT, 1) == Verdict("pending", 12 * SECOND, "status-500")
    assert conclude(outcome, 2, SECOND, SHORT, -1) == Verdict("pending", 8 * SECOND, "status-500")


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason is not Reason.STATUS])
def test_failure_without_an_answer_is_tried_again_and_says_why(reason: Reason) -> None:
    assert conclude(Outcome(reason), 1, SECOND, SHORT, 0) == Verdict("pending", SECOND, reason.value)


def test_delivery_is_dead_when_its_attempts_have_run_out() -> None:
    assert conclude(Outcome(Reason.TIMEOUT), 3, SECOND, SHORT, 0).state == "pending"
    assert conclude(Outcome(Reason.TIMEOUT), 4, SECOND, SHORT, 0) == Verdict("dead", reason="timed-out")
    assert conclude_default(Outcome(Reason.STATUS, 500), len(DEFAULT.waits)).state == "pending"
    assert conclude_default(Outcome(Reason.STATUS, 500), len(DEFAULT.waits) + 1).state == "dead"


@pytest.mark.parametrize("status", [400, 413, 415])
def test_refusal_that_no_repetition_mends_is_final_after_one(status: int) -> None:
    outcome = Outcome(Reason.STATUS, status)
    assert conclude_default(outcome, 1).state == "pending"
    assert conclude_default(outcome, 2) == Verdict("dead", reason=f"status-{status}")


@pytest.mark.parametrize(
    ("asked", "age", "wait"),
    [
        (timedelta(0), SECOND, SECOND),
        (SECOND / 2, SECOND, SECOND),
        (30 * SECOND, SECOND, 30 * SECOND),
        (110 * SECOND, SECOND, 110 * SECOND),
        (111 * SECOND, SECOND, 110 * SECOND),
        (365 * DAY, SECOND, 110 * SECOND),
        (30 * SECOND, 100 * SECOND, 11 * SECOND),
        (30 * SECOND, 111 * SECOND, SECOND),
        (30 * SECOND, 365 * DAY, SECOND),
    ],
)
def test_retry_after_is_obeyed_up_to_the_end_of_the_schedule(asked: timedelta, age: timedelta, wait: timedelta) -> None:
    assert SHORT.horizon == 111 * SECOND
    outcome = Outcome(Reason.THROTTLED, 429, asked)
    assert conclude(outcome, 1, age, SHORT, 0) == Verdict("pending", wait, "throttled-429")


@given(
    st.integers(1, len(DEFAULT.waits)),
    st.timedeltas(timedelta(0), 30 * DAY),
    st.floats(-1, 1),
    st.none() | st.timedeltas(timedelta(0), 400 * DAY),
)
def test_wait_is_never_shorter_than_the_schedule_says_nor_ends_after_it(
    attempts: int, age: timedelta, jitter: float, asked: timedelta | None
) -> None:
    verdict = conclude_default(Outcome(Reason.THROTTLED, 503, asked), attempts, age, jitter)
    own = DEFAULT.wait(attempts, jitter)
    assert verdict.wait is not None
    assert own is not None
    assert verdict.wait >= own
    assert verdict.wait == own or age + verdict.wait <= DEFAULT.horizon
