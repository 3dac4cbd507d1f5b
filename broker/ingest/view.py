"""What an accepting process knows of subscriptions and grants: a directory and an index, kept at one version.

Of follow lists it knows at least as much: they are brought to a version before the directory is.

The version is that of the change log. Acceptance compares it with the log inside its transaction and catches up there,
so what was answered to a caller holds for every event accepted afterwards, in every process (promise 8).
"""

import asyncio
import time

from sqlalchemy.ext.asyncio import AsyncEngine

from broker.ingest.following import Following
from broker.matching.index import Index
from broker.storage.clock import DatabaseClock
from broker.telemetry import APPLIED_VERSION, INDEXED_SUBSCRIPTIONS
from subscriptions import directory
from subscriptions.change_log import read_head_and_time
from subscriptions.directory import Directory
from subscriptions.entries import FollowListsChanged, ReloadNeeded, SubscriptionChanged, SubscriptionEntry


class View:
    """Directory and index at `version`."""

    def __init__(self, engine: AsyncEngine, following: Following | None = None) -> None:
        """Without follow lists, matching where a subscription names one is an error."""
        self._engine = engine
        self._following = following
        self._lock = asyncio.Lock()
        self.version = -1
        self.clock = DatabaseClock()
        """Told by `freshen`: what may be shown is judged by the time that events are accepted by."""
        self.directory = Directory()
        self.index = self._empty_index()

    async def catch_up(self, version: int) -> None:
        """Bring the view to `version` of the change log or later.

        Raises:
            SQLAlchemyError: when the database can't be read; the view is then as it was, or further.
        """
        if self.version >= version:
            return
        async with self._lock:  # a change of a follow list must not be applied twice
            if self.version < 0:
                await self._load()
            if self.version < version:
                await self._apply_changes()

    async def freshen(self) -> None:
        """Bring the view to the present head of the change log, and its clock to PostgreSQL's."""
        async with self._engine.connect() as connection:
            asked_at = time.monotonic()
            head, now = await read_head_and_time(connection)
        self.clock.told(now, asked_at)
        await self.catch_up(head)

    async def load(self) -> None:
        """Read everything anew: at start, and when the change log no longer reaches back far enough."""
        async with self._lock:
            await self._load()

    async def _load(self) -> None:
        head, loaded = await directory.load(self._engine)
        if self._following is not None:
            await self._following.load()
        index = self._empty_index()
        for entry in loaded.subscriptions.values():
            index.put(entry.key, entry.condition)
        self.directory, self.index = loaded, index
        self._at(head)

    async def _apply_changes(self) -> None:
        head, changes = await directory.load_changes(self._engine, self.version)
        if any(isinstance(change, ReloadNeeded) for change in changes):
            await self._load()
            return
        if self._following is not None:
            if any(isinstance(change, FollowListsChanged) for change in changes):
                await self._following.catch_up(head)
            else:
                await self._following.nothing_until(head)
        self.directory.apply(changes)
        for change in changes:
            match change:
                case SubscriptionChanged(key, None):
                    self.index.discard(key)
                case SubscriptionChanged(key, SubscriptionEntry() as entry):
                    self.index.put(key, entry.condition)
        self._at(head)

    def _empty_index(self) -> Index:
        return Index() if self._following is None else Index(self._following.lists_of)

    def _at(self, version: int) -> None:
        self.version = version
        APPLIED_VERSION.set(version)
        INDEXED_SUBSCRIPTIONS.set(len(self.directory.subscriptions))
