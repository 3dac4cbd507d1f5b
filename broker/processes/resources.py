"""What every process opens at start and closes at its end: pools, engine, keys."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from broker.processes.starting import reached
from broker.settings import Settings
from broker.storage import installation
from broker.storage.fingerprints import Fingerprints
from broker.storage.pool import pool_of
from subscriptions import signing_keys
from subscriptions.database import create_engine
from subscriptions.secrets import KeyRing


@dataclass(frozen=True, slots=True)
class Resources:
    """The open doors of one process."""

    settings: Settings
    dsn: str
    name: str
    """What its connections call themselves."""
    engine: AsyncEngine
    pool: asyncpg.Pool
    keys: KeyRing
    fingerprints: Fingerprints

    async def database_answers(self) -> bool:
        """A readiness check."""
        async with self.engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
        return True


@asynccontextmanager
async def open_resources(
    settings: Settings, *, name: str, session: Mapping[str, str], pool_size: int
) -> AsyncIterator[Resources]:
    """Open what a process needs; waits for the database, because it may start later than we do."""
    dsn = settings.database.url.get_secret_value()
    keys = KeyRing(settings.secrets.keys)
    engine = create_engine(settings.database, application_name=name)

    async def open_pool() -> asyncpg.Pool:
        return await pool_of(dsn, session={"application_name": name, **session}, size=pool_size, reset=_as_it_is)

    async def ensure_keys() -> None:
        async with engine.begin() as connection:
            await signing_keys.ensure(connection, keys)

    pool = await reached(open_pool)
    try:
        fingerprints = await reached(lambda: installation.fingerprints(pool, keys))
        await reached(ensure_keys)
        yield Resources(settings, dsn, name, engine, pool, keys, fingerprints)
    finally:
        await engine.dispose()
        try:
            async with asyncio.timeout(3):
                await pool.close()
        except TimeoutError:
            pool.terminate()


async def _as_it_is(_: asyncpg.Connection) -> None:
    """Nothing here changes a session, so a connection that comes back needs no statement that resets it.

    An open transaction is rolled back all the same.
    """
