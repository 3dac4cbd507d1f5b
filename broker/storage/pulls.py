"""The statements of pulling: a subscription's log by number, and how far its provider says that it has come.

Reading costs what is read, wherever in the log; acknowledging costs the numbers that it ends, in bounded portions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.storage.tables import events, pull_cursors
from subscriptions.held import Holds

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

_KINDS: Final = text(
    """
    SELECT DISTINCT event.type, event.source, statement_timestamp() AS read_at
    FROM (
        SELECT event_key, state FROM deliveries
        WHERE subscription = :key AND sequence > :after AND sequence <= :through ORDER BY sequence LIMIT :limit
    ) AS chosen
    JOIN events AS event ON event.key = chosen.event_key
    WHERE chosen.state IN ('pending', 'dead')
    """
)
"""What the events are that an acknowledgement would end, among a portion of numbers; and PostgreSQL's time."""

_ACKNOWLEDGE: Final = text(
    """
    WITH chosen AS (
        SELECT sequence, event_key, state, attempts, next_attempt_at FROM deliveries
        WHERE subscription = :key AND sequence > :after AND sequence <= :through ORDER BY sequence LIMIT :limit
        FOR UPDATE
    ), open AS (
        SELECT chosen.*, event.type,
               chosen.state = 'pending' AND (
                   chosen.attempts = 0 AND chosen.next_attempt_at > now()
                   OR event.type = ANY(:held_types) OR event.source = ANY(:held_sources)
               ) AS kept_back
        FROM chosen LEFT JOIN events AS event ON event.key = chosen.event_key
        WHERE chosen.state IN ('pending', 'dead')
    ), fence AS (
        SELECT min(sequence) AS at FROM open WHERE kept_back
    ), acknowledged AS (
        UPDATE deliveries AS delivery
        SET state = (CASE WHEN open.type IS NULL OR open.type = ANY(:ungranted) THEN 'cancelled' ELSE 'delivered' END
                    )::delivery_state,
            reason = CASE WHEN open.type IS NULL THEN 'payload-expired'
                          WHEN open.type = ANY(:ungranted) THEN 'grant-ended' END,
            ended_at = now(), next_attempt_at = NULL, status = NULL
        FROM open, fence
        WHERE delivery.subscription = :key AND delivery.sequence = open.sequence
          AND delivery.event_key = open.event_key AND (fence.at IS NULL OR open.sequence < fence.at)
        RETURNING open.state AS former, delivery.state
    ), counted AS (
        SELECT count(*) FILTER (WHERE state = 'delivered') AS delivered,
               count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
               count(*) FILTER (WHERE former = 'dead') AS dead
        FROM acknowledged
    ), totals AS (
        INSERT INTO delivery_totals AS total (subscription, delivered, cancelled)
        SELECT :key, delivered, cancelled FROM counted WHERE delivered + cancelled > 0
        ON CONFLICT (subscription) DO UPDATE
        SET delivered = total.delivered + excluded.delivered, cancelled = total.cancelled + excluded.cancelled,
            dead = total.dead - (SELECT dead FROM counted)
    )
    SELECT (SELECT delivered + cancelled FROM counted) AS ended, (SELECT at FROM fence) AS kept_back,
           count(*) AS walked, max(sequence) AS last
    FROM chosen
    """
)
"""Ends the pending ones and the dead letters among a portion of numbers: what a pull brought over is delivered, what it
showed as a tombstone is cancelled. What is held or delayed was not shown, and keeps its place and all behind it."""


@dataclass(frozen=True, slots=True)
class Portion:
    """What acknowledging a portion did."""

    ended: int
    complete: bool
    """The cursor has come to where it was to go."""
    kept_back: int | None
    """The number before which it must stand still for now."""


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


async def acknowledge_portion(
    connection: AsyncConnection, key: int, through: int, *, granted: Callable[[str, datetime], bool], holds: Holds
) -> Portion:
    """Move the cursor on by a portion at most, and end what is on the way; one transaction.

    A cursor that is further already stays where it is. Whether a type is `granted` is asked for PostgreSQL's time, by
    which it was accepted too.
    """
    fresh = insert(pull_cursors).values(subscription=key, through=0).on_conflict_do_nothing()
    await connection.execute(fresh)
    locked = select(pull_cursors.c.through).where(pull_cursors.c.subscription == key).with_for_update()
    after = (await connection.execute(locked)).scalar_one()
    if after >= through:
        return Portion(0, True, None)
    place = {"key": key, "after": after, "through": through, "limit": PORTION}
    kinds = (await connection.execute(_KINDS, place)).all()
    judged = {
        "ungranted": sorted({kind.type for kind in kinds if not granted(kind.type, kind.read_at)}),
        "held_types": sorted({kind.type for kind in kinds if holds.of_type(kind.type)}),
        "held_sources": sorted({kind.source for kind in kinds if holds.of_source(kind.source)}),
    }
    row = (await connection.execute(_ACKNOWLEDGE, place | judged)).one()
    complete = row.walked < PORTION and row.kept_back is None
    if row.kept_back is not None:
        moved = row.kept_back - 1
    else:
        moved = through if complete else row.last
    await connection.execute(
        pull_cursors.update()
        .where(pull_cursors.c.subscription == key)
        .values(through=moved, acknowledged_at=func.now())
    )
    return Portion(row.ended, complete, row.kept_back)
