"""The connection that all queues on the broker's RabbitMQ share, to one that behaves as it likes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from played_rabbitmq import Playing, Told, message, played
from pydantic import SecretStr

from broker.delivery import amqp_frames
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
        await made.close()


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
