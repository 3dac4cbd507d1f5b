"""The processes of Bode as children of one: started, watched, restarted when one dies, stopped in order.

    starting ──ready file──► up ──dies──► pause (longer each time) ──► starting
        └──────────────── SIGTERM, at the deadline SIGKILL ───────────► gone

Every child dies at once when we die, also by SIGKILL; see `broker.tools.local.leash`. The first incarnation may come
from a nursery (`broker.tools.local.nursery`), which saves its imports; a restart is a process of its own. Children
run in a session of their own, so that a Ctrl-C in the terminal reaches them through us only, in order.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

from broker.tools.local.nursery import Adopted, Assignment, Nursery

_PAUSES: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_STEADY_SECONDS: Final = 20.0
"""A child that lived this long is restarted without a pause that earlier deaths had made longer."""
_LOG_BYTES: Final = 64 << 20
_LOOK_SECONDS: Final = 0.02


Process: TypeAlias = asyncio.subprocess.Process | Adopted


class ChildFailed(Exception):
    """A child that didn't become ready, or that failed."""


@dataclass(frozen=True, slots=True)
class Command:
    """One child: `python -m MODULE ARGUMENTS`, with nothing of the working directory importable."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    """The whole environment of the child."""
    log: Path
    """What it says is appended here."""
    ready_file: Path | None = None
    """The file that it writes, as JSON, when it is ready; removed before each start."""
    module: str = "broker.cli"


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happened to a child."""

    name: str
    pid: int | None
    """Its process id now; None while it is down."""
    restarts: int
    exit_code: int | None = None
    """With which code it died; negative: the signal."""


class Children:
    """Children by name. `async with` starts them all and in the end stops them in the order given.

    Start them from the main thread: they die when the thread that started them ends.
    """

    def __init__(
        self,
        commands: Sequence[Command],
        *,
        changed: Callable[[Change], None],
        stop_seconds: float = 14.0,
        nursery: Nursery | None = None,
    ) -> None:
        """Not started yet; `nursery`, needed until they are, is where their first incarnations come from."""
        self.restarts: dict[str, int] = {command.name: 0 for command in commands}
        self._commands = {command.name: command for command in commands}
        self._changed = changed
        self._stop_seconds = stop_seconds
        self._nursery = nursery
        self._running: dict[str, Process] = {}
        self._stopping = asyncio.Event()
        self._group = asyncio.TaskGroup()

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of those that run now."""
        return {name: process.pid for name, process in self._running.items()}

    async def __aenter__(self) -> Self:
        """Start all of them; see `ready` for when they are."""
        await self._group.__aenter__()
        try:
            for command in self._commands.values():
                await self._start(command, self._nursery)
                self._group.create_task(self._keep(command), name=f"child-{command.name}")
        except BaseException:
            await self.__aexit__(*sys.exc_info())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop them and wait until all are gone."""
        try:
            await self._stop()
        finally:
            for process in self._running.values():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await self._group.__aexit__(kind, error, trace)

    async def ready(self, name: str, seconds: float) -> dict[str, Any]:
        """Wait until a child is ready, through restarts; what it wrote in its ready file.

        Raises:
            ChildFailed: it isn't within the time; the message has the end of its log.
        """
        command = self._commands[name]
        if command.ready_file is None:
            raise ValueError(f"{name} has no ready file")
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            process = self._running.get(name)
            if process is not None and command.ready_file.exists():
                content: dict[str, Any] = json.loads(command.ready_file.read_bytes())
                if content.get("pid", process.pid) == process.pid:
                    return content
            await asyncio.sleep(_LOOK_SECONDS)
        raise ChildFailed(f"{name} isn't ready after {seconds:g} s; the end of {command.log}:\n{_tail(command.log)}")

    async def _start(self, command: Command, nursery: Nursery | None = None) -> Process:
        process = self._running[command.name] = await _start(command, nursery)
        self._changed(Change(command.name, process.pid, self.restarts[command.name]))
        return process

    async def _keep(self, command: Command) -> None:
        """Restart one child until we stop."""
        failures = 0
        while True:
            process, started_at = self._running[command.name], time.monotonic()
            code = await process.wait()
            del self._running[command.name]
            if self._stopping.is_set():
                return
            self.restarts[command.name] += 1
            self._changed(Change(command.name, None, self.restarts[command.name], code))
            failures = 0 if time.monotonic() - started_at > _STEADY_SECONDS else failures + 1
            pause = _PAUSES[min(failures, len(_PAUSES) - 1)] if failures > 1 else 0.0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            if self._stopping.is_set():
                return
            process = await self._start(command)
            if self._stopping.is_set():  # set meanwhile: nobody else would end this one
                process.kill()

    async def _stop(self) -> None:
        """SIGTERM to one after the other, each with its share of the time left before the next is asked too."""
        self._stopping.set()
        deadline = time.monotonic() + self._stop_seconds
        names = list(self._commands)
        for number, name in enumerate(names):
            process = self._running.get(name)
            if process is None:
                continue
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            share = (deadline - time.monotonic()) / (len(names) - number)
            await _ended([process], share)
        await _ended(list(self._running.values()), deadline - time.monotonic())


async def run_once(command: Command, nursery: Nursery) -> None:
    """Run a child to its end.

    Raises:
        ChildFailed: it failed; the message has the end of its log.
    """
    process = await _start(command, nursery)
    try:
        code = await process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if code != 0:
        raise ChildFailed(f"{command.name} failed with code {code}; the end of {command.log}:\n{_tail(command.log)}")


async def _start(command: Command, nursery: Nursery | None) -> Process:
    if command.ready_file is not None:
        command.ready_file.unlink(missing_ok=True)
    if command.log.exists() and command.log.stat().st_size > _LOG_BYTES:
        command.log.replace(command.log.with_name(command.log.name + ".1"))
    newborn = None if nursery is None else await nursery.newborn()
    if newborn is not None:
        return newborn.become(
            Assignment(
                command.name, command.module, command.arguments, command.environment, str(command.log), os.getpid()
            )
        )
    output = os.open(command.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    leash = "broker.tools.local.leash"
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", leash, str(os.getpid()), command.module, *command.arguments,
            stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
            env=command.environment, start_new_session=True,
        )  # fmt: skip
    finally:
        os.close(output)


async def _ended(processes: Sequence[Process], seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(max(seconds, 0)):
            for process in processes:
                await process.wait()


def _tail(log: Path, size: int = 3000) -> str:
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size))
        return file.read().decode(errors="replace").strip()
