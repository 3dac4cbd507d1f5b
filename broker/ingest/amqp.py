"""The topology on RabbitMQ, and how a message there becomes one of ours.

    bode.events (topic) ──► bode.partition (consistent hash on cloudEvents:subject) ──► bode.ingest.0 … N-1 (quorum,
        │ alternate                │ alternate                                            single active consumer)
        └──────────► bode.unrouted (fanout) ◄──┘ ──► bode.unrouted (quorum, alarmed)

RabbitMQ partitions by subject, keeps order within a queue and fails over; it confirms unroutable messages too, which is
why both exchanges have an alternate.
"""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, assert_never

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from broker.ingest.accept import Message
from schemas import cloudevents
from schemas.cloudevents import Event, InvalidEvent
from schemas.cloudevents_bindings import ContentMode, amqp_attributes, content_mode

EXCHANGE: Final = "bode.events"
PARTITION: Final = "bode.partition"
UNROUTED: Final = "bode.unrouted"
SUBJECT_HEADER: Final = "cloudEvents:subject"
_UNDERSCORE_SUBJECT_HEADER: Final = "cloudEvents_subject"
_SETTLE_SECONDS: Final = 3.0
_DELIVERY_LIMIT: Final = 1_000_000
"""Practically none, on RabbitMQ 3.10 and 4.x alike: 4.x drops after 20 by default, −1 loses at once on 3.10."""


class AmqpSettings(BaseModel):
    """Where RabbitMQ is, and how the events are partitioned over queues."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: SecretStr | None = Field(default=None, description="amqp(s) URL of the broker's user; none: HTTP door only.")
    queues: int = Field(
        default=4, ge=1, le=64, description="Ingest queues at first start; the number is kept from then on."
    )
    prefetch: int = Field(default=1000, ge=1, le=10000, description="Messages that a queue's consumer holds at most.")
    connect_seconds: float = Field(default=10, gt=0, le=120, description="Limit for one connection attempt.")
    heartbeat_seconds: int = Field(default=15, ge=2, le=600, description="AMQP heartbeat.")
    publish_seconds: float = Field(default=10, gt=0, le=120, description="Limit for one publisher confirm.")


def queue_name(number: int) -> str:
    """The name of ingest queue `number`, from 0."""
    return f"bode.ingest.{number}"


async def connect(settings: AmqpSettings, name: str) -> AbstractConnection:
    """Open a connection that shows under `name` in RabbitMQ's management.

    Raises:
        OSError, aio_pika.exceptions.AMQPError, TimeoutError: when RabbitMQ can't be reached or refuses.
    """
    if settings.url is None:
        raise ValueError("no AMQP URL is set")
    return await aio_pika.connect(
        settings.url.get_secret_value(),
        timeout=settings.connect_seconds,
        heartbeat=settings.heartbeat_seconds,
        client_properties={"connection_name": name},
    )


async def declare(connection: AbstractConnection, queues: int) -> None:
    """Declare the topology; idempotent. The way is complete, and on disk, before the door `bode.events` exists.

    A new quorum queue is not safe at once: a RabbitMQ that is killed within a second of the declaration may forget it,
    with the messages that it had confirmed. So the first time the door waits.
    """
    first_time = not await _exists(connection, EXCHANGE)
    async with connection.channel() as channel:
        await _declare_way(channel, queues)
        if first_time:
            await asyncio.sleep(_SETTLE_SECONDS)
        events = await channel.declare_exchange(
            EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True, arguments={"alternate-exchange": UNROUTED}
        )
        await (await channel.get_exchange(PARTITION, ensure=False)).bind(events, routing_key="#")


async def _exists(connection: AbstractConnection, exchange: str) -> bool:
    try:
        async with connection.channel() as channel:
            await channel.get_exchange(exchange, ensure=True)
    except aio_pika.exceptions.ChannelNotFoundEntity:
        return False
    return True


async def _declare_way(channel: AbstractChannel, queues: int) -> None:
    unrouted = await channel.declare_exchange(UNROUTED, aio_pika.ExchangeType.FANOUT, durable=True)
    last_resort = await channel.declare_queue(
        UNROUTED, durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": _DELIVERY_LIMIT}
    )
    await last_resort.bind(unrouted)
    partition = await channel.declare_exchange(
        PARTITION,
        aio_pika.ExchangeType.X_CONSISTENT_HASH,
        durable=True,
        arguments={"hash-header": SUBJECT_HEADER, "alternate-exchange": UNROUTED},
    )
    for number in range(queues):
        queue = await channel.declare_queue(
            queue_name(number),
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                "x-single-active-consumer": True,
                "x-delivery-limit": _DELIVERY_LIMIT,
            },
        )
        await queue.bind(partition, routing_key="1")


async def count_messages(channel: AbstractChannel, queue: str) -> int:
    """How many messages wait in a queue, as RabbitMQ counts them."""
    declared = await channel.declare_queue(queue, passive=True)
    return declared.declaration_result.message_count or 0


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
