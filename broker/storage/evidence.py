"""The statements of evidence: what became of the numbers of a subscription, and of the deliveries of an event.

They only read. The cost of a reconciliation follows the range that is asked for, that of a trace the deliveries of one
event; neither grows with a backlog or with what was delivered before.
"""

from collections.abc import Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, exists, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.storage.tables import deliveries
from subscriptions.tables import Status, follow_lists, followed_subjects, subscriptions

BLOCK: Final = 1_000
MOST_EVENTS: Final = 20
MOST_DELIVERIES: Final = 100
MOST_SUBSCRIPTIONS: Final = 100

_BY_INDEX: Final = text(
    "SELECT set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),"
    " set_config('enable_mergejoin', 'off', true)"
)
"""Plans of this transaction follow the indexes, whatever the statistics say."""

_HEAD: Final = text(
    """
    SELECT numbers.last_sequence, coalesce(head.sequence - 1, numbers.last_sequence) AS complete_through
    FROM subscription_numbers AS numbers
    LEFT JOIN LATERAL (
        SELECT sequence FROM deliveries
        WHERE subscription = numbers.subscription AND state = 'pending' ORDER BY sequence LIMIT 1
    ) AS head ON true
    WHERE numbers.subscription = :key
    """
)
"""The last number that was given, and the last before the first that is pending; no row: none was given."""

_RANGE: Final = text(
    f"""
    WITH scanned AS MATERIALIZED (
        SELECT delivery.sequence, event.source, event.id,
               CASE WHEN delivery.state <> 'delivered' THEN delivery.state::text
                    WHEN event.key IS NULL THEN 'expired' ELSE 'delivered' END AS state,
               CASE WHEN delivery.state IN ('dead', 'cancelled') THEN delivery.reason END AS reason
        FROM deliveries AS delivery
        LEFT JOIN events AS event ON event.key = CASE WHEN delivery.state = 'delivered' THEN delivery.event_key END
        WHERE delivery.subscription = :key AND delivery.sequence BETWEEN :first AND :last
    ), runs AS (
        SELECT min(sequence) AS first, max(sequence) AS last, state, reason
        FROM (
            SELECT sequence, state, reason,
                   sequence - row_number() OVER (PARTITION BY state, reason ORDER BY sequence) AS island
            FROM scanned
        ) AS numbered
        GROUP BY state, reason, island
    )
    SELECT first, last, state, reason, NULL::bigint AS delivered, NULL::text AS digest FROM runs
    UNION ALL
    SELECT min(sequence), max(sequence), NULL, NULL, count(*),
           encode(sha256(convert_to(string_agg(
               sequence || ' ' || encode(sha256(convert_to(source || E'\\n' || id, 'UTF8')), 'hex') || E'\\n',
               '' ORDER BY sequence), 'UTF8')), 'hex')
    FROM scanned WHERE state = 'delivered'
    GROUP BY (sequence - 1) / {BLOCK}, width_bucket(sequence, CAST(:cuts AS bigint[]))
    ORDER BY 1
    """
)
"""One scan of the numbers of a range, told twice: runs of one state, and for each block the digest of the delivered.

A block is cut where numbers are retired, at `cuts`: their digests are their own."""

RETIRED: Final = """
    (retired.day IS NULL OR EXISTS (
        SELECT FROM retirements WHERE retirements.day = retired.day AND retirements.retired_at IS NOT NULL))
    AND retired.state IN ('delivered', 'cancelled')
"""
"""Which rows of `retired_numbers` explain numbers by now: before their day is dropped, its rows still do."""

_RETIRED_RANGE: Final = text(
    f"""
    SELECT first, last, state::text, reason, encode(digest, 'hex') AS digest FROM retired_numbers AS retired
    WHERE subscription = :key AND first BETWEEN (:first - 1) / {BLOCK} * {BLOCK} + 1 AND :last AND last >= :first
      AND {RETIRED}
    ORDER BY first
    """
)
"""What is retired of a range; the first and the last of these may reach beyond it."""

