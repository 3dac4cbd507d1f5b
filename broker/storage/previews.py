"""Which events a preview looks at. Both readings are bounded by their limits, whatever a day holds."""

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

_LATEST: Final = text(
    """
    SELECT key, organisation_id, type, bytes FROM events
    WHERE key >= :low AND key < :high ORDER BY key DESC LIMIT :most
    """
)
"""The latest events of a stretch of keys, without their bodies: backwards along the primary key of one partition."""

_BODIES: Final = text("SELECT key, body FROM events WHERE key = ANY(CAST(:keys AS bigint[]))")
"""Sealed bodies, one index probe each."""


async def latest(connection: AsyncConnection, low: int, high: int, most: int) -> Sequence[Row[Any]]:
    """The latest events with a key in `[low, high)`, newest first, at most so many."""
    return (await connection.execute(_LATEST, {"low": low, "high": high, "most": most})).all()


async def bodies(connection: AsyncConnection, keys: Sequence[int]) -> Sequence[Row[Any]]:
    """The sealed bodies of events; what is gone is missing."""
    return (await connection.execute(_BODIES, {"keys": list(keys)})).all()
