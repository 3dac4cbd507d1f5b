"""The statements of heartbeats: which are due, told once whoever asks, with what they carry."""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

_CLAIM = """
WITH due AS (
    SELECT key, heartbeat_at IS NULL AS first FROM subscriptions
    WHERE heartbeat_seconds IS NOT NULL AND status = 'active' AND (heartbeat_at IS NULL OR heartbeat_at <= now())
      AND key % $1 = ANY($2::int[])
    ORDER BY heartbeat_at NULLS FIRST LIMIT $3 FOR UPDATE SKIP LOCKED
), known AS (
    SELECT due.key, due.first, coalesce(numbers.last_sequence, 0) AS last_sequence,
           coalesce(head.sequence - 1, numbers.last_sequence, 0) AS complete_through,
           CASE WHEN last.state = 'delivered' THEN last.ended_at END AS delivered_at
    FROM due
    LEFT JOIN subscription_numbers AS numbers ON numbers.subscription = due.key
    LEFT JOIN LATERAL (
        SELECT sequence FROM deliveries
        WHERE subscription = due.key AND state = 'pending' ORDER BY sequence LIMIT 1
    ) AS head ON true
    LEFT JOIN LATERAL (
        SELECT state, ended_at FROM deliveries
        WHERE subscription = due.key AND sequence = numbers.last_sequence
    ) AS last ON true
), claimed AS (
    UPDATE subscriptions AS subscription
    SET heartbeat_at = CASE
        WHEN known.delivered_at > now() - make_interval(secs => heartbeat_seconds)
        THEN known.delivered_at + make_interval(secs => heartbeat_seconds)
        ELSE now() + make_interval(secs => heartbeat_seconds * (0.9 + 0.2 * random())) END
    FROM known WHERE subscription.key = known.key
    RETURNING subscription.key, known.last_sequence, known.complete_through,
        NOT known.first
        AND coalesce(known.delivered_at <= now() - make_interval(secs => heartbeat_seconds), true) AS quiet
)
SELECT key, last_sequence, complete_through, quiet FROM claimed
"""
"""Takes what is due in these shards and puts it forward, so that nobody sends it again; which of them are quiet: it is
not their first time, and the last number was not delivered within the interval."""

_PUT_OFF = """
UPDATE subscriptions SET heartbeat_at = greatest(heartbeat_at, now() + make_interval(secs => $2)) WHERE key = $1
"""


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat says of a subscription."""

    subscription: int
    last_sequence: int
    complete_through: int


async def claim(
    connection: asyncpg.Connection, shards: int, held: Sequence[int], limit: int
) -> tuple[list[Beat], bool]:
    """The heartbeats to send now, of the shards in `held`; whether more may be due."""
    rows = await connection.fetch(_CLAIM, shards, list(held), limit)
    return [Beat(row[0], row[1], row[2]) for row in rows if row[3]], len(rows) == limit


async def put_off(connection: asyncpg.Connection, subscription: int, seconds: float) -> None:
    """Send none before so many seconds have passed."""
    await connection.execute(_PUT_OFF, subscription, seconds)
