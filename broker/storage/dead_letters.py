"""The statements about dead letters: which there are, and what becomes of them once somebody decides.

    dead ──► pending      retried: attempts begin anew, their history stays
     │  └──► cancelled    discarded, with a reason; or retried when no grant covers it any more (`grant-ended`)
     └─────► delivered    by a replay or an acknowledged pull

Each decision moves a portion in one transaction, with the totals (promise 2), and names the state that it leaves: what
is no longer dead is passed over. Dead letters whose day was retired stand in `…_kept`, which are partitions like any
other, so nothing here knows of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, Select, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.storage.evidence import follow_indexes
from broker.storage.tables import DEAD, deliveries, events
from subscriptions.change_log import TAKE_SHARED_SQL
from subscriptions.tables import Status, subscriptions

PORTION: Final = 1_000
MOST_WALKED: Final = 10_000
"""Dead letters that one portion looks through for those of a reason or time: meanwhile it keeps changes out."""
_NO_END: Final = 2**63 - 1
DISCARDED: Final = "discarded"
AGAIN_CHANNEL: Final = "bode_again"
"""NOTIFY channel: a subscription, by key, has something to send below the numbers that were read before."""

ORDER: Final = (deliveries.c.subscription, deliveries.c.sequence)

_ATTEMPTS: Final = text(
    """
    SELECT attempt, started_at, milliseconds, status, reason, excerpt FROM attempts
    WHERE subscription = :key AND sequence = :sequence ORDER BY started_at, attempt LIMIT 100
    """
)

_CHOOSE: Final = """
    SELECT delivery.sequence, delivery.event_key, event.type, statement_timestamp() AS chosen_at
    FROM deliveries AS delivery
    LEFT JOIN events AS event ON event.key = delivery.event_key
    WHERE delivery.subscription = :key AND delivery.sequence > :after AND delivery.sequence <= :through
      AND delivery.state = 'dead' {conditions}
    ORDER BY delivery.sequence LIMIT :limit
    FOR UPDATE OF delivery
"""
"""The next dead letters of a subscription, held until the transaction ends."""

_CONDITIONS: Final = {
    "sequences": "delivery.sequence = ANY(CAST(:sequences AS bigint[]))",
    "reason": "delivery.reason = :reason",
    "ended_from": "delivery.ended_at >= :ended_from",
    "ended_until": "delivery.ended_at < :ended_until",
}
"""Of a selection, each where it is asked."""

_WALK: Final = text(
    """
    SELECT count(*) AS walked, max(sequence) AS last FROM (
        SELECT sequence FROM deliveries
        WHERE subscription = :key AND sequence > :after AND state = 'dead' ORDER BY sequence LIMIT :most
    ) AS next
    """
)
"""How far one portion looks for what is selected."""

_RETRY: Final = text(
    """
    WITH chosen AS (
        SELECT * FROM unnest(CAST(:sequences AS bigint[]), CAST(:event_keys AS bigint[]), CAST(:grants AS uuid[]))
            AS asked (sequence, event_key, grant_id)
    ), moved AS (
        UPDATE deliveries AS delivery
        SET state = CASE WHEN chosen.grant_id IS NULL THEN 'cancelled' ELSE 'pending' END::delivery_state,
            ended_at = CASE WHEN chosen.grant_id IS NULL THEN now() END,
            reason = CASE WHEN chosen.grant_id IS NULL THEN 'grant-ended' END,
            grant_id = coalesce(chosen.grant_id, delivery.grant_id),
            attempts = CASE WHEN chosen.grant_id IS NULL THEN delivery.attempts ELSE 0 END,
            next_attempt_at = NULL, status = NULL
        FROM chosen
        WHERE delivery.subscription = :key AND delivery.sequence = chosen.sequence
          AND delivery.event_key = chosen.event_key AND delivery.state = 'dead'
        RETURNING delivery.state
    ), counted AS (
        SELECT count(*) AS moved, count(*) FILTER (WHERE state = 'cancelled') AS cancelled FROM moved
    ), totals AS (
        UPDATE delivery_totals AS total
        SET dead = total.dead - counted.moved, cancelled = total.cancelled + counted.cancelled
        FROM counted WHERE total.subscription = :key
    )
    SELECT moved - cancelled AS retried, cancelled FROM counted
    """
)
"""Makes dead letters pending on the grant that covers them now; what none covers is cancelled."""

_DISCARD: Final = text(
    """
    WITH moved AS (
        UPDATE deliveries AS delivery SET state = 'cancelled', ended_at = now(), reason = :reason
        FROM unnest(CAST(:sequences AS bigint[]), CAST(:event_keys AS bigint[])) AS chosen (sequence, event_key)
        WHERE delivery.subscription = :key AND delivery.sequence = chosen.sequence
          AND delivery.event_key = chosen.event_key AND delivery.state = 'dead'
        RETURNING delivery.state
    ), counted AS (SELECT count(*) AS moved FROM moved), totals AS (
        UPDATE delivery_totals AS total
        SET dead = total.dead - counted.moved, cancelled = total.cancelled + counted.moved
        FROM counted WHERE total.subscription = :key
    )
    SELECT moved FROM counted
    """
)

_AGAIN: Final = text(f"SELECT pg_notify('{AGAIN_CHANNEL}', CAST(:key AS text))")
_TAKE_SHARED: Final = text(TAKE_SHARED_SQL)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which dead letters of a subscription are meant; a member that is None leaves them all."""

    sequences: Sequence[int] | None = None
    reason: str | None = None
    ended_from: datetime | None = None
    ended_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Portion:
    """What one transaction decides about: rows with `sequence`, `event_key` and the event's `type`."""

    rows: Sequence[Row[Any]]
    last: int
    """The number up to which was looked; the next portion comes after this."""
    complete: bool
    """There is nothing beyond it."""

    @property
    def chosen_at(self) -> datetime:
        """When they were chosen, by PostgreSQL's clock, which acceptance judges grants by too."""
        moment: datetime = self.rows[0].chosen_at
        return moment


