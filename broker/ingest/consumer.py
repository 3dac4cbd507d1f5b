"""The consumer of one ingest queue: batches in order, each acknowledged after its commit, never requeued.

A batch that can't be committed stays in memory, unacknowledged, and is tried again: cancelling, nack or requeue would
reorder, a closed connection doesn't. When the connection goes, its unacknowledged messages come again, in order, and
deduplication recognises what had been committed.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aio_pika
import aiormq.abc
import asyncpg
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.exc import SQLAlchemyError

from broker.ingest import amqp
from broker.ingest.accept import Accepted, Acceptor, Message, Result
from broker.ingest.amqp import AmqpSettings
from broker.telemetry import BATCH_EVENTS, COMMIT_SECONDS, INGEST_QUEUES, RECEIVED, WORKER_ERRORS, log

DATABASE_TROUBLE: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    SQLAlchemyError,
    OSError,
    TimeoutError,
)
BROKER_TROUBLE: Final = (aio_pika.exceptions.AMQPError, aiormq.exceptions.AMQPError, OSError, TimeoutError)
_LONGEST_PAUSE: Final = 5.0


class IngestSettings(BaseModel):
    """How events are taken in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_max: int = Field(default=500, ge=1, le=5000, description="Most messages in one commit.")
    lease_seconds: float = Field(default=6, ge=1, le=60, description="How long a queue stays with a silent process.")
    follow_dir: Path | None = Field(
        default=None,
        description="Directory for arrays of follow lists, shared by processes; without it each reads them at start.",
    )


@dataclass(slots=True)
class _Arrival:
    tag: int
    message: Message


class QueueConsumer:
    """Consumes one queue until cancelled; `woken` is told which subscriptions got something new."""

    def __init__(
        self,
        number: int,
        settings: AmqpSettings,
        acceptor: Acceptor,
        woken: "asyncio.Queue[Accepted]",
        *,
        batch_max: int,
        event_max_bytes: int,
    ) -> None:
        self._number = number
        self._settings = settings
        self._acceptor = acceptor
        self._woken = woken
        self._batch_max = batch_max
        self._event_max_bytes = event_max_bytes

    async def run(self) -> None:
        """Consume, reconnecting with growing pauses."""
        pause = 0.1
        while True:
            try:
                connection = await amqp.connect(self._settings, f"bode ingest {self._number}")
                try:
                    pause = 0.1
                    INGEST_QUEUES.inc()
                    await self._consume(connection)
                finally:
                    INGEST_QUEUES.dec()
                    # closing with unacknowledged messages returns them in order
                    await asyncio.shield(_close(connection))
            except BROKER_TROUBLE as error:
                WORKER_ERRORS.labels("queue-consumer").inc()
                log().warning("ingest-connection-lost", queue=self._number, error=type(error).__name__)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _consume(self, connection: aio_pika.abc.AbstractConnection) -> None:
        channel = await connection.channel(publisher_confirms=False)
        await channel.set_qos(prefetch_count=self._settings.prefetch)
        underlay = await channel.get_underlay_channel()
        arrivals: deque[_Arrival] = deque()
        arrived = asyncio.Event()

        async def receive(delivered: aiormq.abc.DeliveredMessage) -> None:
            arrivals.append(self._read(delivered))
            arrived.set()

        await underlay.basic_consume(amqp.queue_name(self._number), receive, timeout=self._settings.connect_seconds)
        closed = asyncio.ensure_future(connection.closed())
        channel_closed = asyncio.ensure_future(channel.closed())
        try:
            while True:
                if not arrivals:
                    waiting = asyncio.ensure_future(arrived.wait())
                    try:
                        await asyncio.wait({waiting, closed, channel_closed}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        waiting.cancel()
                if closed.done() or channel_closed.done():
                    raise ConnectionError("RabbitMQ closed the connection")
                arrived.clear()
                batch = [arrivals.popleft() for _ in range(min(len(arrivals), self._batch_max))]
                if batch:
                    results = await self._accept(batch, closed)
                    await underlay.basic_ack(batch[-1].tag, multiple=True)
                    for result in results:
                        if isinstance(result, Accepted) and result.subscriptions:
                            self._woken.put_nowait(result)
        finally:
            closed.cancel()
            channel_closed.cancel()

    async def _accept(self, batch: list[_Arrival], closed: "asyncio.Future[Any]") -> list[Result]:
        """Commit a batch, as often as it takes; gives up only with the connection, which redelivers it."""
        RECEIVED.labels("amqp").inc(len(batch))
        BATCH_EVENTS.observe(len(batch))
        messages = [arrival.message for arrival in batch]
        pause = 0.05
        while True:
            try:
                with COMMIT_SECONDS.time():
                    return await self._acceptor.accept(messages)
            except DATABASE_TROUBLE as error:
                WORKER_ERRORS.labels("acceptance").inc()
                log().warning("acceptance-failed", queue=self._number, events=len(batch), error=type(error).__name__)
            await asyncio.wait({closed}, timeout=pause)
            if closed.done():
                raise ConnectionError("RabbitMQ closed the connection while the database was away")
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _read(self, delivered: aiormq.abc.DeliveredMessage) -> _Arrival:
        properties = delivered.header.properties
        message = amqp.read_message(
            delivered.body,
            properties.headers or {},
            content_type=properties.content_type,
            user_id=properties.user_id,
            routing_key=delivered.routing_key or "",
            max_bytes=self._event_max_bytes,
        )
        assert delivered.delivery_tag is not None
        return _Arrival(delivered.delivery_tag, message)


async def _close(connection: aio_pika.abc.AbstractConnection) -> None:
    try:
        async with asyncio.timeout(2):
            await connection.close()
    except (*BROKER_TROUBLE, asyncio.CancelledError):
        pass
