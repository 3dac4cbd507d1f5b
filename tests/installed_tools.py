"""Tools of others that tests run: installed once from a lock file into a cache outside the project, in its own folder.

They are not dependencies of the project: they need Node, or other versions of what the project uses. Where they can't
be installed the test is skipped and says why.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LOCKS = Path(__file__).parent / "tools"
INSTALL_SECONDS = 240
TIMEOUT_SECONDS = 600
"""What a test needs that installs something the first time, on a slow machine."""


def npm_tool(name: str, command: str) -> Path:
    """The path of a command of an npm package, as `tools/<name>/package-lock.json` has it."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node or npm is not installed")

    def install(folder: Path) -> list[list[str]]:
        for file in ("package.json", "package-lock.json"):
            shutil.copy(LOCKS / name / file, folder)
        return [[npm, "ci", "--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]]

    return _installed(name, "package-lock.json", install) / "node_modules/.bin" / command


def python_tool(name: str) -> Path:
    """The folder of programs of an environment with what `tools/<name>/requirements.lock` has."""

    def install(folder: Path) -> list[list[str]]:
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install", "--quiet", "--no-input"]
        lock = str(LOCKS / name / "requirements.lock")
        return [
            [sys.executable, "-m", "venv", "--without-pip", str(folder)],
            [
                *pip,
                "--disable-pip-version-check",
                "--require-hashes",
                "--no-deps",
                "--prefer-binary",
                "--no-compile",
                "-r",
                lock,
            ],
        ]

    return _installed(name, "requirements.lock", install) / "bin"


def _installed(name: str, lock: str, commands: Callable[[Path], list[list[str]]]) -> Path:
    digest = hashlib.sha256((LOCKS / name / lock).read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bode-tests"
    folder = cache / f"{name}-{digest}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        pytest.skip(f"no cache folder for {name}: {error.strerror}")
    with _one_at_a_time(cache / f"{name}.lock"):
        if (folder / "installed").exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for command in commands(folder):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
            except subprocess.TimeoutExpired:
                pytest.skip(f"{name} was not installed within {INSTALL_SECONDS} s")
            if done.returncode != 0:
                pytest.skip(f"{name} can't be installed: {done.stderr.strip()[-300:]}")
        (folder / "installed").touch()
    return folder


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(
    command: list[str], seconds: float, folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a tool, in a folder of its own unless one is given, with its output as text."""
    with tempfile.TemporaryDirectory(prefix="bode-tool-") as own:
        return subprocess.run(
            command, cwd=folder or own, env=os.environ | environment, capture_output=True, text=True, timeout=seconds
        )
