"""`bode bench deliver`: deliveries per second, their latency and their cost, with every real part in it.

Everything is durable, signed and recorded: PostgreSQL with fsync, quorum queues, processes for ingest and delivery, and
a receiver that verifies nothing. A run has two phases and the yardsticks, each phase with fresh processes:

    steady   events at a rate; from the publisher's confirm to the last byte of the request at the receiver
    full     events wait in RabbitMQ before ingest starts, so the figures are the broker's and not the publisher's

Each phase warms up first, with a tenth of the deliveries or a quarter of the seconds, which don't count. At full speed
`ingest` is started anew for what is measured; the CPU that its start takes, known from the warm-up, is taken off.
"""

import asyncio
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import asyncpg

from broker.tools import bench_resources as resources
from broker.tools import bench_yardsticks as yardsticks
from broker.tools.bench_installation import FULL, REGISTRY, STEADY, Destination, Installation, Workload
from broker.tools.bench_publisher import publisher
from broker.tools.bench_report import Latency, Report, Run, Throughput
from broker.tools.bench_sink import Sink, clocked_sink, fast_sink
from broker.tools.local.definitions import Registry
from broker.tools.local.postgres import Postgres
from broker.tools.local.rabbitmq import RabbitMQ

_LOOK_SECONDS: Final = 0.05
_QUIET_SECONDS: Final = 120.0
_WARM_UP: Final = 0.1
_WARM_UP_RATE: Final = 0.25
_YARDSTICK_POSTS: Final = 6_000


@dataclass(frozen=True, slots=True)
class Options:
    """How it is measured. `rate` is in deliveries per second, `seconds` what of it counts, after a quarter more."""

    runs: int = 3
    throughput: bool = True
    latency: bool = True
    rate: float = 1000.0
    seconds: float = 8.0


class Bench:
    """A RabbitMQ for all the workloads; `async with`, then `run` for each workload."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._folder = Path(tempfile.mkdtemp(prefix="bode-bench-"))
        self._held = AsyncExitStack()
        self._cells = 0

    async def __aenter__(self) -> "Bench":
        """Start RabbitMQ."""
        self._held.callback(shutil.rmtree, self._folder, ignore_errors=True)
        try:
            rabbit = RabbitMQ(self._folder / "rabbitmq", [Registry(REGISTRY, f"nl.{REGISTRY}.")])
            self._rabbit = await self._held.enter_async_context(rabbit)
        except BaseException:
            await self._held.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop it and remove everything that was written."""
        await self._held.aclose()

    async def runs(self, workload: Workload) -> AsyncIterator[Run]:
        """Measure a workload on a fresh database, run by run."""
        self._cells += 1
        folder = self._folder / f"cell{self._cells}"
        folder.mkdir()
        async with AsyncExitStack() as stack:
            postgres = await stack.enter_async_context(Postgres(folder / "postgresql"))
            sinks: dict[str, Sink] = {FULL: await stack.enter_async_context(fast_sink(folder / "fast", workload.sinks))}
            if self._options.latency:
                sinks[STEADY] = await stack.enter_async_context(clocked_sink(folder / "clocked", workload.sinks))
            remote = None
            if workload.to is Destination.RABBITMQ:
                remote = await stack.enter_async_context(RabbitMQ(folder / "remote"))
            if workload.to is not Destination.HTTP:  # the receiver is the queue, which nobody reads
                pids = tuple(resources.processes_named("beam.smp", folder / "remote")) if remote is not None else ()
                sinks[FULL] = replace(sinks[FULL], kind=f"queues ({workload.to})", pids=pids)
            installation = Installation(folder / "installation", workload, postgres, self._rabbit, remote)
            await installation.prepare(sinks)
            self.environment = {
                "cpus": os.cpu_count(),
                "python": platform.python_version(),
                "postgresql": postgres.version,
                "rabbitmq": self._rabbit.version,
                "receiver": sinks[FULL].kind,
            }
            cell = _Cell(installation, folder, self._folder / "rabbitmq", self._options, sinks)
            for number in range(self._options.runs):
                yield await cell.run(number)
        shutil.rmtree(folder)

    def report(self, workload: Workload, runs: Sequence[Run]) -> Report:
        """What the runs of a workload have in common."""
        return Report(workload, self._options.rate, self.environment, list(runs))


