"""Registries that publish with confirms and keep a ledger of what was confirmed.

Each registry has lanes, one for a subject, and in a lane the next event is published only after the former was
confirmed: so the order of acceptance within a lane is known. What isn't confirmed in time is published again, under
the same id. Now and then they publish what was confirmed before, and what must be rejected; and events of a type that
has a delay, half of which they correct: at once, at about the moment when the delay is over, or too late.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Protocol, Self

import aio_pika
import aiohttp
import aiormq

from tests.chaos.subscribers import CORRECTING, DELAY_SECONDS, DELAYED, REPLACE, TYPES, WITHDRAW, Event

TROUBLE = (
    aio_pika.exceptions.AMQPError, aiormq.exceptions.AMQPError, aio_pika.exceptions.DeliveryError,
    aiormq.exceptions.ChannelInvalidStateError,
    aiohttp.ClientError, OSError, TimeoutError, asyncio.InvalidStateError,
)  # fmt: skip
_CONFIRM_SECONDS = 6.0
_AGAIN_SHARE, _WRONG_SHARE, _LARGE_SHARE, _DELAYED_SHARE, _CORRECTED_SHARE = 0.02, 0.01, 0.01, 0.06, 0.5
_CORRECTED_AFTER = ((0.0, 0.5), (DELAY_SECONDS - 0.8, DELAY_SECONDS + 0.2), (DELAY_SECONDS + 0.5, DELAY_SECONDS + 2.0))
"""Seconds after the confirm of what is corrected."""


class Refused(Exception):
    """The API says that the event will never be taken."""


@dataclass(slots=True)
class Publication:
    """One event in the ledger."""

    id: str
    event: Event
    source: str
    n: int
    lane: str | None
    """Registry and subject."""
    place: int
    """In its lane, from 0."""
    valid: bool
    published: int = 0
    """How often."""
    confirmed_at: float | None = None
    corrects: str | None = None
    """The id of the event that this one corrects."""
    correction: str | None = None

    @property
    def waits(self) -> bool:
        """Whether its type has a delay."""
        return self.event.type.endswith(f".{DELAYED}")

    @property
    def body(self) -> bytes:
        attributes: dict[str, Any] = {
            "specversion": "1.0",
            "id": self.id,
            "source": self.source,
            "type": self.event.type,
            "datacontenttype": "application/json",
            "data": {"n": self.n, "place": self.place, "filling": "x" * self.event.size},
        }
        if self.event.subject is not None:
            attributes["subject"] = self.event.subject
        if self.corrects is not None:
            attributes |= {"corrects": self.corrects, "correction": self.correction}
        return json.dumps(attributes).encode()


class Door(Protocol):
    """A way in."""

    async def publish(self, publication: Publication) -> None:
        """Publish and wait for the confirm.

        Raises:
            one of TROUBLE: it may or may not have been taken.
            Refused: it never will be.
        """

    async def close(self) -> None:
        """Close it."""


class AmqpDoor:
    """A connection of a registry's own to RabbitMQ, made again whenever something was wrong with it."""

    def __init__(self, url: Callable[[], str], user: str) -> None:
        self._url = url
        self._user = user
        self._connection: aio_pika.abc.AbstractConnection | None = None
        self._exchange: aio_pika.abc.AbstractExchange | None = None
        self._lock = asyncio.Lock()

    async def publish(self, publication: Publication) -> None:
        exchange = await self._opened()
        subject = publication.event.subject
        message = aio_pika.Message(
            publication.body,
            content_type="application/cloudevents+json; charset=utf-8",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            user_id=self._user,
            headers={} if subject is None else {"cloudEvents:subject": subject},
        )
        try:
            async with asyncio.timeout(_CONFIRM_SECONDS):
                await exchange.publish(message, routing_key=publication.event.type)
        except (*TROUBLE, asyncio.CancelledError) as error:
            if self._exchange is exchange:
                await self.close()
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and (task is None or not task.cancelling()):
                raise ConnectionError("closed while the confirm was awaited") from None  # as aiormq tells it
            raise

    async def _opened(self) -> aio_pika.abc.AbstractExchange:
        async with self._lock:
            if self._exchange is None or self._connection is None or self._connection.is_closed:
                await self.close()
                self._connection = await aio_pika.connect(self._url(), timeout=5, heartbeat=5)
                async with asyncio.timeout(5):
                    channel = await self._connection.channel(publisher_confirms=True)
                    self._exchange = await channel.get_exchange("bode.events", ensure=False)
            return self._exchange

    async def close(self) -> None:
        connection, self._connection, self._exchange = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(*TROUBLE):
                async with asyncio.timeout(1):
                    await connection.close()


