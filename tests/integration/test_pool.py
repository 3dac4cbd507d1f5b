"""Connections come back to the pool also when the network swallows what would end their statement."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from serving import serving

from broker.storage import pool as pools
from broker.storage.pool import pool_of


class Link:
    """Stands between us and PostgreSQL; while it is stalled nothing passes, and nothing is closed."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self.open = asyncio.Event()
        self.open.set()

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.open.wait()
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, far_writer))
                group.create_task(self._pass(far_reader, writer))
        except* OSError:
            pass
        finally:
            far_writer.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self.open.wait()
            writer.write(data)
        writer.close()


@asynccontextmanager
async def linked(url: str) -> AsyncIterator[tuple[Link, str]]:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    link = Link(parts.hostname, parts.port)
    async with serving(link.carry) as port:
        yield link, urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}"))


async def _nothing(_: asyncpg.Connection) -> None:
    """Sessions aren't changed here."""


async def test_statement_that_was_given_up_on_a_stalled_link_frees_its_place(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "RELEASE_SECONDS", 0.2)
    async with linked(postgres_url) as (link, url), pool_of(url, session={}, size=1, reset=_nothing) as pool:
        assert await pool.fetchval("SELECT 1") == 1
        link.open.clear()

        async def give_up() -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    async with pool.acquire() as connection:
                        await connection.fetchval("SELECT 1")

        async with asyncio.timeout(30):  # it would wait for ever
            await give_up()
        link.open.set()
        assert await pool.fetchval("SELECT 2") == 2
