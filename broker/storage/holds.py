"""Cancelling what a hold kept: portions of the pending deliveries, each in a commit with how far it has come.

Whoever does a portion locks the hold, so a portion is done once; a process that dies leaves its last commit.
"""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

import asyncpg

from broker.storage.tables import KEY_SHIFT, key_at

PORTION: Final = 1_000
REASON: Final = "hold-cancelled"

_CLAIM: Final = """
SELECT id, scope, value, target_id, end_reason, end_asked_at, cursor_subscription, cursor_sequence FROM holds
WHERE status = 'cancelling' ORDER BY end_asked_at LIMIT 1 FOR UPDATE SKIP LOCKED
"""

_KEY: Final = "SELECT key FROM subscriptions WHERE id = $1"
_NEXT_KEY: Final = "SELECT min(key) FROM subscriptions WHERE organisation_id = $1 AND key > $2"

_CANCEL: Final = """
WITH chosen AS (
    SELECT subscription, sequence, event_key FROM deliveries
    WHERE state = 'pending' AND {range} ORDER BY subscription, sequence LIMIT {portion}
), covered AS (
    SELECT chosen.* FROM chosen LEFT JOIN events AS event ON event.key = chosen.event_key
    WHERE chosen.event_key < $3 AND CASE $5 WHEN 'source' THEN event.source = $6 WHEN 'event-type' THEN event.type = $6
                                            ELSE true END
), cancelled AS (
    UPDATE deliveries AS delivery
    SET state = 'cancelled', ended_at = now(), next_attempt_at = NULL, status = NULL, reason = $4
    FROM covered
    WHERE delivery.subscription = covered.subscription AND delivery.sequence = covered.sequence
      AND delivery.event_key = covered.event_key AND delivery.ended_at IS NULL
    RETURNING delivery.subscription
), totals AS (
    INSERT INTO delivery_totals AS total (subscription, cancelled)
    SELECT subscription, count(*) FROM cancelled GROUP BY subscription ORDER BY subscription
    ON CONFLICT (subscription) DO UPDATE SET cancelled = total.cancelled + excluded.cancelled
)
SELECT (SELECT count(*) FROM cancelled) AS cancelled, count(*) AS walked,
       (SELECT subscription FROM chosen ORDER BY subscription DESC, sequence DESC LIMIT 1) AS subscription,
       (SELECT sequence FROM chosen ORDER BY subscription DESC, sequence DESC LIMIT 1) AS sequence
FROM chosen
"""
"""Cancels what a hold covers among the next pending deliveries, and counts it, in one statement (promise 2)."""
_OF_ANY: Final = _CANCEL.format(range="(subscription, sequence) > ($1, $2)", portion=PORTION)
_OF_ONE: Final = _CANCEL.format(range="subscription = $1 AND sequence > $2", portion=PORTION)

_ADVANCE: Final = """
UPDATE holds SET cancelled = cancelled + $2, cursor_subscription = $3, cursor_sequence = $4 WHERE id = $1
"""


@dataclass(frozen=True, slots=True)
class Portion:
    """A portion that was done of a hold's cancellation."""

    hold: UUID
    cancelled: int
    complete: bool
    """Nothing of it is left."""


async def cancel_portion(connection: asyncpg.Connection) -> Portion | None:
    """Cancel the next portion of what a hold kept when its cancellation was asked for; None: no hold asks for it.

    Raises:
        asyncpg.DeadlockDetectedError: outcomes are being recorded at the same time; nothing was done.
    """
    async with connection.transaction():
        hold = await connection.fetchrow(_CLAIM)
        if hold is None:
            return None
        key, sequence = hold["cursor_subscription"], hold["cursor_sequence"]
        statement = _OF_ANY
        if hold["target_id"] is not None:
            statement = _OF_ONE
            if not key:
                key = await _first_key(connection, hold)
            if key is None:
                return Portion(hold["id"], 0, complete=True)
        # accepted in the millisecond of the request counts as before it
        until = key_at(hold["end_asked_at"]) + (1 << KEY_SHIFT)
        reason = f"{REASON}: {hold['end_reason']}"
        row = await connection.fetchrow(statement, key, sequence, until, reason, hold["scope"], hold["value"])
        over = row["walked"] < PORTION
        if not over:
            key, sequence = row["subscription"], row["sequence"]
        elif hold["scope"] == "organisation":
            following = await connection.fetchval(_NEXT_KEY, hold["target_id"], key)
            if following is not None:
                key, sequence, over = following, 0, False
        await connection.execute(_ADVANCE, hold["id"], row["cancelled"], key, sequence)
        return Portion(hold["id"], row["cancelled"], over)


async def _first_key(connection: asyncpg.Connection, hold: asyncpg.Record) -> int | None:
    if hold["scope"] == "organisation":
        key: int | None = await connection.fetchval(_NEXT_KEY, hold["target_id"], 0)
    else:
        key = await connection.fetchval(_KEY, hold["target_id"])
    return key
