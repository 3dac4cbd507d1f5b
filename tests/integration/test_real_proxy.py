"""Going out through Tinyproxy: `test_egress_proxy.py` has what no proxy is likely to do, this what a real one does."""

import asyncio
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from uuid import UUID

import pytest
import pytest_asyncio
from accepting import Publisher
from authorities import Authority
from delivering import ACCEPTED, Asked, Delivering, RawSink, delivering
from fixtures import IN_ONE_LOOP, raw_sink
from pydantic import SecretStr
from tinyproxy import USER, Tinyproxy
from token_endpoint import client, issued, tokens

from broker.delivery.pace import Pace
from tests.installed_tools import TIMEOUT_SECONDS, debian_program

pytestmark = [IN_ONE_LOOP, pytest.mark.timeout(TIMEOUT_SECONDS)]
AUTHORITY = Authority("Sinks")
TLS = {"trustedCertificates": AUTHORITY.root.pem}
PASSWORD = "geheim"

sink = raw_sink(AUTHORITY.server_context)
server = raw_sink(AUTHORITY.server_context)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Tinyproxy:
    program = debian_program("tinyproxy-bin", "usr/bin/tinyproxy")
    return Tinyproxy(program, tmp_path_factory.mktemp("tinyproxy"), unused_port())


def unused_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bode(url: str, proxy: Tinyproxy) -> AsyncIterator[Delivering]:
    address = SecretStr(f"http://{USER}:{PASSWORD}@127.0.0.1:{proxy.port}")
    async with delivering(url, attempt_seconds=6, proxy=address) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def publisher(bode: Delivering, monkeypatch: pytest.MonkeyPatch) -> Publisher:
    monkeypatch.setattr("broker.delivery.engine.HINDERED_SECONDS", 1.0)
    forget_failures(bode)
    return await bode.own_types()


def forget_failures(bode: Delivering) -> None:
    proxy = bode.process._client.dialler._proxy
    assert proxy is not None
    proxy._failures, proxy._rests_until = 0, 0


async def hindered(bode: Delivering, identity: UUID) -> Pace:
    """Wait until a sink rests though it did nothing wrong."""
    key = (await bode.row(identity))["key"]
    async with asyncio.timeout(30):
        while (pace := bode.process._engine._runners.pace_of(key)) is None or pace.wait(time.time()) < 0.2:
            await asyncio.sleep(0.02)
    return pace


async def failures(bode: Delivering, identity: UUID) -> list[str]:
    """Reasons of the attempts that failed, as the provider can see them."""
    key = (await bode.row(identity))["key"]
    rows = await bode.pool.fetch("SELECT reason FROM attempts WHERE subscription = $1 ORDER BY started_at", key)
    return [row["reason"] for row in rows]


@pytest.mark.parametrize("password", [None, PASSWORD])
async def test_handshake_token_and_notifications_go_through_it(
    bode: Delivering, publisher: Publisher, proxy: Tinyproxy, sink: RawSink, server: RawSink, password: str | None
) -> None:
    tokens(server, issued("een"))
    async with proxy.running(sink.port, server.port, password=password):
        identity = await bode.active(publisher, sink.url("/"), sinkCredential=client(server), sinkTls=TLS)
        await bode.publish(publisher, *"abcde")
        assert await bode.delivered(identity, 5) == [1] * 5
    assert {asked.method for asked in sink.asked} == {"OPTIONS", "POST"}
    assert {asked.one("authorization") for asked in sink.asked} == {"Bearer een"}
    assert not any(asked.all("proxy-authorization") for asked in (*sink.asked, *server.asked))
    for each in (sink, server):
        assert f"CONNECT 127.0.0.1:{each.port} HTTP/1.1" in proxy.log()


async def test_a_wrong_password_costs_neither_delivery_nor_sink(
    bode: Delivering, publisher: Publisher, proxy: Tinyproxy, sink: RawSink
) -> None:
    async with proxy.running(sink.port, password=PASSWORD):
        identity = await bode.active(publisher, sink.url("/"), sinkTls=TLS)
    bode.process._client.close_idle(older_than=-1)
    async with proxy.running(sink.port, password="anders"):
        await bode.publish(publisher, "a")
        pace = await hindered(bode, identity)
        assert (pace.failures, pace.failing_since) == (0, None)
        assert not sink.of("POST", "/")
    async with proxy.running(sink.port, password=PASSWORD):
        assert await bode.delivered(identity, 1) == [1]
    assert await failures(bode, identity) == []


