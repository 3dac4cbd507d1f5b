"""Leases: who may work on which shard or queue, with an epoch that grows at every change of owner.

A lease is time, not a connection: a process that is stopped keeps its connections and even its advisory locks, but not
its lease. Whoever takes over raises the epoch; what the former owner still writes names the old epoch and finds no row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import asyncpg

SHARD_LEASE: Final = "shard"
QUEUE_LEASE: Final = "queue"

_CREATE = "INSERT INTO leases (kind, number) SELECT $1, generate_series(0, $2 - 1) ON CONFLICT DO NOTHING"

_ANNOUNCE = """
INSERT INTO lease_holders AS holders (owner, kind, seen_at, applied_version) VALUES ($1, $2, clock_timestamp(), $3)
ON CONFLICT (owner) DO UPDATE SET seen_at = excluded.seen_at, applied_version = excluded.applied_version
RETURNING seen_at
"""

_RENEW = """
UPDATE leases SET expires_at = clock_timestamp() + $3::interval
WHERE kind = $1 AND owner = $2
RETURNING number, epoch
"""
"""A lease is the owner's until someone else takes it, also when it has expired meanwhile."""

_HOLDERS = """
SELECT owner FROM lease_holders
WHERE kind = $1 AND seen_at > clock_timestamp() - $2::interval
  AND EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'bode ' || owner::text)
ORDER BY owner
"""
"""Who is alive: was heard of lately and has a connection. A killed process loses its connections at once."""

_TAKE = """
WITH free AS (
    SELECT leases.number, leases.owner FROM leases
    WHERE kind = $1 AND (owner IS NULL OR expires_at < clock_timestamp()
        OR NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'bode ' || owner::text))
    ORDER BY number LIMIT $4 FOR UPDATE SKIP LOCKED
)
UPDATE leases SET owner = $2, epoch = epoch + 1, expires_at = clock_timestamp() + $3::interval
FROM free WHERE leases.kind = $1 AND leases.number = free.number
RETURNING leases.number, leases.epoch, free.owner AS former
"""
"""Takes what is nobody's, expired, or held by a process without any connection. Two that try at once get
different rows."""

_GIVE_BACK = (
    "UPDATE leases SET owner = NULL, expires_at = NULL WHERE kind = $1 AND owner = $2 AND number = ANY($3::int[])"
)

_LEAVE = "DELETE FROM lease_holders WHERE owner = $1"

_FORGET = "DELETE FROM lease_holders WHERE seen_at < clock_timestamp() - interval '1 hour'"

_END_BACKENDS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name = ANY($1::text[]) AND pid <> pg_backend_pid()
"""
"""Ends the connections of former owners, which may hold row locks while their process is stopped."""

_BEHIND = """
SELECT count(*) FROM lease_holders
WHERE kind = $1 AND applied_version < $2 AND seen_at > clock_timestamp() - $3::interval
  AND EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'bode ' || owner::text)
"""


@dataclass(frozen=True, slots=True)
class Taken:
    """A lease that became ours."""

    number: int
    epoch: int
    former: UUID | None


def application_name(owner: UUID) -> str:
    """What the connections of a holder call themselves, so that a successor can end them."""
    return f"bode {owner}"


async def create(connection: asyncpg.Connection, kind: str, count: int) -> None:
    """Make the leases of a kind; idempotent."""
    await connection.execute(_CREATE, kind, count)


async def count(connection: asyncpg.Connection, kind: str) -> int:
    """How many leases of a kind there are."""
    found: int = await connection.fetchval("SELECT count(*) FROM leases WHERE kind = $1", kind)
    return found


async def announce(connection: asyncpg.Connection, kind: str, owner: UUID, applied_version: int) -> datetime:
    """Say that `owner` is alive and has applied the change log up to a version; what time it is by PostgreSQL."""
    now: datetime = await connection.fetchval(_ANNOUNCE, owner, kind, applied_version)
    return now


async def renew(connection: asyncpg.Connection, kind: str, owner: UUID, span: timedelta) -> dict[int, int]:
    """Prolong what is still ours; epochs by number. What is missing from the answer is lost."""
    return {row[0]: row[1] for row in await connection.fetch(_RENEW, kind, owner, span)}


async def holders(connection: asyncpg.Connection, kind: str, span: timedelta) -> list[UUID]:
    """Who has been heard of within `span`."""
    return [row[0] for row in await connection.fetch(_HOLDERS, kind, span)]


async def take(connection: asyncpg.Connection, kind: str, owner: UUID, span: timedelta, limit: int) -> list[Taken]:
    """Take up to `limit` free or expired leases, and end the connections of those who held them."""
    rows = await connection.fetch(_TAKE, kind, owner, span, limit)
    former = {row["former"] for row in rows if row["former"] not in (None, owner)}
    if former:
        await connection.execute(_END_BACKENDS, [application_name(holder) for holder in former])
    return [Taken(row["number"], row["epoch"], row["former"]) for row in rows]


async def give_back(connection: asyncpg.Connection, kind: str, owner: UUID, numbers: Sequence[int]) -> None:
    """Free leases at once, so that others needn't wait for their end."""
    await connection.execute(_GIVE_BACK, kind, owner, list(numbers))


async def leave(connection: asyncpg.Connection, owner: UUID) -> None:
    """Say that `owner` is gone; also forgets holders that have been silent for an hour."""
    await connection.execute(_LEAVE, owner)
    await connection.execute(_FORGET)


async def forget(connection: asyncpg.Connection) -> None:
    """Forget holders that have been silent for an hour."""
    await connection.execute(_FORGET)


async def holders_behind(connection: asyncpg.Connection, kind: str, version: int, span: timedelta) -> int:
    """How many live holders have not yet applied `version` of the change log."""
    count: int = await connection.fetchval(_BEHIND, kind, version, span)
    return count
