"""A process that isn't sure of its shards for a while, and keeps them: what it was about to send goes then.

Nobody else can send it: the shard changes hands only under another epoch.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from accepting import Publisher
from delivering import Delivering, RawSink


@asynccontextmanager
async def locked(bode: Delivering, table: str) -> AsyncIterator[None]:
    """Nobody else gets at a table."""
    connection = await asyncpg.connect(bode.url)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            yield
    finally:
        await connection.close()


@asynccontextmanager
async def unsure(bode: Delivering) -> AsyncIterator[None]:
    """The process has lost the connection that shows others that it lives, and can't renew its leases."""
    leasing = bode.process._leasing
    epochs = dict(leasing.epochs)
    async with locked(bode, "leases"):
        assert leasing._presence is not None
        await bode.pool.execute("SELECT pg_terminate_backend($1)", leasing._presence.get_server_pid())
        await until(lambda: not any(map(leasing.holds, epochs)))
        yield
    await until(lambda: all(map(leasing.holds, epochs)))
    assert leasing.epochs == epochs, "nobody took them meanwhile"


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(15):
        while not true():
            await asyncio.sleep(0.005)


async def slow_bodies(bode: Delivering, begin: Callable[[], Awaitable[Any]]) -> None:
    """Bodies come only while the process is unsure."""
    attempts = bode.process._engine._attempts
    async with asyncio.timeout(30):
        async with locked(bode, "events"):
            await begin()
            await until(lambda: attempts)
            becoming_unsure = unsure(bode)
            await becoming_unsure.__aenter__()
        await until(lambda: not attempts)
        await becoming_unsure.__aexit__(None, None, None)


async def slow_connections(bode: Delivering, begin: Callable[[], Awaitable[Any]]) -> None:
    """Connections come only while the process is unsure."""
    fence, attempts, may_go = bode.process._fence, bode.process._engine._attempts, asyncio.Event()
    resolve = fence.resolve

    async def resolving(host: str, port: int) -> Any:
        await may_go.wait()
        return await resolve(host, port)

    bode.process._client._idle.clear()
    fence.resolve = resolving  # type: ignore[method-assign]
    await begin()
    await until(lambda: attempts)
    async with unsure(bode):
        may_go.set()
        await until(lambda: not attempts)


@pytest.mark.parametrize("members", [{}, {"protocolSettings": {"batch": {"maxCount": 2}}}], ids=["single", "batches"])
@pytest.mark.parametrize("slow", [slow_bodies, slow_connections])
async def test_what_could_not_go_while_unsure_goes_when_sure_again(
    bode: Delivering,
    publisher: Publisher,
    sink: RawSink,
    slow: Callable[[Delivering, Callable[[], Awaitable[Any]]], Awaitable[None]],
    members: dict[str, Any],
) -> None:
    identity = await bode.active(publisher, sink.url("/"), **members)

    async def set_status(status: str) -> None:
        body = {"status": status}
        answer = await bode.world.call("PATCH", f"/subscriptions/{identity}", key=bode.provider_key, body=body)
        assert answer.status == 200, answer.text
        await bode.process.office.catch_up()

    await set_status("paused")
    await bode.publish(publisher, "a", "b", "a", None, "a")
    await slow(bode, lambda: set_status("active"))
    key = (await bode.row(identity))["key"]
    async with asyncio.timeout(10):
        while {row["state"] for row in await bode.deliveries(key)} != {"delivered"}:
            await asyncio.sleep(0.02)
    assert {row["attempts"] for row in await bode.deliveries(key)} == {1}
