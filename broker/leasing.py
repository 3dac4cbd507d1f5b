"""One process's share of the leases of a kind: renewed, taken from the dead, given back when others join.

Fair share is the number of leases divided by the number of live holders, rounded up. The holder knows by its own
monotonic clock until when each lease is surely its own, counted from before the renewal was asked for. Because others
take over at once from who has no connection any more, it keeps one, and is sure of nothing from the moment that this
one is lost. And because a change is answered without waiting for a holder that is silent or gone, who was unsure
applies what was changed meanwhile before it is sure again (promise 6).
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from uuid import UUID

import asyncpg

from broker.storage import leases
from broker.storage.clock import DatabaseClock
from broker.storage.pool import DATABASE_TROUBLE
from broker.telemetry import WORKER_ERRORS, log


async def _nothing_to_catch_up() -> None:
    """The work doesn't depend on the change log."""


class Leasing:
    """Holds leases of one kind for one process; `run` is its worker.

    `gained` and `released` are called with numbers; `released` returns when the work on them has stopped and what was
    under way is recorded, and only then are they given back. `count`: how many leases there are; None: as many as there
    are at each turn. `catch_up` applies what the change log has, and `sure` is called when leases that we were unsure
    of are surely ours again: work that was to begin meanwhile has not.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        kind: str,
        owner: UUID,
        *,
        count: int | None,
        span: timedelta,
        gained: Callable[[Iterable[int]], Awaitable[None]],
        released: Callable[[Iterable[int]], Awaitable[None]],
        applied_version: Callable[[], int] = lambda: 0,
        catch_up: Callable[[], Awaitable[None]] = _nothing_to_catch_up,
        sure: Callable[[], None] = lambda: None,
    ) -> None:
        self._pool = pool
        self._kind = kind
        self._owner = owner
        self._count = count
        self._span = span
        self._gained = gained
        self._released = released
        self._applied_version = applied_version
        self._catch_up = catch_up
        self._sure = sure
        self.clock = DatabaseClock()
        self._epochs: dict[int, int] = {}
        self._safe_until = 0.0
        self._nudged = asyncio.Event()
        self._leaving = False
        self._presence: asyncpg.Connection | None = None
        self._presences = 0

    @property
    def epochs(self) -> dict[int, int]:
        """Epoch by number of what this process holds."""
        return self._epochs

    def holds(self, number: int) -> bool:
        """Whether the lease is surely ours at this moment, by the monotonic clock."""
        return number in self._epochs and time.monotonic() < self._safe_until

    def epoch(self, number: int) -> int:
        """The epoch under which we hold a lease; -1, which no lease has, when we don't."""
        return self._epochs.get(number, -1)

    def nudge(self) -> None:
        """Renew now instead of at the next turn, so that others see the applied version."""
        self._nudged.set()

    async def run(self) -> None:
        """Keep the share until cancelled; an unreachable database costs leases, never the worker."""
        try:
            await self._run()
        finally:
            await self._be_absent()

    async def _run(self) -> None:
        while True:
            self._nudged.clear()  # before the turn: who nudges during it has something that it may not have told
            try:
                async with asyncio.timeout(self._span.total_seconds()):
                    await self.turn()
            except DATABASE_TROUBLE as error:
                WORKER_ERRORS.labels(f"{self._kind}-leases").inc()
                log().warning("lease-renewal-failed", kind=self._kind, error=type(error).__name__)
                await self._be_absent()  # the connection may be half way through something
            try:
                async with asyncio.timeout(self._span.total_seconds() / 4):
                    await self._nudged.wait()
            except TimeoutError:
                pass

    async def turn(self) -> None:
        """Renew, drop what was lost, give back what is over the share, take what is free."""
        asked_at = time.monotonic()
        connection = await self._be_present()
        presence = self._presences
        self.clock.told(await leases.announce(connection, self._kind, self._owner, self._applied_version()), asked_at)
        unsure = asked_at >= self._safe_until
        if unsure:  # changes may have been answered without us, until we announced ourselves
            await self._catch_up()
        held = await leases.renew(connection, self._kind, self._owner, self._span)
        alive = await leases.holders(connection, self._kind, self._span)
        count = self._count if self._count is not None else await leases.count(connection, self._kind)
        if self._leaving or presence != self._presences:
            return
        self._safe_until = asked_at + self._span.total_seconds()
        if unsure:
            self._sure()
        lost = [number for number, epoch in self._epochs.items() if held.get(number) != epoch]
        if lost:
            for number in lost:
                del self._epochs[number]
            await self._released(lost)
        unknown = {number: epoch for number, epoch in held.items() if number not in self._epochs}
        if unknown:  # taken in a turn whose answer never came, or not given back: renewed, so nobody else takes it
            self._epochs.update(unknown)
            await self._gained(unknown)
        share = math.ceil(count / max(len(alive), 1))
        surplus = sorted(self._epochs)[share:]
        if surplus:
            for number in surplus:
                del self._epochs[number]  # first, so that nothing new is begun on them
            await self._released(surplus)
            async with self._pool.acquire() as connection:
                await leases.give_back(connection, self._kind, self._owner, surplus)
        room = share - len(self._epochs)
        if room > 0:
            asked_at = time.monotonic()
            async with self._pool.acquire() as connection:
                taken = await leases.take(connection, self._kind, self._owner, self._span, room)
            if taken:
                self._epochs.update({lease.number: lease.epoch for lease in taken})
                log().info("leases-taken", kind=self._kind, numbers=[lease.number for lease in taken])
                await self._gained([lease.number for lease in taken])

    async def _be_present(self) -> asyncpg.Connection:
        """The connection that shows others that we live."""
        if self._presence is not None and _closed(self._presence):
            await self._be_absent()
        if self._presence is None:
            self._presence = await self._pool.acquire()
            self._presence.add_termination_listener(self._presence_lost)
        return self._presence

    async def _be_absent(self) -> None:
        presence, self._presence = self._presence, None
        if presence is not None:
            self._presence_lost(presence)
            with contextlib.suppress(asyncpg.InterfaceError):
                presence.remove_termination_listener(self._presence_lost)
                presence.terminate()
            await self._pool.release(presence)

    def _presence_lost(self, _: object) -> None:
        """From now on others may take what we hold, so we are sure of nothing until the next turn."""
        self._presences += 1
        self._safe_until = 0.0
        self._nudged.set()

    async def leave(self) -> None:
        """Give everything back; the work on it has stopped already."""
        self._leaving = True
        numbers, self._epochs = list(self._epochs), {}
        async with self._pool.acquire() as connection:
            await leases.give_back(connection, self._kind, self._owner, numbers)
            await leases.leave(connection, self._owner)


def _closed(connection: asyncpg.Connection) -> bool:
    try:
        return bool(connection.is_closed())
    except asyncpg.InterfaceError:  # its pool has parted with it
        return True