def of(organisation_id: UUID | None, subscription_id: UUID | None = None) -> Select[Any]:
    """The dead letters of a provider's subscriptions, None: of all; or of one of its subscriptions."""
    statement = (
        select(
            deliveries.c.subscription,
            deliveries.c.sequence,
            deliveries.c.event_key,
            deliveries.c.attempts,
            deliveries.c.ended_at,
            deliveries.c.status,
            deliveries.c.reason,
            subscriptions.c.id.label("subscription_id"),
            events.c.source,
            events.c.id.label("event_id"),
            events.c.type,
        )
        .join(subscriptions, subscriptions.c.key == deliveries.c.subscription)
        .outerjoin(events, events.c.key == deliveries.c.event_key)
        .where(deliveries.c.state == DEAD)
    )
    if organisation_id is not None:
        statement = statement.where(subscriptions.c.organisation_id == organisation_id)
    return statement if subscription_id is None else statement.where(subscriptions.c.id == subscription_id)


async def find(
    connection: AsyncConnection, subscription_id: UUID, sequence: int, organisation_id: UUID | None
) -> Row[Any] | None:
    """One dead letter; None: there is none of that number that is the organisation's."""
    statement = of(organisation_id, subscription_id).where(deliveries.c.sequence == sequence)
    row: Row[Any] | None = (await connection.execute(statement)).one_or_none()
    return row


async def state_of(
    connection: AsyncConnection, subscription_id: UUID, sequence: int, organisation_id: UUID | None
) -> str | None:
    """How a delivery stands, whether it is dead or not; None: there is no row of it that is the organisation's."""
    statement = (
        select(deliveries.c.state)
        .join(subscriptions, subscriptions.c.key == deliveries.c.subscription)
        .where(subscriptions.c.id == subscription_id, deliveries.c.sequence == sequence)
    )
    if organisation_id is not None:
        statement = statement.where(subscriptions.c.organisation_id == organisation_id)
    state: str | None = (await connection.execute(statement)).scalar_one_or_none()
    return state


async def read_attempts(connection: AsyncConnection, key: int, sequence: int) -> Sequence[Row[Any]]:
    """The attempts of a delivery that failed, oldest first; those before a retry too."""
    return (await connection.execute(_ATTEMPTS, {"key": key, "sequence": sequence})).all()


async def keep_changes_out(connection: AsyncConnection) -> None:
    """Hold changes of grants back until this transaction ends, so that what is decided here holds at its commit."""
    await connection.execute(_TAKE_SHARED)


async def has_ended(connection: AsyncConnection, key: int) -> bool:
    """Whether a subscription has ended; after `keep_changes_out` it is as it says until the transaction ends."""
    statement = select(subscriptions.c.status).where(subscriptions.c.key == key)
    return bool((await connection.execute(statement)).scalar_one() == Status.ENDED)


async def choose(connection: AsyncConnection, key: int, selection: Selection, *, after: int = 0) -> Portion:
    """Hold the next dead letters of a subscription, beyond a number; one portion looks at so many and no more."""
    await follow_indexes(connection)
    asked: dict[str, Any] = {
        "sequences": None if selection.sequences is None else list(selection.sequences),
        "reason": selection.reason,
        "ended_from": selection.ended_from,
        "ended_until": selection.ended_until,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    place = {"key": key, "after": after}
    through, all_walked = _NO_END, True
    if selection.sequences:
        place["after"], through = max(after, min(selection.sequences) - 1), max(selection.sequences)
    elif asked:
        walk = (await connection.execute(_WALK, place | {"most": MOST_WALKED})).one()
        through, all_walked = walk.last or after, walk.walked < MOST_WALKED
    conditions = "".join(f" AND {_CONDITIONS[name]}" for name in asked)
    statement = text(_CHOOSE.format(conditions=conditions))
    rows = (await connection.execute(statement, place | asked | {"through": through, "limit": PORTION})).all()
    if len(rows) == PORTION:
        return Portion(rows, rows[-1].sequence, False)
    return Portion(rows, through, all_walked)


async def retry(
    connection: AsyncConnection, key: int, portion: Portion, grants: Mapping[str, UUID | None]
) -> tuple[int, int]:
    """Make a portion pending, each on the grant of its type; how many are, and how many were cancelled instead.

    Delivery is told when the transaction commits. Needs `keep_changes_out`.
    """
    asked = {
        "key": key,
        "sequences": [row.sequence for row in portion.rows],
        "event_keys": [row.event_key for row in portion.rows],
        "grants": [None if row.type is None else grants[row.type] for row in portion.rows],
    }
    moved = (await connection.execute(_RETRY, asked)).one()
    await connection.execute(_AGAIN, {"key": str(key)})
    return moved.retried, moved.cancelled


async def discard(connection: AsyncConnection, key: int, portion: Portion, reason: str) -> int:
    """Cancel a portion with a reason; how many it were."""
    asked = {
        "key": key,
        "sequences": [row.sequence for row in portion.rows],
        "event_keys": [row.event_key for row in portion.rows],
        "reason": reason,
    }
    count: int = (await connection.execute(_DISCARD, asked)).scalar_one()
    return count
