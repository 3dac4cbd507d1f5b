"""`bode deliver` processes that start in a moment, with time and chance of the test's own.

A host process has imported everything and forks them when asked. In them `time.time()` is the real time plus what the
test has added to it, and `random` is seeded. All else is real: leases, connections, sockets, signals.
"""

import asyncio
import json
import math
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

_READY_SECONDS: Final = 60.0
_END_SECONDS: Final = 60.0
POKE: Final = signal.SIGUSR1


class Clock:
    """The time of day, and what was added to it; processes that map the same file share it."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(struct.pack("d", 0.0))
        with path.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), 8)
        self._real = time.time

    @property
    def added(self) -> float:
        found: float = struct.unpack("d", self._shared)[0]
        return found

    def set(self, added: float) -> None:
        self._shared[:] = struct.pack("d", added)

    def __call__(self) -> float:
        return self._real() + self.added


@dataclass
class DeliverProcess:
    """One process, as the test holds it."""

    name: str
    pid: int
    owner: UUID
    log: Path
    stopped: bool = False
    """By SIGSTOP."""
    disturbed: list[float] = field(default_factory=list)
    """When it was killed, stopped or cut off from the database, in real time."""
    killed: float | None = None
    stops: list[tuple[float, float]] = field(default_factory=list)
    """From, until: stood still."""

    def kill(self) -> None:
        """At once, by SIGKILL."""
        self.killed = time.time()
        self.disturbed.append(self.killed)
        self.signal(signal.SIGKILL)

    def stop(self) -> None:
        """Until `go_on`, by SIGSTOP."""
        self.stopped = True
        self.disturbed.append(time.time())
        self.stops.append((self.disturbed[-1], math.inf))
        self.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """After `stop`."""
        self.stopped = False
        self.signal(signal.SIGCONT)
        self.stops[-1] = (self.stops[-1][0], time.time())

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)


class Host:
    """The host process. It and what it forked end with the test, however that ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = Clock(folder / "clock")
        self._count = 0

    def __enter__(self) -> "Host":
        with (self.folder / "host.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(os.getpid()), str(self.folder / "clock")],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _ask(self, **order: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the host ended; see {self.folder / 'host.log'}"
        return json.loads(line)

    def start(self, settings: dict[str, Any], seed: int, *, ready: bool = True) -> DeliverProcess:
        """Start a process whose `origin`, which sinks see, is its name."""
        self._count += 1
        name, owner = f"p{self._count}", uuid4()
        log, sign = self.folder / f"{name}.log", self.folder / f"{name}.ready"
        settings = settings | {"delivery": settings["delivery"] | {"origin": name}}
        answer = self._ask(start=settings, owner=str(owner), seed=seed, log=str(log), ready=str(sign))
        process = DeliverProcess(name, answer["pid"], owner, log)
        if ready:
            self.until_ready(process)
        return process

    def until_ready(self, process: DeliverProcess) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not (self.folder / f"{process.name}.ready").exists():
            assert time.monotonic() < deadline, f"not ready in time; see {process.log}"
            time.sleep(0.005)

    def ended(self, process: DeliverProcess, seconds: float = _END_SECONDS) -> int:
        """Wait for its end; the exit code, negative for a signal."""
        code = self._ask(wait=process.pid, seconds=seconds)["code"]
        assert code is not None, f"{process.name} did not end; see {process.log}"
        return int(code)

    def running(self, process: DeliverProcess) -> bool:
        """Whether it has not ended by itself."""
        return self._ask(wait=process.pid, seconds=0)["code"] is None


# what runs in the host


def _host(parent: int, clock_file: Path) -> None:
    from broker.tools.local.leash import fasten

    fasten(parent)
    time.time = Clock(clock_file)  # first, because functions take it as their default
    from broker.processes import deliver

    signal.signal(POKE, signal.SIG_IGN)
    codes: dict[int, int] = {}
    for line in sys.stdin.buffer:
        order = json.loads(line)
        if "start" in order:
            pid = os.fork()
            if pid == 0:
                _become(deliver, order)
            answer: dict[str, Any] = {"pid": pid}
        else:
            answer = {"code": _wait(order["wait"], order["seconds"], codes)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _wait(pid: int, seconds: float, codes: dict[int, int]) -> int | None:
    deadline = time.monotonic() + seconds
    while pid not in codes:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            codes[pid] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() >= deadline:
            return None
        else:
            time.sleep(0.002)
    return codes[pid]


def _become(deliver: Any, order: dict[str, Any]) -> None:
    """In the fork: be a delivery process."""
    code = 1
    try:
        import uvloop

        from broker.settings import Settings
        from broker.telemetry import configure_logging
        from broker.tools.local.leash import fasten

        fasten(os.getppid())
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        null = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, null), (1, log), (2, log)):
            os.dup2(source, target)
        os.environ["BODE_READY_FILE"] = order["ready"]
        random.seed(order["seed"])
        configure_logging("deliver", "INFO")
        deliver.uuid4 = lambda: UUID(order["owner"])
        deliver.DeliverProcess = _poked(deliver.DeliverProcess)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(deliver.run(Settings.model_validate(order["start"])))
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _poked(process: type[Any]) -> type[Any]:
    """The class, whose engine looks anew at what is due when the test has moved the clock."""

    class Poked(process):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named, clock=time.time)
            asyncio.get_running_loop().add_signal_handler(POKE, self._look_anew)

        def _look_anew(self) -> None:
            for runner in self._engine._runners:
                self._engine._look(runner)
            self._engine._serve()

    return Poked


if __name__ == "__main__":
    _host(int(sys.argv[1]), Path(sys.argv[2]))
