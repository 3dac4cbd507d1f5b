"""The connection that all queues on the broker's RabbitMQ share, to one that behaves as it likes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pamqp import commands
from played_rabbitmq import Playing, Told, message, played
from pydantic import SecretStr

from broker.delivery import amqp_connections, amqp_frames
from broker.delivery.outcomes import Reason
from broker.delivery.queues import Queues
from broker.rabbitmq import AmqpSettings


@asynccontextmanager
async def own_queues(port: int, *seen: str, seconds: float = 5) -> AsyncIterator[Queues]:
    """Queues on the broker's RabbitMQ, some of them known to be there."""
    made = Queues(AmqpSettings(url=SecretStr(f"amqp://127.0.0.1:{port}/")), total_seconds=seconds, max_length=10)
    made._methods.update({queue: amqp_frames.publish("", queue) for queue in seen})
    try:
        yield made
    finally:
        made.close()


async def put(own: Queues, queue: str) -> Reason | None:
    told = Told()
    own.begin(queue, message(), told)
    async with asyncio.timeout(30):
        return await told.future


async def test_one_that_is_away_is_not_tried_by_each_that_waits_for_it() -> None:
    heard = 0

    async def count_and_hang_up(_: Playing) -> None:
        nonlocal heard
        heard += 1

    async with played(count_and_hang_up) as port:
        for seen in ([], [f"q{number}" for number in range(20)]):  # to see whether a queue is there, and to publish
            heard = 0
            async with own_queues(port, *seen) as own:
                told = [await put(own, f"q{number}") for number in range(20)]
            assert set(told) == {Reason.RABBITMQ}
            assert heard == 1


async def test_a_queue_of_ours_that_confirms_nothing_gets_no_more_and_costs_the_others_nothing() -> None:
    heard: list[str] = []
    well = asyncio.Event()

    async def leave_one_queue_out(at: Playing) -> None:
        await at.let_in()
        while True:
            published = await at.hear()
            assert isinstance(published, commands.Basic.Publish)
            await at.hear_message()
            heard.append(published.routing_key)
            if published.routing_key != "sick" or well.is_set():
                at.say(commands.Basic.Ack(len(heard), True), 1)
            elif heard.count("sick") == 2:  # another one is confirmed, so that they were read
                await at.hear_message()
                heard.append("healthy")
                at.say(commands.Basic.Ack(3, False), 1)

    async with played(leave_one_queue_out) as port, own_queues(port, "sick", "healthy", seconds=1) as own:
        told = await asyncio.gather(put(own, "sick"), put(own, "sick"), put(own, "healthy"))
        assert told == [Reason.RABBITMQ, Reason.RABBITMQ, None]
        assert [await put(own, "sick") for _ in range(50)] == [Reason.RABBITMQ] * 50
        assert heard == ["sick", "sick", "healthy"], "RabbitMQ stops reading for all when it has 32 of one queue"
        well.set()
        assert await put(own, "healthy") is None
        assert await put(own, "sick") is None, "all up to the last one were confirmed"
        assert heard[3:] == ["healthy", "sick"]


async def test_a_confirm_that_never_comes_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amqp_connections, "OVERDUE_SECONDS", 0.5)
    connections = 0

    async def be_there(at: Playing) -> None:
        while True:
            at.say(amqp_frames.HEARTBEAT)
            await asyncio.sleep(0.2)

    async def leave_the_first_out(at: Playing) -> None:
        nonlocal connections
        connections += 1
        await at.let_in(heartbeat=1)
        beats = asyncio.create_task(be_there(at))
        try:
            for tag in range(1, 1000):
                await at.hear_message()
                if tag > 1 or connections > 1:
                    at.say(commands.Basic.Ack(tag, False), 1)
        finally:
            beats.cancel()

    async with played(leave_the_first_out) as port, own_queues(port, "a", "b", seconds=1) as own:
        assert await asyncio.gather(put(own, "a"), put(own, "b")) == [Reason.RABBITMQ, None]
        async with asyncio.timeout(10):
            while await put(own, "a") is not None:
                await put(own, "b")
                await asyncio.sleep(0.05)
        assert connections == 2
