"""`bode up`: a whole installation on one machine, for a first look, for development and for tests.

It starts PostgreSQL and RabbitMQ unless their URLs are given, migrates, starts `api`, `ingest` and `deliver` as child
processes, restarts what dies, and keeps `bode.json` and `env` in the data directory true. It leaves nothing running.

What takes time goes side by side: the servers start from the first moment on, while a nursery imports what the
processes need. So nothing here imports much before they are on their way.
"""

import asyncio
import contextlib
import json
import os
import shlex
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from broker.tools.identities import REGISTRIES, Identities
from broker.tools.local.accounts import NoAccount
from broker.tools.local.children import Change, ChildFailed, Children, Command, run_once
from broker.tools.local.definitions import Registry
from broker.tools.local.locks import FolderInUse, locked
from broker.tools.local.nursery import Nursery, Stage
from broker.tools.local.postgres import Postgres
from broker.tools.local.rabbitmq import NotInstalled, RabbitMQ, find_installed
from broker.tools.local.server import Server, ServerFailed

_STEPS_IMPORT: Final = ("broker.migrations", "broker.tools.demo_parties")
_PROCESSES_IMPORT: Final = ("broker.processes.api", "broker.processes.ingest", "broker.processes.deliver")
"""What the steps in the database need, and then the processes: imported by the nursery."""
_READY_SECONDS: Final = 60.0
_PRIVATE: Final = 0o600
_PREFERRED_PORT: Final = 8000


class CannotStart(Exception):
    """The installation can't be started; the message says what to do."""


_REASONS: Final = (CannotStart, FolderInUse, ServerFailed, ChildFailed, NoAccount)


@dataclass(slots=True)
class Services:
    """What the processes of Bode need from outside."""

    database_url: str
    amqp_url: str | None
    registry_amqp: Mapping[str, str] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)


