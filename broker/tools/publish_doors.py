"""The two doors that a registry's events go in by: RabbitMQ with publisher confirms, and the API in batches.

A door takes events in order, holds a bounded number that are not confirmed, and publishes those again after it lost
its connection: duplicates are harmless, because the broker knows an event by its source and id.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Protocol

import aio_pika
import aiormq.exceptions
from aio_pika.abc import AbstractExchange
from pamqp.common import FieldValue
from yarl import URL

from broker.tools.client import Api, ApiProblem, Unreachable
from broker.tools.running import Access

EXCHANGE: Final = "bode.events"
SUBJECT_HEADER: Final = "cloudEvents:subject"
CONTENT_TYPE: Final = "application/cloudevents+json; charset=utf-8"
WINDOW: Final = 500
"""Events of one door that are not confirmed yet, at most."""
PATIENCE: Final = timedelta(seconds=60)
"""How long a door tries again without getting anything confirmed."""
_CONFIRM_SECONDS: Final = 30.0
_CONNECT_SECONDS: Final = 10.0
_LONGEST_PAUSE: Final = 2.0
_BATCH_EVENTS: Final = 200
_BATCH_BYTES: Final = 1 << 19
_BATCH_TYPE: Final = "application/cloudevents-batch+json"
_REFUSING: Final = (400, 403, 413, 415)
_PASSING: Final = (429, 500, 502, 503, 504)
_TROUBLE: Final = (
    aio_pika.exceptions.AMQPError,
    aio_pika.exceptions.DeliveryError,
    aiormq.exceptions.AMQPError,
    aiormq.exceptions.ChannelInvalidStateError,
    OSError,
    TimeoutError,
)
_FATAL: Final = (
    aiormq.exceptions.AuthenticationError,
    aiormq.exceptions.ProbableAuthenticationError,
    aiormq.exceptions.ChannelAccessRefused,
    aiormq.exceptions.ChannelNotFoundEntity,
    aiormq.exceptions.ConnectionNotAllowed,
)


class DoorClosed(Exception):
    """What wasn't confirmed yet won't be; the message says why."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An event to publish, as it stands in its file; `place` counts from 1."""

    place: int
    type: str
    subject: str | None = field(repr=False)
    body: bytes = field(repr=False)


class Told(Protocol):
    """Who wants to know what became of events."""

    def confirmed(self, event: Outgoing) -> None:
        """It is safe."""

    def refused(self, event: Outgoing, reason: str) -> None:
        """It will never be taken as it is."""


class Door(Protocol):
    """Takes events in order, each once."""

    async def put(self, event: Outgoing) -> None:
        """Take an event; waits while too many are unconfirmed."""

    async def drained(self) -> None:
        """Wait until each event was confirmed or refused."""

    async def run(self) -> None:
        """Its worker.

        Raises:
            DoorClosed: it can't go on.
        """


class _Unconfirmed:
    """The events that a door has taken and that are not known to be safe, in order."""

    def __init__(self) -> None:
        self.events: dict[int, Outgoing] = {}
        self._fewer = asyncio.Event()

    async def add(self, event: Outgoing) -> None:
        """Add an event once there is room."""
        await self.fewer_than(WINDOW)
        self.events[event.place] = event

    def settle(self, event: Outgoing) -> None:
        """It was confirmed or refused."""
        del self.events[event.place]
        self._fewer.set()

    async def fewer_than(self, number: int) -> None:
        """Wait until there are fewer."""
        while len(self.events) >= number:
            self._fewer.clear()
            await self._fewer.wait()


class _Patience:
    """How long to try again: pauses that grow, up to a time without any success."""

    def __init__(self, limit: timedelta | None) -> None:
        self._limit = None if limit is None else limit.total_seconds()
        self._pause = 0.1
        self._since: float | None = None

    def success(self) -> None:
        self._pause, self._since = 0.1, None

    async def wait(self, reason: str, seconds: float = 0) -> None:
        now = asyncio.get_running_loop().time()
        self._since = self._since or now
        if self._limit is not None and now - self._since > self._limit:
            raise DoorClosed(f"gave up after {self._limit:.0f} s: {reason}")
        await asyncio.sleep(max(self._pause, seconds))
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)


