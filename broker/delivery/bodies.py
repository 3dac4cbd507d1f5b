"""Event bodies for the attempts of one process: opened once, shared by all deliveries of an event, bounded in bytes."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

import asyncpg

from broker.storage import records
from broker.storage.sealing import open_body
from subscriptions.secrets import KeyRing, SealError


@dataclass(frozen=True, slots=True)
class Body:
    """An accepted event: its type, for the grant check, and its canonical body."""

    type: str
    content: bytes


class Bodies:
    """A cache in front of the events table that reads what is missing in batches."""

    def __init__(self, pool: asyncpg.Pool, keys: KeyRing, max_bytes: int) -> None:
        self._pool = pool
        self._keys = keys
        self._max_bytes = max_bytes
        self._kept: OrderedDict[int, Body] = OrderedDict()
        self._bytes = 0
        self._wanted: dict[int, list[asyncio.Future[Body | None]]] = {}
        self._asked = asyncio.Event()

    async def get(self, key: int) -> Body | None:
        """The body of an event; None when its payload no longer exists.

        Raises:
            asyncpg.PostgresError, asyncpg.InterfaceError, OSError: when the database can't be read.
            SealError: when no key of the ring opens it.
        """
        body = self._kept.get(key)
        if body is not None:
            self._kept.move_to_end(key)
            return body
        future: asyncio.Future[Body | None] = asyncio.get_running_loop().create_future()
        self._wanted.setdefault(key, []).append(future)
        self._asked.set()
        return await future

    async def run(self) -> None:
        """Answer what `get` waits for, all that is wanted in one query."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            wanted, self._wanted = self._wanted, {}
            try:
                async with self._pool.acquire() as connection:
                    rows = await records.bodies(connection, list(wanted))
            except (
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
                asyncpg.InternalClientError,
                OSError,
                TimeoutError,
            ) as error:
                for futures in wanted.values():
                    for future in futures:
                        if not future.done():
                            future.set_exception(error)
                continue
            found = {key: (kind, sealed) for key, kind, sealed in rows}
            for key, futures in wanted.items():
                body: Body | None = None
                unreadable: SealError | None = None
                if key in found:
                    kind, sealed = found[key]
                    try:
                        body = Body(kind, open_body(self._keys, key, sealed))
                        self._keep(key, body)
                    except SealError as error:  # this one's trouble, not that of the others
                        unreadable = error
                for future in futures:
                    if future.done():
                        continue
                    if unreadable is not None:
                        future.set_exception(unreadable)
                    else:
                        future.set_result(body)

    def _keep(self, key: int, body: Body) -> None:
        self._kept[key] = body
        self._bytes += len(body.content)
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= len(dropped.content)
