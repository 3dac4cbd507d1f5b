"""PostgreSQL with a synchronous standby, each on a small file system of its own; to be killed, filled and replaced.

primary ──streams, every commit waits──► standby
   │ fails over: the primary is killed, the standby promoted, the links lead to it, and a new standby is made
   └ is killed (immediate) and started again on its port
"""

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import psutil

from broker.storage.pool import DATABASE_TROUBLE
from broker.tools.local.postgres import DATABASE, ROLE, Postgres
from broker.tools.local.server import ServerFailed, write_private
from tests.chaos.namespace import Mounts

_BYTES = 700 << 20
_SETTINGS = {
    "shared_buffers": "128MB",
    "max_wal_size": "96MB",
    "min_wal_size": "32MB",
    "max_connections": "120",
    "hot_standby": "on",
    "wal_keep_size": "32MB",
    "wal_sender_timeout": "10s",
    "wal_retrieve_retry_interval": "500ms",
    "tcp_keepalives_idle": "5",
    "track_commit_timestamp": "on",
}
_STEP = 1 << 20


class Node(Postgres):
    """One server: a primary, or a standby copied from one."""

    def __init__(self, folder: Path, *, origin: "Node | None" = None, clock: dict[str, str] | None = None) -> None:
        super().__init__(folder, _SETTINGS)
        self._origin = origin
        self._clock = clock or {}

    async def _initialise(self) -> None:
        if self._origin is not None:
            await self._copy(self._origin)
            return
        await super()._initialise()
        statement = self.folder / "replication.sql"
        write_private(statement, f"ALTER ROLE {ROLE} REPLICATION\n")
        strict = ("-c", "exit_on_error=on", "-c", "log_min_messages=fatal")
        order = self._order("postgres", "--single", "-D", str(self._data), *strict, "postgres", source=str(statement))
        await self.call(order)

    async def _copy(self, origin: "Node") -> None:
        new = self.folder / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        self._account.own(new)
        source = f"postgresql://{ROLE}:{origin._password}@127.0.0.1:{origin.port}/{DATABASE}"
        await self.call(self._order("pg_basebackup", "-D", str(new), "-R", "-X", "stream", "-c", "fast", "-d", source))
        write_private(self.folder / "password", origin._password + "\n")
        new.rename(self._data)

    def _write(self, name: str, text: str) -> None:
        if name == "pg_hba.conf":
            text += f"host replication {ROLE} 127.0.0.1/32 scram-sha-256\n"
        super()._write(name, text)

    async def launch(self):  # type: ignore[no-untyped-def]
        """Start it, with the clock that can be moved if there is one."""
        former = {name: os.environ.get(name) for name in self._clock}
        os.environ.update(self._clock)
        try:
            return await super().launch()
        finally:
            for name, value in former.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, while it lives."""
        with contextlib.suppress(OSError, ValueError, IndexError, psutil.NoSuchProcess):
            process = psutil.Process(int((self._data / "postmaster.pid").read_text().splitlines()[0]))
            if process.name() == "postgres":
                return process.pid
        return None

    def signal(self, number: int) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def kill(self) -> None:
        """An immediate shutdown: nothing is flushed, connections break."""
        self.signal(signal.SIGQUIT)
        await self.ended()

    async def ended(self) -> None:
        if self._program is not None:
            async with asyncio.timeout(20):
                await self._program.ended()

    def alter(self, **settings: str) -> None:
        """Change settings that a reload takes over."""
        self._settings.update(settings)
        text = "".join(f"{name} = '{value}'\n" for name, value in settings.items())
        with (self.folder / "postgresql.conf").open("a") as file:
            file.write(text)
        self.signal(signal.SIGHUP)

    async def promote(self) -> None:
        trigger = self._data / "promote"
        new = trigger.with_suffix(".new")  # PostgreSQL takes the file away as soon as it sees it
        new.touch()
        self._account.own(new)
        new.replace(trigger)
        self.signal(signal.SIGUSR1)
        async with asyncio.timeout(30):
            while await self.fetchval("SELECT pg_is_in_recovery()"):
                await asyncio.sleep(0.05)

    async def fetchval(self, statement: str, *arguments: object) -> object:
        connection = await asyncpg.connect(self.url, timeout=5)
        try:
            return await connection.fetchval(statement, *arguments)
        finally:
            await connection.close()


class Cluster:
    """A primary that the links lead to, and a standby that every commit waits for."""

    def __init__(self, folder: Path, mounts: Mounts, clock: dict[str, str], say: Callable[[str], None]) -> None:
        self._folder = folder
        self._mounts = mounts
        self._clock = clock
        self._say = say
        self._count = 0
        self._making: asyncio.Task[None] | None = None
        self.standby: Node | None = None
        self.failovers = 0

    @property
    def port(self) -> int:
        return self.primary.port

    def url(self, port: int) -> str:
        """The primary's URL through the link on this port."""
        return f"postgresql://{ROLE}:{self.primary._password}@127.0.0.1:{port}/{DATABASE}"

    async def start(self) -> None:
        self.primary = await self._node(None)

    async def stop(self) -> None:
        if self._making is not None:
            self._making.cancel()
            await asyncio.gather(self._making, return_exceptions=True)
        for node in (self.standby, getattr(self, "primary", None)):
            if node is not None:
                await node.__aexit__(None, None, None)

    def make_standby(self) -> None:
        """Make one in the background; `standby` is there when commits wait for it."""
        if self.standby is None and (self._making is None or self._making.done()):
            self._making = asyncio.create_task(self._make_standby())

    async def standby_ready(self) -> None:
        if self._making is not None:
            await self._making

    async def _make_standby(self) -> None:
        for _ in range(20):
            try:
                node = await self._node(self.primary)
            except (ServerFailed, OSError, TimeoutError) as error:
                self._say(f"standby: not yet ({str(error).splitlines()[-1][:100]})")
                await asyncio.sleep(1)
                continue
            try:
                self.primary.alter(synchronous_standby_names="*")
                async with asyncio.timeout(60):
                    while not await self._synchronous():
                        await asyncio.sleep(0.1)
            except BaseException:
                await node.__aexit__(None, None, None)
                raise
            self.standby = node
            self._say("standby: synchronous")
            return

    async def _synchronous(self) -> bool:
        with contextlib.suppress(*DATABASE_TROUBLE):
            found = await self.primary.fetchval(
                "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'"
            )
            return found == 1
        return False

    async def fail_over(self) -> bool:
        """Kill the primary and promote the standby; whether there was one that commits waited for."""
        if not await self._soon_synchronous():
            return False
        standby = self.standby
        assert standby is not None
        former, self.standby = self.primary, None
        former.signal(signal.SIGKILL)
        await former.ended()
        standby.alter(synchronous_standby_names="")
        await standby.promote()
        self.primary = standby
        self.failovers += 1
        await former.__aexit__(None, None, None)
        self._mounts.remove(former.folder)
        return True

    async def _soon_synchronous(self) -> bool:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self.standby is not None and await self._synchronous():
                return True
            await asyncio.sleep(0.2)
        return False

    async def restart_primary(self) -> None:
        """Start it again, whatever became of it."""
        for attempt in range(5):
            try:
                await self.primary.restart()
                return
            except (ServerFailed, OSError) as error:
                self._say(f"postgres: start failed ({str(error).splitlines()[0][:100]})")
                await asyncio.sleep(1 + attempt)
        await self.primary.restart()

    def fill(self) -> bool:
        """Take every byte that is left on the primary's file system; False where it has none of its own."""
        if not self._mounts.possible:
            return False
        file = os.open(self.primary.folder / "ballast", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for size in (_STEP, 4096):
                try:
                    while True:
                        os.posix_fallocate(file, os.fstat(file).st_size, size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
        finally:
            os.close(file)
        return True

    def clear(self) -> None:
        (self.primary.folder / "ballast").unlink(missing_ok=True)

    async def _node(self, origin: Node | None) -> Node:
        self._count += 1
        folder = self._folder / f"postgres{self._count}"
        self._mounts.make(folder, _BYTES)
        node = Node(folder, origin=origin, clock=self._clock)
        return await node.__aenter__()
