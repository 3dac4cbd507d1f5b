"""Small file systems that nobody else sees and that can't be left behind: they live in our own mount namespace."""

import ctypes
import os
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_MNT_DETACH = 2


class Mounts:
    """Mounts of this process and its children; the kernel removes them with the last of these processes."""

    def __init__(self) -> None:
        """Enter a mount namespace of our own, where we may."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.reason = ""
        if self._libc.unshare(_CLONE_NEWNS) != 0:
            self.reason = os.strerror(ctypes.get_errno())
        elif self._libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None) != 0:
            self.reason = os.strerror(ctypes.get_errno())
        self.possible = not self.reason

    def make(self, folder: Path, size: int, mode: str = "0711") -> None:
        """A file system of `size` bytes in memory on a folder; an ordinary folder where mounting isn't allowed."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.possible:
            options = f"size={size},mode={mode}".encode()
            if self._libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, options) != 0:
                raise OSError(ctypes.get_errno(), "mount tmpfs", str(folder))

    def remove(self, folder: Path) -> None:
        if self.possible and self._libc.umount2(os.fsencode(folder), _MNT_DETACH) != 0:
            raise OSError(ctypes.get_errno(), "umount", str(folder))
