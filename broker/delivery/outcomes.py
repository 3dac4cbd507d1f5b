"""What came of an attempt, and what follows from it. Pure: no clock, no network.

    answer ──► judge() ──► Outcome ──► conclude() ──► Verdict (delivered · pending, with a wait · dead)

Sources: CloudEvents HTTP webhook 1.0.2, section 2.2 (success, redirects, 410, 429, 415); RFC 9110 section 10.2.3
(Retry-After as seconds or date).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Final

from broker.delivery.retries import Schedule

SUCCESS: Final = frozenset({200, 201, 202, 204})
REFUSED: Final = frozenset({400, 413, 415, 422})
"""What is sent isn't taken: final after one retry; a batch is taken apart."""
GONE: Final = 410


class Reason(StrEnum):
    """Why an attempt did not succeed; bounded, so that it can label a metric."""

    STATUS = "status"
    REDIRECT = "redirect"
    GONE = "gone"
    THROTTLED = "throttled"
    REFUSED = "connection-refused"
    CLOSED = "connection-closed"
    UNRESOLVED = "name-not-resolved"
    FENCED = "address-not-allowed"
    TLS = "tls-failed"
    TIMEOUT = "timed-out"
    NONSENSE = "not-http"
    OVERSIZED = "answer-too-large"
    CREDENTIAL_EXPIRED = "credential-expired"
    TOKEN_REFUSED = "token-refused"
    TOKEN_UNAVAILABLE = "token-unavailable"
    TOKEN_NOT_STORED = "token-not-stored"
    PROXY = "proxy-failed"
    QUEUE_FULL = "queue-full"
    QUEUE_MISSING = "queue-missing"
    RABBITMQ = "rabbitmq-away"
    ACCESS = "access-refused"
    BLOCKED = "rabbitmq-blocked"
    MESSAGE = "message-refused"
    NOT_AMQP = "not-amqp"


OURS: Final = frozenset({Reason.TOKEN_NOT_STORED, Reason.PROXY, Reason.RABBITMQ})
"""Nothing was sent, through no fault of the sink: such an attempt counts neither for the delivery nor for the sink."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attempt's result. `reason` is None exactly when the sink accepted the notification."""

    reason: Reason | None
    status: int | None = None
    retry_after: timedelta | None = None
    excerpt: bytes = b""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of the delivery: its new state, with the wait before the next attempt when it stays pending."""

    state: str
    wait: timedelta | None = None
    reason: str | None = None


_DELIVERED = Verdict("delivered")


def judge(status: int, retry_after: str | None, excerpt: bytes, now: datetime) -> Outcome:
    """Judge an answer by its status; the body never decides."""
    if status in SUCCESS:
        return Outcome(None, status)
    if status == GONE:
        reason = Reason.GONE
    elif 300 <= status < 400:
        reason = Reason.REDIRECT
    elif status in (429, 503):
        reason = Reason.THROTTLED
    else:
        reason = Reason.STATUS
    return Outcome(reason, status, parse_retry_after(retry_after, now), excerpt)


def parse_retry_after(value: str | None, now: datetime) -> timedelta | None:
    """Read a Retry-After header (RFC 9110, 10.2.3): seconds or an HTTP date, zero when past; None for none."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return timedelta(seconds=min(int(value[:10]), 10**8))
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        return None
    return max(moment - now, timedelta(0))


def conclude(outcome: Outcome, attempts: int, age: timedelta, schedule: Schedule, jitter: float) -> Verdict:
    """Decide what follows after attempt number `attempts` (from 1).

    Args:
        outcome: the attempt's result.
        attempts: attempts made so far, this one included.
        age: time since the delivery's acceptance; Retry-After is obeyed as long as it ends within the schedule.
        schedule: the subscription's retry schedule.
        jitter: a random number in [-1, 1], scaled by the schedule.
    """
    if outcome.reason is None:
        return _DELIVERED
    why = outcome.reason if outcome.status is None else f"{outcome.reason}-{outcome.status}"
    if outcome.status in REFUSED and attempts >= 2:
        return Verdict("dead", reason=why)
    wait = schedule.wait(attempts, jitter)
    if wait is None:
        return Verdict("dead", reason=why)
    if outcome.retry_after is not None and outcome.retry_after > wait:
        latest = max(schedule.horizon - age, wait)
        wait = min(outcome.retry_after, latest)
    return Verdict("pending", wait=wait, reason=why)
