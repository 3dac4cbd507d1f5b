"""The subscriptions of the chaos suite, with their filters said twice: to Bode, and here as a predicate that judges."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from yarl import URL

from tests.chaos.receivers import Receivers

RETRY = {"delays": ["PT0.3S", "PT0.5S"] + ["PT1S"] * 20 + ["PT3S"] * 28}
"""Quick, and long enough (about 100 s) that what the faults do makes no dead letter."""
TYPES = ("gewijzigd", "opgevoerd", "verwijderd")
DELAYED, CORRECTING = "beeindigd", "hersteld"
"""A type of each registry whose events wait before they are delivered, and one of corrections, which don't."""
DELAY_SECONDS = 3
REPLACE, WITHDRAW = "replace", "withdraw"


@dataclass(frozen=True)
class Event:
    """What a filter can look at."""

    registry: str
    type: str
    subject: str | None
    size: int


@dataclass(frozen=True)
class Wanted:
    """A subscription and what it should match."""

    path: str
    provider: str
    body: dict[str, Any]
    matches: Callable[[Event], bool]
    ordering: str = "subject"
    divisor: int | None = None
    """Its sink refuses for good what this divides."""
    flaky: bool = False
    protocol: str = "HTTP"
    remote: bool = False
    """It goes to a RabbitMQ that Bode reaches as it would a provider's own."""
    allowed_reasons: tuple[str, ...] = field(default=())


def _of(registry: str) -> dict[str, Any]:
    return {"prefix": {"type": f"nl.{registry}."}}


WANTED = (
    Wanted(
        "all",
        "gemeente",
        {"filters": [{"any": [_of("bag"), _of("brp"), _of("woz")]}]},
        lambda event: True,
    ),
    Wanted(
        "one-type",
        "gemeente",
        {"types": ["nl.bag.gewijzigd"]},
        lambda event: event.type == "nl.bag.gewijzigd",
        flaky=True,
    ),
    Wanted(
        "prefix",
        "pensioenfonds",
        {"filters": [{"prefix": {"type": "nl.b", "subject": "99991"}}]},
        lambda event: event.type.startswith("nl.b") and (event.subject or "").startswith("99991"),
    ),
    Wanted(
        "ordered",
        "pensioenfonds",
        {"filters": [_of("bag")], "ordering": "subscription"},
        lambda event: event.registry == "bag",
        ordering="subscription",
    ),
    Wanted(
        "unordered",
        "gemeente",
        {"filters": [_of("brp")], "ordering": "none"},
        lambda event: event.registry == "brp",
        ordering="none",
        flaky=True,
    ),
    Wanted(
        "sql",
        "pensioenfonds",
        {"filters": [{"sql": "subject LIKE '%3' OR type = 'nl.woz.verwijderd'"}]},
        lambda event: (
            event.subject is not None  # an absent attribute doesn't match
            and (event.type == "nl.woz.verwijderd" or event.subject.endswith("3"))
        ),
        flaky=True,
    ),
    Wanted(
        "refuses",
        "gemeente",
        {"filters": [{"not": {"exact": {"type": "nl.bag.gewijzigd"}}}, {"suffix": {"type": "gewijzigd"}}]},
        lambda event: event.type.endswith("gewijzigd") and event.registry != "bag",
        divisor=7,
        allowed_reasons=("status-400",),
    ),
    Wanted(
        "batched",
        "gemeente",
        {
            "filters": [_of("bag")],
            "protocolSettings": {"batch": {"maxCount": 20, "lingerMilliseconds": 200}},
        },
        lambda event: event.registry == "bag",
    ),
    Wanted(
        "pulled",
        "pensioenfonds",
        {"filters": [_of("brp")]},
        lambda event: event.registry == "brp",
        protocol="PULL",
    ),
    Wanted(
        "queued",
        "gemeente",
        {"filters": [_of("woz")], "retry": RETRY},
        lambda event: event.registry == "woz",
        protocol="AMQP",
    ),
    Wanted(
        "elsewhere",
        "pensioenfonds",
        {"filters": [_of("woz")], "retry": RETRY, "protocolSettings": {"address": "/queues/elsewhere"}},
        lambda event: event.registry == "woz",
        protocol="AMQP",
        remote=True,
    ),
)


def body_of(wanted: Wanted, receivers: Receivers, elsewhere: str) -> dict[str, Any]:
    """What is posted to make the subscription; `elsewhere` is the URL of a provider's RabbitMQ."""
    if wanted.remote:
        url = URL(elsewhere)
        login = {"credentialType": "PLAIN", "identifier": url.user, "secret": url.password}
        return {"protocol": "AMQP", "sink": str(url.with_user(None)), "sinkCredential": login, **wanted.body}
    if wanted.protocol != "HTTP":
        return {"protocol": wanted.protocol, **wanted.body}
    return {"sink": receivers.url(wanted.path), "protocol": "HTTP", "retry": RETRY, **wanted.body}