async def test_a_port_that_it_does_not_allow_is_an_address_that_is_not_allowed(
    bode: Delivering, publisher: Publisher, proxy: Tinyproxy, sink: RawSink, server: RawSink
) -> None:
    async with proxy.running(sink.port):
        identity = await bode.active(publisher, sink.url("/"), sinkTls=TLS)
    bode.process._client.close_idle(older_than=-1)
    async with proxy.running(server.port):
        await bode.publish(publisher, "a")
        assert (await bode.tried(identity))["reason"] == "address-not-allowed"
    assert not sink.of("POST", "/")


async def test_a_sink_that_it_cannot_reach_fails_and_no_other_sink_waits_for_it(
    bode: Delivering, publisher: Publisher, proxy: Tinyproxy, sink: RawSink
) -> None:
    """Tinyproxy says 500 where other proxies say 502 or 503."""
    async with RawSink(tls=AUTHORITY.server_context()) as gone, proxy.running(sink.port, gone.port):
        other = await bode.own_types()
        lost = [await bode.active(publisher, gone.url(f"/{number}"), sinkTls=TLS) for number in range(4)]
        well = await bode.active(other, sink.url("/"), sinkTls=TLS)
        await gone.__aexit__()
        bode.process._client.close_idle(older_than=-1)
        await bode.publish(publisher, "a")
        for identity in lost:
            assert (await bode.tried(identity))["reason"] == "connection-refused"
        await bode.publish(other, "a")
        assert await bode.delivered(well, 1) == [1]


async def test_a_sink_that_lets_nobody_in_has_timed_out(
    bode: Delivering, publisher: Publisher, proxy: Tinyproxy
) -> None:
    async with RawSink(tls=AUTHORITY.server_context()) as before, proxy.running(before.port):
        identity = await bode.active(publisher, before.url("/"), sinkTls=TLS)
        await before.__aexit__()
        bode.process._client.close_idle(older_than=-1)
        with full_queue(before.port):
            await bode.publish(publisher, "a")
            assert (await bode.tried(identity))["reason"] == "timed-out"


@contextmanager
def full_queue(port: int) -> Iterator[None]:
    """A port on which nobody accepts: who connects now gets no answer at all."""
    with ExitStack() as open_sockets:
        silent = open_sockets.enter_context(socket.socket())
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        silent.bind(("127.0.0.1", port))
        silent.listen(0)
        for _ in range(3):
            waiting = open_sockets.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        yield


async def test_when_it_is_killed_nothing_is_lost_and_what_was_not_sent_counts_for_nothing(
    bode: Delivering, publisher: Publisher, proxy: Tinyproxy, sink: RawSink
) -> None:
    came, held = asyncio.Event(), asyncio.Event()

    async def hold(asked: Asked) -> bytes:
        if b"vast" in asked.body:
            came.set()
            await held.wait()
        return ACCEPTED

    sink.answers["POST", "/"] = hold
    async with proxy.running(sink.port, password=PASSWORD) as process:
        identity = await bode.active(publisher, sink.url("/"), sinkTls=TLS)
        await bode.publish(publisher, *"abc")
        await bode.delivered(identity, 3)
        await bode.publish(publisher, "vast")
        async with asyncio.timeout(30):
            await came.wait()
        process.kill()
        await process.wait()
        held.set()
        await bode.publish(publisher, *(f"weg{number}" for number in range(20)))
        await hindered(bode, identity)
    async with proxy.running(sink.port, password=PASSWORD):
        await bode.publish(publisher, *(f"weer{number}" for number in range(20)))
        attempts = await bode.delivered(identity, 44)
    under_way = attempts.pop(3)  # it is made again, and on a slow machine that is another attempt
    assert (under_way, await failures(bode, identity)) in [(1, []), (2, ["connection-closed"])]
    assert attempts == [1] * 43
    came_in = Counter(asked.one("webhook-id") for asked in sink.of("POST", "/"))
    assert sorted(came_in.values()) == [1] * 43 + [2]  # the sink had one of them when its answer was lost
    assert (await bode.row(identity))["status"] == "active"
