"""The HTTP client against sinks on real sockets that misbehave."""

import asyncio
import itertools
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

import pytest
from serving import serving

from broker.delivery.client import Client
from broker.delivery.connections import MAX_HEADER_BYTES
from broker.delivery.exchanges import EXCERPT_BYTES, MAX_BODY_BYTES, Answer, SendError, Target
from broker.delivery.fence import Fence
from broker.delivery.outcomes import Reason
from broker.delivery.tls import Contexts

FENCE = Fence(allow=[ip_network("127.0.0.0/8")])
OK = b"HTTP/1.1 204 No Content\r\n\r\n"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass
class Exchange:
    """One request on one connection, as the sink sees it. Numbers count from 1."""

    connection: int
    number: int
    head: bytes
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


Play = Callable[[Exchange], Awaitable[None]]


@dataclass
class Sink:
    port: int
    seen: list[Exchange] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """The client closed a connection."""

    @property
    def connections(self) -> int:
        return len({exchange.connection for exchange in self.seen})

    def target(self, path: str = "/hook", scheme: str = "http", host: str = "127.0.0.1") -> Target:
        return Target.of(f"{scheme}://{host}:{self.port}{path}")


@asynccontextmanager
async def sink(play: Play, tls: ssl.SSLContext | None = None) -> AsyncIterator[Sink]:
    """A sink that reads requests properly and answers as `play` does."""
    made = Sink(0)
    connections = itertools.count(1)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection, number = next(connections), 0
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                [length] = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                number += 1
                exchange = Exchange(connection, number, head, b"", reader, writer)
                exchange.body = await reader.readexactly(int(length.partition(b":")[2]))
                made.seen.append(exchange)
                await play(exchange)
        except (asyncio.IncompleteReadError, ConnectionError):
            made.closed.set()

    async with serving(serve, ssl=tls) as made.port:
        yield made


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    made = Client(FENCE, total_seconds=5)
    yield made
    made.close()


async def post(client: Client, target: Target, body: bytes = b"{}") -> Answer:
    return await client.request("POST", target, {"content-type": "application/json"}, body)


async def reason_of(request: Awaitable[Answer]) -> Reason:
    with pytest.raises(SendError) as raised:
        await request
    return raised.value.reason


def answering(data: bytes, *, then_close: bool = False) -> Play:
    async def play(exchange: Exchange) -> None:
        await exchange.send(data)
        if then_close:
            exchange.close()

    return play


async def test_request_goes_out_whole_and_connection_is_kept(client: Client) -> None:
    async with sink(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nRetry-After: 5 \r\n\r\nhi")) as made:
        for _ in range(3):
            answer = await post(client, made.target("/hook?a=b"), b'{"x": 1}')
            assert (answer.status, answer.excerpt, answer.header("retry-after")) == (200, b"hi", "5")
        assert made.connections == 1
        [first, *_] = made.seen
        assert first.head.startswith(b"POST /hook?a=b HTTP/1.1\r\n")
        assert f"host: 127.0.0.1:{made.port}\r\n".encode() in first.head
        assert first.body == b'{"x": 1}'


@pytest.mark.parametrize(
    ("data", "status", "excerpt"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, b""),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 200, b"abc"),
        (b"HTTP/1.1 503 Busy\r\ntransfer-encoding: chunked\r\n\r\n1;e=1\r\na\r\n0\r\nx: y\r\n\r\n", 503, b"a"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nretry-after: 9\r\n\r\n" + OK, 204, b""),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 10\r\n\r\n", 304, b""),
        (b"HTTP/1.1 500 \r\ncontent-length: 1\r\n\r\nx", 500, b"x"),
    ],
    ids=["empty", "chunked", "trailers", "interim", "not modified", "no phrase"],
)  # fmt: skip
async def test_proper_answers_of_every_framing_are_read_to_their_end(
    data: bytes, status: int, excerpt: bytes, client: Client
) -> None:
    async with sink(answering(data)) as made:
        for _ in range(2):
            answer = await post(client, made.target())
            assert (answer.status, answer.excerpt, answer.header("retry-after")) == (status, excerpt, None)
        assert made.connections == 1


@pytest.mark.parametrize("size", [1, 7, 50])
async def test_answer_in_pieces_is_the_same_answer(size: int, client: Client) -> None:
    data = b"HTTP/1.1 429 Slow\r\nRETRY-AFTER: 120\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n"

    async def play(exchange: Exchange) -> None:
        for start in range(0, len(data), size):
            await exchange.send(data[start : start + size])
            await asyncio.sleep(0)

    async with sink(play) as made:
        answer = await post(client, made.target())
    assert (answer.status, answer.excerpt, answer.header("retry-after")) == (429, b"abcde", "120")


async def test_answer_without_length_ends_with_the_connection(client: Client) -> None:
    async with sink(answering(b"HTTP/1.1 200 OK\r\n\r\nsome text", then_close=True)) as made:
        for count in (1, 2):
            answer = await post(client, made.target())
            assert (answer.status, answer.excerpt) == (200, b"some text")
            assert made.connections == count


