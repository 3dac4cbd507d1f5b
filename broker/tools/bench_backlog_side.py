"""One of the two databases of `bode bench fairness-sinks`: its subscriptions, its backlog, and the measuring of it."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import asyncpg
import psutil
from pydantic import SecretStr
from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncEngine

from broker.ingest.accept import Accepted, Acceptor, Message
from broker.ingest.view import View
from broker.ingest.wake import Waker
from broker.matching.index import cost
from broker.migrations import migrate
from broker.storage import acceptance, installation
from broker.storage.tables import KEY_SHIFT
from broker.tools.bench_sink import Sink
from broker.tools.demo_parties import prepare
from broker.tools.identities import PROVIDERS, SOURCES
from broker.tools.local.children import Children, Command
from schemas import cloudevents
from schemas.resources import SubscriptionBody
from subscriptions import life_cycle
from subscriptions import subscriptions as service
from subscriptions.change_log import changing
from subscriptions.database import DatabaseSettings, create_engine
from subscriptions.filter_rules import FilterRules
from subscriptions.organisations import find_organisation
from subscriptions.secrets import KeyRing, generate_encryption_key
from subscriptions.sink_urls import SinkRules

_REGISTRY: Final = "bag"
_HEALTHY: Final = "nl.bag.bench-gezond"
_DEAD: Final = "nl.bag.bench-dood"
_BATCH: Final = 500
_READY_SECONDS: Final = 60.0
_QUIET_SECONDS: Final = 120.0
_LOOK_SECONDS: Final = 0.05

_FIGURES = f"""
SELECT count(*) FILTER (WHERE state = 'delivered') AS delivered, count(*) AS matched,
       extract(epoch FROM max(ended_at)) AS last,
       min(event_key >> {KEY_SHIFT}) / 1000.0 AS first,
       percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (
           ORDER BY extract(epoch FROM ended_at) * 1000 - (event_key >> {KEY_SHIFT})) AS milliseconds
FROM deliveries WHERE subscription = ANY($1::bigint[]) AND event_key > $2
"""
"""Of the healthy since an event: from the acceptance to the answer of the sink, as the broker wrote them down."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is measured."""

    backlog: int = 1_000_000
    dead_sinks: int = 300
    healthy_sinks: int = 10
    burst: int = 20_000
    """Deliveries to healthy sinks at once, for the throughput."""
    rate: int = 500
    """Deliveries to healthy sinks a second, for the latency."""
    seconds: float = 8.0
    """How long at that rate."""
    settle_seconds: float = 20.0
    """For the process to find out which sinks are dead; a silent one takes a time limit of 10 s to be found so."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run: deliveries a second, latency in milliseconds, CPU in microseconds a delivery, memory in megabytes."""

    per_second: float
    p50: float
    p99: float
    cpu_us: float
    idle_cpu: float
    """Cores that the process uses when nothing healthy is to be done."""
    memory_mb: float


