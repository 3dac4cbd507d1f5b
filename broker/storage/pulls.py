"""The statements of pulling: a subscription's log by number, and how far its provider says that it has come.

Reading costs what is read, wherever in the log; acknowledging costs the numbers that it ends, in bounded portions.
"""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Row, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.storage.tables import events, pull_cursors

PORTION: Final = 5_000

_LOG: Final = text(
    """
    SELECT delivery.sequence, delivery.event_key, delivery.state::text AS state, delivery.reason, event.source,
           event.type, event.bytes, delivery.delayed_until
    FROM (
        SELECT sequence, event_key, state, reason,
               CASE WHEN state = 'pending' AND attempts = 0 AND next_attempt_at > now() THEN next_attempt_at END
                   AS delayed_until
        FROM deliveries
        WHERE subscription = :key AND sequence > :after ORDER BY sequence LIMIT :limit
    ) AS delivery
    LEFT JOIN events AS event ON event.key = delivery.event_key
    ORDER BY delivery.sequence
    """
)
"""The next numbers of a subscription, whatever their state; those whose event is gone have no type.

Commit order is number order, so a number that can be read has no lower one that is yet to appear."""

_ACKNOWLEDGE: Final = text(
    """
    WITH chosen AS (
        SELECT sequence, event_key, state FROM deliveries
        WHERE subscription = :key AND sequence > :after AND sequence <= :through ORDER BY sequence LIMIT :limit
        FOR UPDATE
    ), acknowledged AS (
        UPDATE deliveries AS delivery
        SET state = 'delivered', ended_at = now(), next_attempt_at = NULL, status = NULL, reason = NULL
        FROM chosen
        WHERE delivery.subscription = :key AND delivery.sequence = chosen.sequence
          AND delivery.event_key = chosen.event_key AND chosen.state IN ('pending', 'dead')
        RETURNING chosen.state AS former
    ), counted AS (
        SELECT count(*) AS ended, count(*) FILTER (WHERE former = 'dead') AS dead FROM acknowledged
    ), totals AS (
        INSERT INTO delivery_totals AS total (subscription, delivered) SELECT :key, ended FROM counted WHERE ended > 0
        ON CONFLICT (subscription) DO UPDATE
        SET delivered = total.delivered + excluded.delivered, dead = total.dead - (SELECT dead FROM counted)
    )
    SELECT (SELECT ended FROM counted) AS ended, count(*) AS walked, max(sequence) AS last FROM chosen
    """
)
"""Ends what a pull brought over, as delivered: the pending ones and the dead letters among a portion of numbers."""


async def read_log(connection: AsyncConnection, key: int, after: int, limit: int) -> Sequence[Row[Any]]:
    """Up to `limit` numbers beyond `after`."""
    return (await connection.execute(_LOG, {"key": key, "after": after, "limit": limit})).all()


async def read_bodies(connection: AsyncConnection, event_keys: Sequence[int]) -> dict[int, bytes]:
    """The sealed bodies of events, by key; those that are gone or erased are missing."""
    statement = select(events.c.key, events.c.body).where(events.c.key == func.any(event_keys), events.c.body != b"")
    rows = await connection.execute(statement)
    return {row.key: row.body for row in rows}


async def read_cursor(connection: AsyncConnection, key: int) -> int:
    """The number up to which all was acknowledged; 0: none."""
    statement = select(pull_cursors.c.through).where(pull_cursors.c.subscription == key)
    return (await connection.execute(statement)).scalar_one_or_none() or 0


async def acknowledge_portion(connection: AsyncConnection, key: int, through: int) -> tuple[int, bool]:
    """Move the cursor on by a portion at most, and end what is on the way; one transaction.

    Returns how many deliveries ended by this, and whether the cursor has come to `through`. A cursor that is further
    already stays where it is.
    """
    fresh = insert(pull_cursors).values(subscription=key, through=0).on_conflict_do_nothing()
    await connection.execute(fresh)
    locked = select(pull_cursors.c.through).where(pull_cursors.c.subscription == key).with_for_update()
    after = (await connection.execute(locked)).scalar_one()
    if after >= through:
        return 0, True
    row = (
        await connection.execute(_ACKNOWLEDGE, {"key": key, "after": after, "through": through, "limit": PORTION})
    ).one()
    complete = row.walked < PORTION
    moved = through if complete else row.last
    await connection.execute(
        pull_cursors.update()
        .where(pull_cursors.c.subscription == key)
        .values(through=moved, acknowledged_at=func.now())
    )
    return row.ended, complete
