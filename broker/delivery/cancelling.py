"""The worker that cancels what holds kept, where people asked for it, portion by portion (`storage.holds`)."""

import asyncio
from typing import Final

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from broker.delivery.asking import Asking
from broker.storage import holds as portions
from broker.storage.pool import DATABASE_TROUBLE
from broker.telemetry import DELIVERIES, WORKER_ERRORS, log
from schemas.problems import Unavailable
from subscriptions import holds
from subscriptions.change_log import changing

_POLL_SECONDS: Final = 5.0
_TROUBLE_SECONDS: Final = 0.5


class HoldCanceller:
    """Cancels what is to be cancelled; any number of processes may. `run` is its worker."""

    def __init__(self, pool: asyncpg.Pool, engine: AsyncEngine) -> None:
        self._pool = pool
        self._engine = engine
        self._asking = Asking()

    def ask(self) -> None:
        """There may be something to cancel: look now instead of at the next poll."""
        self._asking.ask()

    async def run(self) -> None:
        """Cancel until cancelled."""
        while True:
            await self._asking.wait(_POLL_SECONDS)
            try:
                await self.cancel()
            except (*DATABASE_TROUBLE, Unavailable) as error:
                WORKER_ERRORS.labels("holds").inc()
                log().warning("hold-not-cancelled", error=type(error).__name__)
                await asyncio.sleep(_TROUBLE_SECONDS)
                self._asking.ask()

    async def cancel(self) -> None:
        """Do portions until none is left to do; where outcomes are being recorded, a portion is tried again."""
        while True:
            async with self._pool.acquire() as connection:
                try:
                    portion = await portions.cancel_portion(connection)
                except asyncpg.DeadlockDetectedError:
                    continue
            if portion is None:
                return
            DELIVERIES.labels("cancelled").inc(portion.cancelled)
            if portion.complete:
                async with changing(self._engine) as transaction:
                    ended = await holds.cancelled(transaction, portion.hold)
                if ended:
                    log().warning("hold-cancelled", hold=str(portion.hold))
