"""What is forgotten by age: ids of events, rejections, the change log. In bounded batches, oldest first."""

from datetime import datetime
from typing import Final

import asyncpg

BATCH: Final = 5_000

_IDS: Final = """
DELETE FROM event_ids WHERE digest = ANY(ARRAY(
    SELECT digest FROM event_ids WHERE event_key < $1 ORDER BY event_key LIMIT $2))
"""

_REJECTIONS: Final = """
DELETE FROM rejections WHERE rejected_at < $1 AND id = ANY(ARRAY(SELECT id FROM rejections ORDER BY id LIMIT $2))
"""
"""Among the first that were rejected those that have not come again since."""


async def forget_ids(connection: asyncpg.Connection, before: int) -> int:
    """Forget up to 5,000 ids of events with a key below this one; how many."""
    return _count(await connection.execute(_IDS, before, BATCH))


async def forget_rejections(connection: asyncpg.Connection, before: datetime) -> int:
    """Delete rejections from before a moment among the 5,000 oldest; how many."""
    return _count(await connection.execute(_REJECTIONS, before, BATCH))


def _count(status: str) -> int:
    return int(status.rpartition(" ")[2])