async def test_connection_that_the_sink_closes_is_not_kept(client: Client) -> None:
    async with sink(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")) as made:
        await post(client, made.target())
        await asyncio.wait_for(made.closed.wait(), 5)
        await post(client, made.target())
        assert made.connections == 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 204 No Con",
        b"HTTP/1.1 204 No Content\r\nserver: x\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
    ids=["nothing", "in the status", "in the headers", "in the body", "between chunks", "after an interim answer"],
)
@pytest.mark.parametrize("how", ["closed", "reset"])
async def test_answer_that_breaks_off_is_a_failure_and_not_repeated(data: bytes, how: str, client: Client) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.send(data)
        exchange.close() if how == "closed" else exchange.reset()

    async with sink(play) as made:
        assert await reason_of(post(client, made.target())) is Reason.CLOSED
        assert len(made.seen) == 1


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
    "drip",
    [b"", b"O", b"x: y\r\n", INTERIM],
    ids=["silence", "in the status", "in the headers", "interim answers"],
)
async def test_total_time_is_limited_however_the_sink_drips(drip: bytes) -> None:
    client = Client(FENCE, total_seconds=0.3)

    async def play(exchange: Exchange) -> None:
        if not drip:
            await exchange.reader.read()
        await exchange.send(b"HTTP/1.1 200 " if drip == b"O" else b"HTTP/1.1 200 OK\r\n" if drip != INTERIM else b"")
        while True:
            await exchange.send(drip)
            await asyncio.sleep(0.05)

    async with sink(play) as made:
        started = time.monotonic()
        assert await reason_of(post(client, made.target())) is Reason.TIMEOUT
        assert time.monotonic() - started < 2
        if drip:
            await asyncio.wait_for(made.closed.wait(), 5)
    client.close()


async def test_body_that_drips_for_ever_is_given_up_in_time() -> None:
    client = Client(FENCE, total_seconds=0.3)

    async def play(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        while True:
            await exchange.send(b"x")
            await asyncio.sleep(0.05)

    async with sink(play) as made:
        assert await reason_of(post(client, made.target())) is Reason.TIMEOUT
    client.close()


@pytest.mark.parametrize("line", [b"x-header: " + b"y" * 1000 + b"\r\n", b"y" * 1000], ids=["many", "one"])
async def test_endless_headers_are_refused(line: bytes, client: Client) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nx: ")
        while True:
            await exchange.send(line)

    async with sink(play) as made:
        assert await reason_of(post(client, made.target())) in (Reason.OVERSIZED, Reason.NONSENSE)
        await asyncio.wait_for(made.closed.wait(), 5)


async def test_endless_interim_answers_are_refused(client: Client) -> None:
    async def play(exchange: Exchange) -> None:
        while True:
            await exchange.send(b"HTTP/1.1 102 Processing\r\n\r\n" * 100)

    async with sink(play) as made:
        assert await reason_of(post(client, made.target())) is Reason.OVERSIZED


@pytest.mark.parametrize("framing", [b"content-length: 1000000000", b"transfer-encoding: chunked", b"x: y"])
@pytest.mark.parametrize("status", [200, 500])
async def test_endless_body_is_cut_off_and_the_status_stands(status: int, framing: bytes, client: Client) -> None:
    sent = 0

    async def play(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.send(b"HTTP/1.1 %d X\r\n%s\r\n\r\n" % (status, framing))
        piece = b"x" * 4096
        while True:
            await exchange.send(b"1000\r\n" + piece + b"\r\n" if b"chunked" in framing else piece)
            sent += len(piece)

    async with sink(play) as made:
        answer = await post(client, made.target())
        assert (answer.status, answer.excerpt) == (status, b"x" * EXCERPT_BYTES)
        await asyncio.wait_for(made.closed.wait(), 5)
        assert MAX_HEADER_BYTES + MAX_BODY_BYTES < sent + 4096
        assert (await post(client, made.target())).status == status
        assert made.connections == 2


async def test_endless_trailers_are_cut_off_and_say_nothing(client: Client) -> None:
    async def play(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n")
        while True:
            await exchange.send(b"webhook-allowed-origin: *\r\n" * 50)

    async with sink(play) as made:
        answer = await post(client, made.target())
        assert (answer.status, answer.headers) == (200, {})
        await asyncio.wait_for(made.closed.wait(), 5)


async def test_header_in_a_trailer_is_no_consent(client: Client) -> None:
    data = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nwebhook-allowed-origin: *\r\n\r\n"
    async with sink(answering(data)) as made:
        answer = await client.request("OPTIONS", made.target(), {})
        assert (answer.status, answer.headers) == (200, {})


async def test_header_that_comes_twice_is_told_twice(client: Client) -> None:
    data = b"HTTP/1.1 200 OK\r\nWebHook-Allowed-Origin: a\r\nwebhook-allowed-origin: b\r\ncontent-length: 0\r\n\r\n"
    async with sink(answering(data)) as made:
        answer = await client.request("OPTIONS", made.target(), {})
        assert answer.headers == {"webhook-allowed-origin": ["a", "b"]}


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x00\x01\x02\x03" * 10,
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: minus\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\x00: x\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"<html></html>",
    ],
)
async def test_garbage_is_no_answer(data: bytes, client: Client) -> None:
    async with sink(answering(data, then_close=True)) as made:
        assert await reason_of(post(client, made.target())) in (Reason.NONSENSE, Reason.CLOSED)
        assert len(made.seen) == 1


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


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_an_answer_and_not_followed(status: int, client: Client) -> None:
    async with sink(answering(OK)) as other:
        location = f"http://127.0.0.1:{other.port}/"
        data = f"HTTP/1.1 {status} Go\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n".encode()
        async with sink(answering(data)) as made:
            answer = await post(client, made.target())
            assert (answer.status, answer.header("location")) == (status, location)
        assert other.seen == []


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
