"""`bode bench fairness`: what one registry's bulk does to the events of another, from its confirm to its sink.

One registry publishes steadily, alone; then the same while a bulk of another one is accepted; alternating. The bulk is
published before, while nobody ingests, so that all of it stands in RabbitMQ at once and its publisher costs nothing.
"""

import asyncio
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg
from pydantic import SecretStr
from rich.table import Table

from broker.ingest import amqp
from broker.rabbitmq import AmqpSettings, connect
from broker.tools.bench_installation import FULL, Installation, Workload
from broker.tools.bench_publisher import Publisher, publisher
from broker.tools.bench_report import Spread
from broker.tools.bench_sink import Sink, clocked_sink, fast_sink
from broker.tools.identities import SOURCES
from broker.tools.local.definitions import Registry
from broker.tools.local.postgres import Postgres
from broker.tools.local.rabbitmq import RabbitMQ

_OTHER: Final = "brp"
_RARE: Final = "nl.brp.bench-zeldzaam"
_BULK: Final = "bag"
_SLICE_SECONDS: Final = 1.0
_WAIT_SECONDS: Final = 600.0
_PROGRESS: Final = """
SELECT coalesce((SELECT last_sequence FROM subscription_numbers AS n WHERE n.subscription = s.key), 0) AS accepted,
       coalesce((SELECT delivered FROM delivery_totals AS t WHERE t.subscription = s.key), 0) AS delivered
FROM subscriptions AS s WHERE s.types = ARRAY[$1]
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured."""

    bulk: int
    rate: float
    seconds: float
    rounds: int
    ingest_processes: int
    deliver_processes: int
    shared: bool
    """Without routes, so both registries are in the shared queues: how it was before each had its own."""


