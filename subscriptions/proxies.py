"""The OIN of a client certificate, as a proxy passes it that terminated mutual TLS. Off unless the operator sets both.

Only a request that comes from a listed address is believed: whoever reaches the API past the proxy could write any
header. The proxy must overwrite the header in every request that it passes, with nothing where there is no certificate.
"""

from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from schemas.identifiers import is_oin
from schemas.problems import Unauthenticated

CertificateScope = Literal["events.publish", "events.consume", "registry.manage", "disclosures.read"]


class ProxySettings(BaseModel):
    """Which proxies tell the OIN of a client certificate, and what it allows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trusted: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(), description="Addresses of proxies whose header is believed, as networks."
    )
    oin_header: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9-]{1,100}$",
        description="Header that holds the OIN of the client certificate, and nothing else.",
    )
    scopes: tuple[CertificateScope, ...] = Field(
        default=("events.consume",), description="What a certificate alone allows; it has no scopes of its own."
    )


def certificate_oin(request: Request, settings: ProxySettings) -> str | None:
    """Returns the OIN of the client certificate; None: no proxy that we believe passed one.

    Raises:
        Unauthenticated: a proxy that we believe passed something that is no OIN.
    """
    if settings.oin_header is None or request.client is None or not _is_trusted(request.client.host, settings):
        return None
    given = request.headers.getlist(settings.oin_header)
    if not given or given == [""]:
        return None
    if len(given) > 1 or not is_oin(given[0].strip()):
        raise Unauthenticated("The client certificate names no OIN of 20 positions.", known=True)
    return given[0].strip()


def _is_trusted(host: str, settings: ProxySettings) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return any(mapped in network for network in settings.trusted)
