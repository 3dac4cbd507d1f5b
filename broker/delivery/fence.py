"""The fence around egress (promise 11): which addresses and ports a sink may make the broker connect to.

The decision is about the address that is connected to, never about the name: names are resolved here, every answer is
judged, and the connection goes to the judged address itself, so an answer that changes between check and connect
changes nothing.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_REFUSED: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32",
        "::/3", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "4000::/2", "8000::/1",
    )
)  # fmt: skip
"""IANA's special-purpose registries, plus multicast and 6to4 (it wraps an IPv4 address). Of IPv6 everything beside
2000::/3, which alone is global unicast: loopback, local-use NAT64, unique and link-local, and what may yet come."""


class FenceError(Exception):
    """The address, name or port is outside of what the operator allows."""


class ResolveError(Exception):
    """The name has no address now; another attempt may find one."""


def unwrap(address: Address) -> Address:
    """The IPv4 address inside an IPv4-mapped, IPv4-compatible or NAT64 address, else the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64 or 1 < int(address) < 1 << 32:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


class Fence:
    """Judges addresses and resolves names; one for each process."""

    def __init__(self, *, allow: Sequence[Network] = (), ports: Sequence[int] = (), resolve_seconds: float = 5) -> None:
        """Make a fence.

        Args:
            allow: networks that are allowed although they are special-purpose.
            ports: the only ports allowed; empty allows all.
            resolve_seconds: limit for one name look-up.
        """
        self._allow = tuple(allow)
        self._ports = frozenset(ports)
        self._resolve_seconds = resolve_seconds
        self._resolvers = ThreadPoolExecutor(max_workers=32, thread_name_prefix="resolve")

    def close(self) -> None:
        """Give up the resolver threads without waiting for slow name servers."""
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    def permits(self, address: Address) -> bool:
        """Whether the broker may connect to this address."""
        inner = unwrap(address)
        if any(_within(inner, network) or _within(address, network) for network in self._allow):
            return True
        return not any(_within(inner, network) for network in _REFUSED)

    def check_port(self, port: int) -> None:
        """Refuse a port that is not allowed.

        Raises:
            FenceError: when it is not.
        """
        if self._ports and port not in self._ports:
            raise FenceError(f"port {port} is not allowed")

    def check_literal(self, host: str) -> None:
        """Refuse a host that is an address, in any notation the system's resolver understands, and not allowed.

        A name passes: it is judged when it is connected to.

        Raises:
            FenceError: when the address is not allowed.
        """
        address = literal(host)
        if address is not None and not self.permits(address):
            raise FenceError("the address is in a network that is not allowed")

    async def resolve(self, host: str, port: int) -> list[str]:
        """Addresses to connect to, each judged; one bad answer refuses the name.

        Raises:
            FenceError: when an answer or the port is not allowed.
            ResolveError: when there is no answer in time.
        """
        self.check_port(port)
        address = literal(host)
        if address is not None:
            answers = [str(address)]
        else:
            loop = asyncio.get_running_loop()
            look_up = loop.run_in_executor(self._resolvers, _look_up, host)
            try:
                async with asyncio.timeout(self._resolve_seconds):
                    answers = await look_up
            except (OSError, UnicodeError, TimeoutError) as error:
                raise ResolveError("the name could not be resolved") from error
            if not answers:
                raise ResolveError("the name has no address")
        for answer in answers:
            if "%" in answer or not self.permits(ipaddress.ip_address(answer)):
                raise FenceError("the name has an address in a network that is not allowed")
        return answers


def literal(host: str) -> Address | None:
    """The address that `host` writes, also in decimal, octal, hexadecimal or short IPv4 notation; None for a name."""
    bare = host.removeprefix("[").removesuffix("]")
    try:
        if ":" in bare:
            return ipaddress.IPv6Address(bare.partition("%")[0])
        return ipaddress.IPv4Address(socket.inet_aton(bare))
    except (OSError, ValueError):
        return None


def _within(address: Address, network: Network) -> bool:
    return address.version == network.version and address in network


def _look_up(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in found))
