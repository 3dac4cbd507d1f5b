"""The statements of replays: what was asked for, the next numbers of it, and how far it is.

A replay is settled number by number, in order: `cursor` says up to where. Only who owns the shard writes progress, so
figures are written whole, and a write that is repeated changes nothing. The state of what was delivered stays as it is;
a dead letter that a replay brought over is delivered, and counted, in the transaction that says so (promise 2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
import orjson
from sqlalchemy import Row, Select, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.storage.tables import key_at, replays
from subscriptions.database import AnyRow
from subscriptions.tables import subscriptions

RUNNING, DONE, CANCELLED = "running", "done", "cancelled"
ON_REQUEST: Final = "requested"
SUBSCRIPTION_ENDED: Final = "subscription-ended"
ORDER: Final = (replays.c.requested_at, replays.c.id)

_RUNNING: Final = """
SELECT replay.id, replay.subscription, replay.first, replay.last, replay.numbers, replay.per_second, replay.cursor,
       replay.sent, replay.failed, replay.skipped::text AS skipped, replay.last_failure,
       subscription.status = 'ended' AS over
FROM replays AS replay JOIN subscriptions AS subscription ON subscription.key = replay.subscription
WHERE replay.state = 'running' AND replay.subscription % $2 = ANY($1::int[])
"""
"""The replays of some shards that are under way, or wait: by the small index of these alone."""

_ROWS: Final = """
SELECT delivery.sequence, delivery.event_key, delivery.lane, delivery.state::text AS state, delivery.reason,
       event.source, event.type
FROM (
    SELECT * FROM deliveries
    WHERE subscription = $1 AND sequence > $2 AND sequence <= $3
      AND ($4::bigint[] IS NULL OR sequence = ANY($4::bigint[]))
    ORDER BY sequence LIMIT $5
) AS delivery
LEFT JOIN events AS event ON event.key = delivery.event_key
ORDER BY delivery.sequence
"""

_SETTLE: Final = """
WITH ours AS (
    UPDATE replays AS replay
    SET cursor = $3, sent = $4, failed = $5, skipped = $6::text::jsonb, last_failure = $7,
        state = CASE WHEN $8 AND state = 'running' THEN 'done' ELSE state END,
        ended_at = CASE WHEN $8 AND state = 'running' THEN now() ELSE ended_at END
    FROM leases
    WHERE replay.id = $1 AND leases.kind = 'shard' AND leases.number = replay.subscription % $9 AND leases.epoch = $2
    RETURNING replay.subscription, replay.state
), brought AS (
    UPDATE deliveries AS delivery
    SET state = 'delivered', ended_at = to_timestamp(letter.at), next_attempt_at = NULL, status = letter.status,
        reason = NULL
    FROM unnest($10::bigint[], $11::bigint[], $12::smallint[], $13::float8[])
        AS letter (sequence, event_key, status, at), ours
    WHERE delivery.subscription = ours.subscription AND delivery.sequence = letter.sequence
      AND delivery.event_key = letter.event_key AND delivery.state = 'dead'
    RETURNING delivery.subscription
), totals AS (
    UPDATE delivery_totals AS total SET delivered = total.delivered + counted.count, dead = total.dead - counted.count
    FROM (SELECT subscription, count(*) AS count FROM brought GROUP BY subscription) AS counted
    WHERE total.subscription = counted.subscription
)
SELECT state FROM ours
"""
"""Writes how far a replay is, where the shard is still ours; also what was settled before it was cancelled."""

_NUMBERS_OF_EVENTS: Final = text(
    """
    SELECT DISTINCT delivery.sequence FROM unnest(CAST(:ids AS text[])) AS asked (id)
    JOIN events AS event ON hashtextextended(event.id, 0) = hashtextextended(asked.id, 0) AND event.id = asked.id
    JOIN deliveries AS delivery ON delivery.event_key = event.key AND delivery.subscription = :key
    ORDER BY delivery.sequence
    """
)

_NUMBERS_OF_TIME: Final = text(
    """
    SELECT min(sequence) AS first, max(sequence) AS last FROM deliveries
    WHERE subscription = :key AND event_key >= :low AND event_key < :high
    """
)

_KEPT: Final = text(
    """
    SELECT EXISTS (
        SELECT FROM deliveries AS delivery JOIN events AS event ON event.key = delivery.event_key
        WHERE delivery.subscription = :key AND delivery.sequence BETWEEN :first AND :last
          AND (CAST(:numbers AS bigint[]) IS NULL OR delivery.sequence = ANY(CAST(:numbers AS bigint[])))
          AND event.body <> ''
    )
    """
)


@dataclass(frozen=True, slots=True)
class Running:
    """A replay that is under way, as it stands in the database."""

    id: UUID
    subscription: int
    first: int
    last: int
    numbers: tuple[int, ...] | None
    per_second: int
    cursor: int
    sent: int
    failed: int
    skipped: Mapping[str, int]
    last_failure: str | None
    over: bool
    """Its subscription has ended."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter that was sent and accepted."""

    sequence: int
    event_key: int
    status: int | None
    at: float


