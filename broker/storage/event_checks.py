"""Loss accounting, the other way round: ids, events and deliveries of a range of keys are held against each other.

Every event has its id, every delivery its event, what is still to be sent its payload. Each look is one snapshot, so
traffic beside it makes no difference.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from datetime import time as dt_time
from typing import Final

import asyncpg

from broker.storage import drift
from broker.storage.drift import EVENT_MISSING, ID_MISSING, MOST_NAMED, PAYLOAD_MISSING, Finding
from broker.storage.tables import key_at

_NEXT_KEY: Final = """
SELECT least(
    (SELECT event_key FROM deliveries WHERE event_key >= $1 ORDER BY event_key OFFSET $2 LIMIT 1),
    (SELECT event_key FROM event_ids WHERE event_key >= $1 ORDER BY event_key OFFSET $2 LIMIT 1)
)
"""
"""A key so far ahead that no more than so many deliveries or ids lie before it; null: all the rest do."""

_EVENTS: Final = f"""
WITH named AS MATERIALIZED (
    SELECT event_key AS key FROM deliveries WHERE event_key >= $1 AND event_key < $2 GROUP BY event_key
), known AS MATERIALIZED (
    SELECT event_key AS key FROM event_ids WHERE event_key >= $1 AND event_key < $2
), there AS MATERIALIZED (
    SELECT key, body = '' AS erased FROM events WHERE key >= $1 AND key < $2
)
(SELECT '{EVENT_MISSING}' AS kind, key FROM named WHERE key NOT IN (SELECT key FROM there) LIMIT {MOST_NAMED})
UNION
(SELECT '{EVENT_MISSING}', key FROM known WHERE key >= $3 AND key NOT IN (SELECT key FROM there) LIMIT {MOST_NAMED})
UNION ALL
(SELECT '{ID_MISSING}', key FROM there WHERE key >= $4 AND key NOT IN (SELECT key FROM known) LIMIT {MOST_NAMED})
UNION ALL
(SELECT '{PAYLOAD_MISSING}', key FROM there
 WHERE erased AND EXISTS (SELECT FROM deliveries WHERE event_key = key AND state IN ('pending', 'dead'))
 LIMIT {MOST_NAMED})
"""
"""Ids, events and deliveries of a range of keys against each other. From $3 on every id has its event (before, days
were retired), from $4 on every event its id (before, they are forgotten)."""

_BOUNDS: Final = """
SELECT (SELECT max(day) FROM retirements WHERE retired_at IS NOT NULL) AS retired,
       coalesce((SELECT (cursor ->> 'forgotten')::bigint FROM house_jobs WHERE name = 'prune'), 0) AS forgotten
"""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Event keys from which on nothing has been taken away by age."""

    kept_from: int
    """No day from here on has been retired: every id has its event."""
    known_from: int
    """No id from here on has been forgotten: every event has its id."""


async def check(
    connection: asyncpg.Connection,
    after: int,
    now: datetime,
    *,
    bounds: Bounds,
    size: int = 5_000,
    note: bool = True,
) -> tuple[list[Finding], int | None]:
    """Hold ids, events and deliveries of the next range of keys against each other.

    The second answer is where to go on; None: at the end.
    """
    async with connection.transaction(isolation="repeatable_read"):
        until: int | None = await connection.fetchval(_NEXT_KEY, after, size)
        if until is not None and until <= after:  # one event with more deliveries than that
            until = after + 1
        end = 2**63 - 1 if until is None else until
        rows = await connection.fetch(_EVENTS, after, end, bounds.kept_from, bounds.known_from)
        findings = [Finding(row["kind"], event_key=row["key"]) for row in rows]
        if note:
            await drift.note(connection, findings, now)
            await drift.clear_events(connection, after, end, [EVENT_MISSING, ID_MISSING, PAYLOAD_MISSING], now)
    return findings, until


async def bounds_of(connection: asyncpg.Connection) -> Bounds:
    """What has been taken away by age."""
    row = await connection.fetchrow(_BOUNDS)
    last_retired = row["retired"]
    midnight = None if last_retired is None else datetime.combine(last_retired, dt_time(), UTC) + timedelta(days=1)
    return Bounds(0 if midnight is None else key_at(midnight), row["forgotten"])
