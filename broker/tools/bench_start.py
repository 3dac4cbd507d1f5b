"""How long `bode up --demo` takes until `bode.json` is there: in an empty data directory, and again in the same one."""

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psutil
from rich.table import Table

from broker.tools.local.rabbitmq import NotInstalled, find_installed

_LIMIT_SECONDS: Final = 120.0
_LOOK_SECONDS: Final = 0.005


class StartFailed(Exception):
    """`bode up` ended, or wasn't ready in time; the message has what it said."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start."""

    rabbitmq: bool
    first: bool
    """In an empty data directory."""
    seconds: float
    cpu_seconds: float
    """Of all processes that it started until then, those that ended included."""
    stop_seconds: float


def run(runs: int, told: Callable[[Start], None]) -> list[Start]:
    """Start and stop, with RabbitMQ (where it is installed) and without, twice for each run.

    Raises:
        StartFailed: a start didn't succeed.
    """
    starts: list[Start] = []
    for rabbitmq in (False, True):
        if rabbitmq and isinstance(find_installed(), NotInstalled):
            break
        for _ in range(runs):
            for start in _starts(rabbitmq):
                told(start)
                starts.append(start)
    return starts


def _starts(rabbitmq: bool) -> Iterator[Start]:
    folder = Path(tempfile.mkdtemp(prefix="bode-bench-start-"))
    try:
        for first in (True, False):
            yield _start(folder, rabbitmq, first)
    finally:
        shutil.rmtree(folder)


def _start(folder: Path, rabbitmq: bool, first: bool) -> Start:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BODE_")}
    environment["BODE_DEMO_RATE"] = "0"
    if not rabbitmq:
        environment["PATH"] = str(folder)  # where no Erlang is found; nothing else is looked for there
    data, said = folder / "data", folder / "said"
    began_at = time.monotonic()
    with said.open("ab") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "bode"), "up", "--demo", "--data-dir", str(data)],
            stdout=output, stderr=output, env=environment,
        )  # fmt: skip
    try:
        while not (data / "bode.json").exists():
            if process.poll() is not None or time.monotonic() - began_at > _LIMIT_SECONDS:
                raise StartFailed(f"bode up isn't ready:\n{said.read_text(errors='replace')[-3000:]}")
            time.sleep(_LOOK_SECONDS)
        seconds, cpu = time.monotonic() - began_at, _cpu_seconds(process.pid)
    finally:
        ended_at = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait()
    return Start(rabbitmq, first, seconds, cpu, time.monotonic() - ended_at)


def _cpu_seconds(pid: int) -> float:
    total = 0.0
    starter = psutil.Process(pid)
    for process in (starter, *starter.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def as_json(starts: Sequence[Start]) -> str:
    """Every start, for machines."""
    return json.dumps({"starts": [asdict(start) for start in starts]}, indent=2)


def as_table(starts: Sequence[Start]) -> Table:
    """Medians, with lowest and highest."""
    table = Table("bode up", "seconds", "CPU seconds", "seconds to stop")
    for rabbitmq in (False, True):
        for first in (True, False):
            chosen = [start for start in starts if (start.rabbitmq, start.first) == (rabbitmq, first)]
            if chosen:
                table.add_row(
                    f"{'with' if rabbitmq else 'without'} RabbitMQ, {'first time' if first else 'later'}",
                    _spread([start.seconds for start in chosen]),
                    _spread([start.cpu_seconds for start in chosen]),
                    _spread([start.stop_seconds for start in chosen]),
                )
    return table


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} - {max(values):.1f})"
