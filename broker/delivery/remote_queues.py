"""Notifications into queues and exchanges of providers' own RabbitMQs, published with confirms, which are the outcome.

    confirmed ──► the queue has it     returned, refused, no confirm in time, no connection ──► failed, with the reason

Each subscription has a connection of its own, made when there is something to send and closed when there is nothing
for a while: what one RabbitMQ does, or doesn't, is no other subscription's matter. Order within a lane needs nothing
here: one delivery of a lane is under way at a time.
"""

import asyncio
from collections import OrderedDict
from typing import Final
from uuid import UUID

import aio_pika

from broker.delivery.amqp_connections import AmqpConnection
from broker.delivery.amqp_targets import AmqpTarget
from broker.delivery.dialling import Dialler
from broker.delivery.exchanges import QueueExchange, SendError
from broker.delivery.outcomes import Reason
from broker.telemetry import WORKER_ERRORS, log

_MOST_KEPT: Final = 512
"""Connections, above which one that is idle is closed for a new one."""


class _Waiting:
    """A message that waits for its connection."""

    __slots__ = ("deadline", "exchange", "message")

    def __init__(self, message: aio_pika.Message, exchange: QueueExchange, deadline: float) -> None:
        self.message = message
        self.exchange: QueueExchange | None = exchange
        self.deadline = deadline

    def cancel(self) -> None:
        """Nobody waits for its end any more."""
        self.exchange = None


class _Link:
    """The connection of a subscription, or the way to it."""

    __slots__ = ("connection", "generation", "retired", "target", "waiting")

    def __init__(self, target: AmqpTarget, generation: int) -> None:
        self.target = target
        self.generation = generation
        self.connection: AmqpConnection | None = None
        self.waiting: list[_Waiting] = []
        self.retired = False

    @property
    def idle(self) -> bool:
        """Whether nothing is under way on it."""
        return not self.waiting and (self.connection is None or self.connection.idle)

    def retire(self) -> None:
        """It ends when what is under way on it has."""
        self.retired = True
        if self.connection is not None:
            self.connection.retire()


class RemoteQueues:
    """The RabbitMQs that one process publishes to."""

    def __init__(self, dialler: Dialler, *, total_seconds: float) -> None:
        """Make them.

        Args:
            dialler: makes the connections, as it does to all sinks.
            total_seconds: limit for one attempt, from look-up to confirm.
        """
        self._dialler = dialler
        self._total_seconds = total_seconds
        self._links: OrderedDict[UUID, _Link] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, target: AmqpTarget, message: aio_pika.Message, exchange: QueueExchange) -> None:
        """Publish a message; `exchange` is told what came of it."""
        deadline = asyncio.get_running_loop().time() + self._total_seconds
        link = self._link(target)
        if link.connection is not None:
            link.connection.publish(message, exchange, deadline)
            return
        waiting = _Waiting(message, exchange, deadline)
        exchange._carrier = waiting
        link.waiting.append(waiting)
        if len(link.waiting) == 1:
            task = asyncio.get_running_loop().create_task(self._connect(link))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def try_out(self, target: AmqpTarget) -> None:
        """See whether a target is there and may be published to, over a connection of its own; nothing is left there.

        Raises:
            SendError: it isn't, or can't be reached; why.
        """
        connection: AmqpConnection | None = None
        try:
            async with asyncio.timeout(self._total_seconds):
                connection = await self._dialler.dial(target, lambda: AmqpConnection(target, _nothing))
                await connection.log_in()
                await connection.try_out()
        except TimeoutError:
            raise SendError(Reason.TIMEOUT) from None
        finally:
            if connection is not None:
                connection.close()

    def close(self) -> None:
        """Close every connection, and make no more."""
        for task in self._tasks:
            task.cancel()
        for link in list(self._links.values()):
            if link.connection is not None:
                link.connection.close()

    def _link(self, target: AmqpTarget) -> _Link:
        """That of a subscription as it is now: it shows what it is to show, and leads to where it is to lead."""
        links, generation = self._links, self._dialler.generation
        link = links.get(target.subscription)
        if link is not None:
            if link.target == target and link.generation == generation:
                links.move_to_end(target.subscription)
                return link
            del links[target.subscription]
            link.retire()
        elif len(links) >= _MOST_KEPT:
            idle = next((subscription for subscription, other in links.items() if other.idle), None)
            if idle is not None:
                links.pop(idle).retire()
        link = links[target.subscription] = _Link(target, generation)
        return link

    async def _connect(self, link: _Link) -> None:
        reason: Reason | None = None
        connection: AmqpConnection | None = None
        try:
            async with asyncio.timeout(self._total_seconds):
                connection = await self._dialler.dial(
                    link.target, lambda: AmqpConnection(link.target, lambda _: self._ended(link))
                )
                await connection.log_in()
                await connection.publishes()
            reason = connection.failure  # it may have ended just then
        except TimeoutError:
            reason = Reason.TIMEOUT
        except SendError as error:
            reason = error.reason
        except asyncio.CancelledError:
            if connection is not None:
                connection.close()
            raise
        except Exception as error:  # else what waits would never end, and hold its place and its lane for ever
            WORKER_ERRORS.labels("remote-queues").inc()
            log().error("remote-queue-failed", error=type(error).__name__)
            reason = Reason.CLOSED
        waiting, link.waiting = link.waiting, []
        if reason is not None or connection is None:
            if connection is not None:
                connection.close()
            self._ended(link)
            for each in waiting:
                if each.exchange is not None:
                    each.exchange._carrier = None
                    each.exchange.failed(reason or Reason.CLOSED)
            return
        link.connection = connection
        for each in waiting:
            if each.exchange is not None:
                each.exchange._carrier = None
                if each.exchange.may_go():
                    connection.publish(each.message, each.exchange, each.deadline)
        if link.retired:
            connection.retire()

    def _ended(self, link: _Link) -> None:
        """Its connection is gone; what comes next makes another."""
        if not link.waiting and self._links.get(link.target.subscription) is link:
            del self._links[link.target.subscription]
        link.connection = None


def _nothing(_: AmqpConnection) -> None:
    """A connection that was tried out is nobody's."""
