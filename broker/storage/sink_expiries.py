"""When what sinks are shown expires: how much of it soon, and whose. Each statement says what it guarantees."""

from datetime import timedelta
from typing import Final, NamedTuple

import asyncpg

from schemas.notices import NoticeType

SOON: Final = timedelta(days=30)
_VERY_SOON: Final = timedelta(days=7)
_AT_ONCE: Final = 1000

_COUNT: Final = """
SELECT kind, extract(epoch FROM min(expires_at) FILTER (WHERE expires_at > now()) - now())::float8,
       count(*) FILTER (WHERE expires_at > now() AND expires_at <= now() + $1),
       count(*) FILTER (WHERE expires_at <= now())
FROM sink_expiries JOIN subscriptions ON subscriptions.id = subscription_id
WHERE status IN ('active', 'paused', 'disabled', 'validating', 'requested')
GROUP BY kind
"""
"""Of each kind: seconds until the next one expires, how many soon, and how many have. Reads a row for each thing that
expires, never a delivery."""

_TELL: Final = f"""
WITH due AS (
    SELECT subscription_id, kind, expires_at FROM sink_expiries
    JOIN subscriptions ON subscriptions.id = subscription_id
    WHERE expires_at <= now() + $1 AND (told_at IS NULL OR (expires_at <= now() + $2 AND told_at < expires_at - $2))
      AND status IN ('active', 'paused', 'disabled', 'validating', 'requested')
    ORDER BY expires_at, subscription_id, kind LIMIT {_AT_ONCE} FOR UPDATE OF sink_expiries SKIP LOCKED
), marked AS (
    UPDATE sink_expiries SET told_at = now() FROM due
    WHERE sink_expiries.subscription_id = due.subscription_id AND sink_expiries.kind = due.kind
    RETURNING due.subscription_id, due.kind, due.expires_at
)
INSERT INTO notices (type, organisation_id, subscription_id, data)
SELECT '{NoticeType.CREDENTIAL_EXPIRING}', organisation_id, id, jsonb_build_object(
    'subscription', id, 'kinds', jsonb_object_agg(kind, 1),
    'firstExpiresAt', to_char(min(expires_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))
FROM marked JOIN subscriptions ON subscriptions.id = subscription_id
GROUP BY organisation_id, id
RETURNING subscription_id
"""
"""Puts into the outbox what expires within thirty days and was not told, and again within seven; each is told once by
whichever process comes first."""


class Expiring(NamedTuple):
    """Of one kind: `seconds` until the next one expires (None: none will), how many soon, and how many have."""

    kind: str
    seconds: float | None
    soon: int
    expired: int


async def count(connection: asyncpg.Connection) -> list[Expiring]:
    """How much expires, by kind; a kind of which there is nothing is missing."""
    return [Expiring(*row) for row in await connection.fetch(_COUNT, SOON)]


async def tell(connection: asyncpg.Connection) -> list[str]:
    """Tell the providers of what expires soon; the subscriptions that were told of."""
    return [str(row[0]) for row in await connection.fetch(_TELL, SOON, _VERY_SOON)]