class HttpDoor:
    """`POST /v1/events` of whichever API process answers."""

    def __init__(self, urls: Callable[[], Sequence[str]], key: str, random: Random) -> None:
        self._urls = urls
        self._key = key
        self._random = random
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_CONFIRM_SECONDS + 6))

    async def publish(self, publication: Publication) -> None:
        url = self._random.choice(self._urls())
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/cloudevents+json"}
        async with self._session.post(f"{url}/v1/events", data=publication.body, headers=headers) as answer:
            await answer.read()
            if answer.status in (200, 202):
                return
            if answer.status in (400, 403):
                raise Refused(str(answer.status))
            raise aiohttp.ClientError(f"status {answer.status}")

    async def close(self) -> None:
        await self._session.close()


async def describe_delay(session: aiohttp.ClientSession, api: str, key: str, registry: str) -> None:
    """Say in the catalogue that events of one type of a registry wait."""
    body = {"type": f"nl.{registry}.{DELAYED}", "meaning": "Beëindigd.", "delaySeconds": DELAY_SECONDS}
    async with session.post(f"{api}/event-types", json=body, headers={"Authorization": f"Bearer {key}"}) as answer:
        assert answer.status == 201, await answer.text()


@dataclass
class Registry:
    """A registry with its lanes; `run` publishes until `stop` is set and all is confirmed."""

    name: str
    source: str
    wrong_source: str
    door: Door
    random: Random
    subjects: Sequence[str | None]
    rate: float
    """Events a second."""
    counter: list[int]
    refuses_wrong: bool = False
    """The door itself refuses what must be rejected."""
    ledger: list[Publication] = field(default_factory=list)
    troubles: int = 0
    again: int = 0
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self) -> None:
        self._stop.set()

    async def run(self) -> Self:
        async with asyncio.TaskGroup() as group:
            for number, subject in enumerate(self.subjects):
                group.create_task(self._run_lane(number, subject))
        await self.door.close()
        return self

    async def _run_lane(self, number: int, subject: str | None) -> None:
        random = Random(self.random.random())
        pause = len(self.subjects) / self.rate
        confirmed: list[Publication] = []
        mistakes: list[tuple[float, Publication]] = []
        place = 0
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(random.uniform(0.2, 1.8) * pause):
                    await self._stop.wait()
            if self._stop.is_set():
                return
            if confirmed and random.random() < _AGAIN_SHARE:
                self.again += 1
                await self._publish(random.choice(confirmed), random)
                continue
            wrong = not self.refuses_wrong and random.random() < _WRONG_SHARE
            publication = self._next(number, subject, place, random, wrong)
            due = next((each for each in mistakes if each[0] <= time.monotonic()), None)
            if due is not None and not wrong:
                mistakes.remove(due)
                self._correct(publication, due[1], random)
            self.ledger.append(publication)
            await self._publish(publication, random)
            if wrong:
                continue
            place += 1
            confirmed.append(publication)
            if publication.waits and publication.corrects is None and random.random() < _CORRECTED_SHARE:
                mistakes.append((time.monotonic() + random.uniform(*random.choice(_CORRECTED_AFTER)), publication))

    def _next(self, number: int, subject: str | None, place: int, random: Random, wrong: bool) -> Publication:
        n = self.counter[0] = self.counter[0] + 1
        size = 20_000 if random.random() < _LARGE_SHARE else random.randrange(50, 400)
        name = DELAYED if random.random() < _DELAYED_SHARE else random.choice(TYPES)
        event = Event(self.name, f"nl.{self.name}.{name}", subject, size)
        lane = None if subject is None or wrong else f"{self.name} {subject}"
        source = self.wrong_source if wrong else self.source
        return Publication(f"{self.name}-{number}-{n}", event, source, n, lane, place, not wrong)

    def _correct(self, publication: Publication, mistake: Publication, random: Random) -> None:
        """Make a publication a correction. What comes in the place of another may have to wait itself."""
        publication.corrects, publication.correction = mistake.id, random.choice((REPLACE, WITHDRAW))
        waits = publication.correction == REPLACE and random.random() < 0.5
        kind = f"nl.{self.name}.{DELAYED if waits else CORRECTING}"
        publication.event = replace(publication.event, type=kind)

    async def _publish(self, publication: Publication, random: Random) -> None:
        """Publish until it is confirmed, however long that takes."""
        while True:
            publication.published += 1
            try:
                await self.door.publish(publication)
            except TROUBLE:
                self.troubles += 1
                await asyncio.sleep(random.uniform(0.1, 0.6))
            else:
                if publication.confirmed_at is None:
                    publication.confirmed_at = time.monotonic()
                return
