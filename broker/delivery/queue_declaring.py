"""Providers' queues on the broker's RabbitMQ: declared where they are missing, left as they are where they aren't."""

import asyncio
import contextlib
from typing import Final

import aiormq
from aio_pika.abc import AbstractConnection

from broker.delivery.amqp_links import REST_SECONDS
from broker.rabbitmq import AmqpSettings, connect, hang_ups
from broker.telemetry import log

SETTLE_SECONDS: Final = 3.0
"""A quorum queue that is new is not safe at once: see `broker.ingest.amqp.declare`."""
_AT_ONCE: Final = 32
_CLOSE_SECONDS: Final = 1.0


class Declarer:
    """Sees to queues, over a connection that is there as long as there is something to see to."""

    def __init__(self, settings: AmqpSettings, max_length: int) -> None:
        """Make one.

        Args:
            settings: where RabbitMQ is.
            max_length: messages in a queue, above which it refuses more.
        """
        self._settings = settings
        self._max_length = max_length
        self._connection: AbstractConnection | None = None
        self._connecting = asyncio.Lock()
        self._rests_until = 0.0
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._users = 0

    @property
    def rests(self) -> bool:
        """Whether RabbitMQ was away just before, so that it isn't asked now."""
        return asyncio.get_running_loop().time() < self._rests_until

    async def see_to(self, queue: str) -> None:
        """See that a queue is there, and settled where it is new.

        Raises:
            ConnectionError, aio_pika's and aiormq's errors: RabbitMQ can't be reached, or refuses.
        """
        used: AbstractConnection | None = None
        self._users += 1
        try:
            async with self._places:
                with hang_ups():
                    used = await self._open()
                    new = await self._declare(used, queue)
        except BaseException:
            await self._drop(used)  # aio_pika may take a connection for open whose other side is gone
            raise
        finally:
            self._users -= 1
            if not self._users:
                await self._drop(self._connection)
        if new:
            log().info("queue-declared", queue=queue)
            await asyncio.sleep(SETTLE_SECONDS)

    async def _open(self) -> AbstractConnection:
        async with self._connecting:
            if self._connection is None or self._connection.is_closed:
                if self._settings.url is None:
                    raise ConnectionError("this process has no RabbitMQ")
                if self.rests:
                    raise ConnectionError("RabbitMQ was away just before")
                try:
                    self._connection = await connect(self._settings, "bode deliver, declaring")
                except Exception:
                    self._rests_until = asyncio.get_running_loop().time() + REST_SECONDS
                    raise
            return self._connection

    async def _declare(self, connection: AbstractConnection, queue: str) -> bool:
        """Whether it wasn't there."""
        try:
            async with connection.channel() as channel:
                await channel.declare_queue(queue, durable=True, passive=True)
        except aiormq.exceptions.ChannelNotFoundEntity:
            async with connection.channel() as channel:
                await channel.declare_queue(
                    queue,
                    durable=True,
                    arguments={
                        "x-queue-type": "quorum",
                        "x-max-length": self._max_length,
                        "x-overflow": "reject-publish",
                    },
                )
            return True
        return False

    async def _drop(self, connection: AbstractConnection | None) -> None:
        if connection is not None and connection is self._connection:
            self._connection = None
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await connection.close()
