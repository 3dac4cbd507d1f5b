"""What delivery knows of subscriptions and grants, kept current from the change log (promises 6 and 8)."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from broker.storage.sealing import excerpt_purpose
from broker.telemetry import APPLIED_VERSION, WORKER_ERRORS, log
from subscriptions import directory, life_cycle
from subscriptions.change_log import changing
from subscriptions.directory import Directory
from subscriptions.entries import ReloadNeeded, SubscriptionChanged
from subscriptions.secrets import KeyRing
from subscriptions.sinks import SinkConfig, load_sinks

_POLL_SECONDS = 1.0
_LOAD_SECONDS = 10.0


class DirectoryOffice:
    """A directory at a version of the change log; `run` is the worker that keeps it current."""

    def __init__(
        self,
        engine: AsyncEngine,
        keys: KeyRing,
        *,
        changed: Callable[[int], None],
        reloaded: Callable[[], None],
        applied: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._keys = keys
        self._changed = changed
        self._reloaded = reloaded
        self._applied = applied
        self._asked = asyncio.Event()
        self._catching_up = asyncio.Lock()
        self._directory = Directory()
        self.version = -1

    async def load(self) -> None:
        """Read everything anew."""
        self.version, self._directory = await directory.load(self._engine)
        APPLIED_VERSION.set(self.version)
        self._reloaded()
        self._applied()

    def ask(self) -> None:
        """Something may have changed: look now instead of at the next poll."""
        self._asked.set()

    async def run(self) -> None:
        """Apply changes until cancelled."""
        while True:
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._asked.wait()
            except TimeoutError:
                pass
            self._asked.clear()
            try:
                await self.catch_up()
            except (SQLAlchemyError, OSError, TimeoutError) as error:
                WORKER_ERRORS.labels("office").inc()
                log().warning("changes-not-read", error=type(error).__name__)
                await asyncio.sleep(0.2)

    async def catch_up(self) -> None:
        """Apply what has been changed up to now."""
        async with self._catching_up:  # in order
            await self._apply()

    async def _apply(self) -> None:
        version, changes = await directory.load_changes(self._engine, self.version)
        if version == self.version:
            return
        if any(isinstance(change, ReloadNeeded) for change in changes):
            await self.load()
            return
        self._directory.apply(changes)
        self.version = version
        APPLIED_VERSION.set(version)
        for change in changes:
            if isinstance(change, SubscriptionChanged):
                self._changed(change.key)
        self._applied()

    async def load_sinks(self, keys: list[int]) -> list[SinkConfig]:
        """The sinks of these subscriptions, as they are now."""
        async with asyncio.timeout(_LOAD_SECONDS):  # all sinks wait for this one reading
            return await load_sinks(self._engine, self._keys, keys)

    def sends(self, key: int) -> bool:
        """Whether a subscription is active and has a sink."""
        entry = self._directory.subscriptions.get(key)
        return entry is not None and entry.sent

    def pulled(self, key: int) -> bool:
        """Whether a subscription is pulled."""
        entry = self._directory.subscriptions.get(key)
        return entry is not None and entry.pulled

    def granted(self, organisation_id: UUID, event_type: str, now: datetime) -> UUID | None:
        """The grant on which an organisation may receive a type now."""
        return self._directory.granted(organisation_id, event_type, now)

    def seal_excerpt(self, subscription_id: UUID, excerpt: bytes) -> bytes:
        """Seal the first bytes of a sink's answer, bound to its subscription."""
        return self._keys.seal(excerpt, excerpt_purpose(subscription_id))

    async def disable(self, subscription_id: UUID, reason: str) -> None:
        """Disable a subscription because of what its sink did; what matches it is kept."""
        async with changing(self._engine) as connection:
            await life_cycle.disable(connection, subscription_id, reason)
