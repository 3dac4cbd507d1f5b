"""One owner at a time for a folder, and a mark by which the owner's processes are known later.

The lock is the kernel's: it ends with the process that holds it, however that dies.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path


class FolderInUse(Exception):
    """Another live process holds the folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder`, which is made (for its owner only) when absent, until the block ends.

    Raises:
        FolderInUse: naming the process that holds it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise FolderInUse(f"{folder} is in use by process {holder}") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def mark(folder: Path) -> str:
    """What the command lines of the processes that serve `folder` contain, and no others."""
    return "bode-" + hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:20]
