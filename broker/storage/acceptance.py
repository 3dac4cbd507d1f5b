"""The statements of acceptance: one transaction that holds events, numbers, deliveries and rejections (promise 1).

Order inside the transaction, which every ingest process keeps, so that none waits for another in a circle:
gate (shared) → event ids in digest order → numbers in subscription order → the rest.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import asyncpg

from broker.storage import notices
from broker.storage.tables import KEY_SHIFT, accepted_at
from subscriptions.change_log import READ_HEAD_SQL, TAKE_SHARED_SQL

_HEAD = f"""
SELECT ({READ_HEAD_SQL}) AS version,
       (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS milliseconds,
       ARRAY(SELECT nextval('event_counter') FROM generate_series(1, $1)) AS counters
"""
"""The version of the change log that is in force, and what event keys are made of."""

_CLAIM_IDS = """
INSERT INTO event_ids (digest, event_key)
SELECT digest, event_key FROM unnest($1::bytea[], $2::bigint[]) AS new (digest, event_key) ORDER BY digest
ON CONFLICT DO NOTHING
RETURNING event_key
"""
"""Promise 4: of one source+id one transaction ever gets its key back; a concurrent one waits, then gets nothing."""

_VERIFY = """
SELECT list.id IS NOT NULL AS known,
       list.organisation_id = asked.organisation_id AND EXISTS (
           SELECT FROM followed_subjects AS followed
           WHERE followed.list_id = asked.list_id AND followed.digest = asked.digest
       ) AS holds
FROM unnest($1::uuid[], $2::uuid[], $3::bytea[]) WITH ORDINALITY
     AS asked (organisation_id, list_id, digest, place)
LEFT JOIN follow_lists AS list ON list.id = asked.list_id
ORDER BY asked.place
"""
"""Whether a list is this organisation's and holds this subject, told for each that is asked, by primary key.

The change gate is held, so the answer is as of the version that was matched with."""

_TAKE_NUMBERS = """
INSERT INTO subscription_numbers AS numbers (subscription, last_sequence)
SELECT subscription, amount FROM unnest($1::bigint[], $2::bigint[]) AS new (subscription, amount) ORDER BY subscription
ON CONFLICT (subscription) DO UPDATE SET last_sequence = numbers.last_sequence + excluded.last_sequence
RETURNING subscription, last_sequence
"""
"""Promise 5: contiguous numbers, taken under row locks in id order and held to commit; never a sequence."""

_REJECT = """
INSERT INTO rejections (digest, organisation_id, code, detail, attribute, source, event_id, event_type, bytes, times)
SELECT * FROM unnest($1::bytea[], $2::uuid[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                     $9::int[], $10::int[]) AS new ORDER BY 1
ON CONFLICT (digest) DO UPDATE SET times = rejections.times + excluded.times, rejected_at = now()
"""
"""One row for one message: a redelivery after a crash counts, and doesn't pile up."""

_BE_DURABLE = "SELECT pg_logical_emit_message(true, 'bode', '')"
"""Writes to the log and nothing else."""

DELIVERIES_CHANNEL: Final = "bode_deliveries"
EVERYTHING: Final = "*"
"""As a payload: too many subscriptions have something new to name them."""

_WAKE = f"SELECT pg_notify('{DELIVERIES_CHANNEL}', payload) FROM unnest($1::text[]) AS payload"

EVENT_COLUMNS = ("key", "organisation_id", "source", "id", "type", "bytes", "lane", "body")
DELIVERY_COLUMNS = ("subscription", "sequence", "event_key", "lane", "grant_id")
DELAYED_COLUMNS = (*DELIVERY_COLUMNS, "next_attempt_at")


class UnknownFollowList(LookupError):
    """A filter names a list that isn't there: not a reason for no delivery, but something that can't be."""


@dataclass(frozen=True, slots=True)
class Head:
    """What one acceptance starts from."""

    version: int
    event_keys: list[int]
    at: datetime
    """The time of acceptance, by PostgreSQL's clock."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """A message that became no event, with a reason that its registry can read."""

    digest: bytes
    organisation_id: UUID | None
    code: str
    detail: str
    attribute: str | None
    source: str | None
    event_id: str | None
    event_type: str | None
    bytes: int


async def enter_gate(connection: asyncpg.Connection) -> None:
    """Hold changes back until this transaction ends; waits while one is being committed."""
    await connection.execute(TAKE_SHARED_SQL)


async def read_head(connection: asyncpg.Connection, events: int) -> Head:
    """Read the change log's version and make `events` keys."""
    row = await connection.fetchrow(_HEAD, events)
    mask = (1 << KEY_SHIFT) - 1
    base = row["milliseconds"] << KEY_SHIFT
    return Head(row["version"], [base | (counter & mask) for counter in row["counters"]], accepted_at(base))


async def be_durable(connection: asyncpg.Connection) -> None:
    """Make the commit of a transaction that wrote nothing wait for the disk and the standby all the same.

    What it knows for accepted may have been committed by another process a moment ago, and not be on the standby yet.
    The message in the log commits after that, so when it is safe, so is what was read.
    """
    await connection.execute(_BE_DURABLE)


async def claim_ids(connection: asyncpg.Connection, digests: Sequence[bytes], keys: Sequence[int]) -> set[int]:
    """Claim events by digest; the keys of those that are new."""
    return {row[0] for row in await connection.fetch(_CLAIM_IDS, digests, keys)}


async def verify_follows(
    connection: asyncpg.Connection, organisations: Sequence[UUID], lists: Sequence[str], digests: Sequence[bytes]
) -> list[bool]:
    """Whether each list is the organisation's and holds the subject with the digest, in one query.

    Raises:
        UnknownFollowList: when there is no such list.
    """
    rows = await connection.fetch(_VERIFY, organisations, lists, digests)
    if len(rows) != len(lists) or not all(row["known"] for row in rows):
        raise UnknownFollowList("a follow list that a filter names is not in the database")
    return [bool(row["holds"]) for row in rows]


async def take_numbers(connection: asyncpg.Connection, amounts: dict[int, int]) -> dict[int, int]:
    """Take `amounts[subscription]` numbers for each; the first number of each."""
    rows = await connection.fetch(_TAKE_NUMBERS, list(amounts), list(amounts.values()))
    return {row[0]: row[1] - amounts[row[0]] + 1 for row in rows}


async def reject(connection: asyncpg.Connection, rejections: Sequence[Rejection]) -> None:
    """Write rejections, each message once, with how often it came; and what their registries are told of it."""
    times = Counter(rejection.digest for rejection in rejections)
    unique = {rejection.digest: rejection for rejection in rejections}.values()
    columns = zip(
        *(
            (
                r.digest, r.organisation_id, r.code, r.detail, r.attribute, r.source, r.event_id, r.event_type, r.bytes,
                times[r.digest],
            )
            for r in unique
        ),
        strict=True,
    )  # fmt: skip
    await connection.execute(_REJECT, *map(list, columns))
    await notices.say_rejected(connection, ((each.organisation_id, each.code) for each in rejections))


async def wake(connection: asyncpg.Connection, payloads: Sequence[str]) -> None:
    """Tell the delivery processes which subscriptions have something new. Never inside an acceptance."""
    await connection.execute(_WAKE, payloads)


def connection_settings(statement_limit: timedelta, idle_limit: timedelta) -> dict[str, str]:
    """Session settings of an accepting connection.

    The idle limit ends a transaction whose process was stopped, which would otherwise hold the gate.
    """
    return {
        "idle_in_transaction_session_timeout": str(int(idle_limit.total_seconds() * 1000)),
        "statement_timeout": str(int(statement_limit.total_seconds() * 1000)),
        "lock_timeout": str(int(statement_limit.total_seconds() * 1000)),
        "plan_cache_mode": "force_generic_plan",
    }
