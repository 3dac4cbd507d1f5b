"""Outcomes on their way into the database: many in one commit, the latest of each delivery, tried until it succeeds.

An outcome that is not recorded yet means one thing only: if this process dies now, the attempt is made again.
"""

import asyncio

import asyncpg

from broker.storage import records
from broker.storage.records import AttemptRow, OutcomeRow
from broker.telemetry import UNRECORDED, WORKER_ERRORS, log

_BATCH: int = 2000
_LONGEST_PAUSE: float = 2.0


class Recorder:
    """Collects outcomes; `run` is its worker."""

    def __init__(self, pool: asyncpg.Pool, shards: int, linger_seconds: float) -> None:
        self._pool = pool
        self._shards = shards
        self._linger_seconds = linger_seconds
        self._outcomes: dict[tuple[int, int], OutcomeRow] = {}
        self._attempts: list[AttemptRow] = []
        self._writing: list[OutcomeRow] = []
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()

    @property
    def unrecorded(self) -> int:
        """Outcomes that are not committed yet."""
        return len(self._outcomes) + len(self._writing)

    def holds(self, subscription: int) -> bool:
        """Whether an outcome of this subscription is not committed yet."""
        return any(key[0] == subscription for key in self._outcomes) or any(
            outcome.subscription == subscription for outcome in self._writing
        )

    def put(self, outcome: OutcomeRow, attempt: AttemptRow | None = None) -> None:
        """Take an outcome, and the attempt behind it when that failed."""
        self._outcomes[outcome.subscription, outcome.sequence] = outcome
        if attempt is not None:
            self._attempts.append(attempt)
        self._emptied.clear()
        self._filled.set()

    async def drained(self) -> None:
        """Wait until everything that was put is committed."""
        await self._emptied.wait()

    async def run(self) -> None:
        """Record until cancelled."""
        while True:
            await self._filled.wait()
            if len(self._outcomes) < _BATCH:
                await asyncio.sleep(self._linger_seconds)
            self._filled.clear()
            self._writing, self._outcomes = list(self._outcomes.values()), {}
            attempts, self._attempts = self._attempts, []
            # what is under way is finished even when we are told to stop
            await asyncio.shield(self._write(self._writing, attempts))
            self._writing = []
            UNRECORDED.set(self.unrecorded)
            if not self._outcomes:
                self._emptied.set()

    async def _write(self, outcomes: list[OutcomeRow], attempts: list[AttemptRow]) -> None:
        pause = 0.05
        while True:
            try:
                async with self._pool.acquire() as connection:
                    counted = await records.record(connection, outcomes, attempts, self._shards)
            except (
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
                asyncpg.InternalClientError,
                OSError,
                TimeoutError,
            ) as error:
                WORKER_ERRORS.labels("recorder").inc()
                log().warning("outcomes-not-recorded", outcomes=len(outcomes), error=type(error).__name__)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            if counted < len(outcomes):
                log().info("outcomes-late", outcomes=len(outcomes), counted=counted)
            return
