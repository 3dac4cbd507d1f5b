"""`bode bench soak`: a steady rate for long, to see that memory, latency and tables stay as they are.

The parts are those of `bode bench deliver`: everything is durable, signed and recorded, and nginx receives. Events are
published at a fixed rate with confirms. What is looked at regularly: memory and CPU of each process, latency of the
deliveries of the last minute (from acceptance to the recorded outcome), sizes, dead rows and write-ahead log. What must
be flat is given a line, by least squares, with the spread of its slope.
"""

import asyncio
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from ipaddress import ip_network
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final
from uuid import uuid4

import asyncpg
import psutil
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from broker.ingest import amqp
from broker.ingest.amqp import AmqpSettings
from broker.ingest.publishing import message_of
from broker.matching.index import cost
from broker.migrations import migrate
from broker.tools.bench_sink import Sink, fast_sink
from broker.tools.identities import PROVIDERS, prepare
from broker.tools.local.children import Children, Command
from broker.tools.local.definitions import Registry
from broker.tools.local.postgres import Postgres
from broker.tools.local.rabbitmq import RabbitMQ
from schemas import cloudevents
from schemas.cloudevents import Event
from schemas.resources import SubscriptionBody
from subscriptions import life_cycle
from subscriptions import subscriptions as service
from subscriptions.change_log import changing
from subscriptions.database import DatabaseSettings, create_engine
from subscriptions.filter_rules import FilterRules
from subscriptions.organisations import find_organisation
from subscriptions.secrets import KeyRing, generate_encryption_key
from subscriptions.sink_urls import SinkRules

_READY_SECONDS: Final = 120.0
_TYPE: Final = "nl.bag.bench-gemeten"
_LATENCY_WINDOW_SECONDS: Final = 30.0
_SIGNIFICANT: Final = 3.0
"""A slope is called one when it is so many times its spread …"""
_MATTERS: Final = 0.05
"""… and, carried over the whole run, changes the mean by more than this share."""

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


@dataclass(frozen=True, slots=True)
class Workload:
    """What is done: `rate` deliveries a second, for `minutes`."""

    minutes: float
    rate: float
    fan_out: int = 10
    payload_bytes: int = 1000
    sample_seconds: float = 30.0
    subjects: int = 1000
    deliver_processes: int = 1
    ingest_processes: int = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """One look. Memory in megabytes, latency in milliseconds, sizes in bytes; CPU in seconds since the start."""

    at: float
    matched: int
    delivered: int
    memory_mb: dict[str, float]
    cpu_seconds: dict[str, float]
    p50_ms: float
    p99_ms: float
    wal_bytes: int
    commits: int
    table_bytes: dict[str, int]
    index_bytes: dict[str, int]
    dead_rows: dict[str, int]
    updates: dict[str, int]
    hot_updates: dict[str, int]
    vacuums: dict[str, int]
    pending_index_bytes: int
    load: float
    """The machine's load average of a minute: what ran beside it."""


@dataclass(frozen=True, slots=True)
class Line:
    """A least-squares line through one figure: its mean, and its slope an hour with its standard error."""

    name: str
    unit: str
    mean: float
    slope: float
    spread: float
    hours: float

    @property
    def verdict(self) -> str:
        """For people."""
        return "yes" if self.flat else "falls" if self.slope < 0 else "GROWS"

    @property
    def flat(self) -> bool:
        """Whether the slope is lost in its spread, or too small to matter over the run."""
        unclear = abs(self.slope) < _SIGNIFICANT * self.spread
        return unclear or abs(self.slope) * self.hours <= _MATTERS * abs(self.mean)


@dataclass(frozen=True, slots=True)
class Report:
    """A soak: its samples, and the lines through what must be flat."""

    workload: Workload
    samples: list[Sample]
    lines: list[Line]
    per_delivery: dict[str, float] = field(default_factory=dict)
    restarts: int = 0

    def as_json(self) -> dict[str, Any]:
        """The report as JSON types."""
        return asdict(self) | {"flat": {line.name: line.flat for line in self.lines}}


