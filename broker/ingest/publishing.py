"""The HTTP door's way in: through RabbitMQ with a confirm, or, where there is none, straight to acceptance.

Both answer only when the events are safe: confirmed by a quorum queue, or committed.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange
from pamqp.common import FieldValue

from broker.ingest import amqp
from broker.ingest.accept import Accepted, Acceptor, Message, Rejected, Result
from broker.rabbitmq import BROKER_TROUBLE, AmqpSettings, connect, hang_ups
from broker.storage.pool import DATABASE_TROUBLE
from broker.telemetry import RECEIVED, WORKER_ERRORS, log
from schemas.cloudevents import Event

CONTENT_TYPE: Final = "application/cloudevents+json; charset=utf-8"


class NotPublished(Exception):
    """The events may or may not have become safe; publishing them again does no harm, since duplicates are known."""


class Publisher(Protocol):
    """Makes events safe."""

    async def publish(self, user: str, events: Sequence[Event]) -> list[Result] | None:
        """Publish as `user`, in order; the results of acceptance where they are known already.

        Raises:
            NotPublished: when it is not certain that all of them are safe.
        """

    async def run(self) -> None:
        """Its worker."""

    async def ready(self) -> bool:
        """Whether publishing would work now."""


class AmqpPublisher:
    """Publishes to `bode.events` with publisher confirms, one connection for the process."""

    def __init__(self, settings: AmqpSettings) -> None:
        self._settings = settings
        self._exchange: AbstractExchange | None = None

    async def publish(self, user: str, events: Sequence[Event]) -> None:
        """Publish events and wait for all confirms."""
        exchange = self._exchange
        if exchange is None:
            raise NotPublished("RabbitMQ is not connected")
        try:
            async with asyncio.timeout(self._settings.publish_seconds):
                with hang_ups():
                    await asyncio.gather(
                        *(exchange.publish(message_of(event, user), routing_key=event.type) for event in events)
                    )
        except (*BROKER_TROUBLE, aio_pika.exceptions.DeliveryError) as error:
            raise NotPublished(type(error).__name__) from error

    async def run(self) -> None:
        """Keep connected until cancelled."""
        pause = 0.1
        while True:
            try:
                connection = await connect(self._settings, "bode api")
                with hang_ups():
                    async with connection, connection.channel(publisher_confirms=True) as channel:
                        pause = 0.1
                        self._exchange = await channel.get_exchange(amqp.EXCHANGE, ensure=True)
                        await _until_closed(connection, channel)
            except BROKER_TROUBLE as error:
                WORKER_ERRORS.labels("publisher").inc()
                log().warning("publisher-connection-lost", error=type(error).__name__)
            finally:
                self._exchange = None
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)

    async def ready(self) -> bool:
        """Whether the connection stands."""
        return self._exchange is not None


@dataclass(slots=True)
class _Order:
    messages: list[Message]
    results: "asyncio.Future[list[Result]]"


class DirectPublisher:
    """Accepts in this process; requests that come together share a commit."""

    def __init__(self, acceptor: Acceptor, woken: "asyncio.Queue[Accepted]", batch_max: int) -> None:
        self._acceptor = acceptor
        self._woken = woken
        self._batch_max = batch_max
        self._orders: asyncio.Queue[_Order] = asyncio.Queue(maxsize=1000)

    async def publish(self, user: str, events: Sequence[Event]) -> list[Result]:
        """Accept events; the results of acceptance."""
        messages = [Message(user, event, event.body) for event in events]
        order = _Order(messages, asyncio.get_running_loop().create_future())
        await self._orders.put(order)
        RECEIVED.labels("http").inc(len(messages))
        return await order.results

    async def run(self) -> None:
        """Accept until cancelled."""
        while True:
            orders = [await self._orders.get()]
            count = len(orders[0].messages)
            while not self._orders.empty() and count < self._batch_max:
                orders.append(self._orders.get_nowait())
                count += len(orders[-1].messages)
            try:
                results = await self._acceptor.accept([message for order in orders for message in order.messages])
            except DATABASE_TROUBLE as error:
                WORKER_ERRORS.labels("acceptance").inc()
                log().warning("acceptance-failed", events=count, error=type(error).__name__)
                for order in orders:
                    if not order.results.done():
                        order.results.set_exception(NotPublished(type(error).__name__))
                continue
            start = 0
            for order in orders:
                part = results[start : start + len(order.messages)]
                start += len(order.messages)
                if not order.results.done():
                    order.results.set_result(part)
            for result in results:
                if isinstance(result, Accepted) and result.subscriptions:
                    self._woken.put_nowait(result)

    async def ready(self) -> bool:
        """Acceptance is there as long as the process is; the database has a check of its own."""
        return True


def message_of(event: Event, user: str) -> aio_pika.Message:
    """An event as an AMQP message in structured mode (CloudEvents AMQP binding), persistent."""
    headers: dict[str, FieldValue] = {} if event.subject is None else {amqp.SUBJECT_HEADER: event.subject}
    return aio_pika.Message(
        event.body,
        content_type=CONTENT_TYPE,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        user_id=user,
        headers=headers,
    )


def first_rejection(results: Sequence[Result]) -> Rejected | None:
    """The first event that acceptance rejected, if any."""
    return next((result for result in results if isinstance(result, Rejected)), None)


async def _until_closed(connection: AbstractConnection, channel: AbstractChannel) -> None:
    closed = [asyncio.ensure_future(connection.closed()), asyncio.ensure_future(channel.closed())]
    try:
        await asyncio.wait(closed, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for future in closed:
            future.cancel()
    raise ConnectionError("RabbitMQ closed the connection")
