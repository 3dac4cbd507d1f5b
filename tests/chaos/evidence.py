"""What a run leaves to be judged: the ledgers of registries, receivers and providers, and what the database holds."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import asyncpg

from broker.storage.tables import accepted_at
from schemas.notices import SOURCE
from tests.chaos.clock import Jump
from tests.chaos.faults import Window
from tests.chaos.providers import Asked, Held, Stone
from tests.chaos.publishers import Publication
from tests.chaos.receivers import Arrival
from tests.chaos.subscribers import Wanted

_EVENTS = """
SELECT key, source, id, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 AS committed
FROM events WHERE source <> $1
"""
"""Whatever a transaction did, it had done when it was committed; `Cluster` has PostgreSQL remember when that was."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A row of `deliveries`."""

    subscription: str
    """Path."""
    sequence: int
    event_key: int
    state: str
    reason: str | None
    attempts: int


@dataclass(slots=True)
class Database:
    """What the database says."""

    events: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Source and id by key."""
    rejected: set[str] = field(default_factory=set)
    """Ids of events."""
    deliveries: list[Delivery] = field(default_factory=list)
    last_numbers: dict[str, int] = field(default_factory=dict)
    totals: dict[str, Counter[str]] = field(default_factory=dict)
    replays: dict[str, tuple[str, int]] = field(default_factory=dict)
    """State, and how many numbers were settled."""
    accepted: dict[int, float] = field(default_factory=dict)
    """When an event was accepted, by key: what PostgreSQL's clock showed, from which delays count."""
    committed: dict[int, float] = field(default_factory=dict)
    """When that was committed, by the same clock."""


@dataclass(slots=True)
class Evidence:
    """All ledgers of a run."""

    publications: Sequence[Publication]
    arrivals: Sequence[Arrival]
    windows: Sequence[Window]
    database: Database
    wanted: Sequence[Wanted]
    held: Sequence[Held] = ()
    asked: Sequence[Asked] = ()
    stones: Mapping[tuple[str, int], Stone] = field(default_factory=dict)
    """What came as a tombstone when it was pulled, by path and number."""
    jumps: Sequence[Jump] = ()
    """Of PostgreSQL's clock."""
    wall_offset: float = 0.0
    """What the true time is ahead of the monotonic clock."""


async def read(url: str, paths: Mapping[int, str]) -> Database:
    """Read everything. `paths` by the key of their subscription."""
    connection = await asyncpg.connect(url, timeout=10)
    found = Database()
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            # what Bode itself says of dead letters and rejections was published by nobody
            for row in await connection.fetch(_EVENTS, SOURCE):
                key = row["key"]
                found.events[key] = row["source"], row["id"]
                found.accepted[key], found.committed[key] = accepted_at(key).timestamp(), row["committed"]
            rows = await connection.fetch("SELECT event_id FROM rejections WHERE event_id IS NOT NULL")
            found.rejected = {row["event_id"] for row in rows}
            for row in await connection.fetch(
                "SELECT subscription, sequence, event_key, state::text AS state, reason, attempts FROM deliveries"
            ):
                found.deliveries.append(Delivery(paths[row[0]], *list(row)[1:]))
            for row in await connection.fetch("SELECT subscription, last_sequence FROM subscription_numbers"):
                found.last_numbers[paths[row[0]]] = row[1]
            for row in await connection.fetch("SELECT subscription, delivered, dead, cancelled FROM delivery_totals"):
                found.totals[paths[row[0]]] = Counter(delivered=row[1], dead=row[2], cancelled=row[3])
            for row in await connection.fetch("SELECT subscription, state, sent, failed, skipped::text FROM replays"):
                skipped = sum(json.loads(row["skipped"]).values())
                found.replays[paths[row[0]]] = row["state"], row["sent"] + row["failed"] + skipped
    finally:
        await connection.close()
    return found
