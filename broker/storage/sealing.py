"""Event bodies at rest: sealed, and bound to their event, so that none can be put in the place of another."""

from typing import Final
from uuid import UUID

from subscriptions.secrets import KeyRing

_PURPOSE: Final = b"event body "


def seal_body(keys: KeyRing, event_key: int, body: bytes) -> bytes:
    """Encrypt an event's canonical body."""
    return keys.seal(body, body_purpose(event_key))


def open_body(keys: KeyRing, event_key: int, sealed: bytes) -> bytes:
    """Decrypt an event's body.

    Raises:
        SealError: when the bytes were changed, belong to another event, or their key is not in the ring.
    """
    return keys.open(sealed, body_purpose(event_key))


def body_purpose(event_key: int) -> bytes:
    """What the sealed body of an event is bound to."""
    return _PURPOSE + event_key.to_bytes(8, "big")


def excerpt_purpose(subscription_id: UUID) -> bytes:
    """What the sealed first bytes of a sink's answers are bound to."""
    return b"answer excerpt " + subscription_id.bytes
