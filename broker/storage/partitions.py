"""Partitions by day of acceptance: made ahead, with a default that catches what nobody foresaw, so no insert fails."""

from datetime import UTC, datetime, timedelta

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.storage.tables import PARTITIONED, key_at

DAYS_AHEAD = 3
_HOT = "autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.5, fillfactor = 85"


async def ensure_partitions(connection: AsyncConnection, now: datetime) -> None:
    """Create the default partition and those from the day of `now` to `DAYS_AHEAD` later, where they are missing.

    Idempotent; two processes may run it at once.
    """
    await connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('bode partitions'))"))
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for table in PARTITIONED:
        options = "" if table.name == "attempts" else f" WITH ({_HOT})"
        await connection.execute(
            text(f"CREATE TABLE IF NOT EXISTS {table.name}_default PARTITION OF {table.name} DEFAULT")
        )
        for offset in range(DAYS_AHEAD + 1):
            day = midnight + timedelta(days=offset)
            name = f"{table.name}_{day:%Y%m%d}"
            if (await connection.execute(text("SELECT to_regclass(:name)"), {"name": name})).scalar() is None:
                bounds = f"FROM ({key_at(day)}) TO ({key_at(day + timedelta(days=1))})"
                await connection.execute(
                    text(f"CREATE TABLE {name} PARTITION OF {table.name} FOR VALUES {bounds}{options}")
                )
