"""The HTTP client and what sinks on real sockets answer: whole, in pieces, without end, or no answer at all."""

import asyncio
import time

import pytest
from played_sink import FENCE, INTERIM, OK, Exchange, answering, post, reason_of, sink

from broker.delivery.client import Client
from broker.delivery.connections import MAX_HEADER_BYTES
from broker.delivery.exchanges import EXCERPT_BYTES, MAX_BODY_BYTES
from broker.delivery.outcomes import Reason


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


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_an_answer_and_not_followed(status: int, client: Client) -> None:
    async with sink(answering(OK)) as other:
        location = f"http://127.0.0.1:{other.port}/"
        data = f"HTTP/1.1 {status} Go\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n".encode()
        async with sink(answering(data)) as made:
            answer = await post(client, made.target())
            assert (answer.status, answer.header("location")) == (status, location)
        assert other.seen == []
