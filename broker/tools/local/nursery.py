"""The first incarnation of children, forked from one process that has imported for all of them.

    we ──exec──► nursery ──imports of a stage──► forks its newborn ──► imports of the next stage … ──► ends
                                                    └─ is our child, waits on its pipe ──order──► runs its module
                                                                                        └─closed──► ends

Importing is most of a process's start, so it is done once, beside the start of the servers, and its memory is shared.
The nursery has no thread, no event loop and no connection when it forks. A newborn holds the reading end of a pipe of
which we alone hold the other, so none outlives us unborn.
"""

import asyncio
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from broker.tools.local.leash import fasten

_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36


class Stage(NamedTuple):
    """What the nursery imports before it forks the newborns of this stage."""

    modules: Sequence[str]
    newborns: int


class Assignment(NamedTuple):
    """What a newborn becomes: `python -m MODULE ARGUMENTS` with this environment."""

    name: str
    module: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    log: str
    parent: int


class Adopted:
    """A child of ours that we didn't start: what `asyncio.subprocess.Process` is to the others."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        loop = asyncio.get_running_loop()
        self._descriptor = os.pidfd_open(pid)
        self._code: asyncio.Future[int] = loop.create_future()
        loop.add_reader(self._descriptor, self._ended)

    async def wait(self) -> int:
        """Wait until it has ended; its exit code, negative: the signal that ended it."""
        return await asyncio.shield(self._code)

    def send_signal(self, number: int) -> None:
        """Send it a signal.

        Raises:
            ProcessLookupError: it has ended.
        """
        if self._code.done():
            raise ProcessLookupError(self.pid)
        signal.pidfd_send_signal(self._descriptor, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        _, status = os.waitpid(self.pid, 0)
        self._code.set_result(os.waitstatus_to_exitcode(status))


class Newborn:
    """A process that waits for what it is to become."""

    def __init__(self, pid: int, pipe: int) -> None:
        self._pid = pid
        self._pipe = pipe

    def become(self, assignment: Assignment) -> Adopted:
        """Let it run; once only."""
        adopted = Adopted(self._pid)
        self._give(json.dumps(assignment).encode())
        return adopted

    async def let_go(self) -> None:
        """Let it end."""
        adopted = Adopted(self._pid)
        self._give(b"")
        await adopted.wait()

    def _give(self, content: bytes) -> None:
        with contextlib.suppress(BrokenPipeError), open(self._pipe, "wb") as pipe:  # killed: its exit code tells
            pipe.write(content)


class Nursery:
    """Newborns of one process that imports stage after stage. `async with` starts it, and ends what wasn't used.

    Where it can't be, or something goes wrong in it, there are none, and children are started the usual way.
    """

    def __init__(self, stages: Sequence[Stage], *, log: Path) -> None:
        self._stages = stages
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._pipes: list[int] = []
        self._turns = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Start importing."""
        if not _possible():
            return self
        pairs = [os.pipe() for stage in self._stages for _ in range(stage.newborns)]
        readers = [reader for reader, _ in pairs]
        self._pipes = [writer for _, writer in pairs]
        output = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _become_reaper(True)
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "broker.tools.local.nursery",
                str(os.getpid()), json.dumps(self._stages), json.dumps(readers),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=output,
                pass_fds=readers, start_new_session=True,
            )  # fmt: skip
        finally:
            for descriptor in (*readers, output):
                os.close(descriptor)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the nursery, and the newborns that became nothing."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        unused = []
        while (newborn := await self.newborn()) is not None:
            unused.append(newborn)
        await self._process.wait()
        _become_reaper(False)
        for newborn in unused:
            await newborn.let_go()

    async def newborn(self) -> Newborn | None:
        """The next one, in the order of the stages, once it is there; None when there will be none."""
        async with self._turns:
            if self._process is None or not self._pipes:
                return None
            assert self._process.stdout is not None
            told = await self._process.stdout.readline()
            if told:
                return Newborn(int(told), self._pipes.pop(0))
            while self._pipes:
                os.close(self._pipes.pop())
            return None


def _possible() -> bool:
    if sys.platform != "linux":
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def _become_reaper(on: bool) -> None:
    """Let orphans of ours become our children, or not any more."""
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(on), 0, 0, 0):
        raise OSError("prctl PR_SET_CHILD_SUBREAPER failed")


def _bear(pipe: int, others: Sequence[int]) -> bool:
    """Fork a newborn, which is the starter's child at once, and tell its id; True in the newborn."""
    reader, writer = os.pipe()
    between = os.fork()
    if between == 0:
        pid = os.fork()
        if pid != 0:
            os.write(writer, str(pid).encode())
            os._exit(0)  # so its child becomes the child of the nearest reaper, the starter
        os.setsid()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        for descriptor in {null, reader, writer, *others} - {pipe}:
            os.close(descriptor)
        return True
    os.close(writer)
    os.waitpid(between, 0)
    with open(reader, "rb") as told:
        os.write(sys.stdout.fileno(), told.read() + b"\n")
    return False


def _become(assignment: Assignment) -> None:
    """Be what was ordered. In a newborn."""
    fasten(assignment.parent)
    ctypes.CDLL(None).prctl(_PR_SET_NAME, f"bode {assignment.name}".encode(), 0, 0, 0)
    output = os.open(assignment.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.close(output)
    os.environ.clear()
    os.environ.update(assignment.environment)
    sys.argv = [assignment.module, *assignment.arguments]
    gc.enable()
    runpy.run_module(assignment.module, run_name="__main__", alter_sys=True)


def main(parent: int, stages: Sequence[Stage], pipes: list[int]) -> None:
    """Be the nursery, and in each newborn what was ordered."""
    fasten(parent)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > sys.stderr.fileno() and int(name) not in pipes:  # uvloop passes on the far end of ours, too
            with contextlib.suppress(OSError):
                os.close(int(name))
    gc.disable()
    for stage in stages:
        for module in stage.modules:
            importlib.import_module(module)
        if threading.active_count() > 1:
            raise SystemExit("something that was imported runs a thread: a fork isn't safe")
        gc.freeze()  # what is here now stays shared
        for _ in range(stage.newborns):
            pipe = pipes.pop(0)
            if _bear(pipe, pipes):
                _wait(pipe)
                return
            os.close(pipe)


def _wait(pipe: int) -> None:
    with open(pipe, "rb") as waiting:
        ordered = waiting.read()
    if ordered:
        _become(Assignment(*json.loads(ordered)))


if __name__ == "__main__":
    main(int(sys.argv[1]), [Stage(*stage) for stage in json.loads(sys.argv[2])], json.loads(sys.argv[3]))
