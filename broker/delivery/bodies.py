"""Event bodies for the attempts of one process: opened once, shared by all deliveries of an event, bounded in bytes."""

import asyncio
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import asyncpg

from broker.storage import records
from broker.storage.pool import DATABASE_TROUBLE
from broker.storage.sealing import open_body
from subscriptions.secrets import KeyRing, SealError

_READ_AT_ONCE: Final = 128


@dataclass(frozen=True, slots=True)
class Body:
    """An accepted event: its type, for the grant check, and its canonical body."""

    type: str
    content: bytes


class BodyWanted(ABC):
    """Who waits for a body; exactly one of these is called."""

    __slots__ = ()

    @abstractmethod
    def opened(self, body: Body | None) -> None:
        """Here it is; None: its payload no longer exists."""

    @abstractmethod
    def unreadable(self) -> None:
        """No key of the ring opens it."""

    @abstractmethod
    def not_read(self, error: Exception) -> None:
        """The database couldn't be read."""


class Bodies:
    """A cache in front of the events table that reads what is missing in batches."""

    def __init__(self, pool: asyncpg.Pool, keys: KeyRing, max_bytes: int) -> None:
        self._pool = pool
        self._keys = keys
        self._max_bytes = max_bytes
        self._kept: OrderedDict[int, Body] = OrderedDict()
        self._bytes = 0
        self._wanted: dict[int, list[BodyWanted]] = {}
        self._ahead: dict[int, int] = {}
        """Bytes of what was read ahead and not used yet."""
        self._ahead_bytes = 0
        self._asked = asyncio.Event()

    def kept(self, key: int) -> Body | None:
        """The body of an event, if it is in memory."""
        body = self._kept.get(key)
        if body is not None:
            self._kept.move_to_end(key)
            if key in self._ahead:
                self._ahead_bytes -= self._ahead.pop(key)
        return body

    def has(self, key: int) -> bool:
        """Whether the body of an event is in memory; nothing is moved."""
        return key in self._kept

    def read_ahead(self, keys: Iterable[int]) -> None:
        """These will be asked for soon: read them together, unless much is waiting to be used already."""
        if self._ahead_bytes < self._max_bytes // 4:
            for key in keys:
                if key not in self._kept and key not in self._wanted:
                    self._wanted[key] = []
            self._asked.set()

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
        except DATABASE_TROUBLE as error:
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
            if not waiting and key not in self._ahead:
                self._ahead[key] = len(body.content)
                self._ahead_bytes += len(body.content)
            for wanted in waiting:
                wanted.opened(body)
        for waiting in asked.values():
            for wanted in waiting:
                wanted.opened(None)

    def _keep(self, key: int, body: Body) -> None:
        known = self._kept.pop(key, None)
        if known is not None:  # it was asked for again while it was being read
            self._bytes -= len(known.content)
        self._kept[key] = body
        self._bytes += len(body.content)
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            key, dropped = self._kept.popitem(last=False)
            self._bytes -= len(dropped.content)
            self._ahead_bytes -= self._ahead.pop(key, 0)
