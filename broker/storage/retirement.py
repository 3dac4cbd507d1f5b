"""How a day is retired: its numbers are explained, what stays is moved, its partitions are dropped.

    open ──► explained: every number of the day stands in retired_numbers, with its state, reason and digest
         ──► retired:   one transaction takes the partitions out and moves dead letters, with payload and attempts, to
                        events_kept, deliveries_kept, attempts_kept: ordinary tables, attached for all that is older
         ──► dropped

Each arrow is a commit that may be repeated, so a kill between any two leaves nothing half done. Until *retired* the
rows themselves count, from then on `retired_numbers` does: every number is in exactly one place. What needs the
exclusive lock takes milliseconds, and gives up when it can't have it soon, so acceptance is never held up for long.
"""

from datetime import datetime
from typing import Final

import asyncpg

from broker.storage.evidence import BLOCK
from broker.storage.retention import Day

MOST_MOVED: Final = 10_000
"""With more than this to keep, a day stays: moving it would hold the lock for too long."""
_LOCK_TIMEOUT: Final = "300ms"
_SPAN: Final = 20 * BLOCK
TABLES: Final = ("events", "deliveries", "attempts")
_KEY: Final = {"events": "key", "deliveries": "event_key", "attempts": "event_key"}

_OPEN: Final = "INSERT INTO retirements (day) VALUES ($1) ON CONFLICT DO NOTHING"
_STATE: Final = "SELECT * FROM retirements WHERE day = $1 FOR UPDATE"

_NEXT: Final = """
SELECT subscription, sequence FROM {deliveries}
WHERE (subscription, sequence) > ($1, $2) ORDER BY subscription, sequence LIMIT 1
"""

MARK: Final = "encode(sha256(convert_to(event.source || E'\\n' || event.id, 'UTF8')), 'hex')"
_DIGEST: Final = f"""
sha256(convert_to(string_agg(sequence || ' ' || coalesce({MARK}, '') || E'\\n', '' ORDER BY sequence), 'UTF8'))
"""

_EXPLAIN: Final = f"""
INSERT INTO retired_numbers (subscription, first, last, day, state, reason, digest)
SELECT $1, min(sequence), max(sequence), $4, state, reason, CASE WHEN state = 'delivered' THEN {_DIGEST} END
FROM (
    SELECT *, sequence - row_number() OVER (PARTITION BY state, reason, block ORDER BY sequence) AS island
    FROM (
        SELECT sequence, event_key, (sequence - 1) / {BLOCK} AS block,
               CASE WHEN state = 'pending' THEN 'dead' ELSE state END AS state,
               CASE WHEN state = 'cancelled' THEN reason END AS reason
        FROM {{deliveries}} WHERE subscription = $1 AND sequence BETWEEN $2 AND $3
    ) AS told
) AS delivery
LEFT JOIN {{events}} AS event ON event.key = CASE WHEN delivery.state = 'delivered' THEN delivery.event_key END
GROUP BY block, state, reason, island
"""
"""Runs of one state and reason within a block. What is dead stays a row, and its run says only that it will move."""

_ADVANCE: Final = "UPDATE retirements SET cursor_subscription = $2, cursor_sequence = $3 WHERE day = $1"
_EXPLAINED: Final = "UPDATE retirements SET explained_at = $2 WHERE day = $1"
_RETIRED: Final = "UPDATE retirements SET retired_at = $2 WHERE day = $1"

_MOVING: Final = """
SELECT coalesce(sum(last - first + 1), 0)::bigint FROM retired_numbers
WHERE day = $1 AND state IN ('pending', 'dead')
"""
_MOVED: Final = "DELETE FROM retired_numbers WHERE day = $1 AND state IN ('pending', 'dead')"

