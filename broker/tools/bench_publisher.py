"""Publishing for the benchmarks: as fast as RabbitMQ confirms, or at a steady pace with the time of each confirm."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aio_pika.abc import AbstractExchange
from pydantic import SecretStr

from broker.ingest import amqp
from broker.ingest.publishing import message_of
from broker.rabbitmq import AmqpSettings, connect
from broker.tools.bench_installation import REGISTRY
from schemas.cloudevents import Event

_UNDER_WAY = 500


class Publisher:
    """A connection that publishes as a registry, with confirms."""

    def __init__(self, exchange: AbstractExchange, registry: str = REGISTRY) -> None:
        self._exchange = exchange
        self._registry = registry

    async def all_at_once(self, events: Sequence[tuple[int, Event]]) -> None:
        """Publish, and wait until all are confirmed."""
        for start in range(0, len(events), _UNDER_WAY):
            await asyncio.gather(*(self._publish(event) for _, event in events[start : start + _UNDER_WAY]))

    async def steadily(self, events: Sequence[tuple[int, Event]], per_second: float) -> dict[int, int]:
        """Publish so many a second, whatever becomes of them; when each was confirmed, in monotonic nanoseconds."""
        confirmed: dict[int, int] = {}

        async def publish(number: int, event: Event) -> None:
            await self._publish(event)
            confirmed[number] = time.monotonic_ns()

        started = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for place, (number, event) in enumerate(events):
                early = started + place / per_second - time.monotonic()
                if early > 0:
                    await asyncio.sleep(early)
                group.create_task(publish(number, event))
        return confirmed

    async def _publish(self, event: Event) -> None:
        await self._exchange.publish(message_of(event, self._registry), routing_key=event.type)


@asynccontextmanager
async def publisher(url: str, registry: str = REGISTRY) -> AsyncIterator[Publisher]:
    """A publisher on an exchange that is there."""
    connection = await connect(AmqpSettings(url=SecretStr(url)), "bode bench")
    async with connection, connection.channel(publisher_confirms=True) as channel:
        yield Publisher(await channel.get_exchange(amqp.EXCHANGE, ensure=False), registry)