async def up(*, data_dir: Path, port: int | None, with_demo: bool, console: Console) -> None:
    """Run until SIGINT, SIGTERM or SIGHUP.

    Raises:
        CannotStart: with a message for the one who started it.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    try:
        with locked(data_dir):
            await _Installation(data_dir, port, with_demo, console).run(stop)
    except _REASONS as error:
        raise CannotStart(_said(error)) from error
    except ExceptionGroup as errors:
        if errors.split(_REASONS)[1] is not None:
            raise
        raise CannotStart(_said(errors)) from errors


def _said(error: Exception) -> str:
    match error:
        case ExceptionGroup():
            return "\n".join(_said(each) for each in error.exceptions)
        case FolderInUse():
            return f"{error}: stop it first, or give another --data-dir"
    return str(error)


class _Installation:
    def __init__(self, data_dir: Path, port: int | None, with_demo: bool, console: Console) -> None:
        self._data_dir = data_dir.absolute()
        self._port = port
        self._with_demo = with_demo
        self._demo_rate = 0.0
        self._console = console
        self._children: Children | None = None
        self._ports: dict[str, int] = {}
        self._base: dict[str, Any] = {}
        self._complete = False

    async def run(self, stop: asyncio.Event) -> None:
        started = time.monotonic()
        (self._data_dir / "bode.json").unlink(missing_ok=True)
        (self._data_dir / "log").mkdir(mode=0o700, exist_ok=True)
        async with AsyncExitStack() as stack:
            starting = asyncio.ensure_future(self._start(stack))
            stopping = asyncio.ensure_future(stop.wait())
            try:
                await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not starting.done():
                    starting.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await starting
                    return
                services, identities = starting.result()
                self._console.print(f"{'   '.join(services.told)}   ready in {time.monotonic() - started:.0f} s")
                self._console.print(
                    f"API {self._base['api']}   (in another terminal: source {shlex.quote(str(self._env_file))})",
                    soft_wrap=True,
                )
                await self._work(stop, services, identities)
            finally:
                stopping.cancel()
                (self._data_dir / "bode.json").unlink(missing_ok=True)
                self._console.print("stopping …")

    async def _start(self, stack: AsyncExitStack) -> tuple[Services, Identities | None]:
        postgres, rabbitmq, services = self._services()
        processes = self._names(rabbitmq is not None or services.amqp_url is not None)
        stages = [Stage(_STEPS_IMPORT, 1), Stage(_PROCESSES_IMPORT, len(processes))]
        async with Nursery(stages, log=self._data_dir / "log" / "nursery.log") as nursery:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._start_database(postgres, services, stack, nursery))
                if rabbitmq is not None:
                    group.create_task(stack.enter_async_context(rabbitmq))
                await asyncio.sleep(0)  # both are on their way
                self._secrets_key()
                self._demo_rate = _demo_rate()
            self._keep([server for server in (postgres, rabbitmq) if server is not None], stack)
            self._tell_of(postgres, rabbitmq, services)
            identities = Identities.read(self._data_dir) if self._with_demo else None
            environment = self._environment(services)
            commands = [self._command(name, environment) for name in processes]
            children = Children(commands, changed=self._changed, nursery=nursery)
            self._children = await stack.enter_async_context(children)
        for name in processes:
            self._ports[name] = (await children.ready(name, _READY_SECONDS))["port"]
        self._base = self._describe(services, identities)
        self._complete = True
        self._write_env(services, identities)
        self._write_json()
        return services, identities

    def _services(self) -> tuple[Postgres | None, RabbitMQ | None, Services]:
        """The servers that are to be started, and what is known of those that needn't."""
        postgres_url, amqp_url = os.environ.get("BODE_DATABASE_URL"), os.environ.get("BODE_AMQP_URL")
        services = Services(postgres_url or "", amqp_url)
        postgres = Postgres(self._data_dir / "postgres") if postgres_url is None else None
        rabbitmq = None
        if amqp_url is None:
            found = find_installed()
            if isinstance(found, NotInstalled):
                services.told.append(f"✖ no RabbitMQ ({found.reason}): publishing over HTTP only")
            else:
                registries = [Registry(name, f"nl.{name}.") for name in REGISTRIES] if self._with_demo else []
                rabbitmq = RabbitMQ(self._data_dir / "rabbitmq", registries, installation=found)
        return postgres, rabbitmq, services

    async def _start_database(
        self, postgres: Postgres | None, services: Services, stack: AsyncExitStack, nursery: Nursery
    ) -> None:
        """PostgreSQL with the schema, and with the demo's parties."""
        if postgres is not None:
            await stack.enter_async_context(postgres)
            services.database_url = postgres.url
        steps = Command(
            "schema",
            [str(self._data_dir)] if self._with_demo else [],
            {**os.environ, "BODE_DATABASE_URL": services.database_url},
            self._data_dir / "log" / "schema.log",
            module="broker.tools.database_steps",
        )
        await run_once(steps, nursery)

    def _tell_of(self, postgres: Postgres | None, rabbitmq: RabbitMQ | None, services: Services) -> None:
        if rabbitmq is not None:
            services.amqp_url = rabbitmq.url()
            services.told.insert(0, f"✔ RabbitMQ {rabbitmq.version} (private)")
            if self._with_demo:
                services.registry_amqp = {name: rabbitmq.url(name) for name in REGISTRIES}
        elif services.amqp_url is not None:
            services.told.insert(0, "✔ RabbitMQ (BODE_AMQP_URL)")
        services.told.insert(
            0, f"✔ PostgreSQL {postgres.version}" if postgres is not None else "✔ PostgreSQL (BODE_DATABASE_URL)"
        )

    def _keep(self, servers: Sequence[Server], stack: AsyncExitStack) -> None:
        """Restart servers that die, until the stack is left."""
        keeping = [asyncio.ensure_future(server.run(self._server_changed)) for server in servers]

        async def let_go() -> None:
            for task in keeping:
                task.cancel()
            await asyncio.gather(*keeping, return_exceptions=True)

        stack.push_async_callback(let_go)

    def _server_changed(self, name: str, code: int | None) -> None:
        if code is None:
            self._console.print(f"✔ {name} is back")
        else:
            self._console.print(f"✖ {name} died (exit code {code}); it is started again")

    def _environment(self, services: Services) -> dict[str, str]:
        environment = {**os.environ, "BODE_DATABASE_URL": services.database_url, "PYTHONUNBUFFERED": "1"}
        if services.amqp_url is not None:
            environment["BODE_AMQP_URL"] = services.amqp_url
        if "BODE_SECRETS_KEYS" not in environment:
            environment["BODE_SECRETS_KEYS"] = json.dumps([self._secrets_key()])
        if self._with_demo:
            environment.setdefault("BODE_FENCE_ALLOW", json.dumps(["127.0.0.0/8", "::1/128"]))
            environment.setdefault("BODE_API_ALLOW_HTTP_SINKS", "true")
        environment.setdefault("BODE_INGEST_FOLLOW_DIR", str(self._data_dir / "follow-lists"))
        environment["BODE_SERVE_HOST"] = "127.0.0.1"
        environment["BODE_SERVE_PORT"] = str(self._choose_port())
        environment["BODE_SERVE_METRICS_PORT"] = "0"
        return environment

    def _choose_port(self) -> int:
        """The port that was asked for; otherwise 8000, or a free one where that is taken."""
        for port in [self._port] if self._port is not None else [_PREFERRED_PORT, 0]:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
                chosen: int = probe.getsockname()[1]
                return chosen
        raise CannotStart(f"port {self._port} is taken: give another --port")

    def _secrets_key(self) -> str:
        path = self._data_dir / "secrets.key"
        if not path.exists():
            from subscriptions.secrets import generate_encryption_key

            _write_private(path, generate_encryption_key().get_secret_value() + "\n")
        return path.read_text().strip()

    @staticmethod
    def _names(with_rabbitmq: bool) -> list[str]:
        return ["api", *(["ingest"] if with_rabbitmq else []), "deliver"]

    def _command(self, name: str, environment: Mapping[str, str]) -> Command:
        ready_file = self._data_dir / f"{name}.ready"
        return Command(
            name,
            [name],
            {**environment, "BODE_READY_FILE": str(ready_file)},
            self._data_dir / "log" / f"{name}.log",
            ready_file,
        )

    def _changed(self, change: Change) -> None:
        if change.pid is None:
            self._console.print(f"✖ {change.name} died (exit code {change.exit_code}); it is started again")
        elif change.restarts and self._children is not None:
            asyncio.get_running_loop().create_task(self._note_restart(change.name))  # ends by itself

    async def _note_restart(self, name: str) -> None:
        if self._children is None:
            return
        with contextlib.suppress(ChildFailed):
            self._ports[name] = (await self._children.ready(name, _READY_SECONDS))["port"]
            if self._complete:
                self._write_json()
                self._console.print(f"✔ {name} is back")

    def _describe(self, services: Services, identities: Identities | None) -> dict[str, Any]:
        described: dict[str, Any] = {
            "api": f"http://127.0.0.1:{self._ports['api']}/v1",
            "amqp": services.amqp_url,
        }
        if identities is not None:
            described["keys"] = {
                "operator": identities.operator,
                "registries": {
                    name: {
                        "oin": registry.oin,
                        "key": registry.key,
                        "amqp": services.registry_amqp.get(name),
                        "source": registry.source,
                    }
                    for name, registry in identities.registries.items()
                },
                "providers": {
                    name: {"oin": provider.oin, "key": provider.key} for name, provider in identities.providers.items()
                },
            }
        return described

    def _write_json(self) -> None:
        assert self._children is not None
        content = {
            **self._base,
            "metrics": [f"http://127.0.0.1:{port}/metrics" for port in self._ports.values()],
            "processes": self._children.pids,
        }
        _write_private(self._data_dir / "bode.json", json.dumps(content, indent=2) + "\n")

    @property
    def _env_file(self) -> Path:
        path = self._data_dir / "env"
        return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

    def _write_env(self, services: Services, identities: Identities | None) -> None:
        values = {
            "BODE_DATA_DIR": str(self._data_dir),
            "BODE_URL": self._base["api"],
            "BODE_DATABASE_URL": services.database_url,
            "BODE_SECRETS_KEYS": os.environ.get("BODE_SECRETS_KEYS") or json.dumps([self._secrets_key()]),
        }
        if services.amqp_url is not None:
            values["BODE_AMQP_URL"] = services.amqp_url
        if identities is not None:
            values["BODE_OPERATOR_KEY"] = identities.operator
            values |= {f"BODE_{name.upper()}_KEY": item.key for name, item in identities.registries.items()}
            values |= {f"BODE_{name.upper()}_KEY": item.key for name, item in identities.providers.items()}
        lines = [f"export {name}={shlex.quote(value)}" for name, value in values.items()]
        lines.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
        _write_private(self._data_dir / "env", "\n".join(lines) + "\n")

    async def _work(self, stop: asyncio.Event, services: Services, identities: Identities | None) -> None:
        if identities is None:
            await stop.wait()
            return
        from broker.telemetry import configure_logging, log
        from broker.tools import demo

        configure_logging("up", "WARNING")
        async with _until(stop):
            try:
                await demo.run(
                    identities,
                    api_url=self._base["api"],
                    registry_amqp=services.registry_amqp,
                    rate=self._demo_rate,
                    data_dir=self._data_dir,
                    console=self._console,
                    receiver_ready=self._receiver_ready,
                )
            except Exception as error:  # the demo is a guest: what is wrong with it must not end the installation
                log().error("demo-failed", exc_info=error)
                self._console.print(f"✖ the demo ended: {type(error).__name__}; everything else goes on")
                await stop.wait()

    def _receiver_ready(self, url: str) -> None:
        self._base["receiver"] = url
        self._write_json()


def _demo_rate() -> float:
    from pydantic import ValidationError

    from broker.tools.up_settings import UpSettings

    try:
        return UpSettings().demo.rate
    except ValidationError as error:
        reasons = [
            f"  BODE_{'_'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False)
        ]
        raise CannotStart("settings that can't be used:\n" + "\n".join(reasons)) from error


@contextlib.asynccontextmanager
async def _until(stop: asyncio.Event) -> AsyncIterator[None]:
    """Cancel the block when `stop` is set, and end quietly."""
    task = asyncio.current_task()
    assert task is not None

    async def watch() -> None:
        await stop.wait()
        task.cancel()

    watching = asyncio.ensure_future(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        task.uncancel()
    finally:
        watching.cancel()


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _PRIVATE)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)
