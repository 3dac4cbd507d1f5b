"""Notices: events that Bode itself publishes about what it did, each for one organisation.

They are events like any other: matched by filter, numbered, sent and pulled. A notice says what happened to what is
the recipient's own, by subscription, number, reason and count: never a subject, and nothing of anybody else's.

A new one takes a member of `NoticeType`, an entry in `MEANINGS` and `PROPERTIES`, and someone who puts it in the
outbox (`subscriptions.notices`) in the transaction that makes it true.
"""

from enum import StrEnum
from typing import Any, Final

DOMAIN: Final = "nl.bode"
"""Nobody can register it: types within are Bode's own."""
SOURCE: Final = "urn:bode:notices"


class NoticeType(StrEnum):
    """What a notice can be about: its CloudEvents type."""

    SUBSCRIPTION_DISABLED = f"{DOMAIN}.subscription-disabled"
    DELIVERY_DEAD_LETTERED = f"{DOMAIN}.delivery-dead-lettered"
    EVENTS_REJECTED = f"{DOMAIN}.events-rejected"
    CREDENTIAL_EXPIRING = f"{DOMAIN}.credential-expiring"
    EVENTS_EXPIRING = f"{DOMAIN}.events-expiring"


MEANINGS: Final[dict[NoticeType, str]] = {
    NoticeType.SUBSCRIPTION_DISABLED: "Bode stopped sending to a subscription of yours; what matches it is kept.",
    NoticeType.DELIVERY_DEAD_LETTERED: "Deliveries of a subscription of yours became dead letters.",
    NoticeType.EVENTS_REJECTED: "Messages that you published became no events; see the rejections.",
    NoticeType.CREDENTIAL_EXPIRING: "What a subscription of yours shows its sink expires soon, or has.",
    NoticeType.EVENTS_EXPIRING: "What you have not received will soon no longer be kept.",
}

_SUBSCRIPTION: Final = {"type": "string", "format": "uuid", "description": "The subscription."}
_COUNTS: Final = {"type": "object", "additionalProperties": {"type": "integer", "minimum": 1}}

PROPERTIES: Final[dict[NoticeType, dict[str, dict[str, Any]]]] = {
    NoticeType.SUBSCRIPTION_DISABLED: {
        "subscription": _SUBSCRIPTION,
        "reason": {"type": "string", "description": "Why: the code that `statusReason` begins with."},
    },
    NoticeType.DELIVERY_DEAD_LETTERED: {
        "subscription": _SUBSCRIPTION,
        "count": {"type": "integer", "minimum": 1, "description": "How many."},
        "firstSequence": {"type": "integer", "minimum": 1, "description": "Lowest number among them."},
        "lastSequence": {"type": "integer", "minimum": 1, "description": "Highest number among them."},
        "reasons": _COUNTS | {"description": "How many for each reason."},
    },
    NoticeType.EVENTS_REJECTED: {
        "count": {"type": "integer", "minimum": 1, "description": "How many."},
        "codes": _COUNTS | {"description": "How many for each code."},
    },
    NoticeType.CREDENTIAL_EXPIRING: {
        "subscription": _SUBSCRIPTION,
        "kinds": _COUNTS | {"description": "What expires: access-token, client-secret, client-certificate, …"},
        "firstExpiresAt": {"type": "string", "format": "date-time", "description": "When the first of it does."},
    },
    NoticeType.EVENTS_EXPIRING: {
        "subscription": _SUBSCRIPTION,
        "count": {"type": "integer", "minimum": 1, "description": "How many go first; more may follow day by day."},
        "firstSequence": {"type": "integer", "minimum": 1, "description": "Lowest number among them."},
        "lastSequence": {"type": "integer", "minimum": 1, "description": "Highest number among them."},
        "firstExpiresAt": {"type": "string", "format": "date-time", "description": "From when they are not kept."},
    },
}
"""JSON Schemas of the members of `data`; all of them are always there."""


def data_schema(kind: NoticeType) -> dict[str, Any]:
    """The JSON Schema of the data of a notice."""
    return {"type": "object", "required": list(PROPERTIES[kind]), "properties": PROPERTIES[kind]}


def is_own(name: str) -> bool:
    """Whether an event type or a domain is Bode's own."""
    return name == DOMAIN or name.startswith(DOMAIN + ".")


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The data of two notices about the same thing as that of one.

    Counts are added, `first…` and `last…` become the outermost (moments are all written alike, so their text has their
    order); of anything else the later one counts.
    """
    result = one | other
    for name in one.keys() & other.keys():
        former, latter = one[name], other[name]
        if isinstance(former, dict) and isinstance(latter, dict):
            result[name] = merged(former, latter)
        elif name.startswith("first"):
            result[name] = min(former, latter)
        elif name.startswith("last"):
            result[name] = max(former, latter)
        elif isinstance(former, int) and isinstance(latter, int):
            result[name] = former + latter
    return result
