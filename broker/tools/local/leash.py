"""Runs a module as a child that dies with its parent: `python -m broker.tools.local.leash PARENT-PID MODULE …`.

The kernel kills the child (SIGKILL) the moment the parent's main thread ends, however it ends; a parent that died
before this was arranged is noticed by its process id. No process stands in between: the child's id is the module's.
"""

import ctypes
import os
import runpy
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def fasten(parent: int) -> None:
    """Die with the process `parent`, from now on.

    Raises:
        SystemExit: it is dead already.
    """
    if sys.platform == "linux" and ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0):
        raise OSError("prctl PR_SET_PDEATHSIG failed")
    if os.getppid() != parent:
        raise SystemExit("the parent is gone")


if __name__ == "__main__":
    fasten(int(sys.argv[1]))
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
