"""A sink that reads requests properly, and answers as a test plays it; and what the client makes of that."""

import asyncio
import itertools
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network

import pytest
from serving import serving

from broker.delivery.client import Client
from broker.delivery.exchanges import Answer, SendError, Target
from broker.delivery.fence import Fence
from broker.delivery.outcomes import Reason

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
