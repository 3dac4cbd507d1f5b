"""Publishing over RabbitMQ: everything confirmed is in a queue, in order, through lost connections."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage
from serving import serving
from yarl import URL

from broker.ingest import amqp
from broker.tools.local.rabbitmq import RabbitMQ
from broker.tools.publish import Tally, send
from broker.tools.publish_doors import AmqpDoor, DoorClosed

_QUEUES = 2


class Proxy:
    """Stands before RabbitMQ, and cuts its connections when told."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers |= {writer, upstream_writer}
        try:
            await asyncio.gather(_copy(reader, upstream_writer), _copy(upstream_reader, writer))
        finally:
            upstream_writer.transport.abort()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    port = URL(url).port
    assert port is not None
    proxy = Proxy(port)
    async with serving(proxy.serve) as listening:
        yield proxy, str(URL(url).with_port(listening))


@asynccontextmanager
async def topology(rabbitmq: RabbitMQ) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """The broker's queues, empty."""
    connection = await aio_pika.connect(rabbitmq.url())
    async with connection, connection.channel() as channel:
        await amqp.declare(connection, _QUEUES)
        for number in range(_QUEUES):
            await (await channel.get_queue(amqp.queue_name(number))).purge()
        yield channel


async def queued(channel: aio_pika.abc.AbstractChannel, count: int) -> list[AbstractIncomingMessage]:
    """Take messages from the queues until `count` different ones came."""
    arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
    for number in range(_QUEUES):
        queue = await channel.get_queue(amqp.queue_name(number))
        await queue.consume(arrived.put, no_ack=True)
    messages, seen = [], set()
    async with asyncio.timeout(30):
        while len(seen) < count:
            messages.append(await arrived.get())
            seen.add(messages[-1].body)
    return messages


def event(number: int, subject: str | None, type: str = "nl.bag.x") -> bytes:
    members = {"specversion": "1.0", "id": str(number), "source": "urn:s", "type": type, "subject": subject}
    return json.dumps({name: value for name, value in members.items() if value is not None}).encode()


async def test_message_is_persistent_headed_and_from_its_registry(rabbitmq: RabbitMQ) -> None:
    async with topology(rabbitmq) as channel:
        tally = Tally()
        door = AmqpDoor(rabbitmq.url("bag"), tally)
        await send([event(1, "0599100000000001"), event(2, None)], lambda _: door, tally, rate=None)
        messages = {json.loads(message.body)["id"]: message for message in await queued(channel, 2)}

    assert tally.safe == 2
    for message in messages.values():
        assert message.user_id == "bag"
        assert message.routing_key == "nl.bag.x"
        assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
        assert message.content_type == "application/cloudevents+json; charset=utf-8"
    assert messages["1"].headers == {"cloudEvents:subject": "0599100000000001"}
    assert messages["1"].body == event(1, "0599100000000001")
    assert messages["2"].headers == {}


async def test_everything_arrives_in_order_though_the_connection_is_cut(rabbitmq: RabbitMQ) -> None:
    count, subjects = 2000, 7
    async with topology(rabbitmq) as channel, proxied(rabbitmq.url("bag")) as (proxy, url):

        def cut(_: object) -> None:
            if tally.safe in (300, 1200):
                proxy.cut()

        tally = Tally(on_confirmed=cut)
        door = AmqpDoor(url, tally)
        events = (event(number, str(number % subjects)) for number in range(count))
        async with asyncio.timeout(60):
            await send(events, lambda _: door, tally, rate=None)
        messages = await queued(channel, count)

    assert tally.safe == count
    assert proxy.connections == 3
    first_arrivals: dict[str, list[int]] = defaultdict(list)
    seen = set()
    for message in messages:
        content = json.loads(message.body)
        if content["id"] not in seen:
            seen.add(content["id"])
            first_arrivals[content["subject"]].append(int(content["id"]))
    assert len(seen) == count
    assert all(numbers == sorted(numbers) for numbers in first_arrivals.values())


@pytest.mark.parametrize("count", [1, 300])
async def test_type_that_the_registry_may_not_publish_is_named(rabbitmq: RabbitMQ, count: int) -> None:
    async with topology(rabbitmq):
        tally = Tally()
        door = AmqpDoor(rabbitmq.url("bag"), tally)
        with pytest.raises(DoorClosed, match=r"ACCESS_REFUSED.*'nl\.brp\.x'.*user 'bag'"):
            await send([event(number, "s", "nl.brp.x") for number in range(count)], lambda _: door, tally, rate=None)
    assert tally.safe == 0


async def test_wrong_password_is_told_without_repeating_it(rabbitmq: RabbitMQ) -> None:
    tally = Tally()
    url = URL(rabbitmq.url("bag")).with_password("not-the-password")
    door = AmqpDoor(str(url), tally)

    with pytest.raises(DoorClosed, match="RabbitMQ refuses: ACCESS_REFUSED") as error:
        await send([event(1, "s")], lambda _: door, tally, rate=None)

    assert "not-the-password" not in str(error.value)


async def test_door_gives_up_where_nobody_listens() -> None:
    tally = Tally()
    door = AmqpDoor("amqp://bag:secret@127.0.0.1:9/bode", tally, patience=timedelta(0))

    with pytest.raises(DoorClosed, match=r"no connection with RabbitMQ at 127\.0\.0\.1:9") as error:
        await send([event(1, "s")], lambda _: door, tally, rate=None)

    assert "secret" not in str(error.value)
