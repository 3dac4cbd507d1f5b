"""No sink makes the broker talk to an address that the operator didn't allow (promise 11)."""

import asyncio
import socket
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from broker.delivery import fence as fence_module
from broker.delivery.exchanges import Target
from broker.delivery.fence import Fence, FenceError, ResolveError, literal

LOOPBACK = ("127.0.0.0/8", "::1/128")

HOSTILE = [
    # this host
    "127.0.0.1", "127.1", "127.0.1", "127.255.255.254", "0", "0.0.0.0", "0.0.0.1", "0.1.2.3",
    # the same in decimal, octal and hexadecimal, whole and in parts
    "2130706433", "017700000001", "0x7f000001", "0X7F000001", "0x7f.1", "0177.1", "0177.0.0.1", "0x7f.0x0.0x0.0x1",
    "127.0x0.0.1", "00000177.0.0.1", "127.65535", "127.16777215",
    # private and shared
    "10.0.0.1", "10.255.255.255", "10.1", "012.0.0.1", "167772161", "172.16.0.1", "172.31.255.255", "192.168.0.1",
    "192.168.257", "3232235777", "100.64.0.1", "100.127.255.255",
    # link-local; metadata of clouds
    "169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "169.254.170.2",
    "169.254.0.0", "100.100.100.200", "192.0.0.192",
    # documentation, benchmarks, protocol assignments, 6to4 relays, multicast, reserved, broadcast
    "192.0.0.1", "192.0.2.1", "198.51.100.7", "203.0.113.9", "198.18.0.1", "198.19.255.255", "192.88.99.1",
    "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "4294967295", "0xffffffff",
    # IPv6: this host, local, documentation, discard, multicast, segment routing, benchmarks
    "::", "::1", "0:0:0:0:0:0:0:1", "fe80::1", "fe80::1%eth0", "fe80::1%25lo", "::1%1", "febf::1", "fec0::1", "fc00::1",
    "fd00:ec2::254", "fdff::1", "2001:db8::1", "3fff::1", "100::1", "ff02::1", "ff0e::1", "5f00::1", "2001:2::1",
    # IPv4 inside IPv6: mapped, compatible, translated, NAT64, local NAT64, 6to4, Teredo
    "::ffff:127.0.0.1", "::ffff:7f00:1", "0:0:0:0:0:ffff:a00:1", "::ffff:169.254.169.254", "::127.0.0.1", "::10.0.0.1",
    "::ffff:0:127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b::10.0.0.1", "64:ff9b:1::10.0.0.1",
    "64:ff9b:1:a00:0:100::", "64:ff9b:1::8.8.8.8", "2002:7f00:1::", "2002:a00:1::1", "2002:a9fe:a9fe::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:0:7f00:1::",
    # not given out to anyone
    "4000::1", "8000::1", "e000::1", "fe00::1",
]  # fmt: skip

PUBLIC = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
    "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0",
    "198.17.255.255", "198.20.0.0", "223.255.255.255", "145.131.0.1", "16843009", "0x08080808",
    "2606:4700:4700::1111", "2a00:1450:4001::1", "2001:4860:4860::8888", "2001:200::1", "2003::1", "3ffe::1",
    "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "64:ff9b::808:808",
]  # fmt: skip


def fence(*allow: str, ports: tuple[int, ...] = ()) -> Fence:
    return Fence(allow=[ip_network(text) for text in allow], ports=ports, resolve_seconds=1)


def is_canonical(host: str) -> bool:
    """Whether a resolver may answer so."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def answers(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Name look-ups give these."""

    def look_up(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 0)) for address in addresses]

    monkeypatch.setattr(fence_module.socket, "getaddrinfo", look_up)


def test_table_of_hostile_hosts_is_long() -> None:
    assert len(set(HOSTILE)) >= 60


