"""The statements of notices: what the broker puts into the outbox, and how the outbox becomes events.

Lines are written beside what they tell of, a few for a whole batch, and nobody waits for another to write one. What is
due is claimed in groups: a group keeps its event id, so that telling it twice is recognised as a duplicate.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, Final
from uuid import UUID

import asyncpg
import orjson

from schemas.notices import DOMAIN, NoticeType, merged

LINGER: Final[Mapping[str, timedelta]] = {
    NoticeType.SUBSCRIPTION_DISABLED: timedelta(0),
    NoticeType.DELIVERY_DEAD_LETTERED: timedelta(seconds=10),
    NoticeType.EVENTS_REJECTED: timedelta(minutes=1),
    NoticeType.CREDENTIAL_EXPIRING: timedelta(0),
    NoticeType.EVENTS_EXPIRING: timedelta(0),
}
"""How long lines about the same thing are gathered before they are told together: a flood makes few notices."""
_CLAIM: Final = timedelta(seconds=30)
_GROUPS: Final = 200

DEAD_LETTERED: Final = f"""
INSERT INTO notices (type, organisation_id, subscription_id, data)
SELECT '{NoticeType.DELIVERY_DEAD_LETTERED}', told.organisation_id, told.id, jsonb_build_object(
    'subscription', told.id, 'count', sum(told.count), 'firstSequence', min(told.first),
    'lastSequence', max(told.last), 'reasons', jsonb_object_agg(told.reason, told.count))
FROM (
    SELECT subscriptions.organisation_id, subscriptions.id, recorded.reason, count(*) AS count,
           min(recorded.sequence) AS first, max(recorded.sequence) AS last
    FROM recorded JOIN subscriptions ON subscriptions.key = recorded.subscription
    JOIN events ON events.key = recorded.event_key
    WHERE recorded.state = 'dead' AND NOT starts_with(events.type, '{DOMAIN}.')
    GROUP BY subscriptions.organisation_id, subscriptions.id, recorded.reason
) AS told
GROUP BY told.organisation_id, told.id
"""
"""Tells of the dead letters among `recorded` deliveries, a line for each subscription.

One of a notice is not told of: it would make another."""

_REJECTED: Final = f"""
INSERT INTO notices (type, organisation_id, data)
SELECT '{NoticeType.EVENTS_REJECTED}', * FROM unnest($1::uuid[], $2::text[]::jsonb[])
"""

_WAITING: Final = "SELECT EXISTS (SELECT FROM notices)"
_ALONE: Final = "SELECT pg_advisory_xact_lock(hashtext('bode notices'))"

_CLAIM_AGAIN: Final = f"""
UPDATE notices SET claimed_until = clock_timestamp() + $1
WHERE event_id IN (
    SELECT DISTINCT event_id FROM notices WHERE claimed_until < clock_timestamp() LIMIT {_GROUPS})
RETURNING event_id, id, type, organisation_id, data::text, said_at
"""
"""Groups of whoever died while telling them."""

_CLAIM_DUE: Final = f"""
WITH due AS MATERIALIZED (
    SELECT waiting.*, gen_random_uuid() AS event_id
    FROM (
        SELECT notices.type, organisation_id, subscription_id FROM notices
        LEFT JOIN unnest($2::text[], $3::interval[]) AS gathered (type, linger) ON gathered.type = notices.type
        WHERE event_id IS NULL GROUP BY notices.type, organisation_id, subscription_id
        HAVING min(said_at) <= clock_timestamp() - coalesce(max(linger), '0') ORDER BY min(said_at) LIMIT {_GROUPS}
    ) AS waiting
)
UPDATE notices SET event_id = due.event_id, claimed_until = clock_timestamp() + $1
FROM due
WHERE notices.event_id IS NULL AND notices.type = due.type AND notices.organisation_id = due.organisation_id
  AND notices.subscription_id IS NOT DISTINCT FROM due.subscription_id
RETURNING notices.event_id, id, notices.type, notices.organisation_id, data::text, said_at
"""
"""Groups that have been gathered for long enough; each becomes one event."""

_TOLD: Final = "DELETE FROM notices WHERE event_id = ANY($1::uuid[])"


@dataclass(frozen=True, slots=True)
class Notice:
    """What is told in one event."""

    event_id: UUID
    type: str
    organisation_id: UUID
    data: dict[str, Any]
    said_at: datetime
    """When its last line was written."""


async def say_rejected(connection: asyncpg.Connection, rejected: Iterable[tuple[UUID | None, str]]) -> None:
    """Tell registries, when this transaction commits, what was rejected: each message by registry and code."""
    codes: dict[UUID, Counter[str]] = {}
    for organisation_id, code in rejected:
        if organisation_id is not None:
            codes.setdefault(organisation_id, Counter())[code] += 1
    if codes:
        data = [orjson.dumps({"count": count.total(), "codes": dict(count)}).decode() for count in codes.values()]
        await connection.execute(_REJECTED, list(codes), data)


async def claim(connection: asyncpg.Connection, linger: Mapping[str, timedelta] = LINGER) -> list[Notice]:
    """What is to be told now; whoever claims it tells it, and nobody else does for half a minute."""
    if not await connection.fetchval(_WAITING):
        return []
    async with connection.transaction():
        await connection.execute(_ALONE)  # so that nobody gets a part of a group
        rows = await connection.fetch(_CLAIM_AGAIN, _CLAIM)
        rows += await connection.fetch(_CLAIM_DUE, _CLAIM, list(linger), list(linger.values()))
    rows.sort(key=lambda row: (row["event_id"], row["id"]))
    return [_notice(list(lines)) for _, lines in groupby(rows, key=lambda row: row["event_id"])]


async def told(connection: asyncpg.Connection, event_ids: Collection[UUID]) -> None:
    """These have become events."""
    await connection.execute(_TOLD, list(event_ids))


def _notice(lines: list[asyncpg.Record]) -> Notice:
    data: dict[str, Any] = {}
    for line in lines:
        data = merged(data, orjson.loads(line["data"]))
    last = lines[-1]
    return Notice(last["event_id"], last["type"], last["organisation_id"], data, max(line["said_at"] for line in lines))
