"""One process's share of the leases of a kind: renewed, taken from the dead, given back when others join.

Fair share is the number of leases divided by the number of live holders, rounded up. The holder knows by its own
monotonic clock until when each lease is surely its own, counted from before the renewal was asked for.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from uuid import UUID

import asyncpg

from broker.storage import leases
from broker.telemetry import WORKER_ERRORS, log


class Leasing:
    """Holds leases of one kind for one process; `run` is its worker.

    `gained` and `released` are called with numbers; `released` returns when the work on them has stopped and what was
    under way is recorded, and only then are they given back.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        kind: str,
        owner: UUID,
        *,
        count: int,
        span: timedelta,
        gained: Callable[[Iterable[int]], Awaitable[None]],
        released: Callable[[Iterable[int]], Awaitable[None]],
        applied_version: Callable[[], int] = lambda: 0,
    ) -> None:
        self._pool = pool
        self._kind = kind
        self._owner = owner
        self._count = count
        self._span = span
        self._gained = gained
        self._released = released
        self._applied_version = applied_version
        self._epochs: dict[int, int] = {}
        self._safe_until = 0.0
        self._nudged = asyncio.Event()
        self._leaving = False

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
        while True:
            self._nudged.clear()  # before the turn: who nudges during it has something that it may not have told
            try:
                async with asyncio.timeout(self._span.total_seconds()):
                    await self.turn()
            except (
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
                asyncpg.InternalClientError,
                OSError,
                TimeoutError,
            ) as error:
                WORKER_ERRORS.labels(f"{self._kind}-leases").inc()
                log().warning("lease-renewal-failed", kind=self._kind, error=type(error).__name__)
            try:
                async with asyncio.timeout(self._span.total_seconds() / 4):
                    await self._nudged.wait()
            except TimeoutError:
                pass

    async def turn(self) -> None:
        """Renew, drop what was lost, give back what is over the share, take what is free."""
        asked_at = time.monotonic()
        async with self._pool.acquire() as connection:
            await leases.announce(connection, self._kind, self._owner, self._applied_version())
            held = await leases.renew(connection, self._kind, self._owner, self._span)
            alive = await leases.holders(connection, self._kind, self._span)
        if self._leaving:
            return
        self._safe_until = asked_at + self._span.total_seconds()
        lost = [number for number, epoch in self._epochs.items() if held.get(number) != epoch]
        if lost:
            for number in lost:
                del self._epochs[number]
            await self._released(lost)
        unknown = {number: epoch for number, epoch in held.items() if number not in self._epochs}
        if unknown:  # taken in a turn whose answer never came, or not given back: renewed, so nobody else takes it
            self._epochs.update(unknown)
            await self._gained(unknown)
        share = math.ceil(self._count / max(len(alive), 1))
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

    async def leave(self) -> None:
        """Give everything back; the work on it has stopped already."""
        self._leaving = True
        numbers, self._epochs = list(self._epochs), {}
        async with self._pool.acquire() as connection:
            await leases.give_back(connection, self._kind, self._owner, numbers)
            await leases.leave(connection, self._owner)
