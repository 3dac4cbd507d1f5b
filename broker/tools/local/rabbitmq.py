"""A private RabbitMQ from the machine's installed one, beside whatever server of its own the machine may run.

Its own node, cookie, users, ports and folder; everything on loopback; no guest, and no epmd: the node is told where
to listen for the Erlang distribution and starts without asking one. Neither logs nor crash dumps hold message bodies.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from broker.tools.local.accounts import Account, account_for
from broker.tools.local.definitions import BROKER, VHOST, Registry, definitions
from broker.tools.local.keeper import Order
from broker.tools.local.locks import mark
from broker.tools.local.server import Program, Server, ServerFailed, free_port, write_private

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection

_PLUGIN: Final = "rabbitmq_consistent_hash_exchange"
_SCRIPTS: Final = ("/usr/lib/rabbitmq/bin", "/usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin", "/opt/rabbitmq/sbin")
_NODE: Final = "bode@localhost"
_CONNECT_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Installation:
    """An installed RabbitMQ, by the script that starts it."""

    script: Path


@dataclass(frozen=True, slots=True)
class NotInstalled:
    """There is none that we can start, and why."""

    reason: str


def find_installed() -> Installation | NotInstalled:
    """Look for a RabbitMQ that an ordinary user can start. Debian's `/usr/sbin/rabbitmq-server` insists on its own."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])
    if shutil.which("erl", path=path) is None:
        return NotInstalled("Erlang, which runs it, isn't installed (no 'erl' on the PATH)")
    for pattern in _SCRIPTS:
        for folder in sorted(Path("/").glob(pattern.lstrip("/")), reverse=True):
            if os.access(folder / "rabbitmq-server", os.X_OK):
                return Installation(folder / "rabbitmq-server")
    found = shutil.which("rabbitmq-server", path=path)
    if found is not None and (Path(found).resolve().parent / "rabbitmq-env").exists():
        return Installation(Path(found).resolve())
    return NotInstalled("the package rabbitmq-server isn't installed")


