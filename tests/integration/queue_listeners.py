"""Consumers of providers' queues on a real RabbitMQ, that write down what came when, as sinks do."""

import asyncio
import json
import time
from collections import deque
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, Self

import aio_pika
from scripted_sinks import Arrival, Move, Script

FROM_A_QUEUE: Final = ""
"""The process of an arrival: a message doesn't tell who published it."""
_REQUESTS: Final = count(1)
_EMPTY_SECONDS: Final = 30


@dataclass
class QueueListener:
    """Takes what comes into one queue."""

    script: Script
    _channel: aio_pika.abc.AbstractChannel
    _queue: aio_pika.abc.AbstractQueue
    _tag: str = ""

    @classmethod
    async def listen(cls, connection: aio_pika.abc.AbstractConnection, queue: str) -> Self:
        """Begin to take what comes; the queue is made first, as its operator may."""
        channel = await connection.channel()
        declared = await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})
        made = cls(Script(deque(), Move.ACCEPT, 0), channel, declared)
        made._tag = await declared.consume(made._take, no_ack=True)
        return made

    async def _take(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        now, event = time.time(), json.loads(message.body)
        number = int(event["subscriptionsequence"])
        assert message.message_id is not None
        assert message.message_id.endswith(f"_{number}")
        self.script.arrivals.append(
            Arrival(
                event["subscription"], number, FROM_A_QUEUE, event["id"], Move.ACCEPT, 0, now, now, next(_REQUESTS),
                ended=now, ended_by_clock=now,
            )
        )  # fmt: skip

    async def close(self) -> None:
        """Take what is there, and delete the queue."""
        async with asyncio.timeout(_EMPTY_SECONDS):
            while (await self._count()) > 0:
                await asyncio.sleep(0.01)
        await self._queue.cancel(self._tag)  # answered after what was sent before it
        await asyncio.sleep(0.01)
        await self._queue.delete(if_unused=False, if_empty=False)
        await self._channel.close()

    async def _count(self) -> int:
        found: Any = await self._channel.declare_queue(self._queue.name, passive=True)
        return int(found.declaration_result.message_count or 0)
