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

from broker.delivery.amqp_connections import AmqpConnection
from broker.delivery.amqp_links import Ended, Link
from broker.delivery.amqp_messages import AmqpMessage
from broker.delivery.amqp_targets import AmqpTarget
from broker.delivery.dialling import Dialler
from broker.delivery.exchanges import QueueExchange, SendError
from broker.delivery.outcomes import Reason

_MOST_KEPT: Final = 512
"""Connections, above which one that is idle is closed for a new one."""


class _TargetLink(Link):
    """The way to a subscription's target, as it and we were when it was made."""

    def __init__(self, queues: "RemoteQueues", target: AmqpTarget, generation: int) -> None:
        async def dial(ended: Ended) -> AmqpConnection:
            return await queues._dialler.dial(target, lambda: AmqpConnection(target.login, ended))

        super().__init__(dial, queues._total_seconds, queues._ended)
        self.target = target
        self.generation = generation


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
        self._links: OrderedDict[UUID, _TargetLink] = OrderedDict()
        self._retired: set[_TargetLink] = set()
        """What is still under way on ways that aren't used any more."""

    def begin(self, target: AmqpTarget, message: AmqpMessage, exchange: QueueExchange) -> None:
        """Publish a message; `exchange` is told what came of it."""
        deadline = asyncio.get_running_loop().time() + self._total_seconds
        self._link(target).begin(target.publish, message, exchange, deadline)

    async def try_out(self, target: AmqpTarget) -> None:
        """See whether a target is there and may be published to, over a connection of its own; nothing is left there.

        Raises:
            SendError: it isn't, or can't be reached; why.
        """
        connection: AmqpConnection | None = None
        try:
            async with asyncio.timeout(self._total_seconds):
                connection = await self._dialler.dial(target, lambda: AmqpConnection(target.login, _nothing))
                await connection.log_in()
                await connection.try_out(target)
        except TimeoutError:
            raise SendError(Reason.TIMEOUT) from None
        finally:
            if connection is not None:
                connection.close()

    def close(self) -> None:
        """Close every connection, and make no more."""
        for link in (*self._links.values(), *self._retired):
            link.close()

    def _link(self, target: AmqpTarget) -> _TargetLink:
        """That of a subscription as it is now: it shows what it is to show, and leads to where it is to lead."""
        links, generation = self._links, self._dialler.generation
        link = links.get(target.subscription)
        if link is not None:
            if link.target == target and link.generation == generation:
                links.move_to_end(target.subscription)
                return link
            self._retire(links.pop(target.subscription))
        elif len(links) >= _MOST_KEPT:
            idle = next((subscription for subscription, other in links.items() if other.idle), None)
            if idle is not None:
                self._retire(links.pop(idle))
        link = links[target.subscription] = _TargetLink(self, target, generation)
        return link

    def _retire(self, link: _TargetLink) -> None:
        if not link.idle:
            self._retired.add(link)
        link.retire()

    def _ended(self, link: Link) -> None:
        """Its connection is gone; what comes next makes another."""
        assert isinstance(link, _TargetLink)
        self._retired.discard(link)
        if self._links.get(link.target.subscription) is link:
            del self._links[link.target.subscription]


def _nothing(_: AmqpConnection) -> None:
    """A connection that was tried out is nobody's."""
