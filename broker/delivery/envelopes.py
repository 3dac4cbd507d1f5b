"""What a notification adds to the event: the subscription, its number, and the provider's own reference. Pure.

An accepted event is kept in canonical form, one JSON object on one line. These members are appended to its bytes, so
that an event is serialised once, whatever the number of its deliveries.
"""

import json
from dataclasses import dataclass
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Envelope:
    """The extension attributes of one subscription, ready to be appended."""

    prefix: bytes
    suffix: bytes

    @classmethod
    def of(cls, subscription_id: UUID, reference: str | None) -> "Envelope":
        """Prepare what is the same for every notification of a subscription."""
        tail = "" if reference is None else f',"subscriberreference":{json.dumps(reference, ensure_ascii=False)}'
        return cls(
            f',"subscription":"{subscription_id}","subscriptionsequence":"'.encode(),
            f'"{tail}}}'.encode(),
        )

    def length(self, sequence: int) -> int:
        """Bytes that `compose` adds to a body."""
        return len(self.prefix) + len(str(sequence)) + len(self.suffix) - 1

    def compose(self, body: bytes, sequence: int) -> bytes:
        """The notification: the event's canonical body with the attributes appended."""
        return b"".join((body[:-1], self.prefix, str(sequence).encode(), self.suffix))
