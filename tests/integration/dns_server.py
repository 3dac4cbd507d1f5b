"""A name server of the tests' own, and a resolver that asks it: RFC 1035, as much of it as hostile sinks need."""

import asyncio
import ipaddress
import socket
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Self

Zone = Mapping[str, "tuple[str, ...] | Callable[[int], tuple[str, ...]]"]
"""What a name leads to: addresses and other names; or a function of how often this kind of record was asked before."""

_A, _CNAME, _AAAA = 1, 5, 28
_NXDOMAIN = 3


class DnsServer(asyncio.DatagramProtocol):
    """Answers from a zone as a recursive server would: the whole chain of aliases at once, to live for no time."""

    def __init__(self, zone: Zone) -> None:
        self._zone = {name.lower(): target for name, target in zone.items()}
        self._asked: Counter[tuple[str, int]] = Counter()
        self.asked: Counter[str] = Counter()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> Self:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, local_addr=(host, port))
        self.address: tuple[str, int] = transport.get_extra_info("sockname")[:2]
        return self

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        identity = data[:2]
        name, end = _read_name(data, 12)
        (kind,) = struct.unpack("!H", data[end : end + 2])
        question = data[12 : end + 4]
        self.asked[name] += 1
        records = self._chain(name, kind)
        status = 0x8180 if records is not None else 0x8180 | _NXDOMAIN
        header = identity + struct.pack("!HHHHH", status, 1, len(records or ()), 0, 0)
        self._transport.sendto(header + question + b"".join(records or ()), addr)

    def _chain(self, name: str, kind: int) -> list[bytes] | None:
        records, owner = list[bytes](), name.lower()
        for _ in range(20):
            found = self._zone.get(owner)
            if found is None:
                return records or None
            before = self._asked[owner, kind]
            self._asked[owner, kind] += 1
            targets = found(before) if callable(found) else found
            alias = None
            for target in targets:
                try:
                    address = ipaddress.ip_address(target)
                except ValueError:
                    alias = target
                    records.append(_record(owner, _CNAME, _write_name(target)))
                else:
                    if kind == (_A if address.version == 4 else _AAAA):
                        records.append(_record(owner, kind, address.packed))
            if alias is None:
                return records
            owner = alias
        return records


def ask(server: tuple[str, int], name: str) -> list[str]:
    """Every address of a name, by the server; a resolver that can be given to a fence."""
    found = []
    for kind in (_A, _AAAA):
        query = (
            b"\x12\x34" + struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + _write_name(name) + struct.pack("!HH", kind, 1)
        )
        with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as asking:
            asking.settimeout(3)
            asking.sendto(query, server)
            found += _read_addresses(asking.recv(4096), kind)
    if not found:
        raise socket.gaierror(socket.EAI_NONAME, "not known")
    return found


def _read_addresses(answer: bytes, kind: int) -> list[str]:
    (count,) = struct.unpack("!H", answer[6:8])
    _, at = _read_name(answer, 12)
    at += 4
    found = []
    for _ in range(count):
        _, at = _read_name(answer, at)
        answered, _, _, length = struct.unpack("!HHIH", answer[at : at + 10])
        data = answer[at + 10 : at + 10 + length]
        at += 10 + length
        if answered == kind:
            found.append(str(ipaddress.ip_address(data)))
    return found


def _record(owner: str, kind: int, data: bytes) -> bytes:
    return _write_name(owner) + struct.pack("!HHIH", kind, 1, 0, len(data)) + data


def _write_name(name: str) -> bytes:
    labels = [label for label in name.rstrip(".").split(".") if label]
    return b"".join(bytes([len(label)]) + label.encode("ascii") for label in labels) + b"\0"


def _read_name(data: bytes, at: int) -> tuple[str, int]:
    labels = []
    while data[at]:
        labels.append(data[at + 1 : at + 1 + data[at]].decode("ascii"))
        at += 1 + data[at]
    return ".".join(labels), at + 1
