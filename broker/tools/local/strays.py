"""Ends what a killed predecessor left running on a folder. Only to be called by the holder of the folder's lock."""

import asyncio
import contextlib
import signal
import time
from collections.abc import Sequence

import psutil

_KEEPERS_SECONDS = 15.0
_KILLED_SECONDS = 5.0
_LOOK_SECONDS = 0.02


async def end_strays(mark: str, signals: Sequence[tuple[int, float]]) -> int:
    """End every process whose command line has `mark`, properly if it can be; the number of those found.

    A keeper whose starter died is ending its program by itself already: it is left to do so. What has no keeper any
    more gets the signals, each with its patience in seconds, and then SIGKILL.
    """
    found = _marked(mark)
    if not found:
        return 0
    await _gone(found, _KEEPERS_SECONDS if any(map(_is_keeper, found)) else 0)
    for number, patience in signals:
        remaining = _marked(mark)
        if not remaining:
            return len(found)
        pids = {process.pid for process in remaining}
        for process in remaining:
            with contextlib.suppress(psutil.Error):
                if process.ppid() not in pids:
                    process.send_signal(number)
        await _gone(remaining, patience)
    remaining = _marked(mark)
    for process in remaining:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    await _gone(remaining, _KILLED_SECONDS)
    return len(found)


def _marked(mark: str) -> list[psutil.Process]:
    own = psutil.Process().pid
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if process.pid != own
        and process.info["status"] != psutil.STATUS_ZOMBIE
        and any(mark in argument for argument in process.info["cmdline"] or ())
    ]


def _is_keeper(process: psutil.Process) -> bool:
    return any(argument.endswith("keeper.py") for argument in process.info["cmdline"])


async def _gone(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Wait until they have ended. By looking: psutil's own wait would take our children's exit codes from asyncio."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(map(_lives, processes)):  # noqa: ASYNC110 - they tell nobody
        await asyncio.sleep(_LOOK_SECONDS)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
