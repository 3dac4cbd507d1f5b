"""What processes and the database have used so far: CPU, memory, WAL, commits and rows, read from outside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg
import psutil

_STATUS_PEAK: Final = "VmHWM:"


@dataclass(frozen=True, slots=True)
class DatabaseWork:
    """Commits and changed rows of a database since its statistics began."""

    commits: int
    rows: int


def processes_named(name: str, folder: Path) -> list[int]:
    """The topmost processes of this name that work in `folder`, as their command lines say."""
    found = []
    for process in psutil.process_iter(["name", "cmdline"]):
        if process.info["name"] == name and any(str(folder) in part for part in process.info["cmdline"] or []):
            found.append(process.pid)
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
    """CPU seconds of processes and of all their children, those that have ended included."""
    total = 0.0
    for process in _families(pids):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def peak_megabytes(pid: int) -> float:
    """The most memory that a process has ever held (resident); what it holds now where the system doesn't tell."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(_STATUS_PEAK):
                return int(line.split()[1]) * 1024 / 1e6
    except FileNotFoundError:
        pass
    return float(psutil.Process(pid).memory_info().rss) / 1e6


def family_megabytes(pids: Sequence[int]) -> float:
    """Memory of processes and their children now, what they share counted once."""
    total = 0
    for process in _families(pids):
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, AttributeError):
            continue
    return total / 1e6


def all_cpu_seconds(groups: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """CPU seconds so far, by group."""
    return {name: cpu_seconds(pids) for name, pids in groups.items()}


async def wal_position(connection: asyncpg.Connection) -> int:
    """Bytes of WAL written since the cluster was made."""
    position: int = await connection.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint")
    return position


async def database_work(connection: asyncpg.Connection) -> DatabaseWork:
    """Commits and rows; exact only for sessions that have ended, others tell now and then."""
    row = await connection.fetchrow(
        "SELECT xact_commit, tup_inserted + tup_updated + tup_deleted AS rows"
        " FROM pg_stat_database WHERE datname = current_database()"
    )
    return DatabaseWork(row["xact_commit"], row["rows"])


def _families(pids: Sequence[int]) -> list[psutil.Process]:
    found: dict[int, psutil.Process] = {}
    for pid in pids:
        try:
            process = psutil.Process(pid)
            found[pid] = process
            found.update((child.pid, child) for child in process.children(recursive=True))
        except psutil.NoSuchProcess:
            continue
    return list(found.values())
