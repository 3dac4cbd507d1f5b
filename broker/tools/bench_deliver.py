"""`bode bench deliver`: deliveries per second and their cost, with every real part in it, beside the bare client.

Everything is durable, signed and recorded: PostgreSQL with fsync, quorum queues, a process each for ingest and
delivery, and nginx as the receiver. Events are put into RabbitMQ first, so the figures are the broker's and not the
publisher's; the clock runs from the start of ingest to the last recorded outcome.
"""

import asyncio
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
import psutil
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from sqlalchemy import select

from broker.delivery.client import Client, Target
from broker.delivery.fence import Fence
from broker.ingest import amqp
from broker.ingest.amqp import AmqpSettings
from broker.ingest.publishing import message_of
from broker.matching.index import cost
from broker.migrations import migrate
from broker.tools.bench_sink import Sink
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
from subscriptions.tables import subscriptions

_READY_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.1
_QUIET_SECONDS: Final = 120.0
_TYPE: Final = "nl.bag.bench-gemeten"


@dataclass(frozen=True, slots=True)
class Workload:
    """What is measured."""

    fan_out: int
    events: int
    payload_bytes: int = 1000
    deliver_processes: int = 1
    ingest_processes: int = 1
    subjects: int = 1000

    @property
    def deliveries(self) -> int:
        """How many deliveries it makes."""
        return self.fan_out * self.events


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of a workload. CPU is in microseconds for each delivery, memory in megabytes."""

    deliveries_per_second: float
    cpu_us: dict[str, float]
    memory_mb: dict[str, float]
    wal_bytes: float
    commits: float

    @property
    def total_cpu_us(self) -> float:
        """CPU of all processes but the receiver."""
        return sum(self.cpu_us.values())


@dataclass(frozen=True, slots=True)
class Report:
    """A workload, its runs, and what the bare client did beside each."""

    workload: Workload
    runs: list[Measurement]
    bare_client_per_second: list[float]
    bare_client_cpu_us: list[float]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON types."""
        return asdict(self)


async def run(workload: Workload, runs: int, console: Console) -> Report:
    """Measure a workload several times, each run on a fresh database, after one run that only warms up."""
    folder = Path(tempfile.mkdtemp(prefix="bode-bench-"))
    try:
        async with Sink(folder / "sink") as sink, RabbitMQ(folder / "rabbitmq", [Registry("bag", "nl.bag.")]) as rabbit:
            measured: list[Measurement] = []
            bare: list[tuple[float, float]] = []
            for number in range(runs + 1):
                async with Postgres(folder / f"postgres{number}") as postgres:
                    bench = _Run(folder / f"run{number}", workload, postgres, rabbit, sink)
                    measurement = await bench.measure()
                rate = await _bare_client(sink, workload.payload_bytes)
                name = "warm-up" if number == 0 else f"run {number}"
                console.print(
                    f"{name}: {measurement.deliveries_per_second:,.0f} deliveries/s, "
                    f"{measurement.total_cpu_us:.0f} µs CPU each; bare client {rate[0]:,.0f}/s"
                )
                if number:
                    measured.append(measurement)
                    bare.append(rate)
                shutil.rmtree(folder / f"postgres{number}")
            return Report(workload, measured, [rate for rate, _ in bare], [cpu for _, cpu in bare])
    finally:
        shutil.rmtree(folder)


def table(report: Report) -> Table:
    """The report for people: medians, with the lowest and highest run."""
    workload = report.workload
    made = Table(title=f"fan-out {workload.fan_out}, {workload.payload_bytes} bytes, {len(report.runs)} runs")
    made.add_column("what")
    made.add_column("median", justify="right")
    made.add_column("lowest – highest", justify="right")
    rows = {
        "deliveries per second": [run.deliveries_per_second for run in report.runs],
        "CPU µs per delivery, all but the receiver": [run.total_cpu_us for run in report.runs],
    }
    for name in report.runs[0].cpu_us:
        rows[f"  … {name}"] = [run.cpu_us[name] for run in report.runs]
    for name in report.runs[0].memory_mb:
        rows[f"memory of {name}, MB"] = [run.memory_mb[name] for run in report.runs]
    rows["WAL bytes per delivery"] = [run.wal_bytes for run in report.runs]
    rows["commits per 1,000 deliveries"] = [run.commits * 1000 for run in report.runs]
    rows["bare client, posts per second"] = report.bare_client_per_second
    rows["bare client, CPU µs per post"] = report.bare_client_cpu_us
    for name, values in rows.items():
        made.add_row(name, f"{statistics.median(values):,.1f}", f"{min(values):,.1f} – {max(values):,.1f}")
    return made


