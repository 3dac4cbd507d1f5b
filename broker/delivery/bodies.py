"""Event bodies for the attempts of one process: opened once, shared by all deliveries of an event, bounded in bytes."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import asyncpg

from broker.storage import records
from broker.storage.sealing import open_body
from subscriptions.secrets import KeyRing, SealError

_READ_AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class Body:
    """An accepted event: its type, for the grant check, and its canonical body."""

    type: str
    content: bytes


class BodyWanted:
    """Who waits for a body; exactly one of these is called."""

    __slots__ = ()

    def opened(self, body: Body | None) -> None:
        """Here it is; None: its payload no longer exists."""
        raise NotImplementedError

    def unreadable(self) -> None:
        """No key of the ring opens it."""
        raise NotImplementedError

    def not_read(self, error: Exception) -> None:
        """The database couldn't be read."""
        raise NotImplementedError


class Bodies:
    """A cache in front of the events table that reads what is missing in batches."""

    def __init__(self, pool: asyncpg.Pool, keys: KeyRing, max_bytes: int) -> None:
        self._pool = pool
        self._keys = keys
        self._max_bytes = max_bytes
        self._kept: OrderedDict[int, Body] = OrderedDict()
        self._bytes = 0
        self._wanted: dict[int, list[BodyWanted]] = {}
        self._asked = asyncio.Event()

    def kept(self, key: int) -> Body | None:
        """The body of an event, if it is in memory."""
        body = self._kept.get(key)
        if body is not None:
            self._kept.move_to_end(key)
        return body

    def ask(self, key: int, wanted: "BodyWanted") -> None:
        """Read the body of an event; `wanted` is told."""
        self._wanted.setdefault(key, []).append(wanted)
        self._asked.set()

    async def run(self) -> None:
        """Answer what was asked, all of it in one query."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            asked, self._wanted = self._wanted, {}
            keys = list(asked)
            for start in range(0, len(keys), _READ_AT_ONCE):
                await self._read({key: asked[key] for key in keys[start : start + _READ_AT_ONCE]})

    async def _read(self, asked: dict[int, list["BodyWanted"]]) -> None:
        try:
            async with self._pool.acquire() as connection:
                rows = await records.bodies(connection, list(asked))
        except (
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
            OSError,
            TimeoutError,
        ) as error:
            for waiting in asked.values():
                for wanted in waiting:
                    wanted.not_read(error)
            return
        for key, kind, sealed in rows:
            waiting = asked.pop(key)
            try:
                body = Body(kind, open_body(self._keys, key, sealed))
            except SealError:  # this one's trouble, not that of the others
                for wanted in waiting:
                    wanted.unreadable()
                continue
            self._keep(key, body)
            for wanted in waiting:
                wanted.opened(body)
        for waiting in asked.values():
            for wanted in waiting:
                wanted.opened(None)

    def _keep(self, key: int, body: Body) -> None:
        self._kept[key] = body
        self._bytes += len(body.content)
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= len(dropped.content)
