"""First incarnations from a nursery: already imported, and otherwise children like any others."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from broker.tools.local.children import Change, ChildFailed, Children, Command, run_once
from broker.tools.local.nursery import Nursery, Stage

TAUGHT = """\
import os
IMPORTED_BY = os.getpid()
"""
CHILD = """\
import json, os, sys, time, taught
ready = sys.argv[1]
with open(ready + ".new", "w") as file:
    json.dump({"pid": os.getpid(), "port": 1, "imported_by": taught.IMPORTED_BY, "parent": os.getppid(),
               "session": os.getsid(0), "arguments": sys.argv[1:], "told": os.environ.get("TOLD"),
               "open": os.listdir("/proc/self/fd")}, file)
os.rename(ready + ".new", ready)
print("said", flush=True)
time.sleep(600)
"""
KILLED = """\
import asyncio, sys
from pathlib import Path
from broker.tools.local.nursery import Nursery, Stage

async def main():
    async with Nursery([Stage(["taught"], 2), Stage(["slow"], 1)], log=Path(sys.argv[1])) as nursery:
        [await nursery.newborn() for _ in range(2)]
        print("born", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "taught.py").write_text(TAUGHT)
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "slow.py").write_text("import time; time.sleep(600)")
    (tmp_path / "failing.py").write_text("raise SystemExit(3)")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)]))
    return tmp_path


def family() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def command(folder: Path, name: str) -> Command:
    ready = folder / f"{name}.ready"
    return Command(name, [str(ready), "x y"], {**os.environ, "TOLD": name}, folder / f"{name}.log", ready, "child")


async def test_first_incarnations_are_imported_once_and_restarts_are_processes_of_their_own(modules: Path) -> None:
    before = family()
    changes: list[Change] = []
    names = ["api", "deliver"]
    async with Nursery([Stage(["taught"], 2)], log=modules / "nursery.log") as nursery:
        children = Children([command(modules, name) for name in names], changed=changes.append, nursery=nursery)
        await children.__aenter__()
    try:
        first = {name: await children.ready(name, 20) for name in names}
        assert {name: about["pid"] for name, about in first.items()} == children.pids
        assert len({about["imported_by"] for about in first.values()} - set(children.pids.values())) == 1
        for name, about in first.items():
            assert about["parent"] == os.getpid()
            assert about["session"] == about["pid"]
            assert about["arguments"] == [str(modules / f"{name}.ready"), "x y"]
            assert about["told"] == name
            assert len(about["open"]) == 5  # the standard three, this file, the listing
            assert psutil.Process(about["pid"]).name() == f"bode {name}"
        assert (modules / "api.log").read_text() == "said\n"
        os.kill(children.pids["api"], signal.SIGKILL)
        async with asyncio.timeout(20):
            while (again := await children.ready("api", 20))["pid"] == first["api"]["pid"]:
                await asyncio.sleep(0.01)
        assert again["imported_by"] == again["pid"]
        assert [change.exit_code for change in changes if change.pid is None] == [-signal.SIGKILL]
    finally:
        await children.__aexit__(None, None, None)
    assert family() <= before


async def test_newborns_that_became_nothing_are_gone(modules: Path) -> None:
    before = family()
    async with Nursery([Stage(["taught"], 2), Stage(["slow"], 1)], log=modules / "nursery.log") as nursery:
        first = await nursery.newborn()
        assert first is not None
        await first.let_go()
        assert family() - before
    assert family() <= before


async def test_a_nursery_that_fails_leaves_children_to_start_the_usual_way(modules: Path) -> None:
    async with Nursery([Stage(["failing"], 1)], log=modules / "nursery.log") as nursery:
        commands = [command(modules, "api")]
        async with Children(commands, changed=lambda change: None, nursery=nursery) as children:
            about = await children.ready("api", 20)
    assert about["imported_by"] == about["pid"]


async def test_what_runs_once_tells_that_it_failed(modules: Path) -> None:
    steps = Command("steps", ["none"], dict(os.environ), modules / "steps.log", module="no_such_module")
    async with Nursery([Stage(["taught"], 1)], log=modules / "nursery.log") as nursery:
        with pytest.raises(ChildFailed, match="No module named no_such_module"):
            await run_once(steps, nursery)


def test_nothing_is_left_of_a_nursery_whose_starter_is_killed(modules: Path) -> None:
    (modules / "killed.py").write_text(KILLED)
    with subprocess.Popen(
        [sys.executable, "-m", "killed", str(modules / "nursery.log")], stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "born\n"
        born = psutil.Process(starter.pid).children(recursive=True)
        assert len(born) == 3, json.dumps([process.cmdline() for process in born])
        starter.kill()
    assert psutil.wait_procs(born, 5)[1] == []
