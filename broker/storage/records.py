"""The statements of delivery: reading what is pending, and recording outcomes in batches.

No statement here costs more when the backlog grows: every read follows an index from a known place and is limited.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import asyncpg

from broker.storage.notices import DEAD_LETTERED
from broker.storage.tables import DEAD

_PENDING_AFTER = """
SELECT pending.subscription, pending.sequence, pending.event_key, pending.lane, pending.attempts, pending.due
FROM unnest($1::bigint[], $2::bigint[]) AS asked (subscription, cursor)
CROSS JOIN LATERAL (
    SELECT subscription, sequence, event_key, lane, attempts,
           coalesce(extract(epoch FROM next_attempt_at), 0)::float8 AS due
    FROM deliveries
    WHERE subscription = asked.subscription AND sequence > asked.cursor AND state = 'pending'
    ORDER BY sequence LIMIT $3
) AS pending
"""
"""The next pending deliveries of several subscriptions, each beyond its cursor, in order of number.

Not bounded by event key, which would leave partitions out: keys carry the time, and what was accepted before the clock
was set back would hide what was accepted after, until that is overtaken in its lane."""

_PENDING_OF_LANE = """
SELECT pending.subscription, pending.sequence, pending.event_key, pending.lane, pending.attempts, pending.due
FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[]) AS asked (subscription, lane, after, cursor)
CROSS JOIN LATERAL (
    SELECT subscription, sequence, event_key, lane, attempts,
           coalesce(extract(epoch FROM next_attempt_at), 0)::float8 AS due
    FROM deliveries
    WHERE subscription = asked.subscription AND lane = asked.lane AND sequence > asked.after
      AND sequence <= asked.cursor AND state = 'pending' AND lane IS NOT NULL
    ORDER BY sequence LIMIT $5
) AS pending
"""
"""The next pending deliveries of single lanes."""

_PENDING_HEADS = """
WITH RECURSIVE heads AS (
    SELECT $1::bigint AS subscription, NULL::bigint AS event_key
    UNION ALL
    SELECT head.subscription, head.event_key FROM heads CROSS JOIN LATERAL (
        SELECT key FROM subscriptions
        WHERE key > heads.subscription AND protocol <> 'PULL' AND key % $4 = ANY($3::int[]) ORDER BY key LIMIT 1
    ) AS candidate CROSS JOIN LATERAL (
        SELECT subscription, event_key FROM deliveries
        WHERE state = 'pending' AND subscription >= candidate.key
        ORDER BY subscription, sequence LIMIT 1
    ) AS head
)
SELECT subscription, event_key FROM heads WHERE event_key IS NOT NULL LIMIT $2
"""
"""The subscriptions with something pending, each with its first: one index probe for each, whatever the backlog.

A probe goes through all partitions, so none is made for what is pulled or in other shards, where pending things may
stand for weeks: each looks from the next subscription on that counts. What it finds may still be one that doesn't."""

_DESCRIBED = """
SELECT key, source, type FROM events WHERE key = ANY($1::bigint[])
"""

_BODIES = """
SELECT key, type, body FROM events WHERE key = ANY($1::bigint[]) AND body <> ''
"""
"""Bodies that are there: an erased one is none."""

_RECORD = """
WITH outcome AS (
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::delivery_state[], $5::smallint[],
                         $6::timestamptz[], $7::timestamptz[], $8::smallint[], $9::text[], $10::bigint[])
        AS new (subscription, sequence, event_key, state, attempts, next_attempt_at, ended_at, status, reason, epoch)
), recorded AS (
    UPDATE deliveries AS delivery
    SET state = outcome.state, attempts = outcome.attempts, next_attempt_at = outcome.next_attempt_at,
        ended_at = outcome.ended_at, status = outcome.status, reason = outcome.reason
    FROM outcome JOIN leases ON leases.kind = 'shard' AND leases.number = outcome.subscription % $11
                            AND leases.epoch = outcome.epoch
    WHERE delivery.subscription = outcome.subscription AND delivery.sequence = outcome.sequence
      AND delivery.event_key = outcome.event_key AND delivery.ended_at IS NULL
    RETURNING delivery.subscription, delivery.sequence, delivery.event_key, delivery.state, delivery.reason
), totals AS (
    INSERT INTO delivery_totals AS total (subscription, delivered, dead, cancelled)
    SELECT subscription, count(*) FILTER (WHERE state = 'delivered'), count(*) FILTER (WHERE state = 'dead'),
           count(*) FILTER (WHERE state = 'cancelled')
    FROM recorded WHERE state <> 'pending' GROUP BY subscription ORDER BY subscription
    ON CONFLICT (subscription) DO UPDATE SET delivered = total.delivered + excluded.delivered,
        dead = total.dead + excluded.dead, cancelled = total.cancelled + excluded.cancelled
)
SELECT count(*) FROM recorded
"""
"""Records outcomes where the delivery is still pending and the shard is still ours: a late outcome changes nothing.

What is pending has not ended (a constraint). It is asked like this because statistics say that next to nothing is
pending: asked by state, PostgreSQL would hold every outcome against every entry of the index of what is pending."""

