"""One run of the chaos suite: an installation of real processes, registries and receivers, a schedule, a judgement."""

import asyncio
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import aiohttp
import asyncpg
from pydantic import SecretStr

from broker.migrations import migrate
from broker.storage.pool import DATABASE_TROUBLE
from broker.tools.demo_parties import prepare
from broker.tools.identities import REGISTRIES, Identities
from broker.tools.local.definitions import Registry as RegistryUser
from schemas.notices import SOURCE
from subscriptions.database import DatabaseSettings, create_engine
from subscriptions.secrets import generate_encryption_key
from tests.chaos.clock import Clock
from tests.chaos.evidence import Evidence, read
from tests.chaos.faults import Faults, Stage, Window
from tests.chaos.judgement import judge
from tests.chaos.namespace import Mounts
from tests.chaos.postgres import Cluster
from tests.chaos.processes import Process
from tests.chaos.providers import Caller, People, Puller, drain, make_queue
from tests.chaos.proxy import Link
from tests.chaos.publishers import AmqpDoor, HttpDoor, Registry, describe_delay
from tests.chaos.rabbitmq import ChaosRabbitMQ
from tests.chaos.receivers import Receivers
from tests.chaos.schedule import DELIVERS, ELSEWHERE, PROCESSES, Fault
from tests.chaos.subscribers import WANTED, body_of
from tests.chaos.watched import ASK

_REPLAYED = "all"
"""The subscription of which everything is asked for again."""
PUBLISHING = {"bag": (0.5, 14), "brp": (0.35, 12), "woz": (0.15, 6)}
"""The registries, with their share of the events and how many subjects they have."""
_LAG_SECONDS = 0.7
_STOOD_STILL = "lanes-stood-still"


@dataclass(frozen=True)
class Order:
    """What to run."""

    name: str
    schedule: Sequence[Fault]
    seconds: float
    seed: int = 0
    rate: float = 120.0
    mutation: str | None = None
    tree: Path | None = None
    """A Debian tree whose RabbitMQ is used; None: the machine's."""
    standby: bool = True
    moving_clock: bool = True
    patience: float = 150.0
    """Seconds without any progress after which what is not done counts as never done."""
    processes: Sequence[str] = PROCESSES
    shards: int = 8
    """Few, so that every delivery process has some subscriptions."""


