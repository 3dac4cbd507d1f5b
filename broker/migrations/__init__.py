"""Migrations of the database schema, run by `bode migrate`; declared tables and migrated schema are kept equal."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncEngine

from broker.storage.partitions import ensure_partitions

_LOCK: Final = "SELECT pg_advisory_lock(hashtext('bode migrations'))"
_UNLOCK: Final = "SELECT pg_advisory_unlock(hashtext('bode migrations'))"


async def migrate(engine: AsyncEngine) -> None:
    """Bring the schema to this version's, and make the next days' partitions. Idempotent; several may run at once."""
    async with engine.connect() as connection:
        await connection.execute(text(_LOCK))
        await connection.commit()
        try:
            await connection.run_sync(_upgrade)
            await connection.commit()
        finally:
            await connection.execute(text(_UNLOCK))
            await connection.commit()
    async with engine.begin() as connection:
        await ensure_partitions(connection, datetime.now(UTC))


def _upgrade(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
