"""Replays of the shards of this process: found, fed from the database, handed to the engine, and written down.

Every second it looks which there are; one that was cancelled is let go of. What is settled is written at most twice a
second, under the epoch of the shard; so who takes over goes on from there, and sends again at most what was under way.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

import asyncpg

from broker.delivery.engine import Engine
from broker.delivery.replay_runs import WINDOW, ReplayRun, Row
from broker.leasing import Leasing
from broker.storage import replays
from broker.storage.pool import DATABASE_TROUBLE
from broker.storage.replays import RUNNING
from broker.telemetry import REPLAYED, WORKER_ERRORS, log

_LOOK_SECONDS: Final = 1.0
_TURN_SECONDS: Final = 0.05
_WRITE_SECONDS: Final = 0.5


class Replays:
    """Keeps the replays under way; `run` is its worker."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        engine: Engine,
        leasing: Leasing,
        shards: int,
        read_ahead: Callable[[Iterable[int]], None],
    ) -> None:
        self._pool = pool
        self._engine = engine
        self._leasing = leasing
        self._shards = shards
        self._read_ahead = read_ahead
        self._runs: dict[int, ReplayRun] = {}
        """By subscription: it has one at a time."""
        self._written_at: dict[int, float] = {}
        self._looked_at = 0.0
        self._writing = asyncio.Lock()

    async def run(self) -> None:
        """Keep them until cancelled."""
        while True:
            await asyncio.sleep(_TURN_SECONDS if self._runs else _LOOK_SECONDS)
            try:
                if time.monotonic() - self._looked_at >= _LOOK_SECONDS:
                    await self._look()
                    self._looked_at = time.monotonic()
                for run in list(self._runs.values()):
                    await self._feed(run)
                    await self._write(run)
            except DATABASE_TROUBLE as error:
                WORKER_ERRORS.labels("replays").inc()
                log().warning("replays-not-kept", error=type(error).__name__)
                await asyncio.sleep(_WRITE_SECONDS)

    async def released(self, shards: Iterable[int]) -> None:
        """These shards go to others: write how far all is, and let go."""
        gone = set(shards)
        for key, run in list(self._runs.items()):
            if key % self._shards in gone:
                self._let_go(key)
                try:
                    await self._write(run, now=True)
                except DATABASE_TROUBLE as error:
                    log().warning("replays-not-kept", error=type(error).__name__)

    async def _look(self) -> None:
        epochs = dict(self._leasing.epochs)
        async with self._pool.acquire() as connection:
            found = await replays.running(connection, list(epochs), self._shards)
            for each in found:
                if each.over:
                    await replays.close(connection, each.id)
        there = {each.subscription: each for each in found if not each.over}
        for key, run in list(self._runs.items()):
            known = there.get(key)
            if known is None or known.id != run.asked.id or epochs.get(key % self._shards) != run.epoch:
                self._let_go(key)
                await self._write(run, now=True)
        for key, each in there.items():
            epoch = self._leasing.epoch(key % self._shards)
            if key not in self._runs and epoch >= 0:
                self._runs[key] = run = ReplayRun.of(each, epoch)
                self._engine.replay(key, run)
            self._engine.look_at(key)  # a shard that was not surely ours a moment ago is passed over then

    async def _feed(self, run: ReplayRun) -> None:
        if not run.wants_more:
            return
        numbers, key = run.next_numbers(), run.asked.subscription
        async with self._pool.acquire() as connection:
            rows = await replays.rows(connection, key, run.read_through, run.asked.last, numbers, WINDOW)
        run.offer([Row(*row) for row in rows], numbers, complete=len(rows) < WINDOW)
        self._read_ahead({row["event_key"] for row in rows})
        self._engine.look_at(key)

    async def _write(self, run: ReplayRun, *, now: bool = False) -> None:
        """Write what is settled, if anything is and it wasn't written a moment ago."""
        key = run.asked.subscription
        if not run.results and not run.over:
            return
        if not now and not run.over and time.monotonic() - self._written_at.get(key, 0.0) < _WRITE_SECONDS:
            return
        async with self._writing:
            await self._write_now(run)

    async def _write_now(self, run: ReplayRun) -> None:
        key = run.asked.subscription
        letters, results, over = run.letters(), run.results.copy(), run.over
        async with self._pool.acquire() as connection:
            state = await replays.settle(
                connection, run.progress(), run.epoch, self._shards, over=over, letters=letters
            )
        run.written(len(letters))
        run.results.subtract(results)
        run.results = +run.results
        self._written_at[key] = time.monotonic()
        if state is None:
            self._let_go(key)
            return
        for result, count in results.items():
            REPLAYED.labels(result.value).inc(count)
        if state != RUNNING:
            self._let_go(key)
            told = run.progress()
            log().info("replay-ended", replay=str(told.id), state=state, sent=told.sent, failed=told.failed)

    def _let_go(self, key: int) -> None:
        self._runs.pop(key, None)
        self._written_at.pop(key, None)
        self._engine.replay(key, None)
