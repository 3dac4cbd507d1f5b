"""Heartbeats: a quiet subscription is told, on request, how far its numbers go, so that a missing tail is noticed.

A subscription asks for them with `heartbeatSeconds` in its `config`. When its last number was not delivered within that
time, its sink gets an event of type `nl.bode.heartbeat` with the last number that was given and the number through
which all have ended. It is signed as notifications are, has no number of its own, is about nobody, and is not repeated:
the next one says the same. When the next is due stands in the database, so neither a restart nor a change of owner
makes for more of them, and those of a long absence are one each.
"""

import asyncio
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import uuid4

import asyncpg
import orjson

from broker.delivery.feeder import Ownership
from broker.delivery.outcomes import GONE
from broker.delivery.runners import Office
from broker.delivery.sender import Sender, Sink
from broker.delivery.settings import DeliverySettings
from broker.storage import heartbeats
from broker.storage.heartbeats import Beat
from broker.storage.pool import DATABASE_TROUBLE
from broker.telemetry import HEARTBEATS, WORKER_ERRORS, log

HEARTBEAT_TYPE: Final = "nl.bode.heartbeat"
_LOOK_SECONDS: Final = 1.0
_AT_ONCE: Final = 64
_LONGEST_PUT_OFF: Final = timedelta(days=1)


def compose(sink: Sink, beat: Beat, now: datetime) -> bytes:
    """The heartbeat as a CloudEvent; it comes from the subscription itself, and has no `subscriptionsequence`."""
    event = {
        "specversion": "1.0",
        "id": str(uuid4()),
        "source": f"urn:uuid:{sink.config.id}",
        "type": HEARTBEAT_TYPE,
        "time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "subscription": str(sink.config.id),
    }
    if sink.config.subscriber_reference is not None:
        event["subscriberreference"] = sink.config.subscriber_reference
    return orjson.dumps(
        {**event, "data": {"lastSequence": beat.last_sequence, "completeThrough": beat.complete_through}}
    )


class Heartbeats:
    """Sends the heartbeats that are due in the shards of this process; `run` is its worker."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        settings: DeliverySettings,
        ownership: Ownership,
        office: Office,
        sender: Sender,
        *,
        resting: Callable[[int], bool],
        gone: Callable[[Sink], None],
    ) -> None:
        """Make one.

        Args:
            pool: of the hot path's database connections.
            settings: of delivery.
            ownership: which shards are ours.
            office: reads sinks.
            sender: posts.
            resting: whether nothing may be sent to a subscription's sink now.
            gone: is told of a sink that answered 410.
        """
        self._pool = pool
        self._settings = settings
        self._ownership = ownership
        self._office = office
        self._sender = sender
        self._resting = resting
        self._gone = gone
        self._under_way: set[int] = set()

    async def run(self) -> None:
        """Send what is due until cancelled; a sink that takes its time delays no other."""
        async with asyncio.TaskGroup() as group:
            while True:
                more = False
                try:
                    more = await self._look(group)
                except DATABASE_TROUBLE as error:
                    self._tell(error)
                await asyncio.sleep(0 if more else _LOOK_SECONDS)

    async def _look(self, group: asyncio.TaskGroup) -> bool:
        room = _AT_ONCE - len(self._under_way)
        held = [number for number in range(self._settings.shards) if self._ownership.holds(number)]
        if not held or room <= 0:
            return False
        async with self._pool.acquire() as connection:
            beats, more = await heartbeats.claim(connection, self._settings.shards, held, room)
        due = {
            beat.subscription: beat
            for beat in beats
            if self._office.sends(beat.subscription) and not self._resting(beat.subscription)
        }
        for sink in await self._sinks(due):
            key = sink.config.key
            if key not in self._under_way and self._ownership.holds(key % self._settings.shards):
                self._under_way.add(key)
                group.create_task(self._send(sink, due[key]))
        return more

    async def _sinks(self, keys: Iterable[int]) -> list[Sink]:
        wanted, sinks = list(keys), []
        for config in await self._office.load_sinks(wanted) if wanted else []:
            try:
                sinks.append(Sink.of(config, self._settings.origin))
            except ValueError:
                log().error("sink-unusable", subscription=str(config.id))
        return sinks

    async def _send(self, sink: Sink, beat: Beat) -> None:
        try:
            now = datetime.now(UTC)
            identity = f"hbt_{sink.config.id.hex}_{int(now.timestamp())}"
            outcome = await self._sender.send(sink, identity, uuid4().int, compose(sink, beat, now))
            HEARTBEATS.labels(outcome.reason or "success").inc()
            if outcome.status == GONE:
                self._gone(sink)
            elif outcome.reason is not None and outcome.retry_after is not None:
                seconds = min(outcome.retry_after, _LONGEST_PUT_OFF).total_seconds()
                async with self._pool.acquire() as connection:
                    await heartbeats.put_off(connection, beat.subscription, seconds)
        except DATABASE_TROUBLE as error:
            self._tell(error)
        finally:
            self._under_way.discard(beat.subscription)

    def _tell(self, error: Exception) -> None:
        WORKER_ERRORS.labels("heartbeats").inc()
        log().warning("heartbeats-failed", error=type(error).__name__)
