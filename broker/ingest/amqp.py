"""The topology on RabbitMQ, and how a message there becomes one of ours.

    bode.events (topic) ──► bode.routes.8 … 1 (topic; domains by their number of labels, the longest first)
                                │ a registry's domain                    │ no domain (alternate)
                                ▼                                        ▼
                bode.partition.<OIN> (consistent hash        bode.partition (the same)
                  on cloudEvents:subject)                                │
                                ▼                                        ▼
                bode.ingest.<OIN>.0 … (quorum queues,        bode.ingest.0 … N-1
                  single active consumer)

Registries have queues of their own, so that one registry's bulk day leaves the others alone. RabbitMQ partitions by
subject, keeps order within a queue and fails over; it confirms unroutable messages too, which is why `bode.events` and
the partitions have an alternate, `bode.unrouted`, whose queue of that name is alarmed.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, assert_never

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, AbstractQueue

from broker.ingest.accept import Message
from schemas import cloudevents
from schemas.cloudevents import Event, InvalidEvent
from schemas.cloudevents_bindings import ContentMode, amqp_attributes, content_mode

EXCHANGE: Final = "bode.events"
PARTITION: Final = "bode.partition"
UNROUTED: Final = "bode.unrouted"
LEVELS: Final = 8
"""Domains of more labels than this have no route of their own: their events go where those around them go."""
SUBJECT_HEADER: Final = "cloudEvents:subject"
_UNDERSCORE_SUBJECT_HEADER: Final = "cloudEvents_subject"
_SETTLE_SECONDS: Final = 3.0
_DELIVERY_LIMIT: Final = 1_000_000
"""Practically none, on RabbitMQ 3.10 and 4.x alike: 4.x drops after 20 by default, −1 loses at once on 3.10."""


def queue_name(number: int) -> str:
    """The name of shared ingest queue `number`, from 0."""
    return f"bode.ingest.{number}"


def registry_queue_name(oin: str, number: int) -> str:
    """The name of ingest queue `number`, from 0, of a registry."""
    return f"bode.ingest.{oin}.{number}"


def partition_name(oin: str) -> str:
    """The exchange that divides a registry's events over its queues."""
    return f"{PARTITION}.{oin}"


@dataclass(frozen=True, slots=True)
class RegistryRoute:
    """The way of one registry's events: from its domains to its queues."""

    oin: str
    queues: Sequence[str]
    domains: Sequence[str]

    @property
    def partition(self) -> str:
        """Its exchange."""
        return partition_name(self.oin)


async def declare(connection: AbstractConnection, queues: int, registries: Sequence[RegistryRoute] = ()) -> None:
    """Declare the topology, registries included; idempotent. The way is complete before the door `bode.events` exists.

    A new quorum queue is not safe at once: a RabbitMQ that is killed within a second of the declaration may forget it,
    with the messages that it had confirmed. So nothing leads to new ones before a while has passed.
    """
    fresh = [registry for registry in registries if not await _exists(connection, registry.partition)]
    waiting = bool(fresh) or not await _exists(connection, EXCHANGE)
    async with connection.channel() as channel:
        await _declare_unrouted(channel)
        for registry in fresh:
            for name in registry.queues:
                await _declare_queue(channel, name)
        partition = await _declare_partition(channel, PARTITION, [queue_name(number) for number in range(queues)])
        if waiting:
            await asyncio.sleep(_SETTLE_SECONDS)
        levels = await _declare_levels(channel)
        for registry in registries:
            own = await _declare_partition(channel, registry.partition, registry.queues)
            for domain in registry.domains:
                await _bind(own, levels, domain)
        events = await channel.declare_exchange(
            EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True, arguments={"alternate-exchange": UNROUTED}
        )
        await levels[-1].bind(events, routing_key="#")
        await partition.unbind(events, routing_key="#")  # the way of former versions


async def unroute(connection: AbstractConnection, oin: str, domain: str) -> None:
    """Take the route of a domain away: its events go where those around it go. Idempotent."""
    if _level(domain) > LEVELS or not await _exists(connection, partition_name(oin)):
        return
    async with connection.channel() as channel:
        own = await channel.get_exchange(partition_name(oin), ensure=False)
        level = await channel.get_exchange(_level_name(_level(domain)), ensure=False)
        for key in _keys(domain):
            await own.unbind(level, routing_key=key)


async def _exists(connection: AbstractConnection, exchange: str) -> bool:
    try:
        async with connection.channel() as channel:
            await channel.get_exchange(exchange, ensure=True)
    except aio_pika.exceptions.ChannelNotFoundEntity:
        return False
    return True