_EVENTS: Final = text(
    f"""
    SELECT events.key, events.organisation_id, organisations.oin, events.source, events.type, events.body
    FROM events JOIN organisations ON organisations.id = events.organisation_id
    WHERE hashtextextended(events.id, 0) = hashtextextended(:id, 0) AND events.id = :id
      AND (CAST(:source AS text) IS NULL OR events.source = :source)
    ORDER BY events.key LIMIT {MOST_EVENTS}
    """
)
"""Events by their id: one index probe for each partition."""

_COUNTS: Final = text(
    """
    SELECT organisations.oin, organisations.name, count(DISTINCT delivery.subscription) AS subscriptions,
           count(*) FILTER (WHERE delivery.state = 'delivered') AS delivered,
           count(*) FILTER (WHERE delivery.state = 'pending') AS pending,
           count(*) FILTER (WHERE delivery.state = 'dead') AS dead,
           count(*) FILTER (WHERE delivery.state = 'cancelled') AS cancelled
    FROM deliveries AS delivery
    JOIN subscriptions ON subscriptions.key = delivery.subscription
    JOIN organisations ON organisations.id = subscriptions.organisation_id
    WHERE delivery.event_key = :event_key
      AND (CAST(:organisation_id AS uuid) IS NULL OR organisations.id = :organisation_id)
    GROUP BY organisations.oin, organisations.name ORDER BY organisations.oin
    """
)
"""The deliveries of an event for each provider; with `organisation_id` those of one."""

_DELIVERIES: Final = text(
    f"""
    SELECT delivery.subscription, delivery.sequence, delivery.state, delivery.attempts, delivery.next_attempt_at,
           delivery.ended_at, delivery.status, delivery.reason, subscriptions.id AS subscription_id, organisations.oin
    FROM deliveries AS delivery
    JOIN subscriptions ON subscriptions.key = delivery.subscription
    JOIN organisations ON organisations.id = subscriptions.organisation_id
    WHERE delivery.event_key = :event_key
      AND (CAST(:organisation_id AS uuid) IS NULL OR organisations.id = :organisation_id)
    ORDER BY delivery.subscription LIMIT {MOST_DELIVERIES}
    """
)
"""The deliveries of an event one by one."""

_ATTEMPTS: Final = text(
    """
    SELECT failed.subscription, failed.attempt, failed.started_at, failed.milliseconds, failed.status, failed.reason,
           failed.excerpt
    FROM unnest(CAST(:subscriptions AS bigint[]), CAST(:sequences AS bigint[])) AS asked (subscription, sequence)
    CROSS JOIN LATERAL (
        SELECT * FROM attempts
        WHERE attempts.subscription = asked.subscription AND attempts.sequence = asked.sequence
          AND attempts.event_key = :event_key
        ORDER BY attempts.started_at, attempts.attempt LIMIT 100
    ) AS failed
    ORDER BY failed.subscription, failed.started_at, failed.attempt
    """
)
"""The failed attempts of deliveries of one event."""

_REJECTIONS: Final = text(
    """
    SELECT * FROM (
        SELECT * FROM rejections
        WHERE CAST(:organisation_id AS uuid) IS NULL OR organisation_id = :organisation_id
        ORDER BY id DESC LIMIT 10000
    ) AS latest
    WHERE event_id = :event_id AND (CAST(:source AS text) IS NULL OR source = :source)
    ORDER BY id LIMIT 100
    """
)
"""The rejections of an event id among a registry's latest, or, without one, among all: they aren't indexed by it."""


async def follow_indexes(connection: AsyncConnection) -> None:
    """Make the plans of this transaction cost what they read, and no more."""
    await connection.execute(_BY_INDEX)


async def read_head(connection: AsyncConnection, key: int) -> tuple[int, int]:
    """The last number of a subscription, and the number up to which all have ended."""
    row = (await connection.execute(_HEAD, {"key": key})).one_or_none()
    return (0, 0) if row is None else (row.last_sequence, row.complete_through)


