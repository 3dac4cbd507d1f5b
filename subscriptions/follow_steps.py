"""What accepting processes read of follow lists: all fingerprints once, and the steps since.

A failure to read is raised, never an empty answer.
"""

import struct
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from subscriptions.change_log import change_log
from subscriptions.tables import follow_changes

FINGERPRINT_BYTES: Final = 8
_ROW: Final = struct.Struct(">hi16sQ")
_HEADER_BYTES: Final = 19
_COPY: Final = f"SELECT uuid_send(list_id) || substring(digest FOR {FINGERPRINT_BYTES}) FROM followed_subjects"
"""One column of 24 bytes, so that all rows of COPY's binary form have one size: fields, length, list, fingerprint."""


class Step(NamedTuple):
    """Subjects, known by their fingerprints, came onto a list (1) or left it (-1)."""

    version: int
    list_id: UUID
    step: int
    fingerprints: tuple[int, ...]


async def moment_of(connection: AsyncConnection, version: int) -> datetime | None:
    """Returns when a version of the change log was written; None: it is no longer, or not yet, there.

    With its version it tells histories apart: after a restore the same version comes at another moment.
    """
    found = await connection.execute(select(change_log.c.changed_at).where(change_log.c.version == version))
    moment: datetime | None = found.scalar_one_or_none()
    return moment


async def count_steps(connection: AsyncConnection, since_version: int) -> int:
    """Returns how many subjects came or left after a version."""
    found = await connection.execute(
        select(func.coalesce(func.sum(func.octet_length(follow_changes.c.fingerprints)), 0)).where(
            follow_changes.c.version > since_version
        )
    )
    return int(found.scalar_one()) // FINGERPRINT_BYTES


async def read_steps(connection: AsyncConnection, since_version: int, version: int) -> AsyncIterator[Step]:
    """Gives what changed after `since_version` up to `version`, in order; the log must still reach that far back."""
    statement = (
        select(follow_changes)
        .where(follow_changes.c.version > since_version, follow_changes.c.version <= version)
        .order_by(follow_changes.c.version)
    )
    async with connection.stream(statement, execution_options={"yield_per": 50}) as found:
        async for row in found:
            count = len(row.fingerprints) // FINGERPRINT_BYTES
            yield Step(row.version, row.list_id, row.step, struct.unpack(f">{count}Q", row.fingerprints))


async def copy_fingerprints(connection: AsyncConnection, take: Callable[[Iterator[tuple[bytes, int]]], None]) -> int:
    """Gives every list's id, in 16 bytes, with every fingerprint on it to `take`, in portions; returns how many.

    As seen by the caller's transaction. COPY, because there may be fifty million.
    """
    await connection.execute(text("SET LOCAL statement_timeout = 0"))
    driver: Any = (await connection.get_raw_connection()).driver_connection
    rest, skip, count = b"", _HEADER_BYTES, 0

    async def output(chunk: bytes) -> None:
        nonlocal rest, skip, count
        rest += chunk
        if skip:
            if len(rest) < skip:
                return
            rest, skip = rest[skip:], 0
        whole = len(rest) // _ROW.size
        portion, rest = rest[: whole * _ROW.size], rest[whole * _ROW.size :]
        take((list_id, fingerprint) for _, _, list_id, fingerprint in _ROW.iter_unpack(portion))
        count += whole

    await driver.copy_from_query(_COPY, output=output, format="binary")
    return count