class _Run:
    """One run on a fresh database."""

    def __init__(self, folder: Path, workload: Workload, postgres: Postgres, rabbit: RabbitMQ, sink: Sink) -> None:
        self._folder = folder
        self._workload = workload
        self._postgres = postgres
        self._rabbit = rabbit
        self._sink = sink
        self._key = generate_encryption_key()

    async def measure(self) -> Measurement:
        self._folder.mkdir()
        source = await self._prepare()
        workload = self._workload
        connection = await asyncpg.connect(self._postgres.url)
        delivers = [f"deliver{number}" for number in range(workload.deliver_processes)]
        ingests = [f"ingest{number}" for number in range(workload.ingest_processes)]
        try:
            async with Children([self._command("deliver", name) for name in delivers], changed=_ignore) as deliver:
                for name in delivers:
                    await deliver.ready(name, _READY_SECONDS)
                await self._publish(source)
                async with Children([self._command("ingest", name) for name in ingests], changed=_ignore) as ingest:
                    for name in ingests:
                        await ingest.ready(name, _READY_SECONDS)
                    groups = {
                        "ingest": list(ingest.pids.values()),
                        "deliver": list(deliver.pids.values()),
                        "postgresql": _named("postgres", self._folder.parent),
                        "rabbitmq": _named("beam.smp", self._folder.parent),
                    }
                    return await self._watch(connection, groups)
        finally:
            await connection.close()

    async def _prepare(self) -> str:
        """Migrate, and make as many subscriptions as the fan-out asks for; the registry's source."""
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
                    url = f"http://127.0.0.1:{self._sink.port}/sink/{number}"
                    body = SubscriptionBody.model_validate({"sink": url, "protocol": "HTTP", "types": [_TYPE]})
                    made, _ = await service.create(
                        connection, body, organisation_id=provider.id, keys=keys, sinks=rules, filters=filters
                    )
                    await life_cycle.activate(connection, _id(made), sink=url)
                count = (await connection.execute(select(subscriptions.c.id))).all()
                assert len(count) == self._workload.fan_out
        finally:
            await engine.dispose()
        return identities.registries["bag"].source

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

    async def _publish(self, source: str) -> None:
        settings = AmqpSettings(url=SecretStr(self._rabbit.url()))
        connection = await amqp.connect(settings, "bode bench")
        async with connection, connection.channel(publisher_confirms=True) as channel:
            await amqp.declare(connection, settings.queues)
            exchange = await channel.get_exchange(amqp.EXCHANGE, ensure=False)
            events = _events(self._workload, source)
            for start in range(0, len(events), 500):
                await asyncio.gather(
                    *(
                        exchange.publish(message_of(event, "bag"), routing_key=event.type)
                        for event in events[start : start + 500]
                    )
                )

    async def _watch(self, connection: asyncpg.Connection, groups: dict[str, list[int]]) -> Measurement:
        """Wait for the last outcome; CPU is counted from the start of the first batch."""
        started_cpu = {name: _cpu(pids) for name, pids in groups.items()}
        wal, commits = await _database_work(connection)
        started = last_progress = time.perf_counter()
        delivered = 0
        while delivered < self._workload.deliveries:
            await asyncio.sleep(_LOOK_SECONDS)
            now_delivered = await connection.fetchval("SELECT coalesce(sum(delivered), 0)::bigint FROM delivery_totals")
            if now_delivered == 0:
                started = time.perf_counter()
            if now_delivered > delivered:
                delivered, last_progress = now_delivered, time.perf_counter()
            elif time.perf_counter() - last_progress > _QUIET_SECONDS:
                raise TimeoutError(f"only {delivered} of {self._workload.deliveries} deliveries; see {self._folder}")
        seconds = time.perf_counter() - started
        wal_now, commits_now = await _database_work(connection)
        count = self._workload.deliveries
        return Measurement(
            count / seconds,
            {name: (_cpu(pids) - started_cpu[name]) / count * 1e6 for name, pids in groups.items()},
            {name: _memory(groups[name]) for name in ("ingest", "deliver")},
            (wal_now - wal) / count,
            (commits_now - commits) / count,
        )


async def _bare_client(
    sink: Sink, payload_bytes: int, posts: int = 10_000, side_by_side: int = 32
) -> tuple[float, float]:
    """Posts per second and CPU microseconds each of our HTTP client alone, one process, same receiver."""
    fence = Fence(allow=[ip_network("127.0.0.0/8")])
    client = Client(fence, total_seconds=10)
    target, body = Target.of(f"http://127.0.0.1:{sink.port}/bare"), b"x" * payload_bytes
    headers = {"content-type": "application/cloudevents+json", "webhook-id": "dlv_bare", "webhook-timestamp": "0"}

    async def post(count: int) -> None:
        for _ in range(count):
            await client.request("POST", target, headers, body)

    await asyncio.gather(*(post(10) for _ in range(side_by_side)))
    cpu, started = time.process_time(), time.perf_counter()
    await asyncio.gather(*(post(posts // side_by_side) for _ in range(side_by_side)))
    seconds, used = time.perf_counter() - started, time.process_time() - cpu
    client.close()
    fence.close()
    made = posts // side_by_side * side_by_side
    return made / seconds, used / made * 1e6


def _events(workload: Workload, source: str) -> Sequence[Event]:
    data = {"vulling": "x" * max(workload.payload_bytes - 350, 0)}
    made = []
    for number in range(workload.events):
        attributes = {
            "specversion": "1.0",
            "id": str(uuid4()),
            "source": source,
            "type": _TYPE,
            "subject": f"9999100000{number % workload.subjects:06}",
            "time": "2026-01-01T00:00:00Z",
            "datacontenttype": "application/json",
        }
        made.append(cloudevents.from_structured(cloudevents.to_structured(attributes, data)))
    return made


def _id(row: Any) -> UUID:
    identity: UUID = row.id
    return identity


async def _database_work(connection: asyncpg.Connection) -> tuple[int, int]:
    row = await connection.fetchrow(
        "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint AS wal, xact_commit"
        " FROM pg_stat_database WHERE datname = current_database()"
    )
    return row["wal"], row["xact_commit"]


def _named(name: str, folder: Path) -> list[int]:
    """Processes of this name that work in the benchmark's folder, and their children of the same name."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == name and any(str(folder) in part for part in process.info["cmdline"] or []):
            found.append(process.pid)
            found += [child.pid for child in process.children(recursive=True)]
    return sorted(set(found))


def _cpu(pids: Sequence[int]) -> float:
    """CPU seconds of processes so far, of those of their children too that have ended."""
    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _memory(pids: Sequence[int]) -> float:
    return max(psutil.Process(pid).memory_info().rss for pid in pids) / 1e6


def _ignore(_: object) -> None:
    """A child that dies here makes the run fail by its time limit."""
