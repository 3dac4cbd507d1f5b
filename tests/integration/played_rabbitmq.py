"""The other side of connections to RabbitMQ, played by a test; and who waits for what comes of a message."""

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any
from uuid import uuid4

from pamqp import commands, frame
from pamqp.body import ContentBody
from serving import serving

from broker.delivery import amqp_frames
from broker.delivery.amqp_frames import FRAME_MAX, PROTOCOL, method
from broker.delivery.amqp_messages import AmqpMessage, message_of
from broker.delivery.amqp_targets import AmqpTarget, Login, Server
from broker.delivery.dialling import Dialler
from broker.delivery.exchanges import Answer, QueueExchange
from broker.delivery.fence import Fence
from broker.delivery.outcomes import Reason
from broker.delivery.remote_queues import RemoteQueues
from broker.delivery.tls import TlsIdentity
from schemas.amqp_addresses import Address

LOOPBACK = ip_network("127.0.0.0/8")
Play = Callable[["Playing"], Awaitable[None]]
START = commands.Connection.Start(0, 9, {}, "PLAIN EXTERNAL", "en_US")


class Playing:
    """The other side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def say(self, content: Any, channel: int = 0) -> None:
        self.writer.write(content if isinstance(content, bytes) else method(content, channel))

    async def hear(self) -> Any:
        head = await self.reader.readexactly(7)
        size = struct.unpack(">I", head[3:])[0]
        return frame.unmarshal(head + await self.reader.readexactly(size + 1))[2]

    async def hear_message(self) -> None:
        while not isinstance(await self.hear(), ContentBody):
            pass

    async def let_in(self, heartbeat: int = 60) -> None:
        assert await self.reader.readexactly(8) == PROTOCOL
        self.say(START)
        assert isinstance(await self.hear(), commands.Connection.StartOk)
        self.say(commands.Connection.Tune(2047, FRAME_MAX, heartbeat))
        assert isinstance(await self.hear(), commands.Connection.TuneOk)
        assert isinstance(await self.hear(), commands.Connection.Open)
        self.say(commands.Connection.OpenOk())
        assert isinstance(await self.hear(), commands.Channel.Open)
        self.say(commands.Channel.OpenOk(), 1)
        assert isinstance(await self.hear(), commands.Confirm.Select)
        self.say(commands.Confirm.SelectOk(), 1)


class Told(QueueExchange):
    def __init__(self) -> None:
        super().__init__()
        self.future: asyncio.Future[Reason | None] = asyncio.get_running_loop().create_future()

    def confirmed(self) -> None:
        self.future.set_result(None)

    def failed(self, reason: Reason) -> None:
        self.future.set_result(reason)

    def answered(self, answer: Answer) -> None:
        raise AssertionError


def target_at(port: int, host: str = "127.0.0.1", tls: TlsIdentity | None = None) -> AmqpTarget:
    address = Address("", "q")
    server = Server(tls is not None, host, port, "/")
    return AmqpTarget(uuid4(), server, address, Login("/", ("a", "b"), "bode"), tls, amqp_frames.publish("", "q"))


def message(body: bytes = b"{}", identity: str = "een") -> AmqpMessage:
    return message_of(body, "application/json", identity, 1, "v1,a", "00-1-2-01")


@asynccontextmanager
async def queues(fence: Fence | None = None, seconds: float = 5) -> AsyncIterator[RemoteQueues]:
    made = RemoteQueues(Dialler(fence or Fence(allow=[LOOPBACK])), total_seconds=seconds)
    try:
        yield made
    finally:
        made.close()


@asynccontextmanager
async def played(play: Play) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await play(Playing(reader, writer))

    async with serving(serve) as port:
        yield port


async def published(to: RemoteQueues, target: AmqpTarget, **given: Any) -> Reason | None:
    told = Told()
    to.begin(target, message(**given), told)
    async with asyncio.timeout(30):
        return await told.future
