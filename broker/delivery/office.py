"""What delivery knows of subscriptions and grants, kept current from the change log (promises 6 and 8)."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from broker.delivery.asking import Asking
from broker.storage.sealing import excerpt_purpose
from broker.telemetry import APPLIED_VERSION, HOLDS, WORKER_ERRORS, log
from subscriptions import directory, life_cycle
from subscriptions.change_log import changing
from subscriptions.directory import Directory
from subscriptions.entries import HoldChanged, ReloadNeeded, SubscriptionChanged, SubscriptionEntry
from subscriptions.held import HoldEntry
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
        hold_ended: Callable[[], None],
        reloaded: Callable[[], None],
        applied: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._keys = keys
        self._changed = changed
        self._hold_ended = hold_ended
        self._reloaded = reloaded
        self._applied = applied
        self._asking = Asking()
        self._catching_up = asyncio.Lock()
        self._directory = Directory()
        self.version = -1

    async def load(self) -> None:
        """Read everything anew."""
        self.version, self._directory = await directory.load(self._engine)
        HOLDS.set(len(self._directory.holds.entries))
        APPLIED_VERSION.set(self.version)
        self._reloaded()
        self._applied()

    def ask(self) -> None:
        """Something may have changed: look now instead of at the next poll."""
        self._asking.ask()

    async def run(self) -> None:
        """Apply changes until cancelled."""
        while True:
            await self._asking.wait(_POLL_SECONDS)
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
            match change:
                case SubscriptionChanged(key):
                    self._changed(key)
                case HoldChanged(hold, stands):
                    self._apply_hold(hold, stands=stands)
        HOLDS.set(len(self._directory.holds.entries))
        self._applied()

    def _apply_hold(self, hold: HoldEntry, *, stands: bool) -> None:
        """What is in memory is dropped before anything else of it starts, and read anew as far as it may go."""
        if not stands:
            self._hold_ended()
        if hold.target_id is None:
            self._reloaded()  # any subscription may have something of it
            return
        for entry in list(self._directory.subscriptions.values()):
            if hold.target_id in (entry.id, entry.organisation_id):
                self._changed(entry.key)

    def _held(self, entry: SubscriptionEntry) -> bool:
        return self._directory.holds.of_subscription(entry.organisation_id, entry.id) is not None

    async def load_sinks(self, keys: list[int]) -> list[SinkConfig]:
        """The sinks of these subscriptions, as they are now."""
        async with asyncio.timeout(_LOAD_SECONDS):  # all sinks wait for this one reading
            return await load_sinks(self._engine, self._keys, keys)

    def sends(self, key: int) -> bool:
        """Whether a subscription is active, has a sink, and isn't held as a whole."""
        entry = self._directory.subscriptions.get(key)
        return entry is not None and entry.sent and not self._held(entry)

    def kept_back(self, key: int) -> bool:
        """Whether a subscription is pulled, or held as a whole."""
        entry = self._directory.subscriptions.get(key)
        return entry is not None and (entry.pulled or self._held(entry))

    def pulled(self, key: int) -> bool:
        """Whether a subscription is pulled."""
        entry = self._directory.subscriptions.get(key)
        return entry is not None and entry.pulled

    @property
    def holds_events(self) -> bool:
        """Whether any source or type is held."""
        return self._directory.holds.of_events

    def held_events(self, described: Mapping[int, tuple[str, str]]) -> dict[int, bool]:
        """Which of these events (by key, with source and type) are held: true: by source."""
        holds, held = self._directory.holds, {}
        for key, (source, event_type) in described.items():
            if holds.of_source(source) is not None:
                held[key] = True
            elif holds.of_type(event_type) is not None:
                held[key] = False
        return held

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