class AmqpDoor:
    """Publishes to `bode.events` as the user of the URL, who is a registry."""

    def __init__(self, url: str, told: Told, *, patience: timedelta | None = PATIENCE) -> None:
        self._url = URL(url)
        self._told = told
        self._patience = _Patience(patience)
        self._unconfirmed = _Unconfirmed()
        self._unsent: deque[Outgoing] = deque()
        self._more = asyncio.Event()
        self._reasons: list[Exception] = []
        """Why RabbitMQ closed the channel: what is sent after that fails with another error."""

    async def put(self, event: Outgoing) -> None:
        """Take an event; waits while too many are unconfirmed."""
        await self._unconfirmed.add(event)
        self._unsent.append(event)
        self._more.set()

    async def drained(self) -> None:
        """Wait until each event was confirmed."""
        await self._unconfirmed.fewer_than(1)

    async def run(self) -> None:
        """Publish until cancelled; connects again as often as needed.

        Raises:
            DoorClosed: RabbitMQ refuses, or can't be reached for too long.
        """
        logging.getLogger("aiormq").setLevel(logging.CRITICAL)  # what it would say of a lost connection, we say
        while True:
            self._reasons.clear()
            try:
                await self._connected()
            except ExceptionGroup as group:
                failures = self._reasons + _flat(group)
            except _TROUBLE as error:
                failures = [*self._reasons, error]
            for failure in failures:
                if isinstance(failure, _FATAL):
                    raise DoorClosed(f"RabbitMQ refuses: {_words(failure)}") from failure
            for failure in failures:
                if not isinstance(failure, _TROUBLE):
                    raise failure
            place = f"{self._url.host}:{self._url.port}"
            await self._patience.wait(f"no connection with RabbitMQ at {place} ({_words(failures[0])})")

    async def _connected(self) -> None:
        connection = await aio_pika.connect(
            str(self._url), timeout=_CONNECT_SECONDS, client_properties={"connection_name": "bode publish"}
        )
        async with connection, connection.channel(publisher_confirms=True) as channel:
            channel.close_callbacks.add(self._closed)
            exchange = await channel.get_exchange(EXCHANGE, ensure=False)
            self._unsent = deque(self._unconfirmed.events.values())
            self._more.set()
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._more.wait()
                    self._more.clear()
                    while self._unsent:
                        # tasks start in order, and the channel writes in the order in which they start
                        group.create_task(self._publish(exchange, self._unsent.popleft()))

    def _closed(self, _: object, reason: BaseException | None) -> None:
        if isinstance(reason, Exception):
            self._reasons.append(reason)

    async def _publish(self, exchange: AbstractExchange, event: Outgoing) -> None:
        headers: dict[str, FieldValue] = {} if event.subject is None else {SUBJECT_HEADER: event.subject}
        message = aio_pika.Message(
            event.body,
            content_type=CONTENT_TYPE,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            user_id=self._url.user,
            headers=headers,
        )
        async with asyncio.timeout(_CONFIRM_SECONDS):
            await exchange.publish(message, routing_key=event.type)
        self._patience.success()
        self._unconfirmed.settle(event)
        self._told.confirmed(event)


class HttpDoor:
    """Publishes to `POST /events`, in batches of what is there."""

    def __init__(self, access: Access, told: Told, *, patience: timedelta | None = PATIENCE) -> None:
        self._access = access
        self._told = told
        self._patience = _Patience(patience)
        self._unconfirmed = _Unconfirmed()
        self._more = asyncio.Event()

    async def put(self, event: Outgoing) -> None:
        """Take an event; waits while too many are unconfirmed."""
        await self._unconfirmed.add(event)
        self._more.set()

    async def drained(self) -> None:
        """Wait until each event was confirmed or refused."""
        await self._unconfirmed.fewer_than(1)

    async def run(self) -> None:
        """Publish until cancelled.

        Raises:
            DoorClosed: the API refuses the caller, or doesn't answer for too long.
        """
        async with Api(self._access) as api:
            while True:
                await self._more.wait()
                self._more.clear()
                while batch := self._batch():
                    await self._publish(api, batch)

    def _batch(self) -> list[Outgoing]:
        batch, size = list[Outgoing](), 0
        for event in self._unconfirmed.events.values():
            size += len(event.body) + 1
            if batch and (len(batch) == _BATCH_EVENTS or size > _BATCH_BYTES):
                break
            batch.append(event)
        return batch

    async def _publish(self, api: Api, batch: Sequence[Outgoing]) -> None:
        """Publish a batch; one that is refused is halved, until what is refused stands alone."""
        while True:
            try:
                await api.call("POST", "/events", b"[%b]" % b",".join(event.body for event in batch), _BATCH_TYPE)
            except Unreachable as error:
                await self._patience.wait(str(error))
            except ApiProblem as problem:
                if problem.status in _PASSING:
                    await self._patience.wait(str(problem), problem.retry_after or 0)
                elif problem.status not in _REFUSING:
                    raise DoorClosed(f"the API refuses: {problem}") from problem
                elif len(batch) > 1:
                    middle = len(batch) // 2
                    await self._publish(api, batch[:middle])
                    await self._publish(api, batch[middle:])
                    return
                else:
                    self._unconfirmed.settle(batch[0])
                    self._told.refused(batch[0], str(problem))
                    return
            else:
                self._patience.success()
                for event in batch:
                    self._unconfirmed.settle(event)
                    self._told.confirmed(event)
                return


OpenDoor = Callable[[str], Door]
"""Gives the door for an event type, the same for the same registry."""


def _flat(group: ExceptionGroup[Exception]) -> list[Exception]:
    """What happened to the tasks of a group, and of groups within it."""
    flat = list[Exception]()
    for error in group.exceptions:
        flat += _flat(error) if isinstance(error, ExceptionGroup) else [error]
    return flat


def _words(error: Exception) -> str:
    """What RabbitMQ says: it names exchanges, users and types, and no subjects."""
    return str(error) or type(error).__name__