@dataclass(frozen=True, slots=True)
class Latency:
    """From the publisher's confirm to the sink, in milliseconds."""

    p50_ms: float
    p99_ms: float
    highest_ms: float
    events: int

    @classmethod
    def of(cls, spans: Sequence[float]) -> "Latency":
        """The figures of some events."""
        ordered = sorted(spans)
        return cls(statistics.median(ordered), ordered[len(ordered) * 99 // 100], ordered[-1], len(ordered))


@dataclass(frozen=True, slots=True)
class Round:
    """The other registry's latency alone and beside the bulk, and how fast the bulk went, in events a second."""

    alone: Latency
    beside: Latency
    accepted_per_second: float
    delivered_per_second: float
    load: float

    def in_words(self) -> str:
        """One line."""
        return (
            f"alone p50 {self.alone.p50_ms:.0f} ms, p99 {self.alone.p99_ms:.0f} ms; beside the bulk "
            f"p50 {self.beside.p50_ms:.0f} ms, p99 {self.beside.p99_ms:.0f} ms, "
            f"highest {self.beside.highest_ms:.0f} ms ({self.beside.events} events); "
            f"bulk {self.accepted_per_second:,.0f} accepted/s, "
            f"{self.delivered_per_second:,.0f} delivered/s; load {self.load:.0f}"
        )


async def run(options: Options) -> AsyncIterator[Round]:
    """Measure, round by round."""
    folder = Path(tempfile.mkdtemp(prefix="bode-bench-"))
    workload = Workload(1, ingest_processes=options.ingest_processes, deliver_processes=options.deliver_processes)
    try:
        async with (
            fast_sink(folder / "fast", 1) as fast,
            clocked_sink(folder / "clocked", 1) as clocked,
            RabbitMQ(folder / "rabbitmq", [Registry(name, f"nl.{name}.") for name in (_BULK, _OTHER)]) as rabbit,
            Postgres(folder / "postgres") as postgres,
        ):
            installation = Installation(folder / "bode", workload, postgres, rabbit)
            await installation.prepare({FULL: fast, _RARE: clocked})
            async with (
                installation.processes("deliver", "fairness"),
                publisher(rabbit.url(), _OTHER) as publishing,
                publisher(rabbit.url(), _BULK) as bulk,
            ):
                connection = await asyncpg.connect(postgres.url)
                try:
                    rounds = _Rounds(options, installation, clocked, publishing, bulk, connection)
                    for _ in range(options.rounds):
                        yield await rounds.run()
                finally:
                    await connection.close()
    finally:
        shutil.rmtree(folder)


async def _unroute(rabbit: RabbitMQ) -> None:
    """Take the routes away that `bode ingest` has made; it makes them again at its next start only."""
    async with await connect(AmqpSettings(url=SecretStr(rabbit.url())), "bode bench") as connection:
        for name in (_BULK, _OTHER):
            await amqp.unroute(connection, SOURCES[name].split(":")[3], f"nl.{name}")


def table(options: Options, rounds: Sequence[Round]) -> Table:
    """The report for people: medians, with the lowest and highest round."""
    how = "in shared queues" if options.shared else "in queues of their own"
    made = Table(title=f"{options.rate:g} events/s of one registry, {options.bulk:,} at once of another, {how}")
    made.add_column("what")
    made.add_column("median", justify="right")
    made.add_column("lowest – highest", justify="right")
    for name, spread in _spreads(rounds).items():
        made.add_row(name, f"{spread.median:,.1f}", f"{spread.lowest:,.1f} – {spread.highest:,.1f}")
    return made


def as_json(options: Options, rounds: Sequence[Round]) -> dict[str, Any]:
    """The report as JSON types."""
    return {"options": asdict(options), "rounds": [asdict(each) for each in rounds]}


def _spreads(rounds: Sequence[Round]) -> dict[str, Spread]:
    return {
        "alone, p50 ms": Spread.of([each.alone.p50_ms for each in rounds]),
        "alone, p99 ms": Spread.of([each.alone.p99_ms for each in rounds]),
        "beside the bulk, p50 ms": Spread.of([each.beside.p50_ms for each in rounds]),
        "beside the bulk, p99 ms": Spread.of([each.beside.p99_ms for each in rounds]),
        "beside the bulk, highest ms": Spread.of([each.beside.highest_ms for each in rounds]),
        "bulk, accepted per second": Spread.of([each.accepted_per_second for each in rounds]),
        "bulk, delivered per second": Spread.of([each.delivered_per_second for each in rounds]),
    }


class _Rounds:
    def __init__(
        self,
        options: Options,
        installation: Installation,
        sink: Sink,
        publishing: Publisher,
        bulk: Publisher,
        connection: asyncpg.Connection,
    ) -> None:
        self._options = options
        self._installation = installation
        self._sink = sink
        self._publishing = publishing
        self._bulk = bulk
        self._connection = connection
        self._lock = asyncio.Lock()

    async def run(self) -> Round:
        load = os.getloadavg()[0]
        bulk = self._options.bulk
        async with self._ingesting("alone"):
            await self.steadily(3 * self._options.rate)  # warm-up
            alone = Latency.of(await self.steadily(self._options.seconds * self._options.rate))
            accepted, delivered = await self._progress()
        await self._bulk.all_at_once(self._installation.events(FULL, bulk))
        async with self._ingesting("beside"):
            spans, began, ended, all_out = await self._beside(accepted + bulk, delivered + bulk)
        return Round(alone, Latency.of(spans), bulk / (ended - began), bulk / (all_out - began), load)

    @asynccontextmanager
    async def _ingesting(self, phase: str) -> AsyncIterator[None]:
        async with self._installation.processes("ingest", phase):
            if self._options.shared:
                await _unroute(self._installation.rabbit)
            yield

    async def steadily(self, events: float) -> list[float]:
        """Publish at the steady rate, and wait until all have come; how long each was under way."""
        batch = self._installation.events(_RARE, max(round(events), 1), _OTHER)
        confirmed = await self._publishing.steadily(batch, self._options.rate)
        found: dict[int, float] = {}
        deadline = time.monotonic() + _WAIT_SECONDS
        while len(found) < len(confirmed):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(confirmed) - len(found)} events don't come")
            arrivals = await self._sink.arrivals()
            for number, at in zip(arrivals[::2], arrivals[1::2], strict=True):
                if number in confirmed:
                    found[number] = (at - confirmed[number]) / 1e6
            if len(found) < len(confirmed):
                await asyncio.sleep(0.02)
        return list(found.values())

    async def _beside(self, accepted: int, delivered: int) -> tuple[list[float], float, float, float]:
        """Latencies while the bulk is accepted; when it began, was all accepted, and all delivered."""
        began = time.monotonic()
        watching = asyncio.create_task(self._watch(accepted, delivered))
        ended = asyncio.create_task(self._until(0, accepted))
        spans: list[float] = []
        while not ended.done():
            spans += await self.steadily(_SLICE_SECONDS * self._options.rate)
        return spans, began, await ended, await watching

    async def _watch(self, accepted: int, delivered: int) -> float:
        await self._until(0, accepted)
        return await self._until(1, delivered)

    async def _until(self, which: int, wanted: int) -> float:
        deadline = time.monotonic() + _WAIT_SECONDS
        while (await self._progress())[which] < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError("the bulk doesn't end")
            await asyncio.sleep(0.1)
        return time.monotonic()

    async def _progress(self) -> tuple[int, int]:
        async with self._lock:
            row = await self._connection.fetchrow(_PROGRESS, FULL)
        return row["accepted"], row["delivered"]