@dataclass
class Report:
    """What came of it."""

    name: str
    seed: int
    rabbitmq: str = ""
    postgres: str = ""
    seconds: float = 0.0
    wall_seconds: float = 0.0
    events: int = 0
    confirms_missed: int = 0
    republished: int = 0
    rejected: int = 0
    deliveries: int = 0
    dead: int = 0
    corrected: int = 0
    """Deliveries that were cancelled by a correction in time."""
    attempts: int = 0
    duplicates: int = 0
    duplicates_by_fault: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    reconnects: int = 0
    held: int = 0
    """Holds that were seen to hold."""
    replayed: int = 0
    """Numbers that were asked for again."""
    died_by_themselves: dict[str, list[int]] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Run:
    """One run in a folder of its own."""

    def __init__(self, order: Order, mounts: Mounts, say: Callable[[str], None]) -> None:
        self.order = order
        self.report = Report(order.name, order.seed, seconds=order.seconds)
        self._mounts = mounts
        self._started = time.monotonic()
        self._say_to = say
        self._folder = Path(tempfile.mkdtemp(prefix="bode-chaos-"))
        self._windows: list[Window] = []
        self._keep_folder = False

    async def run(self) -> Report:
        """Run it; the logs stay where there is something to complain of."""
        self._folder.chmod(0o711)
        try:
            async with AsyncExitStack() as stack:
                await self._start(stack)
                await self._work()
        except BaseException:
            self._keep_folder = True
            raise
        finally:
            self.report.wall_seconds = round(time.monotonic() - self._started, 1)
            if self._keep_folder or self.report.complaints:
                self._say(f"logs are kept in {self._folder}")
            else:
                shutil.rmtree(self._folder, ignore_errors=True)
        return self.report

    def _say(self, what: str) -> None:
        self._say_to(f"[{time.monotonic() - self._started:6.1f}] {what}")

    async def _start(self, stack: AsyncExitStack) -> None:
        self.receivers = stack.enter_context(Receivers())
        names = [*self.order.processes, "postgres"] if self.order.moving_clock else []
        self.clocks = {name: Clock(self._folder / f"clock-{name}") for name in names}
        postgres_clock = self.clocks["postgres"].environment if names else {}
        self.cluster = Cluster(self._folder, self._mounts, postgres_clock, self._say)
        users = [RegistryUser(name, f"nl.{name}.") for name in REGISTRIES]
        self.rabbitmq = ChaosRabbitMQ(self._folder / "rabbitmq", users, self.order.tree)
        stack.push_async_callback(self.cluster.stop)
        async with asyncio.TaskGroup() as group:
            group.create_task(self.cluster.start())
            group.create_task(stack.enter_async_context(self.rabbitmq))
        self.report.rabbitmq, self.report.postgres = self.rabbitmq.version, self.cluster.primary.version
        if self.order.standby:
            self.cluster.make_standby()
        await self._make_links(stack)
        self._key = generate_encryption_key().get_secret_value()
        identities = await self._migrate()
        await self._start_processes(stack)
        await self._subscribe(identities)
        self.registries = self._make_registries(identities)
        self._meet(identities)
        if self.order.standby:
            await self.cluster.standby_ready()

    async def _make_links(self, stack: AsyncExitStack) -> None:
        self.links: dict[tuple[str, str], Link] = {}
        for name in self.order.processes:
            self.links[name, "postgres"] = await stack.enter_async_context(Link(lambda: self.cluster.port))
        for name in (*(name for name in self.order.processes if name not in DELIVERS), "bag", "brp", ELSEWHERE):
            self.links[name, "rabbitmq"] = await stack.enter_async_context(Link(lambda: self.rabbitmq.port))
        for name in self.order.processes:
            if name in DELIVERS:  # a link of another name: what cuts those to the queues of events leaves these
                self.links[name, "queues"] = await stack.enter_async_context(Link(lambda: self.rabbitmq.port))

    async def _migrate(self) -> Identities:
        engine = create_engine(DatabaseSettings(url=SecretStr(self.cluster.primary.url)))
        try:
            await migrate(engine)
            return await prepare(engine, self._folder)
        finally:
            await engine.dispose()

    async def _start_processes(self, stack: AsyncExitStack) -> None:
        common = {
            **{name: value for name, value in os.environ.items() if not name.startswith("BODE_")},
            "BODE_SECRETS_KEYS": json.dumps([self._key]),
            "BODE_FENCE_ALLOW": '["127.0.0.0/8"]',
            "BODE_API_ALLOW_HTTP_SINKS": "true",
            "BODE_SERVE_PORT": "0",
            "BODE_SERVE_METRICS_PORT": "0",
            "BODE_LOG_LEVEL": "INFO",
            "BODE_DELIVERY_SHARDS": str(self.order.shards),
            "BODE_DELIVERY_LEASE_SECONDS": "4",
            "BODE_INGEST_LEASE_SECONDS": "4",
            "BODE_DELIVERY_ATTEMPT_SECONDS": "4",
            "BODE_DELIVERY_SWEEP_SECONDS": "2",
            "BODE_AMQP_HEARTBEAT_SECONDS": "5",
            "BODE_AMQP_CONNECT_SECONDS": "5",
        }
        self.processes: dict[str, Process] = {}
        for name in self.order.processes:
            own = {"BODE_DATABASE_URL": self.cluster.url(self.links[name, "postgres"].port)}
            link = self.links[name, "queues" if name in DELIVERS else "rabbitmq"]
            own["BODE_AMQP_URL"] = self.rabbitmq.url().replace(f":{self.rabbitmq.port}/", f":{link.port}/")
            if name in self.clocks:
                own |= self.clocks[name].environment
            process = Process(name, common | own, self._folder, mutation=self.order.mutation, born=self._born)
            self.processes[name] = process
            stack.push_async_callback(process.kill)
            await process.start()
        for process in self.processes.values():
            await process.ready()

    def _born(self, process: Process) -> None:
        """A delivery process that comes or goes moves shards between all of them."""
        if process.kind == "deliver":
            now = time.monotonic()
            self._windows.append(Window("shards move", now - 5, now + 10, frozenset("*"), slow_only=True))
            if process.ended_by_itself:
                self._windows.append(Window("ended by itself", now - 1, now, frozenset({process.name})))

    async def _subscribe(self, identities: Identities) -> None:
        api = f"http://127.0.0.1:{(await self.processes['api1'].ready())['port']}/v1"
        self.paths: dict[int, str] = {}
        self.queues: dict[str, str] = {}
        self.made = made = dict[str, str]()
        await make_queue(self.rabbitmq.url(), ELSEWHERE)
        async with aiohttp.ClientSession() as session:
            for name in PUBLISHING:
                await describe_delay(session, api, identities.registries[name].key, name)
            for wanted in WANTED:
                headers = {"Authorization": f"Bearer {identities.providers[wanted.provider].key}"}
                body = body_of(wanted, self.receivers, self._amqp_url(ELSEWHERE))
                async with session.post(f"{api}/subscriptions", json=body, headers=headers) as answer:
                    shown = await answer.json(content_type=None)
                    assert answer.status == 201, shown
                self.receivers.secrets[wanted.path] = shown.get("secret") or ""
                made[wanted.path] = shown["id"]
                if wanted.protocol == "AMQP":
                    self.queues[wanted.path] = ELSEWHERE if wanted.remote else shown["queue"]
                if wanted.divisor:
                    self.receivers.refused[wanted.path] = wanted.divisor
                if wanted.flaky:
                    self.receivers.flaky.add(wanted.path)
        connection = await asyncpg.connect(self.cluster.primary.url)
        try:
            async with asyncio.timeout(30):
                while await connection.fetchval("SELECT count(*) FROM subscriptions WHERE status <> 'active'"):
                    await asyncio.sleep(0.1)
            for path, identity in made.items():
                key = await connection.fetchval("SELECT key FROM subscriptions WHERE id = $1", UUID(identity))
                self.paths[key] = path
        finally:
            await connection.close()

    def _meet(self, identities: Identities) -> None:
        """Those who call the API while the faults are made."""
        keys = {name: provider.key for name, provider in identities.providers.items()}

        def caller(key: str) -> Caller:
            return Caller(self._api_urls, key, Random(self.order.seed))

        self.people = People(caller(identities.operator), caller(keys["gemeente"]), self.order.seconds)
        self.pullers = [
            Puller(caller(keys[wanted.provider]), self.made[wanted.path], wanted.path, self.receivers)
            for wanted in WANTED
            if wanted.protocol == "PULL"
        ]

    def _make_registries(self, identities: Identities) -> list[Registry]:
        random = Random(self.order.seed)
        counter = [0]
        made = []
        for name, (share, lanes) in PUBLISHING.items():
            known = identities.registries[name]
            wrong = identities.registries["hr"].source
            subjects = [f"9999{number % 3}{number:05}" for number in range(lanes)] + [None, None]
            if name == "woz":
                door: Any = HttpDoor(self._api_urls, known.key, Random(random.random()))
            else:
                door = AmqpDoor(lambda name=name: self._amqp_url(name), name)  # type: ignore[misc]
            rate = self.order.rate * share
            own = Random(random.random())
            made.append(Registry(name, known.source, wrong, door, own, subjects, rate, counter, name == "woz"))
        return made

    def _api_urls(self) -> list[str]:
        found = []
        for name in ("api1", "api2"):
            file = self._folder / f"{name}.ready"
            if file.exists():
                found.append(f"http://127.0.0.1:{json.loads(file.read_bytes())['port']}")
        return found or ["http://127.0.0.1:9"]

    def _amqp_url(self, name: str) -> str:
        """As it is reached over the link of a name, which is a registry's or that of a provider's own RabbitMQ."""
        port = self.links[name, "rabbitmq"].port
        url = self.rabbitmq.url() if name == ELSEWHERE else self.rabbitmq.url(name)
        return url.replace(f":{self.rabbitmq.port}/", f":{port}/")

    async def _work(self) -> None:
        stage = Stage(self.processes, self.links, self.cluster, self.rabbitmq, self.receivers, self.clocks, self._say)
        faults = Faults(stage, self._windows)
        watching = asyncio.create_task(self._watch_ourselves())
        publishing = [asyncio.create_task(registry.run()) for registry in self.registries]
        pulling = [asyncio.create_task(puller.run()) for puller in self.pullers]
        working = asyncio.create_task(
            self.people.run(self.made[_REPLAYED], _REPLAYED, ("nl.bag.gewijzigd", "nl.brp.opgevoerd"))
        )
        started = time.monotonic()
        self._say("publishing; faults begin")
        doing = asyncio.create_task(faults.run(list(self.order.schedule), started))
        await asyncio.wait({doing, *publishing}, timeout=self.order.seconds, return_when=asyncio.FIRST_EXCEPTION)
        for registry in self.registries:
            registry.stop()
        await doing
        self._say("no more faults; waiting for quiet")
        async with asyncio.timeout(self.order.patience):
            await working
        passing = asyncio.create_task(faults.let_time_pass())
        await self._until_quiet(publishing)
        for task in (watching, passing, *pulling):
            task.cancel()
        for path, queue in self.queues.items():
            await drain(self.rabbitmq.url(), queue, path, self.receivers)
        self._say("quiet; judging")
        await self._judge(faults)
        await self._stop_processes()

    async def _watch_ourselves(self) -> None:
        """A machine that stands still for a while does to the processes what a pause does."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.1)
            late = time.monotonic() - before - 0.1
            if late > _LAG_SECONDS:
                self._say(f"the machine stood still for {late:.1f} s")
                self._windows.append(Window("machine stood still", before, before + late, frozenset("*")))

    async def _until_quiet(self, publishing: list[asyncio.Task[Registry]]) -> None:
        last, at = -1, time.monotonic()
        while time.monotonic() - at < self.order.patience:
            done = all(task.done() for task in publishing)
            waiting = await self._waiting()
            if waiting == 0 and done:
                break
            if waiting is not None and waiting != last:
                last, at = waiting, time.monotonic()
            await asyncio.sleep(0.3)
        else:
            self._say(f"it doesn't become quiet: {last} are not done")
            await self._tell_what_all_wait_for()
            for task in publishing:
                task.cancel()
        for result in await asyncio.gather(*publishing, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    async def _waiting(self) -> int | None:
        """How many confirmed events are not yet accepted or rejected, and deliveries pending; None: not to be told."""
        confirmed = sum(p.confirmed_at is not None for registry in self.registries for p in registry.ledger)
        try:
            pending = await self.cluster.primary.fetchval(
                "SELECT (SELECT count(*) FROM deliveries WHERE state = 'pending') + greatest("
                f"{confirmed} - (SELECT count(DISTINCT (source, id)) FROM events WHERE source <> $1)"
                " - (SELECT count(*) FROM rejections), 0)"
                " + (SELECT count(*) FROM replays WHERE state = 'running')",
                SOURCE,
            )
        except DATABASE_TROUBLE:
            return None
        assert isinstance(pending, int)
        return pending

    async def _tell_what_all_wait_for(self) -> None:
        """For whoever looks for the cause: processes, and sessions of the database that do something, and for whom."""
        for process in self.processes.values():
            process.signal(ASK)  # into its log
        connection = await asyncpg.connect(self.cluster.primary.url, timeout=10)
        try:
            for row in await connection.fetch(
                "SELECT pid, state, wait_event, now() - state_change AS since, pg_blocking_pids(pid) AS behind,"
                " left(query, 60) AS query FROM pg_stat_activity WHERE state <> 'idle' AND pid <> pg_backend_pid()"
            ):
                self._say(f"database: {' '.join(str(value) for value in row)}")
        finally:
            await connection.close()

    async def _judge(self, faults: Faults) -> None:
        publications = [publication for registry in self.registries for publication in registry.ledger]
        database = await read(self.cluster.primary.url, self.paths)
        arrivals = list(self.receivers.ledger)
        judgement = judge(
            Evidence(
                publications,
                arrivals,
                self._windows,
                database,
                WANTED,
                self.people.held,
                self.people.asked,
                {number: stone for puller in self.pullers for number, stone in puller.stones.items()},
                faults.jumps,
                time.time() - time.monotonic(),
            )
        )
        report = self.report
        states = Counter(delivery.state for delivery in database.deliveries)
        report.events = len(publications)
        report.confirms_missed = sum(registry.troubles for registry in self.registries)
        report.republished = sum(publication.published - 1 for publication in publications)
        report.rejected = len(database.rejected)
        report.deliveries, report.dead, report.corrected = states.total(), states["dead"], states["cancelled"]
        report.attempts, report.duplicates = (
            len(arrivals),
            judgement.duplicates.total() - judgement.duplicates["replay"],
        )
        report.duplicates_by_fault = dict(judgement.duplicates.most_common())
        report.faults, report.skipped = dict(sorted(faults.done.items())), dict(faults.skipped)
        report.reconnects = faults.longest_reconnects
        report.died_by_themselves = {
            name: process.ended_by_itself for name, process in self.processes.items() if process.ended_by_itself
        }
        self._keep_folder |= bool(report.died_by_themselves)
        report.complaints += judgement.complaints
        report.complaints += self._defects()
        report.complaints += [complaint for puller in self.pullers for complaint in puller.complaints]
        report.held, report.replayed = len(self.people.held), sum(asked.last for asked in self.people.asked)

    def _defects(self) -> list[str]:
        """What processes say of themselves that nothing from outside explains."""
        said = f'"{_STOOD_STILL}"'
        ended = [
            f"{name} ended by itself with exit code {code}"
            for name, process in self.processes.items()
            for code in process.ended_by_itself
        ]
        return ended + [
            f"{name} says {_STOOD_STILL}: {line.strip()}"
            for name, process in self.processes.items()
            for line in process.log.read_text(errors="replace").splitlines()
            if said in line
        ]

    async def _stop_processes(self) -> None:
        for process in self.processes.values():
            await process.ready()  # one that was started again just now doesn't listen to signals yet
        codes = await asyncio.gather(*(process.stop() for process in self.processes.values()))
        for name, code in zip(self.processes, codes, strict=True):
            if code != 0:
                self.report.complaints.append(f"{name} answered SIGTERM with exit code {code} when all was quiet")