class Side:
    """One of the two databases, with its subscriptions."""

    def __init__(self, folder: Path, workload: Workload, url: str, sink: Sink) -> None:
        self._folder = folder
        self._workload = workload
        self._url = url
        self._sink = sink
        self._key = generate_encryption_key()
        self._healthy: list[int] = []
        self._dead: list[int] = []

    @contextlib.asynccontextmanager
    async def open(self, dead: Sequence[str]) -> AsyncIterator[None]:
        """Make the schema and the subscriptions: healthy ones, and dead ones of each kind in turn."""
        self._folder.mkdir()
        engine = create_engine(DatabaseSettings(url=SecretStr(self._url)))
        session = acceptance.connection_settings(timedelta(seconds=60), timedelta(seconds=60))
        try:
            await migrate(engine)
            await prepare(engine, self._folder)
            keys = KeyRing([self._key])
            urls = [self._sink.url(number) for number in range(self._workload.healthy_sinks)]
            self._healthy = await _subscribe(engine, keys, urls, _HEALTHY)
            urls = [f"{dead[n % len(dead)]}{n}" for n in range(self._workload.dead_sinks)]
            self._dead = await _subscribe(engine, keys, urls, _DEAD)
            async with asyncpg.create_pool(self._url, min_size=1, max_size=4, server_settings=session) as self._pool:
                self._acceptor = Acceptor(
                    self._pool, View(engine), keys, await installation.fingerprints(self._pool, keys)
                )
                self._waker = Waker(self._pool)
                yield
        finally:
            await engine.dispose()

    async def pile_up(self, console: Console) -> None:
        """Accept the events of the backlog; nothing delivers meanwhile."""
        events = -(-self._workload.backlog // self._workload.dead_sinks)
        for start in range(0, events, 100):
            await self._accept(_DEAD, min(100, events - start), start)
            if start % 1000 == 0:
                console.print(f"  {start * self._workload.dead_sinks:,} wait")
        await self._pool.execute("VACUUM ANALYZE")

    async def waiting(self) -> int:
        """How many wait on dead sinks."""
        statement = "SELECT count(*) FROM deliveries WHERE subscription = ANY($1::bigint[]) AND state = 'pending'"
        count: int = await self._pool.fetchval(statement, self._dead)
        return count

    async def measure(self) -> Measurement:
        """Start a delivery process, let it settle, and give the healthy sinks something."""
        command = self._command()
        waker = asyncio.create_task(self._waker.run())
        try:
            async with Children([command], changed=_ignore) as children:
                await children.ready("deliver", _READY_SECONDS)
                process = psutil.Process(children.pids["deliver"])
                await asyncio.sleep(self._workload.settle_seconds)
                idle = await _cores(process, 2.0)
                burst = self._workload.burst // self._workload.healthy_sinks
                used = _cpu(process)
                mark = await self._mark()
                for start in range(0, burst, _BATCH):
                    await self._accept(_HEALTHY, min(_BATCH, burst - start), start)
                fast = await self._delivered(mark, burst)
                used = _cpu(process) - used
                mark = await self._mark()
                steady = await self._steadily()
                slow = await self._delivered(mark, steady)
                memory = process.memory_info().rss / 1e6
        finally:
            waker.cancel()
            await asyncio.gather(waker, return_exceptions=True)
        p50, p99 = slow["milliseconds"]
        count = burst * self._workload.healthy_sinks
        seconds = float(fast["last"]) - float(fast["first"])
        return Measurement(count / seconds, p50, p99, used / count * 1e6, idle, memory)

    async def _steadily(self) -> int:
        """Accept ten times a second; how many events."""
        loop = asyncio.get_running_loop()
        a_tenth = max(self._workload.rate // self._workload.healthy_sinks // 10, 1)
        started, sent = loop.time(), 0
        for tick in range(int(self._workload.seconds * 10)):
            await asyncio.sleep(max(started + tick / 10 - loop.time(), 0))
            await self._accept(_HEALTHY, a_tenth, sent)
            sent += a_tenth
        return sent

    async def _mark(self) -> int:
        """The key of the last event so far."""
        key: int = await self._pool.fetchval("SELECT coalesce(max(key), 0) FROM events")
        return key

    async def _delivered(self, since: int, events: int) -> asyncpg.Record:
        """Wait until so many events after `since` have been delivered to all healthy sinks."""
        wanted = events * self._workload.healthy_sinks
        statement = "SELECT coalesce(sum(delivered), 0)::bigint FROM delivery_totals WHERE subscription = ANY($1)"
        async with asyncio.timeout(_QUIET_SECONDS):
            total: int = await self._pool.fetchval(
                "SELECT coalesce(sum(last_sequence), 0)::bigint FROM subscription_numbers WHERE subscription = ANY($1)",
                self._healthy,
            )
            while await self._pool.fetchval(statement, self._healthy) < total:  # noqa: ASYNC110  # another process
                await asyncio.sleep(_LOOK_SECONDS)
        found = await self._pool.fetchrow(_FIGURES, self._healthy, since)
        assert (found["matched"], found["delivered"]) == (wanted, wanted)
        return found

    async def _accept(self, kind: str, events: int, first: int) -> None:
        messages = []
        for number in range(first, first + events):
            attributes = {
                "specversion": "1.0", "id": str(uuid4()), "source": SOURCES[_REGISTRY], "type": kind,
                "subject": f"9999100000{number % 1000:06}", "datacontenttype": "application/json",
            }  # fmt: skip
            event = cloudevents.from_structured(cloudevents.to_structured(attributes, {"vulling": "x" * 600}))
            messages.append(Message(_REGISTRY, event, event.body))
        for result in await self._acceptor.accept(messages):
            assert isinstance(result, Accepted)
            if kind == _HEALTHY:
                self._waker.queue.put_nowait(result)

    def _command(self) -> Command:
        environment = {
            **os.environ,
            "BODE_DATABASE_URL": self._url,
            "BODE_SECRETS_KEYS": json.dumps([self._key.get_secret_value()]),
            "BODE_FENCE_ALLOW": json.dumps(["127.0.0.0/8"]),
            "BODE_SERVE_METRICS_PORT": "0",
            "BODE_LOG_LEVEL": "ERROR",
            "BODE_READY_FILE": str(self._folder / "deliver.ready"),
        }
        return Command(
            "deliver", ["deliver"], environment, self._folder / "deliver.log", self._folder / "deliver.ready"
        )


async def _subscribe(engine: AsyncEngine, keys: KeyRing, urls: Sequence[str], kind: str) -> list[int]:
    """Active subscriptions with these sinks; their keys."""
    rules = SinkRules(allow_http=True, check=lambda _: None)
    filters = FilterRules(lambda condition: cost(condition).evaluated_always, most_evaluated=0)
    found = []
    async with changing(engine) as connection:
        provider = await find_organisation(connection, oin=PROVIDERS["gemeente"])
        assert provider is not None
        for url in urls:
            body = SubscriptionBody.model_validate({"sink": url, "protocol": "HTTP", "types": [kind]})
            made, _ = await service.create(
                connection, body, organisation_id=provider.id, keys=keys, sinks=rules, filters=filters
            )
            identity: UUID = made.id
            await life_cycle.activate(connection, identity, sink=url)
            found.append(int(made.key))
    return found


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _cores(process: psutil.Process, seconds: float) -> float:
    used, started = _cpu(process), time.perf_counter()
    await asyncio.sleep(seconds)
    return (_cpu(process) - used) / (time.perf_counter() - started)


def _ignore(_: object) -> None:
    """A process that dies here makes the run fail by its time limit."""
