"""The fence around egress (promise 11): which addresses and ports a sink may make the broker connect to.

The decision is about the address that is connected to, never about the name: names are resolved here, every answer is
judged, and the connection goes to the judged address itself, so an answer that changes between check and connect
changes nothing.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LookUp = Callable[[str], list[str]]
"""Every address of a name, IPv4 and IPv6; raises OSError or UnicodeError when it has none. Runs in a thread."""

_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)
_REFUSED: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32", "168.63.129.16/32",
        "::/3", "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "4000::/2", "8000::/1",
    )
)  # fmt: skip
"""IANA's special-purpose registries, plus multicast, 6to4 (it wraps an IPv4 address) and the one public address at
which a cloud (Azure) serves its machines what they alone should know. Of IPv6 everything beside
2000::/3, which alone is global unicast: loopback, local-use NAT64, unique and link-local, and what may yet come."""


class FenceError(Exception):
    """The address, name or port is outside of what the operator allows."""


class ResolveError(Exception):
    """The name has no address now; another attempt may find one."""


def unwrap(address: Address) -> Address:
    """The IPv4 address inside an IPv4-mapped, IPv4-compatible, NAT64 or ISATAP address, else the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64 or 1 < int(address) < 1 << 32 or _is_isatap(address):
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


class Fence:
    """Judges addresses and resolves names; one for each process."""

    def __init__(
        self,
        *,
        allow: Sequence[Network] = (),
        ports: Sequence[int] = (),
        resolve_seconds: float = 5,
        look_up: LookUp | None = None,
    ) -> None:
        """Make a fence.

        Args:
            allow: networks that are allowed although they are special-purpose.
            ports: the only ports allowed; empty allows all.
            resolve_seconds: limit for one name look-up.
            look_up: resolves names; the system's resolver by default.
        """
        self._allow = tuple(allow)
        self._ports = frozenset(ports)
        self._resolve_seconds = resolve_seconds
        self._look_up = look_up or _look_up
        self._looking: dict[str, asyncio.Future[list[str]]] = {}
        self._resolvers = ThreadPoolExecutor(max_workers=32, thread_name_prefix="resolve")

    def close(self) -> None:
        """Give up the resolver threads without waiting for slow name servers."""
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    def permits(self, address: Address) -> bool:
        """Whether the broker may connect to this address."""
        inner = unwrap(address)
        if any(_within(inner, network) or _within(address, network) for network in self._allow):
            return True
        return not (_refused(inner) or (_is_isatap(address) and _refused(address)))

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
            try:
                async with asyncio.timeout(self._resolve_seconds):
                    answers = await asyncio.shield(self._ask(host))
            except (OSError, UnicodeError, TimeoutError) as error:
                raise ResolveError("the name could not be resolved") from error
            if not answers:
                raise ResolveError("the name has no address")
        for answer in answers:
            if "%" in answer or not self.permits(ipaddress.ip_address(answer)):
                raise FenceError("the address is in a network that is not allowed")
        return answers

    def _ask(self, host: str) -> asyncio.Future[list[str]]:
        """The look-up of a name that is under way, or a new one: a slow name server takes one thread for each name."""
        looking = self._looking.get(host)
        if looking is None:
            loop = asyncio.get_running_loop()
            looking = self._looking[host] = loop.run_in_executor(self._resolvers, self._look_up, host)
            looking.add_done_callback(lambda _: self._looking.pop(host, None))
        return looking


def literal(host: str) -> Address | None:
    """The address that `host` writes, also in decimal, octal, hexadecimal or short IPv4 notation; None for a name."""
    bare = host.removeprefix("[").removesuffix("]")
    try:
        if ":" in bare:
            return ipaddress.IPv6Address(bare.partition("%")[0])
        return ipaddress.IPv4Address(socket.inet_aton(bare))
    except (OSError, ValueError):
        return None


def _is_isatap(address: Address) -> bool:
    """Whether it is made for a tunnel to the IPv4 address at its end (RFC 5214); the network in front can be any."""
    return address.version == 6 and (int(address) >> 32) & 0xFFFF_FFFF in _ISATAP


def _refused(address: Address) -> bool:
    return any(_within(address, network) for network in _REFUSED)


def _within(address: Address, network: Network) -> bool:
    return address.version == network.version and address in network


def _look_up(host: str) -> list[str]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in found))
