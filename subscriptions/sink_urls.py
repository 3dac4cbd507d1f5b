"""Which URLs can be a sink: absolute http(s), with a host, without user, password or fragment.

Only what RFC 3986 allows is taken, so that no two readers of the URL can disagree about its host. Where the host
leads is checked by whoever connects.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from typing import Final, TypeAlias

from schemas.problems import InvalidInput

LONGEST_URL: Final = 2048

CheckSink: TypeAlias = Callable[[str], str | None]
"""Tells from the URL alone (a literal address, a port) why it can't be a sink; None: nothing speaks against it."""

_URL: Final = re.compile(
    r"(?P<scheme>https?)://"
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?\.?))"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)?"
    r"(?:\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?",
    re.IGNORECASE,
)
_EXPECTED: Final = "must be an absolute http or https URL with a host, without user, password or fragment"


@dataclass(frozen=True, slots=True)
class SinkRules:
    """What an installation allows of sinks."""

    allow_http: bool
    check: CheckSink
    offer_queues: bool = False
    """Whether notifications can go into queues instead: there is a RabbitMQ."""

    def validate(self, url: str, member: str = "/sink") -> None:
        """Raises `InvalidInput` naming the member unless its URL is one that may be called."""
        found = _URL.fullmatch(url) if len(url) <= LONGEST_URL else None
        if found is None or not _host_is_possible(found) or not 0 < int(found["port"] or 443) < 65_536:
            raise InvalidInput.field(member, "sink", _EXPECTED)
        if found["scheme"].lower() == "http" and not self.allow_http:
            raise InvalidInput.field(member, "sink-insecure", "must be an https URL: plain http is not allowed here")
        reason = self.check(url)
        if reason is not None:
            raise InvalidInput.field(member, "sink-forbidden", reason)


def _host_is_possible(found: re.Match[str]) -> bool:
    if found["ipv6"] is not None:
        try:
            IPv6Address(found["ipv6"])
        except AddressValueError:
            return False
        return True
    labels = found["host"].removesuffix(".").split(".")
    return len(found["host"]) <= 253 and all(0 < len(label) <= 63 for label in labels)