@dataclass(frozen=True, slots=True)
class _Moment:
    """A state of things, to be subtracted from a later one."""

    delivered: int
    at: float
    cpu: dict[str, float]
    wal: int


class _Cell:
    """The runs of one workload."""

    def __init__(
        self, installation: Installation, folder: Path, rabbit: Path, options: Options, sinks: dict[str, Sink]
    ) -> None:
        self._installation = installation
        self._workload = installation.workload
        self._options = options
        self._sinks = sinks
        self._servers = {
            "postgresql": resources.processes_named("postgres", folder),
            "rabbitmq": resources.processes_named("beam.smp", rabbit),
        }
        self._looks = 0

    async def run(self, number: int) -> Run:
        connection = await asyncpg.connect(self._installation.postgres.url)
        load = os.getloadavg()[0]
        try:
            latency = await self._steady(connection, f"steady{number}") if self._options.latency else None
            throughput = await self._full(connection, f"full{number}") if self._options.throughput else None
        finally:
            await connection.close()
        url, payload = self._installation.rabbit.url(), self._workload.payload_bytes
        count = min(_YARDSTICK_POSTS, self._workload.deliveries)
        beside = await yardsticks.measure(self._sinks[FULL], url, payload, count)
        return Run(throughput, latency, beside, load)

    async def _full(self, connection: asyncpg.Connection, phase: str) -> Throughput:
        before, self._looks = await resources.database_work(connection), 0
        already = await self._delivered(connection)
        warm_up = max(1, round(self._workload.events * _WARM_UP))
        expected = already + (warm_up + self._workload.events) * self._workload.fan_out
        async with (
            publisher(self._installation.rabbit.url()) as publishing,
            self._installation.processes("deliver", phase) as delivers,
        ):
            async with self._installation.processes("ingest", phase) as ingests:
                starting = resources.cpu_seconds(list(ingests.values())) / len(ingests)
                await publishing.all_at_once(self._installation.events(FULL, warm_up))
                async for _ in self._until(connection, already + warm_up * self._workload.fan_out):
                    pass
            await publishing.all_at_once(self._installation.events(FULL, self._workload.events))
            groups = self._groups(delivers, FULL)
            start = await self._moment(connection, groups, already + warm_up * self._workload.fan_out)
            looking = asyncio.create_task(self._clock(connection, start.delivered, expected))
            async with self._installation.processes("ingest", phase) as ingests:
                began, ended = await looking
                end = await self._moment(connection, groups, expected)
                used = {name: resources.cpu_seconds([pid]) - starting for name, pid in ingests.items()}
                memory = self._memory(delivers | ingests)
        looks = self._looks + 1
        await asyncio.sleep(_LOOK_SECONDS)
        after = await resources.database_work(connection)
        counted, all_of_them = expected - start.delivered, expected - already
        used |= {name: end.cpu[name] - start.cpu[name] for name in groups}
        cpu = {name: max(seconds, 0) / counted * 1e6 for name, seconds in sorted(used.items())}
        receiver = cpu.pop("receiver")
        return Throughput(
            deliveries_per_second=counted / (ended - began),
            cpu_us=_together(cpu),
            process_cpu_us=cpu,
            receiver_cpu_us=receiver,
            memory_mb=memory,
            wal_bytes=(end.wal - start.wal) / counted,
            rows=(after.rows - before.rows) / all_of_them,
            commits=max(after.commits - before.commits - looks, 0) / all_of_them,
        )

    async def _steady(self, connection: asyncpg.Connection, phase: str) -> Latency:
        per_second = self._options.rate / self._workload.fan_out
        warm_up = self._installation.events(STEADY, max(1, round(per_second * self._options.seconds * _WARM_UP_RATE)))
        events = self._installation.events(STEADY, max(1, round(per_second * self._options.seconds)))
        counted = len(events) * self._workload.fan_out
        expected = await self._delivered(connection) + len(warm_up) * self._workload.fan_out + counted
        sink = self._sinks[STEADY]
        async with (
            self._installation.processes("deliver", phase) as delivers,
            self._installation.processes("ingest", phase) as ingests,
            publisher(self._installation.rabbit.url()) as publishing,
        ):
            groups = self._groups(delivers | ingests, STEADY)
            await publishing.steadily(warm_up, per_second)
            await sink.arrivals()
            start = await self._moment(connection, groups, 0)
            confirmed = await publishing.steadily(events, per_second)
            published = time.monotonic()
            async for _ in self._until(connection, expected):
                pass
            end = await self._moment(connection, groups, counted)
            arrivals = await sink.arrivals()
        cpu = {name: (end.cpu[name] - start.cpu[name]) / counted * 1e6 for name in groups}
        cpu.pop("receiver")
        spans = sorted(
            (at - confirmed[number]) / 1e6
            for number, at in zip(arrivals[::2], arrivals[1::2], strict=True)
            if number in confirmed
        )
        return Latency(
            deliveries_per_second=counted / (published - start.at),
            p50_ms=statistics.median(spans),
            p99_ms=spans[len(spans) * 99 // 100],
            highest_ms=spans[-1],
            counted=len(spans),
            cpu_us=_together(cpu),
        )

    async def _clock(self, connection: asyncpg.Connection, already: int, expected: int) -> tuple[float, float]:
        """When the first outcome was recorded, and when the last one; a look more or less."""
        began = time.monotonic()
        async for delivered in self._until(connection, expected):
            if delivered == already:
                began = time.monotonic()
        return began, time.monotonic()

    def _groups(self, pids: dict[str, int], kind: str) -> dict[str, list[int]]:
        ours = {name: [pid] for name, pid in pids.items()}
        return ours | self._servers | {"receiver": list(self._sinks[kind].pids)}

    def _memory(self, pids: dict[str, int]) -> dict[str, float]:
        memory = {name: resources.peak_megabytes(pid) for name, pid in pids.items()}
        memory["rabbitmq"] = sum(map(resources.peak_megabytes, self._servers["rabbitmq"]))
        memory["postgresql"] = resources.family_megabytes(self._servers["postgresql"])
        return memory

    async def _moment(self, connection: asyncpg.Connection, groups: dict[str, list[int]], delivered: int) -> _Moment:
        self._looks += 1
        wal = await resources.wal_position(connection)
        return _Moment(delivered, time.monotonic(), resources.all_cpu_seconds(groups), wal)

    async def _delivered(self, connection: asyncpg.Connection) -> int:
        self._looks += 1
        delivered: int = await connection.fetchval("SELECT coalesce(sum(delivered), 0)::bigint FROM delivery_totals")
        return delivered

    async def _until(self, connection: asyncpg.Connection, expected: int) -> AsyncIterator[int]:
        """How many outcomes are recorded, now and again, until as many as expected are."""
        last, last_progress = -1, time.monotonic()
        while last < expected:
            delivered = await self._delivered(connection)
            if delivered > last:
                last, last_progress = delivered, time.monotonic()
            elif time.monotonic() - last_progress > _QUIET_SECONDS:
                raise TimeoutError(f"{expected - delivered} of the deliveries don't come")
            yield delivered
            if last < expected:
                await asyncio.sleep(_LOOK_SECONDS)


def _together(cpu: dict[str, float]) -> dict[str, float]:
    """CPU by kind of process."""
    kinds: dict[str, float] = {}
    for name, value in cpu.items():
        kind = name.rstrip("0123456789")
        kinds[kind] = kinds.get(kind, 0.0) + value
    return kinds
