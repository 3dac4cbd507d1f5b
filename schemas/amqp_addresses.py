"""Where a message goes within RabbitMQ, as an address says it (RabbitMQ's address format, version 2).

/queues/<queue> · /exchanges/<exchange> · /exchanges/<exchange>/<routing key>, each part percent-encoded
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

_PART: Final = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})+"
_ADDRESS: Final = re.compile(rf"/queues/(?P<queue>{_PART})|/exchanges/(?P<exchange>{_PART})(?:/(?P<key>{_PART}))?")
_LONGEST: Final = 255


class InvalidAddress(ValueError):
    """It is not such an address; the text says what was expected."""


@dataclass(frozen=True, slots=True)
class Address:
    """An exchange and a routing key; a queue is what the default exchange (no name) leads to by that key."""

    exchange: str
    routing_key: str

    @property
    def queue(self) -> str | None:
        """The queue that it names; None: it names an exchange."""
        return None if self.exchange else self.routing_key

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Take an address apart.

        Raises:
            InvalidAddress: it is none.
        """
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise InvalidAddress(
                "must be /queues/<queue>, /exchanges/<exchange> or /exchanges/<exchange>/<routing key>, percent-encoded"
            )
        if found["queue"] is not None:
            return cls("", decoded(found["queue"]))
        return cls(decoded(found["exchange"]), decoded(found["key"] or ""))


def decoded(part: str) -> str:
    """A name that was percent-encoded.

    Raises:
        InvalidAddress: it isn't UTF-8, or longer than AMQP has names.
    """
    try:
        name = unquote(part, errors="strict")
    except UnicodeDecodeError:
        raise InvalidAddress("must be percent-encoded UTF-8") from None
    if len(name.encode()) > _LONGEST:
        raise InvalidAddress(f"must have names of {_LONGEST} bytes at most")
    return name