_MOVE: Final = {
    "deliveries": """
        INSERT INTO deliveries_kept SELECT delivery.* FROM retired_numbers AS moving
        JOIN {deliveries} AS delivery ON delivery.subscription = moving.subscription
                                     AND delivery.sequence BETWEEN moving.first AND moving.last
        WHERE moving.day = $1 AND moving.state IN ('pending', 'dead')
    """,
    "attempts": """
        INSERT INTO attempts_kept SELECT attempt.* FROM retired_numbers AS moving
        JOIN {attempts} AS attempt ON attempt.subscription = moving.subscription
                                  AND attempt.sequence BETWEEN moving.first AND moving.last
        WHERE moving.day = $1 AND moving.state IN ('pending', 'dead')
    """,
    "events": """
        INSERT INTO events_kept SELECT event.* FROM {events} AS event
        WHERE event.key IN (
            SELECT delivery.event_key FROM retired_numbers AS moving
            JOIN {deliveries} AS delivery ON delivery.subscription = moving.subscription
                                         AND delivery.sequence BETWEEN moving.first AND moving.last
            WHERE moving.day = $1 AND moving.state IN ('pending', 'dead'))
    """,
}

_STRAYS: Final = """
WITH stray AS (DELETE FROM {table}_default WHERE {key} < $1 RETURNING *) INSERT INTO {table}_kept SELECT * FROM stray
"""
"""What the default partition caught on days without one would stand in the way of the new bound."""

_ATTACHED: Final = """
SELECT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass($1) AND inhparent = to_regclass($2))
"""
_OLDEST: Final = """
SELECT min(to_date(right(relname, 8), 'YYYYMMDD')) FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
WHERE inhparent = 'deliveries'::regclass AND relname ~ '^deliveries_[0-9]{8}$'
"""
_TAKEN_OUT: Final = """
SELECT relname FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
  AND relname ~ '^(events|deliveries|attempts)_[0-9]{8}_retired$'
"""

_SETTLED: Final = f"""
WITH chosen AS (
    SELECT subscription, sequence, event_key, state, reason FROM deliveries_kept
    WHERE state IN ('delivered', 'cancelled') AND ended_at < $1 LIMIT 500 FOR UPDATE SKIP LOCKED
), explained AS (
    INSERT INTO retired_numbers (subscription, first, last, state, reason, digest)
    SELECT chosen.subscription, sequence, sequence, state, CASE WHEN state = 'cancelled' THEN reason END,
           CASE WHEN state = 'delivered'
                THEN sha256(convert_to(sequence || ' ' || coalesce({MARK}, '') || E'\\n', 'UTF8')) END
    FROM chosen LEFT JOIN events AS event ON event.key = chosen.event_key
), tried AS (
    DELETE FROM attempts_kept USING chosen
    WHERE attempts_kept.subscription = chosen.subscription AND attempts_kept.sequence = chosen.sequence
), gone AS (
    DELETE FROM deliveries_kept USING chosen
    WHERE deliveries_kept.subscription = chosen.subscription AND deliveries_kept.sequence = chosen.sequence
)
SELECT count(*) FROM chosen
"""
"""Dead letters about which someone has decided become retired numbers in their turn."""

_UNUSED: Final = """
DELETE FROM events_kept AS event
WHERE NOT EXISTS (SELECT FROM deliveries_kept WHERE event_key = event.key)
"""


class TooMuchToKeep(Exception):
    """A day holds more dead letters than can be moved under a short lock, or older days stand before it."""


