"""The private RabbitMQ: who may do what, what it listens on, what survives, and what its logs hold."""

import asyncio
import os
import signal
import socket
import subprocess
from pathlib import Path
from uuid import uuid4

import aio_pika
import aiormq
import pytest
from local_processes import family, listening, marked, until_registered

from broker.tools.local.definitions import EXCHANGE
from broker.tools.local.rabbitmq import RabbitMQ, Registry

MARKER = b"999990019-in-a-body"


async def publish(url: str, routing_key: str, user_id: str | None = None) -> None:
    async with await aio_pika.connect(url, timeout=10) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(EXCHANGE, ensure=False)
        message = aio_pika.Message(MARKER, user_id=user_id)
        await exchange.publish(message, routing_key, mandatory=False, timeout=10)


@pytest.fixture
async def queue(rabbitmq: RabbitMQ) -> str:
    """A queue of the broker's that everything on the exchange goes to."""
    async with await aio_pika.connect(rabbitmq.url(), timeout=10) as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange(
            EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True, arguments={"alternate-exchange": "bode.unrouted"}
        )
        queue = await channel.declare_queue(f"test-{uuid4().hex}", arguments={"x-expires": 60_000})
        await queue.bind(exchange, routing_key="#")
        return queue.name


async def test_registry_publishes_its_own_types_and_the_broker_reads_them(rabbitmq: RabbitMQ, queue: str) -> None:
    await publish(rabbitmq.url("bag"), "nl.bag.pand-gewijzigd", user_id="bag")
    async with await aio_pika.connect(rabbitmq.url(), timeout=10) as connection:
        channel = await connection.channel()
        message = await (await channel.get_queue(queue)).get(timeout=10)
        assert message is not None
        assert (message.body, message.user_id) == (MARKER, "bag")
        await message.ack()


@pytest.mark.parametrize(
    ("user", "routing_key", "user_id"),
    [
        ("bag", "nl.brp.persoon-verhuisd", "bag"),
        ("bag", "nl.bagx.pand-gewijzigd", "bag"),
        ("bag", "xnl.bag.pand-gewijzigd", "bag"),
        ("bag", "nl.bag.pand-gewijzigd", "brp"),
    ],
)
async def test_registry_publishes_nothing_else(
    rabbitmq: RabbitMQ, queue: str, user: str, routing_key: str, user_id: str
) -> None:
    with pytest.raises((aiormq.exceptions.ChannelAccessRefused, aiormq.exceptions.ChannelPreconditionFailed)):
        await publish(rabbitmq.url(user), routing_key, user_id)


async def test_broker_publishes_for_a_registry(rabbitmq: RabbitMQ, queue: str) -> None:
    await publish(rabbitmq.url(), "nl.brp.persoon-verhuisd", user_id="brp")


async def test_registry_can_neither_declare_nor_read(rabbitmq: RabbitMQ, queue: str) -> None:
    async with await aio_pika.connect(rabbitmq.url("bag"), timeout=10) as connection:
        with pytest.raises(aiormq.exceptions.ChannelAccessRefused):
            await (await connection.channel()).declare_queue("mine")
        with pytest.raises(aiormq.exceptions.ChannelAccessRefused):
            await (await (await connection.channel()).get_queue(queue, ensure=False)).get(timeout=10)


@pytest.mark.parametrize("login", ["guest:guest", "bode:wrong", "bag:"])
async def test_nobody_else_gets_in(rabbitmq: RabbitMQ, login: str) -> None:
    with pytest.raises((aiormq.exceptions.AMQPConnectionError, aiormq.exceptions.ProbableAuthenticationError)):
        await aio_pika.connect(f"amqp://{login}@127.0.0.1:{rabbitmq.port}/bode", timeout=10)


async def test_listens_on_loopback_only_and_runs_no_epmd(rabbitmq: RabbitMQ) -> None:
    addresses = listening(rabbitmq.folder)
    assert ("127.0.0.1", rabbitmq.port) in addresses
    assert {address for address, _ in addresses} == {"127.0.0.1"}
    names = {process.name() for process in family(marked(rabbitmq.folder))}
    assert "beam.smp" in names
    assert not {name for name in names if "epmd" in name}


def test_what_rabbitmq_does_each_minute_starts_no_epmd_either(rabbitmq: RabbitMQ) -> None:
    node = next(process for process in marked(rabbitmq.folder) if process.name() == "beam.smp")
    environment = node.environ()
    starter = ["erl", "-boot", "no_dot_erlang", "-sname", "epmd-starter", "-noinput", "-s", "erlang", "halt"]
    subprocess.run(starter, env=environment, timeout=30, check=False, capture_output=True)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(environment["ERL_EPMD_PORT"])), timeout=5)


async def test_broker_can_make_the_partitioning_exchange(rabbitmq: RabbitMQ) -> None:
    async with await aio_pika.connect(rabbitmq.url(), timeout=10) as connection:
        channel = await connection.channel()
        await channel.declare_exchange("test-hash", aio_pika.ExchangeType.X_CONSISTENT_HASH, auto_delete=True)


async def test_killed_server_is_restarted_on_its_port_keeps_messages_and_logs_no_body(tmp_path: Path) -> None:
    changes = asyncio.Queue[tuple[str, int | None]]()
    folder = tmp_path / "rabbitmq"
    async with RabbitMQ(folder, [Registry("bag", "nl.bag."), Registry("hr", "nl.hr.")]) as server:
        url, former = server.url(), server.url("hr")
        async with await aio_pika.connect(url, timeout=10) as connection:
            channel = await connection.channel()
            queue = await channel.declare_queue("kept", durable=True, arguments={"x-queue-type": "quorum"})
            message = aio_pika.Message(MARKER, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
            await channel.default_exchange.publish(message, queue.name, timeout=10)
        supervision = asyncio.create_task(server.run(lambda name, code: changes.put_nowait((name, code))))
        await until_registered(folder, "kept")
        node = next(process for process in marked(folder) if process.name() == "beam.smp")
        node.send_signal(signal.SIGKILL)
        async with asyncio.timeout(60):
            assert await changes.get() == ("rabbitmq", 128 + signal.SIGKILL)
            assert await changes.get() == ("rabbitmq", None)
        supervision.cancel()
        await asyncio.wait([supervision])
        async with await aio_pika.connect(url, timeout=10) as connection:
            kept = await (await (await connection.channel()).get_queue("kept")).get(timeout=10)
            assert kept is not None
            assert kept.body == MARKER
            await kept.ack()
    assert marked(folder) == []
    async with RabbitMQ(folder, [Registry("bag", "nl.bag.")]) as server:
        assert server.url().rpartition("@")[0] == url.rpartition("@")[0]
        gone = former.rpartition("@")[0] + f"@127.0.0.1:{server.port}/bode"
        with pytest.raises((aiormq.exceptions.AMQPConnectionError, aiormq.exceptions.ProbableAuthenticationError)):
            await aio_pika.connect(gone, timeout=10)
    logs = [*folder.glob("*.log"), *(folder / "logs").iterdir()]
    said = b"".join(log.read_bytes() for log in logs)
    assert b"Server startup complete" in said
    assert MARKER not in said
    assert not [*folder.rglob("erl_crash.dump")]
    assert {oct(path.stat().st_mode & 0o077) for path in folder.iterdir()} == {"0o0"}
    assert os.stat(folder / "home" / ".erlang.cookie").st_mode & 0o777 == 0o400
