"""Doing what the schedule says, and noting when it really was."""

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import asyncpg

from broker.storage.pool import DATABASE_TROUBLE
from broker.tools.local.server import ServerFailed
from tests.chaos.clock import Clock, Jump
from tests.chaos.postgres import Cluster
from tests.chaos.processes import Process
from tests.chaos.proxy import Link, State
from tests.chaos.rabbitmq import ChaosRabbitMQ
from tests.chaos.receivers import Mood, Receivers
from tests.chaos.schedule import DELIVERS, INGESTS, RECONNECTS, Fault

EVERY = frozenset({"*"})
_SLOW_SECONDS = 0.15
_LOOK_SECONDS = 3.0
_LONGEST_WAIT_SECONDS = 30
"""Delays and retries are shorter."""
_PUT_OFF = """
SELECT ceil(extract(epoch FROM max(next_attempt_at) - clock_timestamp()))::int FROM deliveries WHERE state = 'pending'
"""
_LOOP_SECONDS = 150.0
_TRIES = 4
_SOME_MESSAGES_BYTES = 2500
_LINK_STATES = {"link-cut": State.CUT, "link-stalled": State.STALLED, "link-deaf": State.DEAF}


class NotPossible(Exception):
    """This fault can't be made here or now, and why."""


@dataclass(slots=True)
class Window:
    """When a fault was, by the monotonic clock, and whose attempts it may have doubled."""

    kind: str
    began: float
    ended: float
    senders: frozenset[str] = frozenset()
    """Delivery processes that may not have recorded what they sent; `*`: all."""
    slow_only: bool = False
    """Concerns only attempts that were long under way, which a change of owner doesn't wait for."""


@dataclass
class Stage:
    """Everything that faults act on."""

    processes: Mapping[str, Process]
    links: Mapping[tuple[str, str], Link]
    cluster: Cluster
    rabbitmq: ChaosRabbitMQ
    receivers: Receivers
    clocks: Mapping[str, Clock]
    say: Callable[[str], None]