async def running(connection: asyncpg.Connection, shards: Sequence[int], of: int) -> list[Running]:
    """The replays of these of `of` shards that are not over."""
    return [
        Running(
            row["id"], row["subscription"], row["first"], row["last"],
            None if row["numbers"] is None else tuple(row["numbers"]), row["per_second"], row["cursor"], row["sent"],
            row["failed"], orjson.loads(row["skipped"]), row["last_failure"], row["over"],
        )
        for row in await connection.fetch(_RUNNING, list(shards), of)
    ]  # fmt: skip


async def rows(
    connection: asyncpg.Connection, key: int, after: int, last: int, numbers: Sequence[int] | None, limit: int
) -> list[asyncpg.Record]:
    """The next deliveries of a subscription, whatever their state: those of a range, or some numbers of it."""
    found: list[asyncpg.Record] = await connection.fetch(
        _ROWS, key, after, last, None if numbers is None else list(numbers), limit
    )
    return found


async def settle(
    connection: asyncpg.Connection,
    replay: Running,
    epoch: int,
    shards: int,
    *,
    over: bool,
    letters: Sequence[Letter],
) -> str | None:
    """Write the figures of a replay; its state then, or None: the shard is no longer ours and nothing was written."""
    state: str | None = await connection.fetchval(
        _SETTLE, replay.id, epoch, replay.cursor, replay.sent, replay.failed, orjson.dumps(replay.skipped).decode(),
        replay.last_failure, over, shards, [letter.sequence for letter in letters],
        [letter.event_key for letter in letters], [letter.status for letter in letters],
        [letter.at for letter in letters],
    )  # fmt: skip
    return state


async def close(connection: asyncpg.Connection, id: UUID) -> None:
    """Cancel a replay whose subscription has ended."""
    await connection.execute(
        "UPDATE replays SET state = 'cancelled', reason = $2, ended_at = now() WHERE id = $1 AND state = 'running'",
        id,
        SUBSCRIPTION_ENDED,
    )


# what people ask


async def numbers_of_events(connection: AsyncConnection, key: int, ids: Sequence[str]) -> list[int]:
    """The numbers under which events with these ids came to a subscription, ascending."""
    return list((await connection.execute(_NUMBERS_OF_EVENTS, {"key": key, "ids": list(ids)})).scalars())


async def numbers_of_time(
    connection: AsyncConnection, key: int, since: datetime | None, until: datetime | None
) -> tuple[int, int] | None:
    """The first and the last number of what was accepted in a stretch of time; None: there are no rows of it."""
    bounds = {
        "key": key,
        "low": 0 if since is None else max(key_at(since), 0),
        "high": 2**63 - 1 if until is None else max(min(key_at(until), 2**63 - 1), 0),
    }
    row = (await connection.execute(_NUMBERS_OF_TIME, bounds)).one()
    return None if row.first is None else (row.first, row.last)


async def any_kept(connection: AsyncConnection, key: int, first: int, last: int, numbers: Sequence[int] | None) -> bool:
    """Whether the payload of any of these numbers is still there."""
    asked = {"key": key, "first": first, "last": last, "numbers": None if numbers is None else list(numbers)}
    kept: bool = (await connection.execute(_KEPT, asked)).scalar_one()
    return kept


async def start(
    connection: AsyncConnection, key: int, first: int, last: int, numbers: Sequence[int] | None, per_second: int
) -> AnyRow:
    """Ask for a replay.

    Raises:
        IntegrityError: one is under way.
    """
    made: AnyRow = (
        await connection.execute(
            insert(replays)
            .values(
                id=uuid4(),
                subscription=key,
                first=first,
                last=last,
                numbers=None if numbers is None else list(numbers),
                per_second=per_second,
                cursor=first - 1,
            )
            .returning(replays)
        )
    ).one()
    return made


def of(key: int) -> Select[Any]:
    """The replays of a subscription."""
    return select(replays).where(replays.c.subscription == key)


async def find(
    connection: AsyncConnection, id: UUID, subscription_id: UUID, organisation_id: UUID | None
) -> Row[Any] | None:
    """A replay of a subscription, which may have ended; None: there is none that is the organisation's."""
    statement = (
        select(replays)
        .join(subscriptions, subscriptions.c.key == replays.c.subscription)
        .where(replays.c.id == id, subscriptions.c.id == subscription_id)
    )
    if organisation_id is not None:
        statement = statement.where(subscriptions.c.organisation_id == organisation_id)
    row: Row[Any] | None = (await connection.execute(statement)).one_or_none()
    return row


async def cancel(connection: AsyncConnection, id: UUID) -> bool:
    """Cancel a replay; whether it was under way."""
    done = await connection.execute(
        update(replays)
        .where(replays.c.id == id, replays.c.state == RUNNING)
        .values(state=CANCELLED, reason=ON_REQUEST, ended_at=func.now())
    )
    return bool(done.rowcount)
