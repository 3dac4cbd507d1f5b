"""Tools of others that tests run: installed once into a cache outside the project, each in its own folder.

They are not dependencies of the project: they need Node, or other versions of what the project uses, or are servers
that must not be installed on somebody's machine. What npm and pip install is in a lock file; what Debian has is signed.
Where they can't be installed the test is skipped and says why.
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
    return npm_packages(name) / ".bin" / command


def npm_packages(name: str) -> Path:
    """The folder `node_modules` with what `tools/<name>/package-lock.json` has."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node or npm is not installed")

    def install(folder: Path) -> list[list[str]]:
        for file in ("package.json", "package-lock.json"):
            shutil.copy(LOCKS / name / file, folder)
        return [[npm, "ci", "--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]]

    return _installed(name, _content(name, "package-lock.json"), install) / "node_modules"


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

    return _installed(name, _content(name, "requirements.lock"), install) / "bin"


def debian_program(package: str, path: str) -> Path:
    """The path of a program of a Debian package: the machine's own, or the package unpacked, not installed.

    No maintainer's script runs and no service starts, so this needs no root. The package's dependencies must be there.
    """
    own = Path("/") / path
    if own.exists():
        return own
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip(f"{package} is not installed, and this machine has no apt-get to fetch it with")
    find = ["apt-get", "download", "--print-uris", package]
    found = subprocess.run(find, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if found.returncode != 0 or "'" not in found.stdout:
        why = found.stderr.strip()[-300:] or "it is not in the package lists"
        pytest.skip(f"{package} is not installed, and can't be fetched (is 'apt-get update' needed?): {why}")

    def install(folder: Path) -> list[list[str]]:
        fetch = 'cd "$1" && apt-get download -qq "$2" && dpkg-deb -x "$2"_*.deb .'
        return [["sh", "-c", fetch, "sh", str(folder), package]]

    return _installed(package, found.stdout.encode(), install) / path


def _content(name: str, lock: str) -> bytes:
    return (LOCKS / name / lock).read_bytes()


def _installed(name: str, content: bytes, commands: Callable[[Path], list[list[str]]]) -> Path:
    """A folder in which these commands succeeded once; another for other `content`."""
    digest = hashlib.sha256(content).hexdigest()[:16]
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
