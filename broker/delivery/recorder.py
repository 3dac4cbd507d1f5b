"""Outcomes on their way into the database: many in one commit, the latest of each delivery, tried until it succeeds.

An outcome that is not recorded yet means one thing only: if this process dies now, the attempt is made again.

Nearly every outcome is a success: these are bare rows and take a short statement. All others are `OutcomeRow`s.
"""

import asyncio

import asyncpg

from broker.storage import records
from broker.storage.pool import DATABASE_TROUBLE
from broker.storage.records import AttemptRow, DeliveredRow, FailingNote, OutcomeRow
from broker.telemetry import UNRECORDED, WORKER_ERRORS, log

_BATCH: int = 2000
_LONGEST_PAUSE: float = 2.0


class _Batch:
    """What goes into one commit."""

    def __init__(self) -> None:
        self.delivered: list[DeliveredRow] = []
        self.epochs: dict[int, int] = {}
        """Of the shards that these belong to."""
        self.others: dict[tuple[int, int], OutcomeRow] = {}
        self.attempts: list[AttemptRow] = []
        self.notes: dict[int, FailingNote] = {}

    def __len__(self) -> int:
        return len(self.delivered) + len(self.others)

    def __bool__(self) -> bool:
        return bool(self.delivered or self.others or self.notes)

    def holds(self, subscription: int) -> bool:
        return (
            subscription in self.notes
            or any(key[0] == subscription for key in self.others)
            or any(row[0] == subscription for row in self.delivered)
        )


class Recorder:
    """Collects outcomes; `run` is its worker."""

    def __init__(self, pool: asyncpg.Pool, shards: int, linger_seconds: float) -> None:
        self._pool = pool
        self._shards = shards
        self._linger_seconds = linger_seconds
        self._batch = _Batch()
        self._writing = _Batch()
        self._begun = self._done = 0
        self._filled = asyncio.Event()
        self._written = asyncio.Event()

    @property
    def unrecorded(self) -> int:
        """Outcomes that are not committed yet."""
        return len(self._batch) + len(self._writing)

    def holds(self, subscription: int) -> bool:
        """Whether something of this subscription is not committed yet."""
        return self._batch.holds(subscription) or self._writing.holds(subscription)

    def unrecorded_of(self, subscription: int) -> dict[int, OutcomeRow]:
        """What is not committed yet of a subscription, but for successes, by number; the latest of each."""
        several = (self._writing.others, self._batch.others)
        return {key[1]: row for others in several for key, row in others.items() if key[0] == subscription}

    def put_delivered(self, row: DeliveredRow, epoch: int) -> None:
        """Take a success, of an attempt that was made under this epoch."""
        batch = self._batch
        if batch.epochs.setdefault(row[0] % self._shards, epoch) == epoch:
            batch.delivered.append(row)
        else:  # the shard was lost and won again meanwhile
            batch.others[row[0], row[1]] = OutcomeRow.of_delivered(row, epoch)
        self._filled.set()

    def put(self, outcome: OutcomeRow, attempt: AttemptRow | None = None) -> None:
        """Take any outcome, and the attempt behind it when that failed."""
        self._batch.others[outcome.subscription, outcome.sequence] = outcome
        if attempt is not None:
            self._batch.attempts.append(attempt)
        self._filled.set()

    def note(self, note: FailingNote) -> None:
        """Take down since when a sink fails, or that it doesn't any more."""
        self._batch.notes[note.subscription] = note
        self._filled.set()

    async def drained(self) -> None:
        """Wait until everything that was put so far is committed."""
        last = self._begun + bool(self._batch)
        while self._done < last:
            self._written.clear()
            await self._written.wait()

    async def run(self) -> None:
        """Record until cancelled."""
        while True:
            await self._filled.wait()
            if len(self._batch) < _BATCH:
                await asyncio.sleep(self._linger_seconds)
            self._filled.clear()
            self._writing, self._batch = self._batch, _Batch()
            self._begun += 1
            # what is under way is finished even when we are told to stop
            await asyncio.shield(self._write(self._writing))
            self._writing = _Batch()
            self._done += 1
            self._written.set()
            UNRECORDED.set(self.unrecorded)

    async def _write(self, batch: _Batch) -> None:
        pause, counted = 0.05, len(batch)
        recorded = not len(batch)
        while True:
            try:
                async with self._pool.acquire() as connection:
                    if not recorded:
                        counted = await records.record(
                            connection,
                            list(batch.others.values()),
                            batch.attempts,
                            self._shards,
                            delivered=batch.delivered,
                            epochs=batch.epochs,
                        )
                        recorded = True
                    if batch.notes:
                        await records.note_failing(connection, list(batch.notes.values()), self._shards)
            except DATABASE_TROUBLE as error:
                WORKER_ERRORS.labels("recorder").inc()
                log().warning("outcomes-not-recorded", outcomes=len(batch), error=type(error).__name__)
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            if counted < len(batch):
                log().info("outcomes-late", outcomes=len(batch), counted=counted)
            return