_RECORD_DEAD = _RECORD.replace(")\nSELECT count(*)", f"), told AS ({DEAD_LETTERED})\nSELECT count(*)")
"""The same where there are dead letters: their providers are told."""

_RECORD_DELIVERED = """
WITH outcome AS (
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::smallint[], $5::smallint[], $6::float8[])
        AS new (subscription, sequence, event_key, attempts, status, ended_at)
    WHERE subscription % $9 = ANY ((
        SELECT array_agg(leases.number) FROM leases
        JOIN unnest($7::int[], $8::bigint[]) AS ours (number, epoch)
            ON leases.kind = 'shard' AND leases.number = ours.number AND leases.epoch = ours.epoch
    )::int[])
), recorded AS (
    UPDATE deliveries AS delivery
    SET state = 'delivered', attempts = outcome.attempts, next_attempt_at = NULL,
        ended_at = to_timestamp(outcome.ended_at), status = outcome.status, reason = NULL
    FROM outcome
    WHERE delivery.subscription = outcome.subscription AND delivery.sequence = outcome.sequence
      AND delivery.event_key = outcome.event_key AND delivery.ended_at IS NULL
    RETURNING delivery.subscription
), totals AS (
    INSERT INTO delivery_totals AS total (subscription, delivered)
    SELECT subscription, count(*) FROM recorded GROUP BY subscription ORDER BY subscription
    ON CONFLICT (subscription) DO UPDATE SET delivered = total.delivered + excluded.delivered
)
SELECT count(*) FROM recorded
"""
"""The same for successes alone, which nearly all are: the leases are looked up once instead of for each."""

_NOTE_FAILING = """
UPDATE subscriptions SET failing_since = to_timestamp(note.since)
FROM unnest($1::bigint[], $2::float8[], $3::bigint[]) AS note (subscription, since, epoch)
JOIN leases ON leases.kind = 'shard' AND leases.number = note.subscription % $4 AND leases.epoch = note.epoch
WHERE subscriptions.key = note.subscription AND (failing_since IS NULL) <> (note.since IS NULL)
"""
"""Writes since when sinks fail, or (null) that they don't any more, where the shard is still ours. A time that stands
there already stays. It is no change of the subscription: nobody but its sender goes by it."""

_TOTALS = """
SELECT coalesce(sum(numbers.last_sequence), 0)::bigint AS matched,
       coalesce(sum(totals.delivered + totals.dead + totals.cancelled), 0)::bigint AS ended
FROM subscription_numbers AS numbers LEFT JOIN delivery_totals AS totals USING (subscription)
WHERE numbers.subscription % $2 = ANY($1::int[])
"""

