"""What `bode trace` prints, in the words that people see."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from broker.tools.trace import told

SUBSCRIPTION = "5148d940-aaaa-4f8e-aaef-c559e26e09dc"
OTHER = "6148d940-aaaa-4f8e-aaef-c559e26e09dc"


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


def counts(**states: int) -> dict[str, int]:
    return {"delivered": 0, "pending": 0, "dead": 0, "cancelled": 0} | states


def delivery(**members: Any) -> dict[str, Any]:
    return {
        "subscription": SUBSCRIPTION,
        "subscriptionSequence": 17,
        "state": "delivered",
        "attempts": 1,
        "nextAttemptAt": None,
        "endedAt": "2026-11-23T10:00:01.500Z",
        "status": 204,
        "reason": None,
        "failedAttempts": [],
    } | members


def traced(**members: Any) -> dict[str, Any]:
    event = {
        "source": "urn:a",
        "type": "nl.brp.x",
        "registry": "0001",
        "acceptedAt": "2026-11-23T10:00:00.125Z",
        "matched": 1,
        "counts": counts(delivered=1),
    }
    return {"id": "e1", "events": [event | members]}


HEAD = ["nl.brp.x  e1", "  from urn:a (registry 0001)", "  2026-11-23 (UTC+0000)"]
FAILED = {
    "attempt": 1, "startedAt": "2026-11-23T10:00:00.200Z", "milliseconds": 8, "status": 500, "reason": "status",
    "excerpt": "out of\norder",
}  # fmt: skip
CONDITIONS = {
    "matches": False,
    "alternatives": [[{"text": "type is 'nl.brp.x'", "holds": True}], [{"text": "subject is 'a'", "holds": False}]],
}


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        pytest.param(
            traced(deliveries=[delivery(attempts=2, failedAttempts=[FAILED])]),
            [
                "  10:00:00.125  accepted, matched 1 subscription: 1 delivered",
                f"  10:00:00.200  #17 of {SUBSCRIPTION}  attempt 1 failed: status 500 (status) after 8 ms, "
                "'out of\\norder'",
                f"  10:00:01.500  #17 of {SUBSCRIPTION}  delivered at attempt 2, status 204",
            ],
            id="delivered at the second attempt",
        ),
        pytest.param(
            traced(
                counts=counts(pending=1),
                deliveries=[delivery(state="pending", endedAt=None, nextAttemptAt="2026-11-23T10:05:00Z")],
            ),
            [
                "  10:00:00.125  accepted, matched 1 subscription: 1 pending",
                f"  …  #17 of {SUBSCRIPTION}  pending, next attempt at 10:05:00.000",
            ],
            id="pending",
        ),
        pytest.param(
            traced(
                matched=7, counts=counts(dead=7), deliveries=[delivery(state="dead", attempts=18, reason="timed-out")]
            ),
            [
                "  10:00:00.125  accepted, matched 7 subscriptions: 7 dead",
                f"  10:00:01.500  #17 of {SUBSCRIPTION}  dead after 18 attempts: timed-out",
                "  and 6 more",
            ],
            id="dead, and others",
        ),
        pytest.param(
            traced(
                matched=0,
                counts=counts(),
                deliveries=[],
                notDelivered=[
                    {"subscription": OTHER, "why": "filter", "changedSince": True, "explanation": CONDITIONS}
                ],
            ),
            [
                "  10:00:00.125  accepted, matched 0 subscriptions",
                f"  why not {OTHER}: its filter doesn't match; it was changed since",
                "    ✔ type is 'nl.brp.x'",
                "    or",
                "    ✖ subject is 'a'",
            ],
            id="why not",
        ),
        pytest.param(
            traced(
                providers=[
                    {"organisation": "0002", "name": "Gemeente", "subscriptions": 1, "counts": counts(delivered=1)}
                ]
            ),
            [
                "  10:00:00.125  accepted, matched 1 subscription: 1 delivered",
                "  for Gemeente (0002): 1 delivered",
            ],
            id="for its registry",
        ),
    ],
)
def test_trace_in_words(found: dict[str, Any], lines: list[str]) -> None:
    assert list(told(found)) == HEAD + lines


def test_rejections_are_told_with_their_reason() -> None:
    rejected = {"rejectedAt": "2026-11-23T10:00:00Z", "times": 2, "code": "type-not-yours", "detail": "no domain"}

    assert list(told({"id": "e1", "events": [], "rejections": [rejected]})) == [
        "10:00:00.000  rejected, 2 times: type-not-yours: no domain"
    ]
