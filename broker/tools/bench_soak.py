"""`bode bench soak`: a steady rate for long, to see that memory, latency and tables stay as they are.

The parts are those of `bode bench deliver`: everything is durable, signed and recorded, and nginx receives. Events are
published at a fixed rate with confirms. What is looked at regularly: memory and CPU of each process, latency of the
deliveries of the last minute (from acceptance to the recorded outcome), sizes, dead rows and write-ahead log. What must
be flat is given a line, by least squares, with the spread of its slope.
"""

import asyncio
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Final

import asyncpg
import psutil
from rich.console import Console

from broker.tools import bench_installation
from broker.tools.bench_installation import FULL, REGISTRY, Installation
from broker.tools.bench_publisher import Publisher, publisher
from broker.tools.bench_resources import cpu_seconds, family_megabytes, processes_named
from broker.tools.bench_sink import fast_sink
from broker.tools.bench_soak_report import Report, Sample, Workload, report
from broker.tools.local.children import Change
from broker.tools.local.definitions import Registry
from broker.tools.local.postgres import Postgres
from broker.tools.local.rabbitmq import RabbitMQ

_LATENCY_WINDOW_SECONDS: Final = 30.0
_AT_ONCE: Final = 500

_SIZES: Final = """
SELECT split_part(class.relname, '_2', 1) AS name, sum(pg_relation_size(class.oid))::bigint AS table_bytes,
       sum(pg_indexes_size(class.oid))::bigint AS index_bytes, sum(coalesce(n_dead_tup, 0))::bigint AS dead,
       sum(coalesce(n_tup_upd, 0))::bigint AS updated, sum(coalesce(n_tup_hot_upd, 0))::bigint AS updated_hot,
       sum(coalesce(autovacuum_count, 0))::bigint AS vacuumed
FROM pg_class AS class LEFT JOIN pg_stat_user_tables AS stat ON stat.relid = class.oid
WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace
GROUP BY 1
"""
_PENDING_INDEXES: Final = """
SELECT coalesce(sum(pg_relation_size(indexrelid)), 0)::bigint FROM pg_index
WHERE indrelid::regclass::text LIKE 'deliveries%' AND pg_get_indexdef(indexrelid) LIKE '%''pending''%'
"""
_LATENCY: Final = """
SELECT count(*) AS ended, coalesce(percentile_disc(0.5) WITHIN GROUP (ORDER BY age), 0)::float8 AS p50,
       coalesce(percentile_disc(0.99) WITHIN GROUP (ORDER BY age), 0)::float8 AS p99
FROM (
    SELECT extract(epoch FROM ended_at) * 1000 - (event_key >> 20) AS age FROM deliveries
    WHERE event_key >= (extract(epoch FROM now() - make_interval(secs => $1)) * 1000)::bigint << 20
      AND event_key < (extract(epoch FROM now() - interval '2 seconds') * 1000)::bigint << 20 AND ended_at IS NOT NULL
) AS ages
"""
_TOTALS: Final = """
SELECT (SELECT coalesce(sum(last_sequence), 0)::bigint FROM subscription_numbers) AS matched,
       (SELECT coalesce(sum(delivered), 0)::bigint FROM delivery_totals) AS delivered,
       pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint AS wal,
       (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()) AS commits
"""


