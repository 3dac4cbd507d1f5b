"""Children of `bode up`: restarted when they die, stopped in order, gone with their parent."""

import asyncio
import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from broker.tools.local.children import Change, ChildFailed, Children, Command
from broker.tools.local.locks import FolderInUse, locked

CHILD = """\
import json, os, signal, sys, time
name, ready, log, stubborn = sys.argv[1:5]
def end(*_):
    with open(log, "a") as file:
        file.write(name + "\\n")
    if stubborn == "no":
        os._exit(0)
signal.signal(signal.SIGTERM, end)
with open(ready + ".new", "w") as file:
    json.dump({"pid": os.getpid(), "port": 1}, file)
os.rename(ready + ".new", ready)
while True:
    time.sleep(60)
"""


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    (tmp_path / "restless_child.py").write_text(CHILD)
    return tmp_path


def command(folder: Path, name: str, *, stubborn: bool = False, module: str = "restless_child") -> Command:
    ready = folder / f"{name}.ready"
    return Command(
        name,
        [name, str(ready), str(folder / "ended"), "yes" if stubborn else "no"],
        {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(folder)])},
        folder / f"{name}.log",
        ready,
        module,
    )


async def test_children_are_stopped_in_the_order_given(modules: Path) -> None:
    names = ["api", "ingest", "deliver"]
    async with Children([command(modules, name) for name in names], changed=lambda change: None) as children:
        for name in names:
            assert (await children.ready(name, 20))["pid"] == children.pids[name]
        pids = list(children.pids.values())
    assert (modules / "ended").read_text().split() == names
    assert children.pids == {}
    assert not any(psutil.pid_exists(pid) for pid in pids)


async def test_dead_child_is_restarted_and_told(modules: Path) -> None:
    changes: list[Change] = []
    async with Children([command(modules, "ingest")], changed=changes.append) as children:
        first = (await children.ready("ingest", 20))["pid"]
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(20):
            second = first
            while second == first:
                second = (await children.ready("ingest", 20))["pid"]
                await asyncio.sleep(0.01)
        assert children.restarts == {"ingest": 1}
    assert [(change.pid, change.restarts, change.exit_code) for change in changes] == [
        (first, 0, None),
        (None, 1, -signal.SIGKILL),
        (second, 1, None),
    ]


async def test_child_that_ignores_sigterm_is_killed_at_the_deadline(modules: Path) -> None:
    commands = [command(modules, "stubborn", stubborn=True), command(modules, "other")]
    async with Children(commands, changed=lambda change: None, stop_seconds=1.0) as children:
        for name in ("stubborn", "other"):
            await children.ready(name, 20)
        stubborn = psutil.Process(children.pids["stubborn"])
    assert not stubborn.is_running()
    assert (modules / "ended").read_text().split() == ["stubborn", "other"]


async def test_child_that_cannot_start_is_told_with_what_it_said(modules: Path) -> None:
    changes: list[Change] = []
    async with Children([command(modules, "broken", module="no_such_module")], changed=changes.append) as children:
        with pytest.raises(ChildFailed, match="No module named no_such_module"):
            await children.ready("broken", 1)
    assert changes[1].exit_code == 1


async def test_nothing_of_the_working_directory_is_imported(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(modules)
    (modules / "json.py").write_text("raise SystemExit('shadowed')")
    child = command(modules, "safe")
    environment = {**child.environment, "PYTHONPATH": str(Path(__file__).parents[2])}
    safe = Command("safe", ["0", "--bind", "127.0.0.1"], environment, child.log, module="http.server")
    async with Children([safe], changed=lambda change: None) as children:
        async with asyncio.timeout(20):
            process = psutil.Process(children.pids["safe"])
            while not process.net_connections():
                await asyncio.sleep(0.02)
        assert children.restarts == {"safe": 0}


def test_folder_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path / "data"):
        with pytest.raises(FolderInUse, match=f"in use by process {os.getpid()}"), locked(tmp_path / "data"):
            pass
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    with locked(tmp_path / "data"):
        assert json.loads((tmp_path / "data" / "lock").read_text()) == os.getpid()