async def _declare_unrouted(channel: AbstractChannel) -> None:
    unrouted = await channel.declare_exchange(UNROUTED, aio_pika.ExchangeType.FANOUT, durable=True)
    last_resort = await channel.declare_queue(
        UNROUTED, durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": _DELIVERY_LIMIT}
    )
    await last_resort.bind(unrouted)


async def _declare_partition(channel: AbstractChannel, name: str, queues: Sequence[str]) -> AbstractExchange:
    """An exchange that divides over queues by subject; the queues are declared first."""
    partition = await channel.declare_exchange(
        name,
        aio_pika.ExchangeType.X_CONSISTENT_HASH,
        durable=True,
        arguments={"hash-header": SUBJECT_HEADER, "alternate-exchange": UNROUTED},
    )
    for queue_name in queues:
        queue = await _declare_queue(channel, queue_name)
        await queue.bind(partition, routing_key="1")
    return partition


async def _declare_queue(channel: AbstractChannel, name: str) -> AbstractQueue:
    return await channel.declare_queue(
        name,
        durable=True,
        arguments={
            "x-queue-type": "quorum",
            "x-single-active-consumer": True,
            "x-delivery-limit": _DELIVERY_LIMIT,
        },
    )


async def _declare_levels(channel: AbstractChannel) -> list[AbstractExchange]:
    """An exchange for each number of labels, from 1; what one doesn't route goes on to that of one label fewer.

    So each event takes exactly one route, that of the longest domain which covers it, in whatever order domains came.
    """
    levels: list[AbstractExchange] = []
    for level in range(1, LEVELS + 1):
        fewer = PARTITION if level == 1 else _level_name(level - 1)
        levels.append(
            await channel.declare_exchange(
                _level_name(level),
                aio_pika.ExchangeType.TOPIC,
                durable=True,
                arguments={"alternate-exchange": fewer},
            )
        )
    return levels


async def _bind(own: AbstractExchange, levels: Sequence[AbstractExchange], domain: str) -> None:
    if _level(domain) <= LEVELS:
        for key in _keys(domain):
            await own.bind(levels[_level(domain) - 1], routing_key=key)


def _level(domain: str) -> int:
    return domain.count(".") + 1


def _keys(domain: str) -> tuple[str, str]:
    return domain, f"{domain}.#"


def _level_name(level: int) -> str:
    return f"bode.routes.{level}"


async def count_messages(channel: AbstractChannel, queue: str) -> int:
    """How many messages wait in a queue, as RabbitMQ counts them."""
    declared = await channel.declare_queue(queue, passive=True)
    return declared.declaration_result.message_count or 0


async def count_waiting(connection: AbstractConnection, queue: str) -> int:
    """The same of a queue that may not be there yet."""
    try:
        async with connection.channel() as channel:
            return await count_messages(channel, queue)
    except aio_pika.exceptions.ChannelNotFoundEntity:
        return 0


def read_message(
    body: bytes,
    headers: Mapping[str, Any],
    *,
    content_type: str | None,
    user_id: str | None,
    routing_key: str,
    max_bytes: int,
) -> Message:
    """Make a message of what RabbitMQ delivered: structured or binary mode, told apart by the content type."""
    try:
        content: Event | InvalidEvent = _read_event(body, headers, content_type, max_bytes)
    except InvalidEvent as error:
        content = error
    header = _text(headers.get(SUBJECT_HEADER))
    unheaded = header is None and isinstance(content, Event) and content.subject is not None
    if header is None:
        header = _text(headers.get(_UNDERSCORE_SUBJECT_HEADER))
    return Message(user_id, content, body, routing_key, header, content_type, headers, unheaded)


def _read_event(body: bytes, headers: Mapping[str, Any], content_type: str | None, max_bytes: int) -> Event:
    match content_mode(content_type):
        case ContentMode.STRUCTURED:
            return cloudevents.from_structured(body, max_bytes=max_bytes)
        case ContentMode.BATCH:
            raise InvalidEvent("event-format-unsupported", "one AMQP message carries one event")
        case ContentMode.BINARY:
            attributes = amqp_attributes(headers, content_type)
            return cloudevents.from_binary(attributes, content_type, body, max_bytes=max_bytes)
        case mode:
            assert_never(mode)


def _text(value: object) -> str | None:
    match value:
        case str():
            return value
        case bytes() | bytearray():
            return bytes(value).decode("utf-8", "replace")
        case datetime():
            return value.isoformat()
        case None:
            return None
        case _:
            return str(value)
