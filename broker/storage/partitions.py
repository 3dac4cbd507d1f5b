"""Partitions by day of acceptance: made ahead, with a default that catches what nobody foresaw, so no insert fails."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import Table, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.storage.tables import PARTITIONED, key_at

DAYS_AHEAD = 3
_HOT = "autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.5, fillfactor = 85"


async def ensure_partitions(connection: AsyncConnection, now: datetime) -> None:
    """Create the default partition and those from the day of `now` to `DAYS_AHEAD` later, where they are missing.

    Rows of such a day that the default has caught meanwhile move to their partition. Idempotent; two processes may run
    it at once; each day stands in a savepoint of its own, so one that can't be made now doesn't hinder the others.

    Raises:
        DBAPIError: the last failure, after everything else has been made.
    """
    await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('bode partitions'))"))
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    failure: DBAPIError | None = None
    for table in PARTITIONED:
        await connection.execute(
            text(f"CREATE TABLE IF NOT EXISTS {table.name}_default PARTITION OF {table.name} DEFAULT")
        )
        for offset in range(DAYS_AHEAD + 1):
            try:
                async with connection.begin_nested():
                    await _ensure_day(connection, table, midnight + timedelta(days=offset))
            except DBAPIError as error:
                failure = error
    if failure is not None:
        raise failure


async def _ensure_day(connection: AsyncConnection, table: Table, day: datetime) -> None:
    name = f"{table.name}_{day:%Y%m%d}"
    if (await connection.execute(text("SELECT to_regclass(:name)"), {"name": name})).scalar() is not None:
        return
    first, after = key_at(day), key_at(day + timedelta(days=1))
    column = "key" if table.name == "events" else "event_key"
    options = "" if table.name == "attempts" else f" WITH ({_HOT})"
    await connection.execute(text("SET LOCAL lock_timeout = '5s'"))
    await connection.execute(
        text(f"CREATE TABLE {name} (LIKE {table.name} INCLUDING DEFAULTS INCLUDING CONSTRAINTS){options}")
    )
    await connection.execute(text(f"LOCK TABLE {table.name}_default IN ACCESS EXCLUSIVE MODE"))
    taken = f"DELETE FROM {table.name}_default WHERE {column} >= {first} AND {column} < {after} RETURNING *"
    await connection.execute(text(f"WITH moved AS ({taken}) INSERT INTO {name} SELECT * FROM moved"))
    await connection.execute(
        text(f"ALTER TABLE {table.name} ATTACH PARTITION {name} FOR VALUES FROM ({first}) TO ({after})")
    )
