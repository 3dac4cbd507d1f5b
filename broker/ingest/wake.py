"""Telling delivery processes, after the commit, which subscriptions have something new.

A wake-up may be lost: who is woken reads the tables, and also reads them regularly. So it is sent outside of every
acceptance, one statement at a time, for all that has gathered meanwhile.
"""

import asyncio
from typing import Final

import asyncpg

from broker.ingest.accept import Accepted
from broker.storage import acceptance
from broker.storage.acceptance import EVERYTHING
from broker.storage.pool import DATABASE_TROUBLE
from broker.telemetry import WORKER_ERRORS

_PAYLOAD_BYTES: Final = 7900
_TOO_MANY: Final = 20_000


class Waker:
    """Sends what gathers in `queue`; `run` is its worker."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self.queue: asyncio.Queue[Accepted] = asyncio.Queue()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            touched = set((await self.queue.get()).subscriptions)
            while not self.queue.empty():
                touched.update(self.queue.get_nowait().subscriptions)
            try:
                async with self._pool.acquire() as connection:
                    await acceptance.wake(connection, payloads(touched))
            except DATABASE_TROUBLE:
                WORKER_ERRORS.labels("waker").inc()


def payloads(subscriptions: set[int]) -> list[str]:
    """Numbers of subscriptions, in as few NOTIFY payloads (under 8,000 bytes each) as hold them."""
    if len(subscriptions) > _TOO_MANY:
        return [EVERYTHING]
    made: list[str] = []
    current: list[str] = []
    size = 0
    for text in map(str, sorted(subscriptions)):
        if size + len(text) + 1 > _PAYLOAD_BYTES:
            made.append(",".join(current))
            current, size = [], 0
        current.append(text)
        size += len(text) + 1
    if current:
        made.append(",".join(current))
    return made