async def explain(connection: asyncpg.Connection, day: Day, now: datetime) -> bool:
    """Explain up to 20,000 numbers of a day; whether all of them are explained."""
    async with connection.transaction():
        await connection.execute(_OPEN, day.day)
        state = await connection.fetchrow(_STATE, day.day)
        if state["explained_at"] is not None:
            return True
        following = await connection.fetchrow(
            _NEXT.format(deliveries=day.deliveries), state["cursor_subscription"], state["cursor_sequence"]
        )
        if following is None:
            await connection.execute(_EXPLAINED, day.day, now)
            return True
        subscription, first = following
        last = ((first - 1) // BLOCK) * BLOCK + _SPAN
        statement = _EXPLAIN.format(deliveries=day.deliveries, events=day.events)
        await connection.execute(statement, subscription, first, last, day.day)
        await connection.execute(_ADVANCE, day.day, subscription, last)
    return False


async def close(connection: asyncpg.Connection, day: Day) -> None:
    """Let nothing new into a day, whatever the clock says: an event in it would be dropped with it.

    No event comes without a body, and erased ones may stay.
    """
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        known = await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_constraint WHERE conrelid = to_regclass($1) AND conname = 'retiring')",
            day.events,
        )
        if not known:
            await connection.execute(f"ALTER TABLE {day.events} ADD CONSTRAINT retiring CHECK (body = '') NOT VALID")


async def retire(connection: asyncpg.Connection, day: Day, now: datetime) -> int:
    """Take a day that is explained out of the tables, and move what is kept of it; how many deliveries moved.

    Raises:
        TooMuchToKeep: it has to stay for now.
        asyncpg.LockNotAvailableError: the tables are in use; nothing was done. Try again.
    """
    moving: int = await connection.fetchval(_MOVING, day.day)
    oldest = await connection.fetchval(_OLDEST) == day.day
    if moving > MOST_MOVED or (moving and not oldest):
        raise TooMuchToKeep(f"{moving} dead letters")
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        # the parents only: autovacuum of another day would stand in the way for as long as it takes
        parents = ", ".join(f"ONLY {table}" for table in TABLES)
        await connection.execute(f"LOCK TABLE {parents} IN ACCESS EXCLUSIVE MODE")
        if oldest:
            for table in TABLES:
                await _detach_kept(connection, table)
            for table in TABLES:
                await connection.execute(_STRAYS.format(table=table, key=_KEY[table]), day.end_key)
        if moving:
            names = {"events": day.events, "deliveries": day.deliveries, "attempts": day.attempts}
            for table in TABLES:
                await connection.execute(_MOVE[table].format(**names), day.day)
            await connection.execute(_MOVED, day.day)
        for table, partition in zip(TABLES, (day.events, day.deliveries, day.attempts), strict=True):
            await connection.execute(f"ALTER TABLE {table} DETACH PARTITION {partition}")
            await connection.execute(f"ALTER TABLE {partition} RENAME TO {partition}_retired")
            if oldest:
                await connection.execute(
                    f"ALTER TABLE {table} ATTACH PARTITION {table}_kept FOR VALUES FROM (MINVALUE) TO ({day.end_key})"
                )
        await connection.execute(_RETIRED, day.day, now)
    return moving


async def _detach_kept(connection: asyncpg.Connection, table: str) -> None:
    """Take the table of what is kept out, so that it can be attached with a later bound; makes it at first."""
    kept = f"{table}_kept"
    if await connection.fetchval("SELECT to_regclass($1) IS NULL", kept):
        await connection.execute(f"CREATE TABLE {kept} (LIKE {table} INCLUDING ALL)")
    elif await connection.fetchval(_ATTACHED, kept, table):
        await connection.execute(f"ALTER TABLE {table} DETACH PARTITION {kept}")


async def drop_taken_out(connection: asyncpg.Connection) -> list[str]:
    """Drop what was taken out, by this call or by one whose process died; the names."""
    names = [row["relname"] for row in await connection.fetch(_TAKEN_OUT)]
    for name in names:
        await connection.execute(f"DROP TABLE IF EXISTS {name}")
    return names


async def settle_kept(connection: asyncpg.Connection, before: datetime) -> int:
    """Retire up to 500 of the kept deliveries that ended as delivered or cancelled before a moment; how many."""
    if await connection.fetchval("SELECT to_regclass('deliveries_kept') IS NULL"):
        return 0
    async with connection.transaction():
        count: int = await connection.fetchval(_SETTLED, before)
        if count:
            await connection.execute(_UNUSED)
    return count
