"""Notifications into providers' queues on the broker's RabbitMQ: published with confirms, which are the outcome.

    confirmed ──► the queue has it, on a majority of its nodes      returned ──► there is no such queue: failed
    refused (the queue is full) ──► failed                          RabbitMQ away ──► nobody's failure; again soon

A queue is declared when something is first to go into it, and again when it turns out to be missing. All queues share
one connection of the process, which is made when it is needed. Order within a lane needs nothing here: one delivery of
a lane is under way at a time.
"""

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import Final

import aio_pika
import aiormq
from aio_pika.abc import AbstractChannel, AbstractConnection
from pamqp.commands import Basic
from pamqp.common import FieldValue

from broker.delivery.exchanges import QueueExchange
from broker.delivery.outcomes import Reason
from broker.ingest import amqp
from broker.ingest.amqp import AmqpSettings
from broker.telemetry import WORKER_ERRORS, log

SETTLE_SECONDS: Final = 3.0
"""A quorum queue that is new is not safe at once: see `amqp.declare`."""
_CLOSE_SECONDS: Final = 1.0


class Queues:
    """The queues that one process publishes to."""

    def __init__(self, settings: AmqpSettings, *, total_seconds: float, max_length: int) -> None:
        """Make them.

        Args:
            settings: where RabbitMQ is; without a URL nothing can be published.
            total_seconds: limit for one attempt, from connecting to the confirm.
            max_length: messages in a queue, above which it refuses more.
        """
        self._settings = settings
        self._total_seconds = total_seconds
        self._max_length = max_length
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._connecting = asyncio.Lock()
        self._declaring: dict[str, asyncio.Lock] = {}
        self._known: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, queue: str, message: aio_pika.Message, exchange: QueueExchange) -> None:
        """Publish a message; `exchange` is told what came of it."""
        task = asyncio.get_running_loop().create_task(self._publish(queue, message, exchange))
        exchange._carrier = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _publish(self, queue: str, message: aio_pika.Message, exchange: QueueExchange) -> None:
        reason: Reason | None = None
        used: AbstractConnection | None = None
        try:
            async with asyncio.timeout(self._total_seconds):
                with amqp.hang_ups():
                    channel = await self._open_channel()
                    used = self._connection
                    await self._see_to(queue)
                    if not exchange.may_go():
                        return
                    await channel.default_exchange.publish(message, queue, mandatory=True)
        except TimeoutError:  # alarmed, or without a majority: the operator's matter, and not the provider's
            WORKER_ERRORS.labels("queues").inc()
            log().warning("queue-not-reached", error="TimeoutError")
            reason = Reason.RABBITMQ
        except aio_pika.exceptions.DeliveryError as error:
            reason = Reason.QUEUE_FULL if isinstance(error.frame, Basic.Nack) else Reason.QUEUE_MISSING
            self._known.discard(queue)
        except Exception as error:
            # whatever the library raises about a connection that is lost, an attempt must end
            WORKER_ERRORS.labels("queues").inc()
            log().warning("queue-not-reached", error=type(error).__name__)
            reason = Reason.RABBITMQ
            await self._drop(used)
        exchange._carrier = None
        if reason is None:
            exchange.confirmed()
        else:
            exchange.failed(reason)

    async def _open_channel(self) -> AbstractChannel:
        async with self._connecting:
            if self._channel is None or self._channel.is_closed:
                if self._settings.url is None:
                    raise ConnectionError("this process has no RabbitMQ")
                if self._connection is None or self._connection.is_closed:
                    self._connection = await amqp.connect(self._settings, "bode deliver")
                self._known.clear()
                channel = self._connection.channel(publisher_confirms=True, on_return_raises=True)
                try:
                    await channel.initialize()
                except BaseException:
                    await self._drop(self._connection)
                    raise
                self._channel = channel
            return self._channel

    async def _drop(self, connection: AbstractConnection | None) -> None:
        """Connect anew next time: aio_pika may take a connection for open whose other side is gone.

        Others that lost it as well find a new one in its place, which stays.
        """
        if connection is not None and connection is self._connection:
            self._connection = self._channel = None
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await connection.close()

    async def _see_to(self, queue: str) -> None:
        """Declare a queue that isn't there. One that is there stays as its operator made it."""
        if queue in self._known:
            return
        async with self._declaring.setdefault(queue, asyncio.Lock()):
            if queue in self._known:
                return
            assert self._connection is not None
            try:
                async with self._connection.channel() as channel:
                    await channel.declare_queue(queue, durable=True, passive=True)
            except aiormq.exceptions.ChannelNotFoundEntity:
                async with self._connection.channel() as channel:
                    await channel.declare_queue(
                        queue,
                        durable=True,
                        arguments={
                            "x-queue-type": "quorum",
                            "x-max-length": self._max_length,
                            "x-overflow": "reject-publish",
                        },
                    )
                log().info("queue-declared", queue=queue)
                await asyncio.sleep(SETTLE_SECONDS)
            self._known.add(queue)

    async def close(self) -> None:
        """Close the connection."""
        for task in self._tasks:
            task.cancel()
        await self._drop(self._connection)


def message_of(
    content: bytes, content_type: str, identity: str, timestamp: int, signatures: str, trace: str
) -> aio_pika.Message:
    """A notification as an AMQP message, in structured mode (CloudEvents AMQP binding), persistent and signed."""
    headers: dict[str, FieldValue] = {
        "webhook-id": identity,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signatures,
        "traceparent": trace,
    }
    return aio_pika.Message(
        content,
        content_type=content_type,
        message_id=identity,
        timestamp=datetime.fromtimestamp(timestamp, UTC),
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        headers=headers,
    )