async def run(workload: Workload, console: Console) -> Report:
    """Run the soak on servers of its own, in a folder that goes afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="bode-soak-"))
    try:
        async with (
            fast_sink(folder / "sink", workload.fan_out) as sink,
            RabbitMQ(folder / "rabbitmq", [Registry("bag", "nl.bag.")]) as rabbit,
            Postgres(folder / "postgres") as postgres,
        ):
            return await _Soak(folder, workload, postgres, rabbit, sink, console).run()
    finally:
        shutil.rmtree(folder)


def fit(name: str, unit: str, hours: Sequence[float], values: Sequence[float]) -> Line:
    """The least-squares line of values over hours; with fewer than three points the spread is infinite."""
    count, x0, y0 = len(hours), fmean(hours), fmean(values)
    square = sum((x - x0) ** 2 for x in hours)
    slope = sum((x - x0) * (y - y0) for x, y in zip(hours, values, strict=True)) / square if square else 0.0
    spread = float("inf")
    if count > 2 and square:
        residual = sum((y - y0 - slope * (x - x0)) ** 2 for x, y in zip(hours, values, strict=True))
        spread = (residual / (count - 2) / square) ** 0.5
    return Line(name, unit, y0, slope, spread, max(hours) - min(hours))


def report(workload: Workload, samples: Sequence[Sample], restarts: int = 0) -> Report:
    """Judge samples: lines through what must be flat, over the second half: in the first, caches fill."""
    steady = list(samples[len(samples) // 2 :])
    hours = [(sample.at - samples[0].at) / 3600 for sample in steady]

    def line(name: str, unit: str, of: Callable[[Sample], float]) -> Line:
        return fit(name, unit, hours, [of(sample) for sample in steady])

    lines = [
        line(f"memory of {name}", "MB", lambda sample, name=name: sample.memory_mb[name])  # type: ignore[misc]
        for name in samples[0].memory_mb
    ]
    lines.append(line("latency p50", "ms", lambda sample: sample.p50_ms))
    lines.append(line("latency p99", "ms", lambda sample: sample.p99_ms))
    lines.append(line("waiting deliveries", "", lambda sample: sample.matched - sample.delivered))
    small = [name for name in samples[-1].table_bytes if not name.startswith(("events", "event_ids", "deliveries"))]
    lines.append(
        line(
            "small tables and their indexes",
            "MB",
            lambda sample: sum(sample.table_bytes[n] + sample.index_bytes[n] for n in small) / 1e6,
        )
    )
    lines.append(line("indexes of what is pending", "MB", lambda sample: sample.pending_index_bytes / 1e6))
    growth = [
        (_stored(now) - _stored(before)) / (now.delivered - before.delivered)
        for before, now in _spans(steady)
        if now.delivered > before.delivered
    ]
    if growth:
        middle = [(now.at + before.at) / 2 for before, now in _spans(steady) if now.delivered > before.delivered]
        at = [(moment - samples[0].at) / 3600 for moment in middle]
        lines.append(fit("bytes at rest for each delivery", "bytes", at, growth))
    return Report(workload, list(samples), lines, _per_delivery(steady), restarts)


def _spans(samples: Sequence[Sample], step: int = 4) -> list[tuple[Sample, Sample]]:
    """Pairs of samples some way apart: tables grow by whole pages, and autovacuum comes in steps."""
    return [(samples[place], samples[place + step]) for place in range(0, len(samples) - step, step)]


def _stored(sample: Sample) -> int:
    return sum(sample.table_bytes.values()) + sum(sample.index_bytes.values())


def _per_delivery(samples: Sequence[Sample]) -> dict[str, float]:
    """What a delivery costs, over the whole steady part."""
    first, last = samples[0], samples[-1]
    count = max(last.delivered - first.delivered, 1)
    found = {
        f"CPU of {name}, µs": (last.cpu_seconds[name] - first.cpu_seconds[name]) / count * 1e6
        for name in last.cpu_seconds
    }
    found["WAL, bytes"] = (last.wal_bytes - first.wal_bytes) / count
    found["commits"] = (last.commits - first.commits) / count
    for name in sorted(last.table_bytes):
        grown = last.table_bytes[name] - first.table_bytes.get(name, 0)
        indexes = last.index_bytes[name] - first.index_bytes.get(name, 0)
        if grown + indexes > count:
            found[f"{name}, bytes"] = grown / count
            found[f"indexes of {name}, bytes"] = indexes / count
    return found


def tables(found: Report) -> list[Table]:
    """The report for people."""
    samples, workload = found.samples, found.workload
    lines = Table(title=f"soak of {workload.minutes:g} min, {workload.rate:g} deliveries/s, {len(samples)} samples")
    for column in ("what", "mean", "slope an hour", "spread of the slope", "flat"):
        lines.add_column(column, justify="left" if column == "what" else "right")
    for line in found.lines:
        unit = f" {line.unit}" if line.unit else ""
        lines.add_row(
            line.name,
            f"{line.mean:,.2f}{unit}",
            f"{line.slope:+,.2f}",
            f"{line.spread:,.2f}",
            line.verdict,
        )
    course = Table(title="in its course")
    for column in ("minute", "deliveries/s", "p50 ms", "p99 ms", *samples[0].memory_mb, "dead rows", "load"):
        course.add_column(column, justify="right")
    step = max(len(samples) // 12, 1)
    for before, now in zip(samples[::step], samples[step::step], strict=False):
        course.add_row(
            f"{(now.at - samples[0].at) / 60:.0f}",
            f"{(now.delivered - before.delivered) / (now.at - before.at):,.0f}",
            f"{now.p50_ms:.1f}",
            f"{now.p99_ms:.1f}",
            *(f"{value:.0f}" for value in now.memory_mb.values()),
            f"{sum(now.dead_rows.values()):,}",
            f"{now.load:.1f}",
        )
    costs = Table(title=f"for each delivery; median load {median(sample.load for sample in samples):.1f}")
    costs.add_column("what")
    costs.add_column("amount", justify="right")
    for name, value in found.per_delivery.items():
        costs.add_row(name, f"{value:,.2f}")
    hot = Table(title="updates, and those that touched no index (HOT)")
    for column in ("table", "updates", "HOT", "dead rows", "vacuumed"):
        hot.add_column(column, justify="left" if column == "table" else "right")
    last = samples[-1]
    for name, count in sorted(last.updates.items()):
        if count:
            share = last.hot_updates[name] / count
            hot.add_row(name, f"{count:,}", f"{share:.1%}", f"{last.dead_rows[name]:,}", str(last.vacuums[name]))
    return [lines, course, costs, hot]


class _Soak:
    """One soak on running servers."""

    def __init__(
        self, folder: Path, workload: Workload, postgres: Postgres, rabbit: RabbitMQ, sink: Sink, console: Console
    ) -> None:
        self._folder = folder
        self._workload = workload
        self._postgres = postgres
        self._rabbit = rabbit
        self._sink = sink
        self._console = console
        self._key = generate_encryption_key()
        self._restarts = 0
        self._source = ""

    async def run(self) -> Report:
        await self._prepare()
        workload = self._workload
        delivers = [f"deliver{number}" for number in range(workload.deliver_processes)]
        ingests = [f"ingest{number}" for number in range(workload.ingest_processes)]
        commands = [self._command("deliver", name) for name in delivers]
        commands += [self._command("ingest", name) for name in ingests]
        connection = await asyncpg.connect(self._postgres.url)
        try:
            async with Children(commands, changed=self._changed) as children:
                for name in (*delivers, *ingests):
                    await children.ready(name, _READY_SECONDS)
                stop = asyncio.Event()
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._publish(stop))
                    samples = await self._watch(connection, children, [*delivers, *ingests])
                    stop.set()
        finally:
            await connection.close()
        return report(workload, samples, self._restarts)

    def _changed(self, change: object) -> None:
        self._restarts = max(self._restarts, getattr(change, "restarts", 0))

    async def _prepare(self) -> None:
        engine = create_engine(DatabaseSettings(url=SecretStr(self._postgres.url)))
        keys = KeyRing([self._key])
        try:
            await migrate(engine)
            identities = await prepare(engine, self._folder)
            async with changing(engine) as connection:
                provider = await find_organisation(connection, oin=PROVIDERS["gemeente"])
                assert provider is not None
                rules = SinkRules(allow_http=True, check=lambda _: None)
                filters = FilterRules(lambda condition: cost(condition).evaluated_always, most_evaluated=0)
                for number in range(self._workload.fan_out):
                    url = self._sink.url(number)
                    body = SubscriptionBody.model_validate({"sink": url, "protocol": "HTTP", "types": [_TYPE]})
                    made, _ = await service.create(
                        connection, body, organisation_id=provider.id, keys=keys, sinks=rules, filters=filters
                    )
                    await life_cycle.activate(connection, made.id, sink=url)
        finally:
            await engine.dispose()
        self._source = identities.registries["bag"].source

    def _command(self, process: str, name: str) -> Command:
        environment = {
            **os.environ,
            "BODE_DATABASE_URL": self._postgres.url,
            "BODE_AMQP_URL": self._rabbit.url(),
            "BODE_SECRETS_KEYS": json.dumps([self._key.get_secret_value()]),
            "BODE_FENCE_ALLOW": json.dumps([str(ip_network("127.0.0.0/8"))]),
            "BODE_SERVE_METRICS_PORT": "0",
            "BODE_LOG_LEVEL": "WARNING",
            "BODE_READY_FILE": str(self._folder / f"{name}.ready"),
        }
        return Command(name, [process], environment, self._folder / f"{name}.log", self._folder / f"{name}.ready")

    async def _publish(self, stop: asyncio.Event) -> None:
        """Publish at the rate, in portions of a tenth of a second; what was held up is made good afterwards."""
        settings = AmqpSettings(url=SecretStr(self._rabbit.url()))
        per_second = self._workload.rate / self._workload.fan_out
        connection = await amqp.connect(settings, "bode soak")
        async with connection, connection.channel(publisher_confirms=True) as channel:
            exchange = await channel.get_exchange(amqp.EXCHANGE, ensure=False)
            started, published = time.perf_counter(), 0
            while not stop.is_set():
                due = int((time.perf_counter() - started) * per_second)
                await asyncio.gather(
                    *(
                        exchange.publish(message_of(self._event(number), "bag"), routing_key=_TYPE)
                        for number in range(published, min(due, published + 500))
                    )
                )
                published = min(due, published + 500)
                await asyncio.sleep(0.1 if published == due else 0)

    def _event(self, number: int) -> Event:
        attributes = {
            "specversion": "1.0",
            "id": str(uuid4()),
            "source": self._source,
            "type": _TYPE,
            "subject": f"9999100000{number % self._workload.subjects:06}",
            "time": "2026-01-01T00:00:00Z",
            "datacontenttype": "application/json",
        }
        data = {"vulling": "x" * max(self._workload.payload_bytes - 350, 0)}
        return cloudevents.from_structured(cloudevents.to_structured(attributes, data))

    async def _watch(self, connection: asyncpg.Connection, children: Children, names: Sequence[str]) -> list[Sample]:
        samples: list[Sample] = []
        end = time.perf_counter() + self._workload.minutes * 60
        cpu_before: dict[str, float] = {}
        while (left := end - time.perf_counter()) > 0:
            await asyncio.sleep(min(self._workload.sample_seconds, left))
            pids = {name: [children.pids[name]] for name in names if name in children.pids}
            pids["postgresql"] = _named("postgres", self._folder)
            pids["rabbitmq"] = _named("beam.smp", self._folder)
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
    cpu |= {name: max(_cpu(ids), cpu.get(name, 0.0)) for name, ids in pids.items()}
    return Sample(
        time.time(),
        totals["matched"],
        totals["delivered"],
        {name: _memory(ids) for name, ids in pids.items() if name != "publisher"},
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


def _named(name: str, folder: Path) -> list[int]:
    """Processes of this name that work in the soak's folder, and their children of the same name."""
    found: set[int] = set()
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == name and any(str(folder) in part for part in process.info["cmdline"] or []):
            found.add(process.pid)
            found |= {child.pid for child in process.children(recursive=True)}
    return sorted(found)


def _cpu(pids: Sequence[int]) -> float:
    """CPU seconds so far, of children that ended too."""
    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def _memory(pids: Sequence[int]) -> float:
    """Proportional set size in megabytes: what processes share is divided among them, so that sums are true."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total * 1024 / 1e6
