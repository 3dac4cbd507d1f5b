"""`bode up` leaves nothing behind, however it ends: no process, no port, no temporary folder."""

import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from broker.tools.local.locks import mark
from tests.e2e.installation import Installation, own_folder

STOP_SECONDS = 20


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """Data and temporary folder of the installations here."""
    with own_folder() as folder:
        (folder / "tmp").mkdir(mode=0o1777)
        yield folder


@pytest.fixture
def installation(home: Path) -> Iterator[Installation]:
    made = Installation(home / "data", TMPDIR=str(home / "tmp"))
    yield made
    for process in ours(home):  # only what a failed test left
        process.kill()


@dataclass
class Running:
    """What an installation consists of."""

    processes: list[psutil.Process]
    ports: set[int]

    @property
    def names(self) -> set[str]:
        found = set()
        for process in self.processes:
            with suppress(psutil.NoSuchProcess):  # a backend of PostgreSQL may end by itself
                found.add(process.name())
        return found


def ours(home: Path) -> list[psutil.Process]:
    """Every process that knows our folders: by its command line or its environment."""
    signs = [str(home), *(mark(home / "data" / name) for name in ("postgres", "rabbitmq"))]
    found = []
    for process in psutil.process_iter():
        try:
            known = [*process.cmdline(), *process.environ().values()]
        except psutil.Error:
            continue
        if process.pid != psutil.Process().pid and any(sign in text for sign in signs for text in known):
            found.append(process)
    return found


def look(installation: Installation, home: Path) -> Running:
    """All processes, found by descent and by what they know, and every port that is listened on or written down."""
    up = psutil.Process(installation.pid)
    processes = list({p.pid: p for p in (up, *up.children(recursive=True), *ours(home))}.values())
    ports = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # a backend of PostgreSQL may end by itself
            listening = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
            ports |= {connection.laddr.port for connection in listening}
    about = installation.about
    urls = [about["api"], about["amqp"], about["receiver"], *about["metrics"]]
    written = {urlsplit(url).port for url in urls} - {None}
    assert written <= ports, "what bode.json says is listened on"
    assert {process.pid for process in processes} >= set(about["processes"].values())
    return Running(processes, ports)


def assert_nothing_remains(was: Running, home: Path) -> None:
    assert [process for process in was.processes if process.is_running()] == []
    assert ours(home) == []
    listening = {
        connection.laddr.port for connection in psutil.net_connections("inet") if connection.status == "LISTEN"
    }
    assert not was.ports & listening
    assert list((home / "tmp").iterdir()) == []
    assert not (home / "data" / "bode.json").exists()


def start(installation: Installation, home: Path) -> Running:
    installation.start()
    deadline = time.monotonic() + 20
    while "receiver" not in installation.about:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    was = look(installation, home)
    assert {"beam.smp", "postgres"} <= was.names
    return was


def bode_up(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "bode"), "up", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_ctrl_c_leaves_nothing_and_a_taken_port_or_folder_is_no_riddle(installation: Installation, home: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8000))
            taken.listen()
        except OSError:
            pass  # somebody else has it, which serves as well
        was = start(installation, home)
    assert urlsplit(installation.about["api"]).port != 8000
    for name in ("", "env", "bode.json", "secrets.key"):
        assert (home / "data" / name).stat().st_mode & 0o077 == 0, "others can't read it"

    second = bode_up("--data-dir", str(home / "data"))
    assert second.returncode != 0
    told = re.sub(r"\s+", " ", second.stdout + second.stderr)
    assert f"in use by process {installation.pid}" in told
    assert "--data-dir" in told
    assert "Traceback" not in told
    assert installation.about["processes"], "the first is none the worse"

    port = str(urlsplit(installation.about["api"]).port)
    with tempfile.TemporaryDirectory(prefix="bode-e2e-") as other:
        refused = bode_up("--data-dir", other, "--port", port)
        assert refused.returncode != 0
        assert f"port {port} is taken" in re.sub(r"\s+", " ", refused.stdout + refused.stderr)

    started = time.monotonic()
    assert installation.stop(signal.SIGINT) == 0
    assert time.monotonic() - started < STOP_SECONDS
    assert_nothing_remains(was, home)


def test_sigkill_and_a_new_start_and_sigterm_leave_nothing(installation: Installation, home: Path) -> None:
    killed = start(installation, home)
    keys = installation.about["keys"]
    psutil.Process(installation.pid).kill()
    assert installation.wait() == -signal.SIGKILL
    was = start(installation, home)
    assert installation.about["keys"]["operator"] == keys["operator"], "it is the same installation"
    assert [process for process in killed.processes if process.is_running()] == []
    started = time.monotonic()
    assert installation.stop(signal.SIGTERM) == 0
    assert time.monotonic() - started < STOP_SECONDS
    assert_nothing_remains(was, home)
    assert_nothing_remains(killed, home)


def test_stop_while_it_is_starting_leaves_nothing(installation: Installation, home: Path) -> None:
    command = [str(Path(sys.executable).parent / "bode"), "up", "--demo", "--data-dir", str(home / "data")]
    log = (home / "starting.log").open("wb")
    process = subprocess.Popen(command, stdout=log, stderr=log, env=installation.environment)
    deadline = time.monotonic() + 60
    while not any("postgres" in found.name() for found in ours(home)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    was = Running(ours(home), set())
    process.send_signal(signal.SIGTERM)
    assert process.wait(STOP_SECONDS) == 0
    log.close()
    assert_nothing_remains(was, home)
