"""Jobs of the installation: whoever finds one due and moves its time on does the next step, so it is done once.

A step is short and may be done twice without harm; one whose process died is done again when the time that it was
moved on to has come.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import asyncpg
import orjson

CLAIMED_FOR: Final = timedelta(minutes=2)

_CREATE: Final = "INSERT INTO house_jobs (name, due_at) SELECT unnest($1::text[]), $2 ON CONFLICT DO NOTHING"

_CLAIM: Final = """
UPDATE house_jobs SET due_at = $2::timestamptz + $3::interval, round_started_at = coalesce(round_started_at, $2)
WHERE name = (
    SELECT name FROM house_jobs WHERE due_at <= $2 AND name = ANY($1::text[])
    ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING name, cursor::text, round_started_at
"""
"""Of two that ask at once one gets the job."""

_GO_ON: Final = "UPDATE house_jobs SET due_at = $2, cursor = $3::text::jsonb WHERE name = $1"

_FINISH: Final = """
UPDATE house_jobs SET due_at = $2, cursor = $3::text::jsonb, round_finished_at = $4, round_started_at = NULL,
       round_seconds = extract(epoch FROM $4::timestamptz - round_started_at)::int
WHERE name = $1
"""

_ROUNDS: Final = """
SELECT name, coalesce(extract(epoch FROM round_finished_at), 0)::float8 AS finished,
       coalesce(round_seconds, 0) AS seconds
FROM house_jobs
"""


@dataclass(frozen=True, slots=True)
class Job:
    """A job that is ours for one step."""

    name: str
    cursor: dict[str, Any]
    round_started_at: datetime


async def create(connection: asyncpg.Connection, names: list[str], now: datetime) -> None:
    """Make the jobs, due now; idempotent."""
    await connection.execute(_CREATE, names, now)


async def claim(connection: asyncpg.Connection, names: list[str], now: datetime) -> Job | None:
    """The job that has been due for longest, for one step; None: none is due."""
    row = await connection.fetchrow(_CLAIM, names, now, CLAIMED_FOR)
    return None if row is None else Job(row["name"], orjson.loads(row["cursor"]), row["round_started_at"])


async def go_on(connection: asyncpg.Connection, name: str, cursor: Mapping[str, Any], due_at: datetime) -> None:
    """The round isn't over: the next step starts from the cursor."""
    await connection.execute(_GO_ON, name, due_at, orjson.dumps(cursor).decode())


async def finish(
    connection: asyncpg.Connection, name: str, cursor: Mapping[str, Any], due_at: datetime, now: datetime
) -> None:
    """The round is over; the next one starts from the cursor."""
    await connection.execute(_FINISH, name, due_at, orjson.dumps(cursor).decode(), now)


async def rounds(connection: asyncpg.Connection) -> dict[str, tuple[float, int]]:
    """For each job, when a whole round was finished last (seconds since 1970, 0: never), and how long it took."""
    return {row["name"]: (row["finished"], row["seconds"]) for row in await connection.fetch(_ROUNDS)}
