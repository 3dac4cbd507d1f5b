"""The way to one RabbitMQ: a connection that is made when there is something to publish, and what waits for it.

    begin ─► no connection: wait, while one is made ─► published on it ─► confirmed, or a reason
             connection gone ─► the next one makes another, but not at once where none could be made

Each subscription at a provider's RabbitMQ has one, and each process one to the broker's own, for all queues there.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from broker.delivery.amqp_connections import AmqpConnection
from broker.delivery.amqp_messages import AmqpMessage
from broker.delivery.exchanges import QueueExchange, SendError
from broker.delivery.outcomes import Reason
from broker.telemetry import WORKER_ERRORS, log

REST_SECONDS: Final = 0.5
"""For what could not be reached: without it each of those who wait for it would try, one after the other."""

Ended = Callable[[AmqpConnection], None]
Dial = Callable[[Ended], Awaitable[AmqpConnection]]
"""Makes a connection that isn't logged in, and tells when it has ended.

Raises:
    SendError: there is none.
"""


class _Waiting:
    """A message that waits for the connection."""

    __slots__ = ("deadline", "exchange", "message", "method")

    def __init__(self, method: bytes, message: AmqpMessage, exchange: QueueExchange, deadline: float) -> None:
        self.method = method
        self.message = message
        self.exchange: QueueExchange | None = exchange
        self.deadline = deadline

    def cancel(self) -> None:
        """Nobody waits for its end any more."""
        self.exchange = None


class Link:
    """One way."""

    def __init__(self, dial: Dial, total_seconds: float, ended: Callable[["Link"], None]) -> None:
        """Make one, without a connection.

        Args:
            dial: makes a connection.
            total_seconds: limit for making one and logging in.
            ended: told when there is no connection any more, and nothing that waits for one.
        """
        self._dial = dial
        self._total_seconds = total_seconds
        self._told = ended
        self._connection: AmqpConnection | None = None
        self._waiting: list[_Waiting] = []
        self._making: asyncio.Task[None] | None = None
        self._retired = False
        self._rests_until = 0.0
        self._failure = Reason.CLOSED

    @property
    def idle(self) -> bool:
        """Whether nothing is under way on it."""
        return not self._waiting and (self._connection is None or self._connection.idle)

    def begin(self, method: bytes, message: AmqpMessage, exchange: QueueExchange, deadline: float) -> None:
        """Publish a message; `exchange` is told what came of it.

        Args:
            method: says where to (`amqp_frames.publish`).
            message: what.
            exchange: is told.
            deadline: until when, of the loop's clock.
        """
        if self._connection is not None:
            self._connection.publish(method, message, exchange, deadline)
            return
        if self._making is None and asyncio.get_running_loop().time() < self._rests_until:
            exchange.failed(self._failure)
            return
        waiting = _Waiting(method, message, exchange, deadline)
        exchange._carrier = waiting
        self._waiting.append(waiting)
        if self._making is None:
            self._making = asyncio.get_running_loop().create_task(self._connect())

    def retire(self) -> None:
        """It ends when what is under way on it has."""
        self._retired = True
        if self._connection is not None:
            self._connection.retire()

    def close(self) -> None:
        """Close the connection, and make no more; what waits is told nothing."""
        if self._making is not None:
            self._making.cancel()
        if self._connection is not None:
            self._connection.close()

    async def _connect(self) -> None:
        made: AmqpConnection | None = None
        reason: Reason | None = None
        try:
            async with asyncio.timeout(self._total_seconds):
                made = await self._dial(self._ended)
                await made.log_in()
                await made.publishes()
            reason = made.failure  # it may have ended just then
        except TimeoutError:
            reason = Reason.TIMEOUT
        except SendError as error:
            reason = error.reason
        except asyncio.CancelledError:
            if made is not None:
                made.close()
            raise
        except Exception as error:  # else what waits would never end, and hold its place and its lane for ever
            WORKER_ERRORS.labels("amqp").inc()
            log().error("amqp-connection-failed", error=type(error).__name__)
            reason = Reason.CLOSED
        self._making = None
        waiting, self._waiting = self._waiting, []
        if made is None or reason is not None:
            if made is not None:
                made.close()
            self._failure = reason or Reason.CLOSED
            self._rests_until = asyncio.get_running_loop().time() + REST_SECONDS
            self._told(self)
            self._fail(waiting, self._failure)
        else:
            self._connection = made
            self._publish(made, waiting)

    def _publish(self, connection: AmqpConnection, waiting: list[_Waiting]) -> None:
        now = asyncio.get_running_loop().time()
        for each in waiting:
            if each.exchange is not None:
                each.exchange._carrier = None
                if each.deadline <= now:  # published, it would be late at once, and take the connection with it
                    each.exchange.failed(Reason.TIMEOUT)
                elif each.exchange.may_go():
                    connection.publish(each.method, each.message, each.exchange, each.deadline)
        if self._retired:
            connection.retire()

    def _fail(self, waiting: list[_Waiting], reason: Reason) -> None:
        for each in waiting:
            if each.exchange is not None:
                each.exchange._carrier = None
                each.exchange.failed(reason)

    def _ended(self, _: AmqpConnection) -> None:
        self._connection = None
        if not self._waiting:
            self._told(self)