async def run(workload: Workload, console: Console) -> Report:
    """Run the soak on servers of its own, in a folder that goes afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="bode-soak-"))
    try:
        async with (
            fast_sink(folder / "sink", workload.fan_out) as sink,
            RabbitMQ(folder / "rabbitmq", [Registry(REGISTRY, f"nl.{REGISTRY}.")]) as rabbit,
            Postgres(folder / "postgres") as postgres,
        ):
            work = bench_installation.Workload(
                workload.fan_out,
                workload.fan_out,
                workload.payload_bytes,
                deliver_processes=workload.deliver_processes,
                ingest_processes=workload.ingest_processes,
                subjects=workload.subjects,
            )
            installation = Installation(folder / "bode", work, postgres, rabbit)
            await installation.prepare({FULL: sink})
            return await _Soak(folder, workload, installation, console).run()
    finally:
        shutil.rmtree(folder)


class _Soak:
    """One soak on running servers."""

    def __init__(self, folder: Path, workload: Workload, installation: Installation, console: Console) -> None:
        self._folder = folder
        self._workload = workload
        self._installation = installation
        self._console = console
        self._pids: dict[str, int] = {}
        self._restarts = 0

    async def run(self) -> Report:
        installation = self._installation
        connection = await asyncpg.connect(installation.postgres.url)
        try:
            async with (
                installation.processes("deliver", "soak", self._changed) as delivering,
                installation.processes("ingest", "soak", self._changed) as ingesting,
                publisher(installation.rabbit.url()) as publishing,
            ):
                self._pids |= delivering | ingesting
                stop = asyncio.Event()
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._publish(publishing, stop))
                    samples = await self._watch(connection)
                    stop.set()
        finally:
            await connection.close()
        return report(self._workload, samples, self._restarts)

    def _changed(self, change: Change) -> None:
        self._restarts = max(self._restarts, change.restarts)
        if change.pid is not None:
            self._pids[change.name] = change.pid

    async def _publish(self, publishing: Publisher, stop: asyncio.Event) -> None:
        """Publish at the rate, in portions of a tenth of a second; what was held up is made good afterwards."""
        per_second = self._workload.rate / self._workload.fan_out
        started, published = time.perf_counter(), 0
        while not stop.is_set():
            due = int((time.perf_counter() - started) * per_second)
            portion = min(due - published, _AT_ONCE)
            await publishing.all_at_once(self._installation.events(FULL, portion))
            published += portion
            await asyncio.sleep(0.1 if published == due else 0)

    async def _watch(self, connection: asyncpg.Connection) -> list[Sample]:
        samples: list[Sample] = []
        end = time.perf_counter() + self._workload.minutes * 60
        cpu_before: dict[str, float] = {}
        while (left := end - time.perf_counter()) > 0:
            await asyncio.sleep(min(self._workload.sample_seconds, left))
            pids = {name: [pid] for name, pid in self._pids.items()}
            pids["postgresql"] = processes_named("postgres", self._folder)
            pids["rabbitmq"] = processes_named("beam.smp", self._folder)
            pids["publisher"] = [os.getpid()]
            sample = await _look(connection, pids, cpu_before)
            samples.append(sample)
            self._console.print(
                f"{(sample.at - samples[0].at) / 60:5.1f} min: {sample.delivered:,} delivered, "
                f"p50 {sample.p50_ms:.1f} ms, p99 {sample.p99_ms:.1f} ms, load {sample.load:.1f}, "
                + ", ".join(f"{name} {value:.0f} MB" for name, value in sample.memory_mb.items())
            )
        return samples


async def _look(connection: asyncpg.Connection, pids: dict[str, list[int]], cpu: dict[str, float]) -> Sample:
    totals = await connection.fetchrow(_TOTALS)
    sizes = await connection.fetch(_SIZES)
    latency = await connection.fetchrow(_LATENCY, _LATENCY_WINDOW_SECONDS)
    pending = await connection.fetchval(_PENDING_INDEXES)
    cpu |= {name: max(cpu_seconds(ids), cpu.get(name, 0.0)) for name, ids in pids.items()}
    return Sample(
        time.time(),
        totals["matched"],
        totals["delivered"],
        {name: family_megabytes(ids) for name, ids in pids.items() if name != "publisher"},
        dict(cpu),
        latency["p50"],
        latency["p99"],
        totals["wal"],
        totals["commits"],
        {row["name"]: row["table_bytes"] for row in sizes},
        {row["name"]: row["index_bytes"] for row in sizes},
        {row["name"]: row["dead"] for row in sizes},
        {row["name"]: row["updated"] for row in sizes},
        {row["name"]: row["updated_hot"] for row in sizes},
        {row["name"]: row["vacuumed"] for row in sizes},
        pending,
        psutil.getloadavg()[0],
    )
