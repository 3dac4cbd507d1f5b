"""The consumer of one ingest queue: batches in order, each acknowledged after its commit, never requeued.

A batch that can't be committed stays in memory, unacknowledged, and is tried again: cancelling, nack or requeue would
reorder, a closed connection doesn't. When the connection goes, its unacknowledged messages come again, in order, and
deduplication recognises what had been committed.
"""

import asyncio
from asyncio import FIRST_COMPLETED
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiormq
from pydantic import BaseModel, ConfigDict, Field

from broker.ingest import amqp, intake
from broker.ingest.accept import Accepted, Acceptor, Message, Result
from broker.ingest.intake import Delivery
from broker.ingest.turns import Turns
from broker.rabbitmq import BROKER_TROUBLE, AmqpSettings, hang_ups
from broker.storage.pool import DATABASE_TROUBLE
from broker.storage.routes import IngestQueue
from broker.telemetry import BATCH_EVENTS, COMMIT_SECONDS, INGEST_QUEUES, RECEIVED, WORKER_ERRORS, log

_LONGEST_PAUSE: Final = 5.0
_SHARED_DELIVERIES: Final = 2000
"""As many deliveries, expected by the fan-out of late, may be in a batch that others wait for."""
_SMOOTHING: Final = 0.2


class IngestSettings(BaseModel):
    """How events are taken in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_max: int = Field(default=500, ge=1, le=5000, description="Most messages in one commit.")
    batch_shared: int = Field(
        default=100, ge=1, le=5000, description="Most messages in one commit while other registries have some too."
    )
    concurrency: int = Field(default=4, ge=1, le=64, description="Commits under way at once in one process.")
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
        queue: IngestQueue,
        settings: AmqpSettings,
        ingest: IngestSettings,
        acceptor: Acceptor,
        turns: Turns,
        woken: "asyncio.Queue[Accepted]",
        *,
        event_max_bytes: int,
    ) -> None:
        self._queue = queue
        self._settings = settings
        self._ingest = ingest
        self._acceptor = acceptor
        self._turns = turns
        self._woken = woken
        self._event_max_bytes = event_max_bytes
        self._fan_out = 1.0

    async def run(self) -> None:
        """Consume, reconnecting with growing pauses."""
        pause = 0.1
        while True:
            try:
                arrivals = _Arrivals(self._event_max_bytes)
                connection = await intake.connect(self._settings, f"bode {self._queue.name}", arrivals.put)
                try:
                    pause = 0.1
                    INGEST_QUEUES.inc()
                    with hang_ups():
                        await self._consume(connection, arrivals)
                finally:
                    INGEST_QUEUES.dec()
                    # closing with unacknowledged messages returns them in order
                    await asyncio.shield(intake.close(connection))
            except BROKER_TROUBLE as error:
                WORKER_ERRORS.labels("queue-consumer").inc()
                log().warning("ingest-connection-lost", queue=self._queue.name, error=type(error).__name__)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _consume(self, connection: aiormq.abc.AbstractConnection, arrivals: "_Arrivals") -> None:
        channel = await connection.channel(publisher_confirms=False)
        await channel.basic_qos(prefetch_count=self._settings.prefetch, timeout=self._settings.connect_seconds)
        await channel.basic_consume(self._queue.name, _not_tapped, timeout=self._settings.connect_seconds)
        closed = asyncio.ensure_future(asyncio.wait({connection.closing, channel.closing}, return_when=FIRST_COMPLETED))
        try:
            while True:
                if not arrivals.waiting:
                    arriving = asyncio.ensure_future(arrivals.come.wait())
                    try:
                        await asyncio.wait({arriving, closed}, return_when=FIRST_COMPLETED)
                    finally:
                        arriving.cancel()
                if closed.done():
                    raise ConnectionError("RabbitMQ closed the connection")
                arrivals.come.clear()
                if arrivals.waiting:
                    last, results = await self._accept(arrivals.waiting, {closed})
                    await channel.basic_ack(last.tag, multiple=True)
                    for result in results:
                        if isinstance(result, Accepted) and result.subscriptions:
                            self._woken.put_nowait(result)
        finally:
            closed.cancel()

    async def _accept(
        self, arrivals: deque[_Arrival], closed: "set[asyncio.Future[Any]]"
    ) -> tuple[_Arrival, list[Result]]:
        """Commit a batch, as often as it takes; gives up only with the connection, which redelivers it.

        `closed` are the ends of connection and channel: of a connection that was reset only the channel tells.
        """
        batch: list[_Arrival] = []
        pause = 0.05
        while True:
            async with self._turns.turn(self._queue.organisation_id):
                if not batch:
                    batch = [arrivals.popleft() for _ in range(min(len(arrivals), self._batch_limit()))]
                    RECEIVED.labels("amqp").inc(len(batch))
                    BATCH_EVENTS.observe(len(batch))
                try:
                    with COMMIT_SECONDS.time():
                        results = await self._acceptor.accept([arrival.message for arrival in batch])
                except DATABASE_TROUBLE as error:
                    WORKER_ERRORS.labels("acceptance").inc()
                    log().warning(
                        "acceptance-failed", queue=self._queue.name, events=len(batch), error=type(error).__name__
                    )
                else:
                    self._note_fan_out(results)
                    return batch[-1], results
            ended, _ = await asyncio.wait(closed, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            if ended:
                raise ConnectionError("RabbitMQ closed the connection while the database was away")
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _batch_limit(self) -> int:
        """Few while other registries have events too: they wait for this batch."""
        if not self._turns.crowded(self._queue.organisation_id):
            return self._ingest.batch_max
        by_deliveries = int(_SHARED_DELIVERIES / max(self._fan_out, 1.0))
        return max(min(self._ingest.batch_shared, self._ingest.batch_max, by_deliveries), 1)

    def _note_fan_out(self, results: Sequence[Result]) -> None:
        deliveries = sum(len(result.subscriptions) for result in results if isinstance(result, Accepted))
        self._fan_out += (deliveries / len(results) - self._fan_out) * _SMOOTHING


class _Arrivals:
    """What has come and is not taken yet; `come` is set when something does."""

    def __init__(self, event_max_bytes: int) -> None:
        self._event_max_bytes = event_max_bytes
        self.waiting: deque[_Arrival] = deque()
        self.come = asyncio.Event()

    def put(self, delivery: Delivery) -> None:
        message = amqp.read_message(
            delivery.body,
            delivery.headers,
            content_type=delivery.content_type,
            user_id=delivery.user_id,
            routing_key=delivery.routing_key,
            max_bytes=self._event_max_bytes,
        )
        self.waiting.append(_Arrival(delivery.tag, message))
        self.come.set()


async def _not_tapped(_: aiormq.abc.DeliveredMessage) -> None:
    """Deliveries are taken before they come to the library."""
