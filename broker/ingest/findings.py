"""What the data of accepted events had against the schemas of their types, counted in memory and written now and then.

A report, not a promise: what was counted and not yet written when a process is killed is lost, so that acceptance waits
for no row that all processes count in. It is bounded in memory and in the database, and holds no values.
"""

import asyncio
from collections import Counter
from typing import Final
from uuid import UUID

import asyncpg

from broker.storage import catalogue
from broker.storage.pool import DATABASE_TROUBLE
from broker.telemetry import WORKER_ERRORS, log
from schemas.data_schemas import Finding

_WRITE_EVERY: Final = 1.0
_LONGEST_WRITE: Final = 5.0
_LAST_WRITE: Final = 1.0
"""The process is ending, and the report is not worth waiting for."""
_MOST_IN_MEMORY: Final = 10_000


class Findings:
    """Counts findings; `run` is the worker that writes them."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._counted: Counter[tuple[UUID, Finding]] = Counter()

    def add(self, event_type_id: UUID, finding: Finding) -> None:
        """Count one; beyond the bound of memory new ones aren't told apart any more, and dropped."""
        which = (event_type_id, finding)
        if which in self._counted or len(self._counted) < _MOST_IN_MEMORY:
            self._counted[which] += 1

    async def run(self) -> None:
        """Write every second until cancelled, and what is left then."""
        try:
            while True:
                await asyncio.sleep(_WRITE_EVERY)
                await self._try_to_write(_LONGEST_WRITE)
        except asyncio.CancelledError:
            await self._try_to_write(_LAST_WRITE)
            raise

    async def write(self) -> None:
        """Write what was counted.

        Raises:
            asyncpg.PostgresError, OSError: it could not be written, and is kept for the next time.
        """
        counted, self._counted = self._counted, Counter()
        if not counted:
            return
        try:
            async with self._pool.acquire() as connection:
                await catalogue.add_findings(
                    connection, [(identity, *finding, times) for (identity, finding), times in counted.items()]
                )
        except BaseException:
            self._counted.update(counted)
            raise

    async def _try_to_write(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self.write()
        except DATABASE_TROUBLE as error:
            WORKER_ERRORS.labels("data-findings").inc()
            log().warning("data-findings-not-written", error=type(error).__name__)
