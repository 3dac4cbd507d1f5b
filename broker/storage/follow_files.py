"""Versioned files, written whole and mapped into memory: a reader sees one version or the next, never a part of one.

A version is written beside the others, synced, and renamed into place; readers keep what they have mapped, also after
the file is removed. The names are `follows-<version>.bin` with the version in 20 digits, so that they sort.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_NAME: Final = re.compile(r"follows-(\d{20})\.bin")


def write_version(directory: Path, version: int, parts: Iterable[bytes | bytearray | memoryview]) -> Path:
    """Write one version and make it durable; the parts are any contiguous buffers.

    Raises:
        FileExistsError: somebody is writing the same version.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"follows-{version:020d}.bin"
    draft = path.with_suffix(".new")
    with draft.open("xb") as file:
        try:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            draft.unlink()
            raise
    draft.chmod(0o600)
    draft.rename(path)
    folder = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path


def versions(directory: Path) -> list[tuple[int, Path]]:
    """The versions that are there, oldest first."""
    found = [(match, path) for path in directory.glob("follows-*.bin") if (match := _NAME.fullmatch(path.name))]
    return sorted((int(match[1]), path) for match, path in found)


def map_version(path: Path) -> memoryview:
    """Map a version for reading; the pages are shared by all processes that map it."""
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def remove_older(directory: Path, version: int) -> int:
    """Remove versions before this one and drafts that a killed process left; says how many went."""
    gone = [path for number, path in versions(directory) if number < version]
    gone += [path for path in directory.glob("follows-*.new") if path.name < f"follows-{version:020d}.new"]
    for path in gone:
        path.unlink(missing_ok=True)
    return len(gone)