class RabbitMQ(Server):
    """A RabbitMQ server on one folder, with a user for the broker and one for each registry.

    `async with` starts it on free ports and stops it. Passwords stay the same from start to start; a registry that is
    no longer named can't log in any more.
    """

    name = "rabbitmq"
    signals = ((signal.SIGTERM, 10.0),)

    def __init__(
        self,
        folder: Path,
        registries: Sequence[Registry] = (),
        *,
        installation: Installation | None = None,
        start_seconds: float = 60.0,
    ) -> None:
        super().__init__(folder, start_seconds=start_seconds)
        self.version = ""
        self._registries = registries
        self._installation = installation
        self._passwords: dict[str, str] = {}
        self._account = Account(os.geteuid(), os.getegid())

    def url(self, user: str = BROKER) -> str:
        """The amqp URL of a user, password included.

        Raises:
            KeyError: no such user was declared.
        """
        return f"amqp://{quote(user, safe='')}:{self._passwords[user]}@127.0.0.1:{self.port}/{VHOST}"

    async def prepare(self) -> None:
        """Write configuration, users and permissions; make passwords for those who have none yet."""
        if self._installation is None:
            found = find_installed()
            if isinstance(found, NotInstalled):
                raise ServerFailed(f"RabbitMQ can't be started: {found.reason}")
            self._installation = found
        self._account = account_for(self.folder / "node")
        self._account.admit_to(self.folder)
        for name in ("node", "logs", "home"):
            folder = self.folder / name
            folder.mkdir(mode=0o700, exist_ok=True)
            self._account.own(folder)
        former = self._load_passwords()
        content = definitions(self._registries, self._passwords, former)
        self._write("definitions.json", json.dumps(content))
        self._write("enabled_plugins", f"[{_PLUGIN}].\n")
        self._write("empty.conf", "")
        cookie = self.folder / "home" / ".erlang.cookie"
        if not cookie.exists():
            self._write("home/.erlang.cookie", secrets.token_hex(20), mode=0o400)

    async def launch(self) -> Program:
        """Start the node."""
        assert self._installation is not None
        distribution = free_port()
        self._write("rabbitmq.conf", self._configuration())
        settings = {
            "HOME": str(self.folder / "home"),
            "RABBITMQ_NODENAME": _NODE,
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "empty.conf"),  # the machine's own isn't read
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "node"),
            "RABBITMQ_LOG_BASE": str(self.folder / "logs"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(self.folder / "node" / "config"),
            "RABBITMQ_FEATURE_FLAGS_FILE": str(self.folder / "node" / "feature_flags"),
            "RABBITMQ_PID_FILE": str(self.folder / "node" / "pid"),
            # The script then becomes the node instead of waiting for it; -noinput takes the input away again.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": " ".join(
                (
                    f"-noinput -sname {_NODE}",
                    "-kernel inet_dist_use_interface {127,0,0,1}",
                    f"-bode {mark(self.folder)}",
                )
            ),
            # For every Erlang that the node starts, too: one a minute would otherwise start an epmd, on all addresses
            # and the machine's port for it. Should one start all the same, it is a private one.
            "ERL_ZFLAGS": f"-start_epmd false -erl_epmd_port {distribution}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(free_port()),
            "ERL_CRASH_DUMP_SECONDS": "0",  # a dump would hold message bodies
        }
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("RABBITMQ_", "ERL_", "BODE_"))
        }
        inherited["PATH"] = os.pathsep.join([inherited.get("PATH", os.defpath), "/usr/sbin"])
        order = Order(
            [str(self._installation.script)],
            list(self.signals),
            [],
            (self._account.user, self._account.group) if self._account.changes else None,
            not self._account.passes(self.folder / "node"),
        )
        return await Program.start(order, folder=self.folder, log=self.log, environment={**inherited, **settings})

    async def answers(self) -> bool:
        """Open a connection as the broker."""
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        except OSError:
            return False
        import aio_pika  # not before the server has started, which needn't wait for it

        try:
            connection = await aio_pika.connect(self.url(), timeout=_CONNECT_SECONDS)
        except (OSError, TimeoutError, aio_pika.exceptions.AMQPError):
            return False
        try:
            self.version = _server_version(connection)
        finally:
            await connection.close()
        return True

    def _configuration(self) -> str:
        settings = {
            "listeners.tcp.1": f"127.0.0.1:{self.port}",
            "load_definitions": str(self.folder / "definitions.json"),
            "log.console": "false",
            "log.file": "node.log",
            "log.file.level": "info",
            # Messages of Erlang itself land here: a crash report quotes the state of what crashed, bodies included.
            "log.default.level": "critical",
            "log.connection.level": "warning",
        }
        return "".join(f"{key} = {value}\n" for key, value in settings.items())

    def _load_passwords(self) -> list[str]:
        """Read the passwords, add those that are missing, and return the names that are not in use any more."""
        path = self.folder / "passwords.json"
        known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        names = [BROKER, *(registry.name for registry in self._registries)]
        self._passwords = {name: known.get(name) or secrets.token_urlsafe(24) for name in names}
        former = [name for name in known if name not in self._passwords]
        self._write("passwords.json", json.dumps({**dict.fromkeys(former, ""), **self._passwords}), shared=False)
        return former

    def _write(self, name: str, text: str, *, mode: int = 0o600, shared: bool = True) -> None:
        path = self.folder / name
        new = path.with_name(path.name + ".new")
        write_private(new, text, mode)
        if shared:
            self._account.own(new)
        new.replace(path)


def _server_version(connection: "AbstractConnection") -> str:
    transport = connection.transport
    properties: Any = getattr(transport.connection, "server_properties", {}) if transport is not None else {}
    version = properties.get("version", "")
    return version.decode() if isinstance(version, bytes) else str(version)
