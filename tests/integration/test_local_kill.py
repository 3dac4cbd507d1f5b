"""After SIGKILL nothing of ours remains: no process, no listening port, no temporary folder."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from local_processes import family, listening, marked

from broker.tools.local.rabbitmq import Installation, find_installed

SCRIPT = Path(__file__).with_name("local_up.py")
SHORT_FOLDERS = "bode-pg-*"

pytestmark = pytest.mark.skipif(
    not isinstance(find_installed(), Installation), reason="RabbitMQ isn't installed on this machine"
)


@dataclass
class Up:
    process: subprocess.Popen[str]
    children: dict[str, int]
    everything: list[psutil.Process]
    ports: set[tuple[str, int]]


@contextmanager
def up(folder: Path) -> Iterator[Up]:
    process = subprocess.Popen(
        [sys.executable, SCRIPT, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        report = json.loads(process.stdout.readline() or "null")
        assert report, f"didn't come up, exit code {process.wait()}"
        everything = family([psutil.Process(process.pid)])
        ports = listening(folder / "postgres") | listening(folder / "rabbitmq")
        yield Up(process, report["children"], everything, ports)
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


def kill(*processes: psutil.Process) -> None:
    for process in processes:
        process.suspend()
    for process in processes:
        process.kill()


def assert_nothing_remains(folder: Path, was: Up, seconds: float) -> None:
    _, alive = psutil.wait_procs(was.everything, seconds)
    assert alive == []
    assert marked(folder / "postgres") + marked(folder / "rabbitmq") == []
    open_ports = {connection.laddr for connection in psutil.net_connections("tcp") if connection.status == "LISTEN"}
    assert not was.ports & {(address.ip, address.port) for address in open_ports}
    assert [*Path(tempfile.gettempdir()).glob(SHORT_FOLDERS)] == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """So deep that PostgreSQL's socket needs a short folder elsewhere."""
    return tmp_path / ("d" * 50) / ("e" * 50)


def test_nothing_remains_after_kill_of_the_starter_and_the_next_start_works(folder: Path) -> None:
    with up(folder) as first:
        names = {process.name() for process in first.everything}
        assert {"postgres", "beam.smp", "erl_child_setup"} <= names
        assert len(first.ports) == 3
        assert [*Path(tempfile.gettempdir()).glob(SHORT_FOLDERS)]
        kill(psutil.Process(first.process.pid))
        children = [process for process in first.everything if process.pid in first.children.values()]
        assert psutil.wait_procs(children, 2)[1] == []
        assert_nothing_remains(folder, first, 20)

    with up(folder) as second:  # and now starter and keepers at once, so that nobody is left to tidy up
        keepers = [process for process in second.everything if any("keeper.py" in part for part in process.cmdline())]
        assert len(keepers) == 2
        kill(psutil.Process(second.process.pid), *keepers)

    with up(folder) as third:  # which takes over, at once
        assert not {process.pid for process in second.everything if process.is_running()}
    assert third.process.returncode == 0
    assert_nothing_remains(folder, third, 0)