async def read_range(
    connection: AsyncConnection, key: int, first: int, last: int, cuts: Sequence[int] = ()
) -> Sequence[Row[Any]]:
    """Runs (`state` is set) and blocks (`digest` is set) of the rows of a range, blocks cut before each of `cuts`."""
    asked = {"key": key, "first": first, "last": last, "cuts": list(cuts)}
    return (await connection.execute(_RANGE, asked)).all()


async def read_retired(connection: AsyncConnection, key: int, first: int, last: int) -> Sequence[Row[Any]]:
    """Runs of a range whose rows are gone, each within a block; delivered ones have their digest."""
    return (await connection.execute(_RETIRED_RANGE, {"key": key, "first": first, "last": last})).all()


async def find_events(connection: AsyncConnection, event_id: str, source: str | None) -> Sequence[Row[Any]]:
    """Accepted events by id, of one source or of all, oldest first."""
    return (await connection.execute(_EVENTS, {"id": event_id, "source": source})).all()


async def count_deliveries(
    connection: AsyncConnection, event_key: int, organisation_id: UUID | None
) -> Sequence[Row[Any]]:
    """The deliveries of an event by provider and state."""
    return (await connection.execute(_COUNTS, {"event_key": event_key, "organisation_id": organisation_id})).all()


async def read_deliveries(
    connection: AsyncConnection, event_key: int, organisation_id: UUID | None
) -> Sequence[Row[Any]]:
    """The first deliveries of an event; with `organisation_id` those of one provider."""
    return (await connection.execute(_DELIVERIES, {"event_key": event_key, "organisation_id": organisation_id})).all()


async def read_attempts(connection: AsyncConnection, event_key: int, traced: Sequence[Row[Any]]) -> Sequence[Row[Any]]:
    """The failed attempts of these deliveries of an event."""
    columns = {
        "event_key": event_key,
        "subscriptions": [row.subscription for row in traced],
        "sequences": [row.sequence for row in traced],
    }
    return (await connection.execute(_ATTEMPTS, columns)).all()


async def read_unnumbered(connection: AsyncConnection, event_key: int, organisation_id: UUID) -> Sequence[Row[Any]]:
    """The provider's subscriptions, as rows of their table, that an event was not numbered for."""
    numbered = exists().where(deliveries.c.event_key == event_key, deliveries.c.subscription == subscriptions.c.key)
    statement = (
        select(subscriptions)
        .where(subscriptions.c.organisation_id == organisation_id, subscriptions.c.status != Status.ENDED, ~numbered)
        .order_by(subscriptions.c.key)
        .limit(MOST_SUBSCRIPTIONS)
    )
    return (await connection.execute(statement)).all()


async def read_subscriptions(connection: AsyncConnection, keys: Sequence[int]) -> Sequence[Row[Any]]:
    """These subscriptions, as rows of their table; the ended ones too."""
    statement = select(subscriptions).where(subscriptions.c.key == func.any(list(keys)))
    return (await connection.execute(statement)).all()


async def find_rejections(
    connection: AsyncConnection, event_id: str, source: str | None, organisation_id: UUID | None
) -> Sequence[Row[Any]]:
    """Rejections by event id: of one registry, or, for the operator, of all."""
    asked = {"event_id": event_id, "source": source, "organisation_id": organisation_id}
    return (await connection.execute(_REJECTIONS, asked)).all()


async def read_followed(
    connection: AsyncConnection, organisation_id: UUID, digests: Sequence[bytes]
) -> Sequence[tuple[UUID, bytes]]:
    """Which follow lists of an organisation hold which of these subjects, all by digest."""
    statement = (
        select(followed_subjects.c.list_id, followed_subjects.c.digest)
        .join(follow_lists, follow_lists.c.id == followed_subjects.c.list_id)
        .where(
            follow_lists.c.organisation_id == organisation_id,
            follow_lists.c.deleted_at.is_(None),
            followed_subjects.c.digest.in_(digests),
        )
    )
    return [(row.list_id, row.digest) for row in await connection.execute(statement)]
