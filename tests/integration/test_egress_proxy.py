"""Going out through a real CONNECT proxy: everything takes it, and what it does wrong is not the sink's fault."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from accepting import Publisher
from authorities import Authority
from delivering import Delivering, RawSink, answer, delivering
from forward_proxy import ForwardProxy
from pydantic import SecretStr, ValidationError

from broker.delivery.client import Client
from broker.delivery.exchanges import SendError, Target
from broker.delivery.fence import Fence
from broker.delivery.outcomes import Reason
from broker.delivery.proxy import Proxy, ProxyAddress
from broker.delivery.settings import DeliverySettings
from broker.delivery.tls import Contexts, TlsIdentity

pytestmark = pytest.mark.asyncio(loop_scope="module")
AUTHORITY, CLIENTS = Authority("Sinks"), Authority("Clients")
TRUST = {"trustedCertificates": AUTHORITY.root.pem}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxy() -> AsyncIterator[ForwardProxy]:
    async with ForwardProxy(password="ge:heim") as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bode(url: str, proxy: ForwardProxy) -> AsyncIterator[Delivering]:
    address = proxy.url.replace("ge:heim", "ge%3Aheim")
    async with delivering(url, attempt_seconds=4, proxy=SecretStr(address)) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def publisher(bode: Delivering, proxy: ForwardProxy) -> AsyncIterator[Publisher]:
    bode.process._client.dialler._proxy._failures = bode.process._client.dialler._proxy._rests_until = 0  # type: ignore[union-attr]
    yield await bode.own_types()
    proxy.answer = lambda _: None
    proxy.hangs = lambda _: False
    proxy.asked.clear()


@pytest.mark.parametrize("secure", [True, False])
async def test_handshake_test_token_and_notification_go_through_it(
    bode: Delivering, publisher: Publisher, proxy: ForwardProxy, secure: bool
) -> None:
    tls = AUTHORITY.server_context(clients=CLIENTS) if secure else None
    members: dict[str, Any] = {"sinkTls": CLIENTS.client("bode").members | TRUST} if secure else {}
    async with RawSink(tls=tls) as sink, RawSink(tls=AUTHORITY.server_context()) as server:
        server.answers["POST", "/token"] = lambda _: answer("200 OK", body='{"access_token": "x"}')
        if secure:
            members["sinkCredential"] = {
                "credentialType": "CLIENTCREDENTIALS", "tokenEndpoint": server.url("/token"), "clientId": "a",
                "clientSecret": "b",
            }  # fmt: skip
        identity = await bode.active(publisher, sink.url("/"), **members)
        await bode.world.call("POST", f"/subscriptions/{identity}/test-notifications", key=bode.provider_key)
        await bode.publish(publisher, "a", "b")
        await sink.wait_for("POST", "/", 3)
        ports = {int(line.split(" ")[1].rpartition(":")[2]) for line in proxy.asked}
        assert ports == {sink.port, server.port} if secure else {sink.port}
        assert {asked.peer for asked in sink.asked} == ({"bode"} if secure else {None})
        assert not any(asked.all("proxy-authorization") for asked in sink.asked)


async def reason_of(bode: Delivering, publisher: Publisher, sink: RawSink, breaks: Any) -> tuple[UUID, str]:
    identity = await bode.active(publisher, sink.url("/"))
    bode.process._client.close_idle(older_than=-1)
    breaks()
    await bode.publish(publisher, "a")
    return identity, (await bode.tried(identity))["reason"]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ("403 Forbidden", "address-not-allowed"),
        ("500 Unable to connect", "connection-refused"),
        ("502 Bad Gateway", "connection-refused"),
        ("503 Service Unavailable", "connection-refused"),
        ("504 Gateway Timeout", "connection-refused"),
    ],
)
async def test_what_the_proxy_says_of_the_sink_counts_against_it(
    bode: Delivering, publisher: Publisher, proxy: ForwardProxy, status: str, reason: str
) -> None:
    async with RawSink() as sink:
        found = await reason_of(bode, publisher, sink, lambda: setattr(proxy, "answer", lambda _: answer(status)))
        assert found[1] == reason


async def test_a_sink_that_keeps_the_proxy_waiting_has_timed_out(
    bode: Delivering, publisher: Publisher, proxy: ForwardProxy
) -> None:
    def hang() -> None:
        proxy.hangs = lambda line: line.startswith("CONNECT")

    async with RawSink() as sink:
        assert (await reason_of(bode, publisher, sink, hang))[1] == "timed-out"
        assert "OPTIONS * HTTP/1.1" in proxy.asked


@pytest.mark.parametrize(
    "given",
    [
        answer("407 Proxy Authentication Required"),
        answer("401 Unauthorized"),
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nand more",
        b"HTTP/1.1 200 OK\r\n" + b"X-Filler: more and more\r\n" * 3000,
        b"",
        None,
    ],
)
async def test_a_proxy_that_fails_costs_neither_delivery_nor_sink(
    bode: Delivering, publisher: Publisher, proxy: ForwardProxy, given: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.delivery.engine.HINDERED_SECONDS", 1.0)
    async with RawSink() as sink:
        identity = await bode.active(publisher, sink.url("/"))
        bode.process._client.close_idle(older_than=-1)
        key = (await bode.row(identity))["key"]
        if given is None:
            proxy.hangs = lambda _: True
        else:
            proxy.answer = lambda _: given
        await bode.publish(publisher, "a")
        async with asyncio.timeout(50):  # the sink rests, and its next attempt is not under way
            while (pace := bode.process._engine._runners.pace_of(key)) is None or pace.wait(time.time()) < 0.5:
                await asyncio.sleep(0.02)
        assert (pace.failures, pace.failing_since) == (0, None)
        proxy.answer, proxy.hangs = lambda _: None, lambda _: False
        row = await bode.tried(identity, "delivered")
        assert row["attempts"] == 1
        assert not await bode.pool.fetchval("SELECT count(*) FROM attempts WHERE subscription = $1", key)


async def test_a_handshake_that_the_proxy_hinders_is_asked_again_and_refuses_nothing(
    bode: Delivering, publisher: Publisher, proxy: ForwardProxy
) -> None:
    proxy.answer = lambda _: answer("407 Proxy Authentication Required")
    async with RawSink() as sink:
        identity = await bode.subscribe_to(publisher, sink.url("/"))
        async with asyncio.timeout(15):
            while not proxy.asked:
                await asyncio.sleep(0.02)
        put_off = "SELECT validate_at BETWEEN now() + '10 s' AND now() + '1 min' FROM subscriptions WHERE id = $1"
        async with asyncio.timeout(15):
            while not await bode.pool.fetchval(put_off, identity):
                await asyncio.sleep(0.02)
        row = await bode.row(identity)
        assert (row["status"], row["refused_since"], row["status_reason"]) == ("validating", None, None)
        proxy.answer = lambda _: None
        bode.process._client.dialler._proxy._rests_until = 0  # type: ignore[union-attr]
        await bode.alter(identity, "validate_at = now()")
        await bode.wait_for(identity, status="active")


async def test_a_proxy_that_is_away_is_left_alone_for_a_while_by_all(unused_tcp_port: int) -> None:
    fence = Fence(allow=[])
    client = Client(fence, total_seconds=5, proxy=Proxy(ProxyAddress("127.0.0.1", unused_tcp_port, None), 5))
    for _ in range(5):
        with pytest.raises(SendError) as raised:
            await client.request("POST", Target.of("http://sink.example/"), {})
        assert raised.value.reason is Reason.PROXY
    async with ForwardProxy(port=unused_tcp_port) as back, RawSink() as sink:
        with pytest.raises(SendError):
            await client.request("POST", Target.of(f"http://sink.example:{sink.port}/"), {})
        assert back.asked == []  # not asked yet
        async with asyncio.timeout(15):
            while True:
                try:
                    await client.request("POST", Target.of(f"http://sink.example:{sink.port}/"), {})
                except SendError:
                    await asyncio.sleep(0.05)
                else:
                    break
        assert back.asked == [f"CONNECT sink.example:{sink.port} HTTP/1.1"]  # a name that we can't resolve
        client.close()
        fence.close()


async def test_literal_addresses_and_ports_are_still_judged_here() -> None:
    fence = Fence(ports=[443])
    async with ForwardProxy() as proxy:
        client = Client(fence, total_seconds=5, proxy=Proxy(ProxyAddress.of(proxy.url), 5))
        for host in ("127.0.0.1", "2130706433", "[::1]", "169.254.169.254", "sink.example:80"):
            with pytest.raises(SendError) as raised:
                await client.request("POST", Target.of(f"https://{host}/"), {})
            assert raised.value.reason is Reason.FENCED
        assert proxy.asked == []
    client.close()
    fence.close()


async def test_tls_is_between_us_and_the_sink(proxy: ForwardProxy) -> None:
    fence = Fence(allow=[])
    address = ProxyAddress.of(proxy.url)
    known = Contexts(TlsIdentity.of(None, None, AUTHORITY.root.pem))
    wrong_name = AUTHORITY.server_context()
    async with RawSink(tls=wrong_name) as sink:
        client = Client(fence, total_seconds=5, tls=known, proxy=Proxy(address, 5))
        with pytest.raises(SendError) as raised:
            await client.request("POST", Target.of(f"https://sink.example:{sink.port}/"), {})
        assert raised.value.reason is Reason.TLS
        assert not sink.asked
        client.close()
    fence.close()
    assert isinstance(wrong_name, ssl.SSLContext)


WRONG: tuple[str, ...] = (
    "proxy:3128",
    "https://proxy:3128",
    "http://proxy",
    "http://proxy:x",
    "http://:1",
    "http://p:1/x",
)
WRONG += ("http://u:geheim@",)


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_proxy_that_is_none_is_refused_without_telling_its_password(wrong: str) -> None:
    with pytest.raises(ValidationError) as raised:
        DeliverySettings(proxy=SecretStr(wrong))
    assert "must be http://[user:password@]host:port" in str(raised.value)
    assert "geheim" not in str(raised.value)
