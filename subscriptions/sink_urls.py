"""Which URLs can be a sink: http(s), or amqp(s) where it is a RabbitMQ, with a host, without user and password.

Only what RFC 3986 allows is taken, so that no two readers of the URL can disagree about its host. Where the host
leads is checked by whoever connects.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv6Address
from typing import Final, TypeAlias

from schemas.amqp_addresses import InvalidAddress, decoded
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
    re.IGNORECASE | re.ASCII,
)
_AMQP_URL: Final = re.compile(
    r"(?P<scheme>amqps?)://"
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?\.?))"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?:/(?P<virtual_host>(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*))?",
    re.IGNORECASE | re.ASCII,
)
_AMQP_EXPECTED: Final = (
    "must be amqps://host[:port][/virtual host], percent-encoded, without user and password: they go in sinkCredential"
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
        self._check(url, member)

    def validate_amqp(self, url: str, member: str = "/sink") -> None:
        """Raises `InvalidInput` naming the member unless its URL is that of a RabbitMQ that may be published to."""
        found = _AMQP_URL.fullmatch(url) if len(url) <= LONGEST_URL else None
        if found is None or not _host_is_possible(found) or not 0 < int(found["port"] or 5671) < 65_536:
            raise InvalidInput.field(member, "sink", _AMQP_EXPECTED)
        try:
            decoded(found["virtual_host"] or "")
        except InvalidAddress as error:
            raise InvalidInput.field(member, "sink", f"{error}, as a virtual host") from None
        if found["scheme"].lower() == "amqp" and not self.allow_http:
            reason = "must be an amqps URL: AMQP without TLS is not allowed here"
            raise InvalidInput.field(member, "sink-insecure", reason)
        self._check(url, member)

    def _check(self, url: str, member: str) -> None:
        reason = self.check(url)
        if reason is not None:
            raise InvalidInput.field(member, "sink-forbidden", reason)


def is_amqp(url: str) -> bool:
    """Whether a URL that was taken as a sink is that of a RabbitMQ."""
    return url.lower().startswith(("amqp:", "amqps:"))


def _host_is_possible(found: re.Match[str]) -> bool:
    if found["ipv6"] is not None:
        try:
            IPv6Address(found["ipv6"])
        except AddressValueError:
            return False
        return True
    labels = found["host"].removesuffix(".").split(".")
    return len(found["host"]) <= 253 and all(0 < len(label) <= 63 for label in labels)
