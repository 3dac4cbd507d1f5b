"""The statements of delays: what waits for its time is cancelled by a correction, or taken to be sent, never both.

Both lock the row, and both ask PostgreSQL's clock: until `next_attempt_at` a correction may cancel, from then on the
delivery may be taken, which clears it. So what was cancelled is never sent, and what was taken is never cancelled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import asyncpg

_CORRECT: Final = """
WITH asked AS (
    SELECT ids.event_key, new.*
    FROM unnest($1::bytea[], $2::bigint[], $3::text[], $4::text[]) AS new (digest, by_key, reason, own_reason)
    JOIN event_ids AS ids ON ids.digest = new.digest
), corrected AS (
    UPDATE deliveries AS delivery
    SET state = 'cancelled', ended_at = clock_timestamp(), next_attempt_at = NULL, reason = asked.reason
    FROM asked
    WHERE delivery.event_key = asked.event_key AND delivery.state = 'pending' AND delivery.attempts = 0
      AND delivery.next_attempt_at > clock_timestamp()
    RETURNING delivery.subscription, asked.by_key, asked.own_reason
), withdrawn AS (
    UPDATE deliveries AS delivery
    SET state = 'cancelled', ended_at = clock_timestamp(), next_attempt_at = NULL, reason = corrected.own_reason
    FROM corrected
    WHERE corrected.own_reason IS NOT NULL AND delivery.event_key = corrected.by_key
      AND delivery.subscription = corrected.subscription AND delivery.state = 'pending'
    RETURNING delivery.subscription
), totals AS (
    INSERT INTO delivery_totals AS total (subscription, cancelled)
    SELECT subscription, count(*) FROM (
        SELECT subscription FROM corrected UNION ALL SELECT subscription FROM withdrawn
    ) AS ended GROUP BY subscription ORDER BY subscription
    ON CONFLICT (subscription) DO UPDATE SET cancelled = total.cancelled + excluded.cancelled
)
SELECT DISTINCT by_key, subscription FROM corrected
"""
"""Cancels what of corrected events still waits, and their withdrawals there, and counts both (promise 2)."""

_TAKE: Final = """
WITH asked AS (
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[]) AS wanted (subscription, sequence, event_key)
), taken AS (
    UPDATE deliveries AS delivery SET next_attempt_at = NULL
    FROM asked
    WHERE delivery.subscription = asked.subscription AND delivery.sequence = asked.sequence
      AND delivery.event_key = asked.event_key AND delivery.ended_at IS NULL
      AND (delivery.next_attempt_at IS NULL OR delivery.next_attempt_at <= clock_timestamp())
    RETURNING delivery.subscription, delivery.sequence
)
SELECT asked.subscription, asked.sequence, taken.sequence IS NOT NULL AS taken,
       extract(epoch FROM delivery.next_attempt_at)::float8 AS due,
       extract(epoch FROM delivery.next_attempt_at - clock_timestamp())::float8 AS early
FROM asked LEFT JOIN taken USING (subscription, sequence)
LEFT JOIN deliveries AS delivery ON delivery.subscription = asked.subscription
    AND delivery.sequence = asked.sequence AND delivery.event_key = asked.event_key AND delivery.ended_at IS NULL
"""
"""Takes deliveries whose delay is over; of the others, when and in how many seconds it is, or nothing: they ended."""


@dataclass(frozen=True, slots=True)
class CorrectionRow:
    """A correction that is being accepted."""

    digest: bytes
    """Of the event that it corrects."""
    by_key: int
    reason: str
    own_reason: str | None
    """Set where it is a withdrawal."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a delivery that was to be taken."""

    taken: bool
    due: float | None = None
    """Where it wasn't: when it may be, in seconds since 1970; None: it has ended."""
    early: float = 0.0
    """How many seconds that is from now, by PostgreSQL's clock."""


async def correct(connection: asyncpg.Connection, corrections: Sequence[CorrectionRow]) -> dict[int, list[int]]:
    """Cancel what of corrected events still waits for its delay, in the transaction that accepts the corrections.

    Returns the subscriptions in which something was cancelled, by the key of the correction.
    """
    columns = zip(*((each.digest, each.by_key, each.reason, each.own_reason) for each in corrections), strict=True)
    touched: dict[int, list[int]] = {}
    for row in await connection.fetch(_CORRECT, *map(list, columns)):
        touched.setdefault(row["by_key"], []).append(row["subscription"])
    return touched


async def take(
    connection: asyncpg.Connection, deliveries: Sequence[tuple[int, int, int]]
) -> dict[tuple[int, int], Taken]:
    """Take deliveries (subscription, sequence, event key) whose delay is over, by (subscription, sequence)."""
    rows = await connection.fetch(_TAKE, *map(list, zip(*deliveries, strict=True)))
    return {
        (row["subscription"], row["sequence"]): Taken(row["taken"], row["due"], row["early"] or 0.0) for row in rows
    }
