"""A server of ours on this machine: started under a keeper, ready when it answers, ended with us, restarted if it dies.

stopped ──start──► starting ──answers──► running ──stop──► stopped
                      ▲                     │ dies
                      └──── same port ──────┘
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from broker.tools.local import keeper
from broker.tools.local.keeper import Order
from broker.tools.local.locks import locked, mark
from broker.tools.local.strays import end_strays

_LOG_BYTES = 16 << 20
_TAIL_BYTES = 3000
_KEEPER_SECONDS = 5.0
_RESTART_PAUSES = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)


class ServerFailed(Exception):
    """A server that didn't start or a program of it that failed, with the end of what it said."""


class Program:
    """A program under a keeper; see `broker.tools.local.keeper`."""

    def __init__(self, process: asyncio.subprocess.Process, patience: float) -> None:
        self._process = process
        self._patience = patience

    @classmethod
    async def start(
        cls, order: Order, *, folder: Path, log: Path, environment: Mapping[str, str] | None = None
    ) -> Self:
        """Start it in `folder`; what it says is appended to `log`."""
        output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", keeper.__file__, json.dumps(order), mark(folder),
                stdin=asyncio.subprocess.PIPE, stdout=output, stderr=output,
                cwd=folder, env=environment, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(output)
        return cls(process, sum(patience for _, patience in order.signals))

    @property
    def running(self) -> bool:
        """Whether the keeper runs, and so the program."""
        return self._process.returncode is None

    async def ended(self) -> int:
        """Wait until it has ended; its exit code."""
        return await self._process.wait()

    async def stop(self) -> int:
        """End it as its order says and wait; its exit code."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(self._patience + _KEEPER_SECONDS):
                return await self._process.wait()
        except TimeoutError:
            self._process.kill()
            return await self._process.wait()


class Server(ABC):
    """One server on one folder, which it locks and which holds everything that it writes."""

    name: str
    signals: Sequence[tuple[int, float]] = ((signal.SIGTERM, 5.0),)
    """How it is asked to end: signals, each with its patience in seconds."""

    def __init__(self, folder: Path, *, start_seconds: float) -> None:
        self.folder = folder.absolute()
        self.port = 0
        self._start_seconds = start_seconds
        self._program: Program | None = None
        self._held = contextlib.ExitStack()
        self._stopped = False

    @abstractmethod
    async def prepare(self) -> None:
        """Make the folder ready; what a killed predecessor left running has been ended."""

    @abstractmethod
    async def launch(self) -> Program:
        """Start the server on `self.port`."""

    @abstractmethod
    async def answers(self) -> bool:
        """Whether it serves a real request now."""

    @property
    def log(self) -> Path:
        """The file that the server logs to."""
        return self.folder / f"{self.name}.log"

    async def __aenter__(self) -> Self:
        """Start it and wait until it answers.

        Raises:
            FolderInUse, NoAccount, ServerFailed, OSError: it can't be started, and nothing of it is left running.
        """
        with contextlib.ExitStack() as held:
            held.enter_context(locked(self.folder))
            await end_strays(mark(self.folder), self.signals)
            await self.prepare()
            await self._start(ports=3)
            self._held = held.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it."""
        try:
            await self.stop()
        finally:
            self._held.close()

    async def stop(self) -> None:
        """End it properly, for good; the folder stays ours."""
        self._stopped = True
        await self._end()

    async def restart(self) -> None:
        """Start it again on its port, whether it runs or not."""
        self._stopped = False
        await self._end()
        await end_strays(mark(self.folder), self.signals)
        await self._start(ports=0)

    async def run(self, changed: Callable[[str, int | None], None]) -> None:
        """Restart it on its port whenever it dies, until it is stopped; a task of its own, ended before the server is.

        `changed` is called with its name and the exit code when it died, and with None when it answers again.
        """
        failures = 0
        while True:
            program = self._program
            if program is not None:
                code = await program.ended()
                if self._stopped:
                    return
                if self._program is not program:
                    continue  # restarted by somebody else
                changed(self.name, code)
            try:
                await self.restart()
            except (ServerFailed, OSError):
                await asyncio.sleep(_RESTART_PAUSES[min(failures, len(_RESTART_PAUSES) - 1)])
                failures += 1
                if self._stopped:
                    return
            else:
                changed(self.name, None)
                failures = 0

    async def _end(self) -> None:
        program, self._program = self._program, None
        if program is not None:
            await program.stop()

    async def _start(self, *, ports: int) -> None:
        """Start on a free port, trying another if it was taken meanwhile; with `ports=0` on the port we had."""
        for left in reversed(range(max(ports, 1))):
            if ports:
                self.port = free_port()
            _rotate(self.log)
            said = self.log.stat().st_size if self.log.exists() else 0
            program = await self.launch()
            try:
                await self._until_it_answers(program, said)
            except ServerFailed:
                await program.stop()
                if left == 0 or not _port_taken(self.port):
                    raise
            except BaseException:
                await program.stop()
                raise
            else:
                self._program = program
                return

    async def _until_it_answers(self, program: Program, said: int) -> None:
        try:
            async with asyncio.timeout(self._start_seconds):
                while program.running and not self._stopped:
                    if await self.answers():
                        return
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise ServerFailed(
                f"{self.name} doesn't answer after {self._start_seconds:g} s{_tail(self.log, said)}"
            ) from None
        raise ServerFailed(f"{self.name} ended while starting{_tail(self.log, said)}")

    async def call(self, order: Order) -> None:
        """Run a program of the server to its end.

        Raises:
            ServerFailed: it failed.
        """
        said = self.log.stat().st_size if self.log.exists() else 0
        program = await Program.start(order, folder=self.folder, log=self.log)
        try:
            async with asyncio.timeout(self._start_seconds):
                code = await program.ended()
        finally:
            await program.stop()
        if code != 0:
            raise ServerFailed(f"{Path(order.arguments[0]).name} failed with code {code}{_tail(self.log, said)}")


def write_private(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a new file in place of any that is there, readable by its owner only."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode), "w") as file:
        file.write(text)


def free_port() -> int:
    """A port on the loopback address that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _port_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False


def _rotate(log: Path) -> None:
    if log.exists() and log.stat().st_size > _LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))


def _tail(log: Path, said: int) -> str:
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(said, log.stat().st_size - _TAIL_BYTES))
        text = file.read().decode(errors="replace").strip()
    return f":\n{text}" if text else ""
