"""Yardsticks beside the benchmark of delivery: the same machine, receiver and payload, and nothing of the broker.

The bare client is ours (`broker.delivery.client`), in a loop; the bare aiohttp loop does the same with aiohttp; the
bare consume loop takes messages from a quorum queue and acknowledges them, as ingest does, and looks at nothing. What a
signature costs, of each kind, is measured over a notification of the payload's size.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import aio_pika
import aiohttp
import aiormq.abc

from broker.delivery.client import Client
from broker.delivery.exchanges import Target
from broker.delivery.fence import Fence
from broker.delivery.signing import AsymmetricKey, Signer, SigningKey
from broker.tools.bench_sink import NETWORK, Sink
from subscriptions.secrets import signing_secret

SIDE_BY_SIDE: Final = 32
_HEADERS: Final = {
    "content-type": "application/cloudevents+json",
    "webhook-id": "dlv_yardstick",
    "webhook-timestamp": "0",
}
_QUEUE: Final = "bode.bench.yardstick"
_PREFETCH: Final = 1000
_ACKNOWLEDGE_EVERY: Final = 100


@dataclass(frozen=True, slots=True)
class Yardstick:
    """Operations per second in one process, and CPU microseconds of that process for each."""

    per_second: float
    cpu_us: float


async def measure(sink: Sink, amqp_url: str, payload_bytes: int, count: int) -> dict[str, Yardstick]:
    """All yardsticks, one after the other, `count` operations each (half as many with aiohttp)."""
    body = b"x" * payload_bytes
    return {
        "bare_client": await _bare_client(sink, body, count),
        "bare_aiohttp": await _bare_aiohttp(sink, body, max(count // 2, SIDE_BY_SIDE)),
        "signing_v1": _signing(SigningKey(signing_secret()), body, count),
        "signing_v1a": _signing(AsymmetricKey(os.urandom(32)), body, count),
        "bare_consume": await _bare_consume(amqp_url, body, count),
    }


def _signing(key: Signer, body: bytes, count: int) -> Yardstick:
    for number in range(max(count // 10, 1)):
        key.sign(f"dlv_yardstick_{number}", 0, body)
    started, cpu = time.perf_counter(), time.process_time()
    for number in range(count):
        key.sign(f"dlv_yardstick_{number}", number, body)
    return _yardstick(count, started, cpu)


async def _bare_client(sink: Sink, body: bytes, count: int) -> Yardstick:
    fence = Fence(allow=[NETWORK])
    client = Client(fence, total_seconds=10)
    target = Target.of(sink.url(0))
    try:
        return await _posts(lambda: client.request("POST", target, _HEADERS, body), count)
    finally:
        client.close()
        fence.close()


async def _bare_aiohttp(sink: Sink, body: bytes, count: int) -> Yardstick:
    url = sink.url(0)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=SIDE_BY_SIDE)) as session:

        async def post() -> None:
            async with session.post(url, data=body, headers=_HEADERS) as answer:
                await answer.read()

        return await _posts(post, count)


async def _posts(post: Callable[[], Awaitable[object]], count: int) -> Yardstick:
    async def loop(times: int) -> None:
        for _ in range(times):
            await post()

    async def all_loops(times: int) -> None:
        await asyncio.gather(*(loop(times) for _ in range(SIDE_BY_SIDE)))

    each = max(count // SIDE_BY_SIDE, 1)
    await all_loops(max(each // 10, 1))
    started, cpu = time.perf_counter(), time.process_time()
    await all_loops(each)
    return _yardstick(each * SIDE_BY_SIDE, started, cpu)


async def _bare_consume(url: str, body: bytes, count: int) -> Yardstick:
    connection = await aio_pika.connect(url, timeout=10)
    async with connection, connection.channel(publisher_confirms=True) as channel:
        queue = await channel.declare_queue(_QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        for start in range(0, count, 500):
            several = min(500, count - start)
            await asyncio.gather(
                *(channel.default_exchange.publish(message, routing_key=_QUEUE) for _ in range(several))
            )
        try:
            return await _consume(connection, count)
        finally:
            await queue.delete(if_unused=False, if_empty=False)


async def _consume(connection: aio_pika.abc.AbstractConnection, count: int) -> Yardstick:
    async with connection.channel(publisher_confirms=False) as channel:
        await channel.set_qos(prefetch_count=_PREFETCH)
        underlay = await channel.get_underlay_channel()
        done = asyncio.Event()
        consumed = 0

        async def receive(delivered: aiormq.abc.DeliveredMessage) -> None:
            nonlocal consumed
            consumed += 1
            if consumed % _ACKNOWLEDGE_EVERY == 0 or consumed == count:
                await underlay.basic_ack(delivered.delivery_tag or 0, multiple=True)
            if consumed == count:
                done.set()

        started, cpu = time.perf_counter(), time.process_time()
        await underlay.basic_consume(_QUEUE, receive)
        async with asyncio.timeout(120):
            await done.wait()
        return _yardstick(count, started, cpu)


def _yardstick(count: int, started: float, cpu: float) -> Yardstick:
    return Yardstick(count / (time.perf_counter() - started), (time.process_time() - cpu) / count * 1e6)
