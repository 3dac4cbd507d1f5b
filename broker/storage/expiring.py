"""Telling providers, some days ahead, that retention will take what they have not received yet.

What it takes, and when: everything that is pending of a day, once the day is as old as the retention of its type
(`storage.retention`). Each subscription is told once in a period, whatever else expires in it.
"""

from datetime import UTC, datetime, time, timedelta
from typing import Final

import asyncpg

from broker.storage.retention import Day
from schemas.notices import DOMAIN, NoticeType

_TELL: Final = f"""
WITH due AS (
    SELECT delivery.subscription, count(*) AS count, min(delivery.sequence) AS first, max(delivery.sequence) AS last
    FROM {{deliveries}} AS delivery JOIN {{events}} AS event ON event.key = delivery.event_key
    LEFT JOIN event_types AS kind ON kind.type = event.type
    WHERE delivery.state = 'pending' AND coalesce(kind.retention_days, $1) = $2
      AND NOT starts_with(event.type, '{DOMAIN}.')
    GROUP BY delivery.subscription
), fresh AS (
    INSERT INTO expiring_told AS told (subscription, told_at) SELECT subscription, $3 FROM due ORDER BY subscription
    ON CONFLICT (subscription) DO UPDATE SET told_at = excluded.told_at WHERE told.told_at <= $3 - $4::interval
    RETURNING subscription
), said AS (
    INSERT INTO notices (type, organisation_id, subscription_id, data)
    SELECT '{NoticeType.EVENTS_EXPIRING}', subscriptions.organisation_id, subscriptions.id, jsonb_build_object(
        'subscription', subscriptions.id, 'count', due.count, 'firstSequence', due.first, 'lastSequence', due.last,
        'firstExpiresAt', to_char($5::timestamptz AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))
    FROM due JOIN fresh USING (subscription) JOIN subscriptions ON subscriptions.key = due.subscription
    RETURNING 1
)
SELECT count(*) FROM said
"""
"""Puts a notice into the outbox for each subscription that has something pending of a day, and wasn't told lately.

It costs what is pending of that day: next to nothing, but for subscriptions that are paused, held or not pulled."""


def expires_at(day: Day, retention: int) -> datetime:
    """From when what is kept for so many days may be taken from a day."""
    return datetime.combine(day.day + timedelta(days=1 + retention), time(), UTC)


async def tell(
    connection: asyncpg.Connection, day: Day, retention: int, default: int, now: datetime, period: timedelta
) -> int:
    """Tell of what a day has pending of the types that are kept for `retention` days; how many notices that makes."""
    statement = _TELL.format(deliveries=day.deliveries, events=day.events)
    said: int = await connection.fetchval(statement, default, retention, now, period, expires_at(day, retention))
    return said