ATTEMPT_COLUMNS = (
    "subscription", "sequence", "event_key", "attempt", "started_at", "milliseconds", "status", "reason", "excerpt",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class OutcomeRow:
    """What an attempt made of a delivery."""

    subscription: int
    sequence: int
    event_key: int
    state: str
    attempts: int
    next_attempt_at: datetime | None
    ended_at: datetime | None
    status: int | None
    reason: str | None
    epoch: int

    @classmethod
    def of_delivered(cls, row: "DeliveredRow", epoch: int) -> "OutcomeRow":
        """The same outcome in full."""
        subscription, sequence, event_key, attempts, status, ended_at = row
        moment = datetime.fromtimestamp(ended_at, UTC)
        return cls(subscription, sequence, event_key, "delivered", attempts, None, moment, status, None, epoch)


@dataclass(frozen=True, slots=True)
class FailingNote:
    """Since when a sink fails, in seconds since 1970; None: it has accepted something."""

    subscription: int
    since: float | None
    epoch: int


DeliveredRow = tuple[int, int, int, int, int | None, float]
"""A success: subscription, sequence, event key, attempts made, status, and when, in seconds since 1970."""
AttemptRow = tuple[int, int, int, int, datetime, int, int | None, str | None, bytes | None]
PendingRow = tuple[int, int, int, int | None, int, float]


async def pending_after(
    connection: asyncpg.Connection, cursors: Sequence[tuple[int, int]], limit: int
) -> list[PendingRow]:
    """Up to `limit` pending deliveries for each (subscription, cursor)."""
    rows = await connection.fetch(_PENDING_AFTER, [c[0] for c in cursors], [c[1] for c in cursors], limit)
    return [tuple(row) for row in rows]


async def pending_of_lanes(
    connection: asyncpg.Connection, lanes: Sequence[tuple[int, int, int, int]], limit: int
) -> list[PendingRow]:
    """Up to `limit` pending deliveries for each (subscription, lane, after, cursor)."""
    rows = await connection.fetch(_PENDING_OF_LANE, *(list(column) for column in zip(*lanes, strict=True)), limit)
    return [tuple(row) for row in rows]


async def pending_heads(
    connection: asyncpg.Connection, after: int, limit: int, shards: Sequence[int], of: int
) -> list[tuple[int, int]]:
    """Subscriptions above `after` that have something pending, with the event key of their first.

    All in these of `of` shards that aren't pulled, and maybe some others.
    """
    rows = await connection.fetch(_PENDING_HEADS, after, limit, list(shards), of)
    return [tuple(row) for row in rows]


async def described(connection: asyncpg.Connection, keys: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Source and type of events; those that are gone are missing."""
    return {row[0]: (row[1], row[2]) for row in await connection.fetch(_DESCRIBED, keys)}


async def bodies(connection: asyncpg.Connection, keys: Sequence[int]) -> list[tuple[int, str, bytes]]:
    """Key, type and sealed body of events; those that are gone are missing."""
    return [tuple(row) for row in await connection.fetch(_BODIES, keys)]


async def record(
    connection: asyncpg.Connection,
    outcomes: Sequence[OutcomeRow],
    attempts: Sequence[AttemptRow],
    shards: int,
    *,
    delivered: Sequence[DeliveredRow] = (),
    epochs: Mapping[int, int] | None = None,
) -> int:
    """Record outcomes and failed attempts in one transaction; how many outcomes still counted.

    Args:
        connection: with the settings of `connection_settings`.
        outcomes: of any kind.
        attempts: those that failed.
        shards: how many there are.
        delivered: successes; none of them has an end among `outcomes`.
        epochs: the epoch of each shard under which `delivered` were sent.
    """
    if not outcomes and not attempts:
        return await _record_delivered(connection, delivered, epochs or {}, shards)  # one statement commits by itself
    columns = zip(
        *(
            (
                o.subscription, o.sequence, o.event_key, o.state, o.attempts, o.next_attempt_at, o.ended_at, o.status,
                o.reason, o.epoch,
            )
            for o in outcomes
        ),
        strict=True,
    )  # fmt: skip
    async with connection.transaction():
        statement = _RECORD_DEAD if any(o.state == DEAD for o in outcomes) else _RECORD
        counted: int = await connection.fetchval(statement, *(map(list, columns) if outcomes else [[]] * 10), shards)
        if delivered:
            counted += await _record_delivered(connection, delivered, epochs or {}, shards)
        if attempts:
            await connection.copy_records_to_table("attempts", columns=ATTEMPT_COLUMNS, records=attempts)
    return counted


async def _record_delivered(
    connection: asyncpg.Connection, delivered: Sequence[DeliveredRow], epochs: Mapping[int, int], shards: int
) -> int:
    counted: int = await connection.fetchval(
        _RECORD_DELIVERED, *zip(*delivered, strict=True), list(epochs), list(epochs.values()), shards
    )
    return counted


async def note_failing(connection: asyncpg.Connection, notes: Sequence[FailingNote], shards: int) -> None:
    """Write since when sinks fail, in a transaction of its own: it takes locks that those who manage take first."""
    await connection.execute(
        _NOTE_FAILING, [n.subscription for n in notes], [n.since for n in notes], [n.epoch for n in notes], shards
    )


async def totals(connection: asyncpg.Connection, shards: Sequence[int], of: int) -> tuple[int, int]:
    """How many deliveries were matched and how many ended, in these of `of` shards."""
    row = await connection.fetchrow(_TOTALS, list(shards), of)
    return row["matched"], row["ended"]


def connection_settings(application_name: str) -> dict[str, str]:
    """Session settings of a delivering connection: plans that follow the indexes, whatever the statistics say."""
    return {
        "application_name": application_name,
        "enable_seqscan": "off",
        "enable_hashjoin": "off",
        "enable_mergejoin": "off",
        "plan_cache_mode": "force_generic_plan",
        "idle_in_transaction_session_timeout": "10000",
        "statement_timeout": "30000",
        "lock_timeout": "10000",
    }
