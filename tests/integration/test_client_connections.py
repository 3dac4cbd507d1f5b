"""The HTTP client and its connections: kept, replaced, closed, refused, and never one that holds another's answer."""

import asyncio
import ssl
import subprocess
from ipaddress import ip_network
from pathlib import Path

import pytest
from played_sink import OK, Exchange, answering, post, reason_of, sink
from serving import serving

from broker.delivery import connections
from broker.delivery.client import Client
from broker.delivery.exchanges import Answer, Target
from broker.delivery.fence import Fence
from broker.delivery.outcomes import Reason
from broker.delivery.tls import Contexts


async def test_connection_that_the_sink_closes_is_not_kept(client: Client) -> None:
    async with sink(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")) as made:
        await post(client, made.target())
        await asyncio.wait_for(made.closed.wait(), 5)
        await post(client, made.target())
        assert made.connections == 2


async def test_kept_connection_that_was_closed_meanwhile_is_replaced_once(client: Client) -> None:
    async def play(exchange: Exchange) -> None:
        if exchange.number == 1:
            await exchange.send(OK)
        else:
            exchange.reset()

    async with sink(play) as made:
        assert (await post(client, made.target())).status == 204
        assert (await post(client, made.target())).status == 204
        assert [(exchange.connection, exchange.number) for exchange in made.seen] == [(1, 1), (1, 2), (2, 1)]


async def test_request_that_the_sink_had_for_a_while_is_not_repeated(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "REPLACE_SECONDS", 0.1)

    async def play(exchange: Exchange) -> None:
        if exchange.number == 1:
            await exchange.send(OK)
        else:
            await asyncio.sleep(0.3)
            exchange.reset()

    async with sink(play) as made:
        await post(client, made.target())
        assert await reason_of(post(client, made.target())) is Reason.CLOSED
        assert len(made.seen) == 2


async def test_request_that_a_kept_connection_began_to_answer_is_not_repeated(client: Client) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.send(OK if exchange.number == 1 else b"HTTP/1.1 2")
        if exchange.number == 2:
            exchange.close()

    async with sink(play) as made:
        await post(client, made.target())
        assert await reason_of(post(client, made.target())) is Reason.CLOSED
        assert len(made.seen) == 2


async def test_sink_that_closes_every_connection_is_asked_twice_at_most(client: Client) -> None:
    async def play(exchange: Exchange) -> None:
        if len(made.seen) == 1:
            await exchange.send(OK)
        else:
            exchange.reset()

    async with sink(play) as made:
        await post(client, made.target())
        assert await reason_of(post(client, made.target())) is Reason.CLOSED
        assert len(made.seen) == 3


async def test_request_that_may_go_once_never_takes_a_kept_connection_and_leaves_none(client: Client) -> None:
    async def play(exchange: Exchange) -> None:
        if exchange.body == b"lost":
            exchange.reset()
        else:
            await exchange.send(OK)

    async def once(body: bytes) -> Answer:
        return await client.request("POST", made.target(), {}, body, once=True)

    async with sink(play) as made:
        await post(client, made.target())
        assert await reason_of(once(b"lost")) is Reason.CLOSED
        assert (await once(b"answered")).status == 204
        assert await reason_of(once(b"lost")) is Reason.CLOSED
        assert [(exchange.connection, exchange.body) for exchange in made.seen] == [
            (1, b"{}"), (2, b"lost"), (3, b"answered"), (4, b"lost"),
        ]  # fmt: skip
        await post(client, made.target())
        assert made.seen[-1].connection == 1  # those of the others are not kept


@pytest.mark.parametrize(
    "extra",
    [OK, b"HTTP/1.1 500 Late\r\ncontent-length: 0\r\n\r\n", b"HTTP/1.1 2", b"x", b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n"],
    ids=["another answer", "another status", "a beginning", "garbage", "an open end"],
)  # fmt: skip
async def test_second_answer_is_never_taken_for_that_of_the_next_request(extra: bytes, client: Client) -> None:
    async def play(exchange: Exchange) -> None:
        if exchange.connection == 1:
            await exchange.send(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n" + extra)
        else:
            await exchange.send(b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n")

    async with sink(play) as made:
        assert (await post(client, made.target())).status == 503
        assert (await post(client, made.target())).status == 410
        assert made.connections == 2


async def test_answer_that_comes_while_nothing_was_asked_ends_the_connection(client: Client) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.send(OK)

    async with sink(play) as made:
        await post(client, made.target())
        await made.seen[0].send(b"HTTP/1.1 500 Unasked\r\ncontent-length: 0\r\n\r\n")
        await asyncio.wait_for(made.closed.wait(), 5)
        assert (await post(client, made.target())).status == 204
        assert made.connections == 2


async def test_cancelled_request_leaves_no_poisoned_connection(client: Client) -> None:
    go_on = asyncio.Event()

    async def play(exchange: Exchange) -> None:
        if exchange.body == b"slow":
            await exchange.send(b"HTTP/1.1 500 ")
            await go_on.wait()
            await exchange.send(b"Slow\r\ncontent-length: 0\r\n\r\n")
        else:
            await exchange.send(OK)

    async with sink(play) as made:
        await post(client, made.target())
        slow = asyncio.create_task(post(client, made.target(), b"slow"))
        while len(made.seen) < 2:
            await asyncio.sleep(0)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        quick = asyncio.create_task(post(client, made.target()))
        go_on.set()
        assert (await quick).status == 204
        assert made.seen[-1].connection == 2


async def test_requests_side_by_side_have_a_connection_each(client: Client) -> None:
    together = asyncio.Barrier(5)

    async def play(exchange: Exchange) -> None:
        await together.wait()
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(exchange.body), exchange.body))

    async with sink(play) as made:
        for _ in range(2):
            bodies = [str(number).encode() for number in range(5)]
            answers = await asyncio.gather(*(post(client, made.target(), body) for body in bodies))
            assert [answer.excerpt for answer in answers] == bodies
        assert made.connections == 5


async def test_idle_connections_are_closed(client: Client) -> None:
    async with sink(answering(OK)) as made:
        await post(client, made.target())
        client.close_idle(older_than=60)
        assert not made.closed.is_set()
        client.close_idle(older_than=-1)
        await asyncio.wait_for(made.closed.wait(), 5)


async def test_port_where_nobody_listens_refuses(client: Client) -> None:
    async with sink(answering(OK)) as made:
        pass
    assert await reason_of(post(client, made.target())) is Reason.REFUSED


@pytest.mark.parametrize("url", ["http://10.0.0.1/", "http://[::1]/", "http://0x0a000001/", "http://169.254.169.254/"])
async def test_fenced_address_is_never_connected_to(url: str, client: Client) -> None:
    assert await reason_of(post(client, Target.of(url))) is Reason.FENCED


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for localhost, self-signed."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


async def test_certificate_must_be_trusted_and_name_the_host(certificates: Path) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
    trusting = ssl.create_default_context(cafile=str(certificates / "cert.pem"))
    fence = Fence(allow=[ip_network("127.0.0.0/8"), ip_network("::1/128")])
    async with sink(answering(OK), tls=server) as made:
        trusted = Client(fence, total_seconds=5, tls=Contexts(default=trusting))
        assert (await post(trusted, made.target(scheme="https", host="localhost"))).status == 204
        assert (await post(trusted, made.target(scheme="https", host="localhost"))).status == 204
        assert made.connections == 1
        assert await reason_of(post(trusted, made.target(scheme="https"))) is Reason.TLS
        untrusting = Client(fence, total_seconds=5)
        assert await reason_of(post(untrusting, made.target(scheme="https", host="localhost"))) is Reason.TLS
        assert len(made.seen) == 2
        trusted.close()
        untrusting.close()
    fence.close()


async def test_https_to_a_plain_sink_fails_as_tls(client: Client) -> None:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()

    async with serving(serve) as port:
        assert await reason_of(post(client, Target.of(f"https://127.0.0.1:{port}/"))) is Reason.TLS
