"""Providers that don't wait to be posted to: one pulls, two have queues; and the people who hold and ask for more.

They go on through everything that the faults do to the API. What comes to them goes into the receivers' ledger.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final
from uuid import uuid4

import aio_pika
import aiohttp
import orjson

from tests.chaos.receivers import Arrival, Receivers

PULL, QUEUE = "pull", "queue"
"""In place of a sender, in the ledger."""
_SECONDS: Final = 10.0
_PAUSE: Final = 0.3
_TROUBLE: Final = (aiohttp.ClientError, OSError, TimeoutError)


@dataclass(frozen=True)
class Caller:
    """The API as one of them sees it, over whichever process answers."""

    urls: Callable[[], list[str]]
    key: str
    random: Random

    async def call(self, method: str, path: str, body: Any = None, once: str = "") -> tuple[int, Any]:
        """One request; status and JSON. Raises what `_TROUBLE` names when there is no answer."""
        url = f"{self.random.choice(self.urls())}/v1{path}"
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        if once:
            headers["Idempotency-Key"] = once
        data = None if body is None else orjson.dumps(body)
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_SECONDS)) as session,
            session.request(method, url, data=data, headers=headers) as answer,
        ):
            content = await answer.read()
            return answer.status, orjson.loads(content) if content else None

    async def insist(self, method: str, path: str, body: Any = None) -> tuple[Any, bool]:
        """Until it is done: the answer, and whether it was the first one. Raises AssertionError when it is refused."""
        once, first = uuid4().hex if method == "POST" else "", True
        while True:
            with contextlib.suppress(*_TROUBLE):
                status, answer = await self.call(method, path, body, once)
                if status < 300 or (status == 409 and not first and path.endswith("/release")):
                    return answer, first  # what was released by a request that had no answer can't be once more
                assert status in (409, 429, 500, 502, 503), f"{method} {path}: {status} {answer}"
            first = False
            await asyncio.sleep(_PAUSE)


@dataclass(frozen=True, slots=True)
class Stone:
    """What a tombstone tells of a number."""

    state: str
    reason: str | None


@dataclass
class Puller:
    """Takes a subscription's numbers over, page by page."""

    caller: Caller
    subscription: str
    path: str
    receivers: Receivers
    complaints: list[str] = field(default_factory=list)
    stones: dict[tuple[str, int], Stone] = field(default_factory=dict)
    """What came as a tombstone, by path and number."""
    through: int = 0

    async def run(self) -> None:
        """Pull until cancelled."""
        events = f"/subscriptions/{self.subscription}/events"
        while True:
            try:
                status, page = await self.caller.call("GET", f"{events}?after={self.through}&limit=50&wait=2")
                if status != 200:
                    await asyncio.sleep(_PAUSE)
                    continue
                self._take(page)
                status, _ = await self.caller.call(
                    "PUT", f"/subscriptions/{self.subscription}/cursor", {"cursor": page["cursor"]}
                )
            except _TROUBLE:
                await asyncio.sleep(_PAUSE)

    def _take(self, page: Mapping[str, Any]) -> None:
        stones = {
            number: Stone(stone["state"], stone["reason"])
            for stone in page["tombstones"]
            for number in range(stone["from"], stone["to"] + 1)
        }
        events = {int(event["subscriptionsequence"]): event for event in page["events"]}
        for number in sorted([*events, *stones]):
            if number != self.through + 1:
                self.complaints.append(f"pulled number {number} of '{self.path}' after {self.through}")
            self.through = number
        if self.through != page["through"]:
            self.complaints.append(f"pulled '{self.path}' to {self.through}, and the answer says {page['through']}")
        self.stones |= {(self.path, number): stone for number, stone in stones.items()}
        self.receivers.ledger += [arrival(self.path, event, PULL, genuine=True) for event in events.values()]


async def make_queue(url: str, queue: str) -> None:
    """Declare a provider's own queue, as the provider does it."""
    connection = await aio_pika.connect(url)
    async with connection, connection.channel() as channel:
        await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})


async def drain(url: str, queue: str, path: str, receivers: Receivers) -> None:
    """Take everything out of a provider's queue, in its order; one of Bode's is made when the first is to go there."""
    connection = await aio_pika.connect(url)
    async with connection, connection.channel() as channel:
        try:
            source = await channel.get_queue(queue)
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return  # what should have gone there is missing in the ledger
        while (message := await source.get(fail=False, no_ack=True)) is not None:
            headers = {name: str(value) for name, value in message.headers.items()}
            genuine = receivers.is_genuine(path, headers, message.body)
            receivers.ledger.append(arrival(path, orjson.loads(message.body), QUEUE, genuine=genuine))


def arrival(path: str, event: dict[str, Any], sender: str, *, genuine: bool) -> Arrival:
    """What was taken, as it stands in the ledger."""
    now = time.monotonic()
    number = int(event["subscriptionsequence"])
    return Arrival(path, number, event["id"], sender, now, genuine, event, 204, now)


@dataclass(frozen=True, slots=True)
class Held:
    """When nothing of a type could come: from the API's answer to what released it. By the monotonic clock."""

    type: str
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Asked:
    """A replay: numbers that come again from then on, lawfully."""

    path: str
    last: int
    since: float


@dataclass
class People:
    """An operator who holds types for a while, and a provider who asks for everything again."""

    operator: Caller
    provider: Caller
    seconds: float
    held: list[Held] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    async def run(self, replayed: str, path: str, types: tuple[str, str]) -> None:
        """Do it all within the time of the faults; what was begun is ended whenever that is."""
        await asyncio.sleep(self.seconds * 0.2)
        await self._hold(types[0])
        await asyncio.sleep(self.seconds * 0.1)
        await self._replay(replayed, path)
        await asyncio.sleep(self.seconds * 0.2)
        await self._hold(types[1])

    async def _hold(self, event_type: str) -> None:
        body = {"scope": "event-type", "value": event_type, "reason": "chaos"}
        placed, first = await self.operator.insist("POST", "/holds", body)
        since = time.monotonic()
        await asyncio.sleep(self.seconds * 0.05)
        until = time.monotonic()
        await self.operator.insist("POST", f"/holds/{placed['id']}/release", {})
        if first:  # an answer that is given again says that the hold stands, not that all processes know of it
            self.held.append(Held(event_type, since, until))

    async def _replay(self, subscription: str, path: str) -> None:
        shown, _ = await self.provider.insist("GET", f"/subscriptions/{subscription}")
        last = shown["health"]["lastSequence"]
        if last:
            self.asked.append(Asked(path, last, time.monotonic()))
            body = {"firstSequence": 1, "lastSequence": last, "perSecond": 200}
            await self.provider.insist("POST", f"/subscriptions/{subscription}/replays", body)
