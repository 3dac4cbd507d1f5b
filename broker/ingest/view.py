"""What an accepting process knows of subscriptions and grants: a directory and an index, kept at one version.

The version is that of the change log. Acceptance compares it with the log inside its transaction and catches up there,
so what was answered to a caller holds for every event accepted afterwards, in every process (promise 8).
"""

from sqlalchemy.ext.asyncio import AsyncEngine

from broker.matching.index import Index
from broker.telemetry import APPLIED_VERSION, INDEXED_SUBSCRIPTIONS
from subscriptions import directory
from subscriptions.change_log import read_head
from subscriptions.directory import Directory
from subscriptions.entries import ReloadNeeded, SubscriptionChanged, SubscriptionEntry


class View:
    """Directory and index at `version`."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.version = -1
        self.directory = Directory()
        self.index = Index()

    async def catch_up(self, version: int) -> None:
        """Bring the view to `version` of the change log or later.

        Raises:
            SQLAlchemyError: when the database can't be read; the view is then as it was, or further.
        """
        if self.version < 0:
            await self.load()
        if self.version >= version:
            return
        head, changes = await directory.load_changes(self._engine, self.version)
        if any(isinstance(change, ReloadNeeded) for change in changes):
            await self.load()
            return
        self.directory.apply(changes)
        for change in changes:
            match change:
                case SubscriptionChanged(key, None):
                    self.index.discard(key)
                case SubscriptionChanged(key, SubscriptionEntry() as entry):
                    self.index.put(key, entry.condition)
        self._at(head)

    async def freshen(self) -> None:
        """Bring the view to the present head of the change log."""
        async with self._engine.connect() as connection:
            head = await read_head(connection)
        await self.catch_up(head)

    async def load(self) -> None:
        """Read everything anew: at start, and when the change log no longer reaches back far enough."""
        head, loaded = await directory.load(self._engine)
        index = Index()
        for entry in loaded.subscriptions.values():
            index.put(entry.key, entry.condition)
        self.directory, self.index = loaded, index
        self._at(head)

    def _at(self, version: int) -> None:
        self.version = version
        APPLIED_VERSION.set(version)
        INDEXED_SUBSCRIPTIONS.set(len(self.directory.subscriptions))
