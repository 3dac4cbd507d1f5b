"""What became of deliveries that are messages: their rows, and what lies in the queue."""

import asyncio
from typing import Any
from uuid import UUID

import aio_pika
from delivering import Delivering


async def ended(bode: Delivering, identity: str, count: int, seconds: float = 60) -> list[Any]:
    key = (await bode.row(UUID(identity)))["key"]
    async with asyncio.timeout(seconds):
        while True:
            rows = list(await bode.deliveries(key))
            if sum(row["state"] != "pending" for row in rows) >= count:
                return rows
            await asyncio.sleep(0.05)


async def tried(bode: Delivering, identity: str) -> Any:
    """What came of a test notification that is asked for."""
    asked = await bode.world.call("POST", f"/subscriptions/{identity}/test-notifications", key=bode.provider_key)
    assert asked.status == 202, asked.text
    async with asyncio.timeout(30):
        while True:
            shown = (await bode.world.call("GET", asked.headers["location"], key=bode.provider_key)).json
            if shown["state"] != "waiting":
                return shown
            await asyncio.sleep(0.05)


async def taken(at: aio_pika.abc.AbstractChannel, queue: str, count: int) -> list[aio_pika.abc.AbstractIncomingMessage]:
    """As many messages from a queue."""
    messages: list[aio_pika.abc.AbstractIncomingMessage] = []
    source = await at.get_queue(queue)
    async with asyncio.timeout(30):
        while len(messages) < count:
            message = await source.get(fail=False, no_ack=True)
            if message is None:
                await asyncio.sleep(0.05)
            else:
                messages.append(message)
    return messages
