"""Consent is in the headers of the answer, and has to be clear."""

from datetime import UTC, datetime, timedelta

import pytest

from broker.delivery.exchanges import Answer
from broker.delivery.handshake import Consent, Refusal, next_handshake, read_consent

ORIGIN = "webhook-allowed-origin"
RATE = "webhook-allowed-rate"


@pytest.mark.parametrize(
    ("headers", "rate"),
    [
        ({ORIGIN: ["bode.example"]}, None),
        ({ORIGIN: ["BODE.example"]}, None),
        ({ORIGIN: ["*"]}, None),
        ({ORIGIN: ["bode.example"], RATE: ["*"]}, None),
        ({ORIGIN: ["bode.example"], RATE: ["1"]}, 1),
        ({ORIGIN: ["*"], RATE: ["120"]}, 120),
        ({ORIGIN: ["*"], RATE: ["999999999"]}, 999_999_999),
    ],
)
@pytest.mark.parametrize("status", [200, 204, 405, 500])
def test_consent_is_in_the_headers_whatever_the_status(
    headers: dict[str, list[str]], rate: int | None, status: int
) -> None:
    assert read_consent(Answer(status, headers), "bode.example") == Consent(rate)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {RATE: ["120"]},
        {ORIGIN: [""]},
        {ORIGIN: ["other.example"]},
        {ORIGIN: ["bode.example.evil.example"]},
        {ORIGIN: ["bode"]},
        {ORIGIN: ["bode.example, other.example"]},
        {ORIGIN: ["https://bode.example"]},
        {ORIGIN: ["bode.example", "bode.example"]},
        {ORIGIN: ["*", "bode.example"]},
        {ORIGIN: ["null"]},
        {ORIGIN: ["*"], RATE: [""]},
        {ORIGIN: ["*"], RATE: ["0"]},
        {ORIGIN: ["*"], RATE: ["-1"]},
        {ORIGIN: ["*"], RATE: ["1.5"]},
        {ORIGIN: ["*"], RATE: ["many"]},
        {ORIGIN: ["*"], RATE: ["١٢"]},
        {ORIGIN: ["*"], RATE: ["9" * 5000]},
        {ORIGIN: ["*"], RATE: ["10", "20"]},
    ],
)
def test_unclear_consent_is_none_and_the_provider_is_told_why(headers: dict[str, list[str]]) -> None:
    refusal = read_consent(Answer(200, headers), "bode.example")
    assert isinstance(refusal, Refusal)
    assert "WebHook-Allowed-" in refusal.reason


def test_sink_that_did_not_consent_is_asked_ever_less_often_for_a_day() -> None:
    created = datetime(2026, 11, 23, tzinfo=UTC)
    now, waits = created, list[timedelta]()
    while (again := next_handshake(created, now)) is not None:
        waits.append(again - now)
        now = again
        assert len(waits) < 1000
    assert waits[0] <= timedelta(seconds=1)
    assert waits == sorted(waits)
    assert waits[-1] == timedelta(minutes=10)
    assert timedelta(days=1) < now - created < timedelta(days=1, minutes=11)