@pytest.mark.parametrize("host", HOSTILE)
async def test_hostile_literal_is_refused_by_the_api_and_at_the_connection(host: str) -> None:
    judge = fence()
    with pytest.raises(FenceError):
        judge.check_literal(host)
    with pytest.raises(FenceError):
        await judge.resolve(host, 443)
    written = f"[{host}]" if ":" in host else host
    if "%" not in host:
        with pytest.raises(FenceError):
            await judge.resolve(Target.of(f"https://{written}/hook").host, 443)
    judge.close()


@pytest.mark.parametrize("host", PUBLIC)
async def test_public_literal_is_allowed_and_connected_to_itself(host: str) -> None:
    judge = fence()
    judge.check_literal(host)
    [address] = await judge.resolve(host, 443)
    assert ip_address(address) == literal(host)
    judge.close()


@pytest.mark.parametrize("answer", [host for host in HOSTILE if is_canonical(host)])
async def test_name_is_judged_by_every_address_it_has(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = fence()
    for addresses in ([answer], ["8.8.8.8", answer], [answer, "8.8.8.8"]):
        answers(monkeypatch, *addresses)
        judge.check_literal("sink.example")
        with pytest.raises(FenceError):
            await judge.resolve("sink.example", 443)
    judge.close()


async def test_name_leads_to_the_addresses_that_were_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "8.8.8.8", "2606:4700:4700::1111", "8.8.8.8")
    judge = fence()
    assert await judge.resolve("sink.example", 443) == ["8.8.8.8", "2606:4700:4700::1111"]
    judge.close()


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", True),
        ("127.1", True),
        ("0x7f000001", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("8.8.8.8", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("::2", False),
        ("::ffff:10.0.0.1", False),
        ("169.254.169.254", False),
    ],
)
def test_operator_allows_networks_and_nothing_around_them(host: str, allowed: bool) -> None:
    address = literal(host)
    assert address is not None
    assert fence(*LOOPBACK).permits(address) is allowed


async def test_only_listed_ports_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "8.8.8.8")
    judge = fence(ports=(443, 8443))
    for port in (443, 8443):
        judge.check_port(port)
        await judge.resolve("sink.example", port)
    for port in (22, 80, 5432, 5672):
        with pytest.raises(FenceError):
            judge.check_port(port)
        with pytest.raises(FenceError):
            await judge.resolve("sink.example", port)
    fence().check_port(5432)
    judge.close()


@pytest.mark.parametrize(
    "host", ["sink.example", "localhost", "127.0.0.1.example", "1.2.3.4.5", "0x", "a" * 63, "1:2", "::zz"]
)
def test_what_is_no_address_is_a_name_and_judged_later(host: str) -> None:
    assert literal(host) is None
    fence().check_literal(host)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "1:2", "::zz"])
async def test_name_without_an_address_is_for_a_later_attempt(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(fence_module.socket, "getaddrinfo", look_up)
    judge = fence()
    with pytest.raises(ResolveError):
        await judge.resolve(host, 443)
    judge.close()


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..b"])
async def test_name_that_cannot_be_encoded_is_for_a_later_attempt(host: str) -> None:
    judge = fence()
    with pytest.raises(ResolveError):
        await judge.resolve(host, 443)
    judge.close()


async def test_slow_name_server_costs_no_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    released = asyncio.Event()
    loop = asyncio.get_running_loop()

    def look_up(*_: Any, **__: Any) -> list[tuple[Any, ...]]:
        asyncio.run_coroutine_threadsafe(released.wait(), loop).result(30)
        return []

    monkeypatch.setattr(fence_module.socket, "getaddrinfo", look_up)
    judge = Fence(resolve_seconds=0.05)
    with pytest.raises(ResolveError):
        await judge.resolve("slow.example", 443)
    released.set()
    judge.close()


async def test_name_with_no_answer_at_all_is_for_a_later_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch)
    judge = fence()
    with pytest.raises(ResolveError):
        await judge.resolve("empty.example", 443)
    judge.close()
