"""Runs one program and makes sure that nothing of it outlives the process that started this keeper.

A script of its own, with the standard library only: `python -I -S keeper.py ORDER`, with the JSON of an `Order`. It
runs in its own session. Its standard input is a pipe of which the starter alone holds the other end: when that
closes, because the starter closed it or died in any way, the program is ended. Whatever the program started, daemons
included, becomes a child of the keeper when its parent ends, and ends with it. The exit code is the program's, or 128
and the number of the signal that ended it.

    program runs ──input closed, SIGTERM──► signals of the order, each with its patience ──► SIGKILL
        └─ended by itself─► what it left behind is killed ─► folders of the order are removed ─► exit
"""

import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import struct
import sys
import time
from typing import Final, NamedTuple, NoReturn

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_KEEPCAPS: Final = 8
_PR_SET_SECUREBITS: Final = 28
_NO_SETUID_FIXUP: Final = 1 << 2
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2
_CAPABILITY_VERSION_3: Final = 0x20080522
_CAP_DAC_OVERRIDE: Final = 1
_CANNOT_START: Final = 126
_ENDING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Order(NamedTuple):
    """What to run, as which user, and how to end it."""

    arguments: list[str]
    signals: list[tuple[int, float]]
    """How the program is asked to end: signal numbers, each with the seconds that it gets; then SIGKILL."""
    remove: list[str]
    """Folders of ours to remove in the end."""
    user: tuple[int, int] | None = None
    """Run with these user and group ids instead of root's."""
    passage: bool = False
    """Let that user pass folders that only root can pass (CAP_DAC_OVERRIDE), and nothing else of root's."""
    input: str = os.devnull
    """The file that the program reads as its standard input."""


def main(order: Order) -> int:
    """Run the program of the order to its end."""
    wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    asked: list[int] = []
    for ending in _ENDING:
        signal.signal(ending, lambda caught, _: asked.append(caught))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    child = os.fork()
    if child == 0:
        _run(order)
    try:
        status = _wait(child, wake, asked, [sys.stdin.fileno()], None)
        for number, patience in order.signals:
            if status is not None:
                break
            os.kill(child, number)
            status = _wait(child, wake, [], [], time.monotonic() + patience)
        if status is None:
            os.kill(child, signal.SIGKILL)
            status = _wait(child, wake, [], [], None)
        _end_orphans()
    finally:
        for folder in order.remove:
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if status is None else status


def _run(order: Order) -> NoReturn:
    """Become the program. In the forked child."""
    try:
        for number in (*_ENDING, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold payloads
        keeper = os.getppid()
        os.dup2(os.open(order.input, os.O_RDONLY), sys.stdin.fileno())
        if order.user is not None:
            _become(*order.user, passage=order.passage)
        # After the change of user, which would undo it. Should the keeper be killed, this asks the program to end.
        _prctl(_PR_SET_PDEATHSIG, order.signals[0][0] if order.signals else signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(_CANNOT_START)
        os.execvp(order.arguments[0], order.arguments)
    except BaseException as error:
        os.write(2, f"keeper: cannot start {order.arguments[0]}: {error}\n".encode())
    os._exit(_CANNOT_START)


def _become(user: int, group: int, *, passage: bool) -> None:
    """Give up root for good; keep at most the capability to pass and read what permissions forbid."""
    if passage:
        try:
            _prctl(_PR_SET_SECUREBITS, _NO_SETUID_FIXUP)  # access(2), which Erlang asks, minds capabilities then
        except OSError:
            _prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    if not passage:
        return
    mask = 1 << _CAP_DAC_OVERRIDE
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    capabilities = struct.pack("=6I", mask, mask, mask, 0, 0, 0)
    if libc.capset(header, capabilities) != 0:
        raise OSError(ctypes.get_errno(), "capset CAP_DAC_OVERRIDE")
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE)


def _wait(child: int, wake: int, asked: list[int], inputs: list[int], deadline: float | None) -> int | None:
    """Wait until the program has ended (its exit code), an end is asked for, or the deadline passes (None)."""
    while True:
        with contextlib.suppress(ChildProcessError):
            while True:
                ended, status = os.waitpid(-1, os.WNOHANG)
                if ended == child:
                    code = os.waitstatus_to_exitcode(status)
                    return code if code >= 0 else 128 - code
                if ended == 0:
                    break
        if asked:
            return None
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return None
        readable, _, _ = select.select([wake, *inputs], [], [], left)
        if wake in readable:
            os.read(wake, 4096)
        if any(descriptor in readable and not os.read(descriptor, 4096) for descriptor in inputs):
            return None


def _end_orphans() -> None:
    """Kill what the program left behind; all of it is our child by now, or becomes so when its parent is killed."""
    while True:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    found = []
    for name in os.listdir("/proc") if sys.platform == "linux" else []:
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                    found.append(int(name))
    return found


def _prctl(option: int, *values: int) -> None:
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        padded = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
        if libc.prctl(option, *padded) != 0:
            raise OSError(ctypes.get_errno(), f"prctl {option}")


if __name__ == "__main__":
    sys.exit(main(Order(*json.loads(sys.argv[1]))))
