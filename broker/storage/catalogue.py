"""What acceptance writes for the catalogue: the report of data that did not meet its schema."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import asyncpg

MOST_FINDINGS: Final = 100

_ADD_FINDINGS: Final = f"""
INSERT INTO data_findings AS known (event_type_id, pointer, keyword, times, first_at, last_at)
SELECT new.event_type_id, new.pointer, new.keyword, new.times, now(), now()
FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[]) AS new (event_type_id, pointer, keyword, times)
JOIN event_types ON event_types.id = new.event_type_id
WHERE EXISTS (
          SELECT FROM data_findings
          WHERE (event_type_id, pointer, keyword) = (new.event_type_id, new.pointer, new.keyword)
      )
   OR (SELECT count(*) FROM data_findings WHERE event_type_id = new.event_type_id) < {MOST_FINDINGS}
ORDER BY 1, 2, 3
ON CONFLICT (event_type_id, pointer, keyword)
DO UPDATE SET times = known.times + excluded.times, last_at = excluded.last_at
"""
"""Counts findings by type, place and keyword. About a hundred rows for each type: more in one writing than there was
room for may stand once, new ones after that don't. In order of key, so that no processes wait for each other in a
circle."""


async def add_findings(connection: asyncpg.Connection, findings: Sequence[tuple[UUID, str, str, int]]) -> None:
    """Add `(event type, pointer, keyword, times)` to the report."""
    await connection.execute(_ADD_FINDINGS, *map(list, zip(*findings, strict=True)))