@dataclass
class Faults:
    """`run` carries out a schedule."""

    stage: Stage
    windows: list[Window] = field(default_factory=list)
    jumps: list[Jump] = field(default_factory=list)
    """Of PostgreSQL's clock."""
    done: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    longest_reconnects: int = 0
    _postgres: asyncio.Lock = field(default_factory=asyncio.Lock)
    _rabbitmq: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, schedule: list[Fault], started: float) -> None:
        """Begin each fault at its time, and return when the last one is over."""
        async with asyncio.TaskGroup() as group:
            for fault in sorted(schedule, key=lambda fault: fault.at):
                await asyncio.sleep(max(started + fault.at - time.monotonic(), 0))
                group.create_task(self._do(fault))

    async def _do(self, fault: Fault) -> None:
        method = getattr(self, f"_{fault.kind.replace('-', '_')}", self._link_state)
        window = Window(fault.kind, time.monotonic(), float("inf"), _concerned(fault))
        self.windows.append(window)
        try:
            await method(fault)
            name = f"sink-{fault.detail}" if fault.kind == "sink" else fault.kind
            self.done[f"{name} {fault.target.rstrip('0123456789')}" if fault.kind in ("kill", "pause") else name] += 1
        except NotPossible as reason:
            self.skipped[f"{fault.kind}: {reason}"] += 1
            self.stage.say(f"SKIPPED {fault.kind}: {reason}")
        window.ended = time.monotonic()

    async def _kill(self, fault: Fault) -> None:
        process = self.stage.processes[fault.target]
        await process.kill()
        await asyncio.sleep(fault.seconds)
        await process.start()

    async def _pause(self, fault: Fault) -> None:
        process = self.stage.processes[fault.target]
        process.signal(signal.SIGSTOP)
        await asyncio.sleep(fault.seconds)
        process.signal(signal.SIGCONT)

    async def _stop_and_start(self, fault: Fault) -> None:
        process = self.stage.processes[fault.target]
        code = await process.stop()
        if code not in (0, -signal.SIGTERM):  # the signal itself: it came before the process listened to it
            self.stage.say(f"{fault.target} answered SIGTERM with code {code}")
        await asyncio.sleep(fault.seconds)
        await process.start()

    async def _rabbitmq_killed(self, fault: Fault) -> None:
        async with self._rabbitmq:
            await self.stage.rabbitmq.kill()
            await asyncio.sleep(fault.seconds)
            await self.stage.rabbitmq.start_again()

    async def _rabbitmq_closes_connections(self, _: Fault) -> None:
        async with self._rabbitmq:
            await self._erlang(self.stage.rabbitmq.close_connections())

    async def _rabbitmq_memory_alarm(self, fault: Fault) -> None:
        await self._alarm(self.stage.rabbitmq.alarm_memory, fault.seconds)

    async def _rabbitmq_disk_alarm(self, fault: Fault) -> None:
        await self._alarm(self.stage.rabbitmq.alarm_disk, fault.seconds)

    async def _alarm(self, raise_it: Callable[[bool], Awaitable[None]], seconds: float) -> None:
        """Raise an alarm, and clear it whatever it takes, also where it isn't known whether it was raised."""
        async with self._rabbitmq:
            try:
                await self._erlang(raise_it(True))
                await asyncio.sleep(seconds)
            finally:
                for left in reversed(range(_TRIES)):
                    try:
                        await raise_it(False)
                        break
                    except ServerFailed:
                        if left == 0:
                            await self.stage.rabbitmq.start_again()  # alarms end with the server

    @staticmethod
    async def _erlang(call: Awaitable[None]) -> None:
        try:
            await call
        except ServerFailed as error:
            raise NotPossible(str(error)) from error

    async def _reconnect_loop(self, _: Fault) -> None:
        """PostgreSQL is away; the ingest consumers lose their connection again and again, with messages in hand.

        A quorum queue counts each return of a message: RabbitMQ 4 drops it at the delivery limit, 20 by default.
        """
        async with self._postgres, self._rabbitmq:
            await self.stage.cluster.primary.kill()
            try:
                links = [
                    link
                    for (name, server), link in self.stage.links.items()
                    if server == "rabbitmq" and name in INGESTS
                ]
                returned = 0
                deadline = time.monotonic() + _LOOP_SECONDS
                while returned < RECONNECTS and time.monotonic() < deadline:
                    if await self._messages_in_hand(links, deadline):
                        returned += 1
                        for link in links:
                            link.reset()
                self.longest_reconnects = max(self.longest_reconnects, returned)
                if returned < RECONNECTS:
                    raise NotPossible(f"only {returned} reconnects with messages in time")
            finally:
                await self.stage.cluster.restart_primary()

    async def _messages_in_hand(self, links: list[Link], deadline: float) -> bool:
        """Wait until a consumer was given messages."""
        while time.monotonic() < deadline:
            if any(given > _SOME_MESSAGES_BYTES for link in links for given in link.received()):
                return True
            await asyncio.sleep(0.02)
        return False

    async def _postgres_killed(self, fault: Fault) -> None:
        async with self._postgres:
            await self.stage.cluster.primary.kill()
            await asyncio.sleep(fault.seconds)
            await self.stage.cluster.restart_primary()

    async def _postgres_terminates_connections(self, _: Fault) -> None:
        async with self._postgres:
            await self._sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name LIKE 'bode%' AND pid <> pg_backend_pid()"
            )

    async def _postgres_fails_over(self, _: Fault) -> None:
        async with self._postgres:
            if not await self.stage.cluster.fail_over():
                raise NotPossible("no synchronous standby at this moment")
            for (_, server), link in self.stage.links.items():
                if server == "postgres":
                    link.reset()
            self.stage.cluster.make_standby()

    async def _postgres_disk_full(self, fault: Fault) -> None:
        async with self._postgres:
            cluster = self.stage.cluster
            if not await asyncio.to_thread(cluster.fill):
                raise NotPossible("no file system of its own: mounting is not allowed here")
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                cluster.clear()
            await asyncio.sleep(1)
            if not await cluster.primary.answers():
                await cluster.restart_primary()

    async def _postgres_locks(self, fault: Fault) -> None:
        with contextlib.suppress(*DATABASE_TROUBLE):
            connection = await asyncpg.connect(self.stage.cluster.primary.url, timeout=5)
            try:
                async with connection.transaction():
                    await connection.execute("SET LOCAL lock_timeout = '5s'")
                    await connection.execute(f"LOCK TABLE {fault.target} IN ACCESS EXCLUSIVE MODE")
                    await asyncio.sleep(fault.seconds)
            finally:
                connection.terminate()

    async def _sql(self, statement: str) -> None:
        try:
            await self.stage.cluster.primary.fetchval(statement)
        except DATABASE_TROUBLE as error:
            raise NotPossible(type(error).__name__) from error

    def _links_of(self, fault: Fault) -> list[Link]:
        return [
            link
            for (name, server), link in self.stage.links.items()
            if server == fault.detail and fault.target in ("all", name)
        ]

    async def _link_state(self, fault: Fault) -> None:
        links = self._links_of(fault)
        for link in links:
            link.become(_LINK_STATES[fault.kind])
        await asyncio.sleep(fault.seconds)
        for link in links:
            link.become(State.OPEN)

    async def _link_slow(self, fault: Fault) -> None:
        links = self._links_of(fault)
        for link in links:
            link.delay = _SLOW_SECONDS
        await asyncio.sleep(fault.seconds)
        for link in links:
            link.delay = 0.0

    async def _clock_jumps(self, fault: Fault) -> None:
        clock = self.stage.clocks.get(fault.target)
        if clock is None or not clock.environment:
            raise NotPossible("libfaketime is not installed")
        jump = Jump(int(fault.detail), time.monotonic())
        if fault.target == "postgres":
            self.jumps.append(jump)
        clock.jump(jump.seconds)
        await asyncio.sleep(fault.seconds)
        clock.jump(0)
        jump.until = time.monotonic()

    async def let_time_pass(self) -> None:
        """When the faults are over: PostgreSQL's clock is set ahead, for good, where it was so before, until cancelled.

        What was to wait for seconds when that clock was two hours ahead waits for as many more.
        """
        clock, ahead = self.stage.clocks.get("postgres"), 0
        while clock is not None and clock.environment:
            missing: object = None
            with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                missing = await self.stage.cluster.primary.fetchval(_PUT_OFF)
            if isinstance(missing, int) and missing > _LONGEST_WAIT_SECONDS:
                ahead += missing
                self.stage.say(f"something waits for {missing} s more: PostgreSQL's clock is set {ahead} s ahead")
                now = time.monotonic()
                self.jumps.append(Jump(ahead, now))
                self.windows.append(Window("clock-jumps", now, now + _LOOK_SECONDS, EVERY))
                clock.jump(ahead)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _sink(self, fault: Fault) -> None:
        self.stage.receivers.moods[fault.target] = Mood(fault.detail)
        await asyncio.sleep(fault.seconds)
        self.stage.receivers.moods[fault.target] = Mood.WELL


def _concerned(fault: Fault) -> frozenset[str]:
    """Whose attempts a fault may double: delivery processes. (A sink that answered with success was not at fault.)"""
    if fault.kind.startswith("postgres") or fault.kind == "reconnect-loop":
        return EVERY
    if fault.kind.startswith("link"):
        if fault.detail != "postgres":
            return frozenset()
        return EVERY if fault.target == "all" else frozenset({fault.target})
    if fault.kind == "clock-jumps" and fault.target == "postgres":
        return EVERY
    return frozenset({fault.target} & set(DELIVERS))
