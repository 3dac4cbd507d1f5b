"""Kadaster's zip files in zip files, walked with bounded memory and bounded harm.

Nested archives are spooled to nameless temporary files, which vanish with the process, however it ends. Sizes are
counted as they are read, never believed from the archive's own tables.

    BagFileError(ValueError)    the file isn't what Kadaster delivers, or goes beyond the limits
"""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, NamedTuple

_CHUNK = 256 * 1024
_SPOOL = 8 * 1024 * 1024


class BagFileError(ValueError):
    """A BAG file that can't be read; the message names the member."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a hostile file may cost. Kadaster's deliveries stay far below: ratios to 60, depth 3, some 100 GB in all."""

    depth: int = 4
    members: int = 100_000
    total_bytes: int = 256 * 1024**3
    ratio: int = 200
    """Unpacked to packed bytes of one member, from its first mebibyte on."""
    record_bytes: int = 64 * 1024**2
    """XML of one record, which is held in memory."""


class Member(NamedTuple):
    """One XML file: the names on the way to it, outermost first, and its bytes in chunks."""

    path: tuple[str, ...]
    chunks: Iterator[bytes]


def walk(path: Path, limits: Limits) -> Iterator[Member]:
    """Every XML file in the archive, in the archive's order. Each must be read before the next is asked for."""
    with path.open("rb") as file, _readable(path.name):
        yield from _Walk(limits).archive(file, (path.name,))


class _Walk:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._members = 0
        self._bytes = 0

    def archive(self, file: IO[bytes], path: tuple[str, ...]) -> Iterator[Member]:
        if len(path) > self._limits.depth:
            raise BagFileError(f"{path[-1]}: archives nested more than {self._limits.depth} deep")
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                self._members += 1
                if self._members > self._limits.members:
                    raise BagFileError(f"{path[0]}: more than {self._limits.members} members")
                inner = (*path, info.filename)
                if info.filename.lower().endswith(".xml"):
                    yield Member(inner, self._chunks(archive, info))
                elif info.filename.lower().endswith(".zip"):
                    with SpooledTemporaryFile(_SPOOL) as spooled:
                        for chunk in self._chunks(archive, info):
                            spooled.write(chunk)
                        spooled.seek(0)
                        yield from self.archive(spooled, inner)

    def _chunks(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
        size = 0
        with _readable(info.filename), archive.open(info) as member:
            while chunk := member.read(_CHUNK):
                size += len(chunk)
                self._bytes += len(chunk)
                if self._bytes > self._limits.total_bytes:
                    raise BagFileError(f"{info.filename}: more than {self._limits.total_bytes} bytes in all")
                if size > 1024**2 and size > self._limits.ratio * max(info.compress_size, 1):
                    raise BagFileError(f"{info.filename}: packed more than {self._limits.ratio} to 1")
                yield chunk


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """What zipfile raises for damaged, encrypted (RuntimeError) or oddly packed members becomes one error."""
    try:
        yield
    except BagFileError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise BagFileError(f"{name}: not a readable zip file: {error}") from error
