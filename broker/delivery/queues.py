"""Notifications into providers' queues on the broker's RabbitMQ: published with confirms, which are the outcome.

    confirmed ──► the queue has it, on a majority of its nodes      returned ──► there is no such queue: failed
    refused (the queue is full) ──► failed                          RabbitMQ away ──► nobody's failure; again soon

A queue is seen to when something is first to go into it, and again when it turns out to be missing. All queues share
one connection of the process, which is made when it is needed. Order within a lane needs nothing here: one delivery of
a lane is under way at a time.
"""

import asyncio
from typing import Final

from broker.delivery import amqp_frames
from broker.delivery.amqp_connections import AmqpConnection
from broker.delivery.amqp_links import Ended, Link
from broker.delivery.amqp_messages import AmqpMessage
from broker.delivery.amqp_targets import Login
from broker.delivery.exchanges import Answer, QueueExchange, SendError
from broker.delivery.outcomes import Reason
from broker.delivery.queue_declaring import Declarer
from broker.rabbitmq import AmqpSettings, Place
from broker.telemetry import WORKER_ERRORS, log

MOST_UNCONFIRMED: Final = 24
"""Attempts under way for one queue: where 32 messages of one are unconfirmed RabbitMQ stops reading for all of them."""
_OF_THE_QUEUE: Final = frozenset({Reason.QUEUE_FULL, Reason.QUEUE_MISSING})
"""What the provider answers for; all else is the broker's own matter."""


class Queues:
    """The queues that one process publishes to."""

    def __init__(self, settings: AmqpSettings, *, total_seconds: float, max_length: int) -> None:
        """Make them.

        Args:
            settings: where RabbitMQ is; without a URL nothing can be published.
            total_seconds: limit for seeing to a queue, and then for one attempt, from connecting to the confirm.
            max_length: messages in a queue, above which it refuses more.
        """
        self._settings = settings
        self._total_seconds = total_seconds
        self._declarer = Declarer(settings, max_length)
        self._link = Link(self._dial, total_seconds, _nothing)
        self._methods: dict[str, bytes] = {}
        """What is published to each queue that is there begins with this."""
        self._unseen: dict[str, list[_Publishing]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, queue: str, message: AmqpMessage, exchange: QueueExchange) -> None:
        """Publish a message; `exchange` is told what came of it."""
        publishing = _Publishing(self, queue, message, exchange)
        if queue in self._methods:
            self._publish(publishing)
        elif queue in self._unseen:
            self._unseen[queue].append(publishing)
        elif self._declarer.rests:
            publishing.failed(Reason.RABBITMQ)
        else:
            self._unseen[queue] = [publishing]
            task = asyncio.get_running_loop().create_task(self._see_to(queue))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Close the connection, and make no other."""
        for task in self._tasks:
            task.cancel()
        self._link.close()

    def _publish(self, publishing: "_Publishing") -> None:
        # counted from here: what seeing to the queue took is not its own
        deadline = asyncio.get_running_loop().time() + self._total_seconds
        self._link.begin(self._methods[publishing.queue], publishing.message, publishing, deadline)

    async def _see_to(self, queue: str) -> None:
        """See that a queue is there, and publish what waits for it."""
        there = False
        try:
            async with asyncio.timeout(self._total_seconds):
                await self._declarer.see_to(queue)
            there = True
        except Exception as error:  # whatever the library raises about a connection that is lost: an attempt must end
            WORKER_ERRORS.labels("queues").inc()
            log().warning("queue-not-reached", error=type(error).__name__)
        waiting = self._unseen.pop(queue)
        if there:
            self._methods[queue] = amqp_frames.publish("", queue)
        for each in waiting:
            if not there:
                each.failed(Reason.RABBITMQ)
            elif each.may_go():
                self._publish(each)

    async def _dial(self, ended: Ended) -> AmqpConnection:
        try:
            place = await Place.of(self._settings)
            login = Login(place.virtual_host, place.user, "bode deliver")
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: AmqpConnection(login, ended, self._settings.heartbeat_seconds, shared=True),
                place.host,
                place.port,
                ssl=place.context,
            )
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            log().warning("queues-not-reached", error=type(error).__name__)
            raise SendError(Reason.RABBITMQ) from error
        return connection

    def _missing(self, queue: str) -> None:
        self._methods.pop(queue, None)


class _Publishing(QueueExchange):
    """One message under way; of what came of it, what is not the provider's matter is told as the broker's."""

    __slots__ = ("exchange", "message", "queue", "queues")

    def __init__(self, queues: Queues, queue: str, message: AmqpMessage, exchange: QueueExchange) -> None:
        super().__init__()
        self.queues = queues
        self.queue = queue
        self.message = message
        self.exchange: QueueExchange | None = exchange
        exchange._carrier = self

    def cancel(self) -> None:
        """Nobody waits for its end any more."""
        self.exchange = None
        self.abandon()

    def may_go(self) -> bool:
        return self.exchange is not None and self.exchange.may_go()

    def answered(self, answer: Answer) -> None:
        raise AssertionError("no HTTP here")

    def confirmed(self) -> None:
        if (exchange := self._leave()) is not None:
            exchange.confirmed()

    def failed(self, reason: Reason) -> None:
        if reason is Reason.QUEUE_MISSING:
            self.queues._missing(self.queue)
        if (exchange := self._leave()) is not None:
            exchange.failed(reason if reason in _OF_THE_QUEUE else Reason.RABBITMQ)

    def _leave(self) -> QueueExchange | None:
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange._carrier = None
        return exchange


def _nothing(_: Link) -> None:
    """There is one way only, which stays."""
