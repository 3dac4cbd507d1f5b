"""What does not add up: findings of the accounts, kept until a later look finds them well again."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import asyncpg

ROW_MISSING: Final = "row-missing"
"""A number that was given has no row, and no day was retired that explains it."""
ROW_EXTRA: Final = "row-extra"
"""A number has two rows, or lies beyond the last that was given."""
TOTAL_WRONG: Final = "total-wrong"
"""The total of a state is not the number of rows in it."""
STATE_CHANGED: Final = "state-changed"
"""A block that had closed counts differently now."""
EVENT_MISSING: Final = "event-missing"
"""A delivery, or an accepted id, whose event is gone."""
PAYLOAD_MISSING: Final = "payload-missing"
"""A delivery that is still to be sent, or dead, whose event has no payload."""
ID_MISSING: Final = "id-missing"
"""An event that deduplication doesn't know: it would be accepted again."""
ATTEMPT_DANGLING: Final = "attempt-dangling"
"""An attempt without its delivery."""
KINDS: Final = (
    ROW_MISSING, ROW_EXTRA, TOTAL_WRONG, STATE_CHANGED, EVENT_MISSING, PAYLOAD_MISSING, ID_MISSING, ATTEMPT_DANGLING,
)  # fmt: skip

MOST_NAMED: Final = 100
"""Findings of one kind that one look names."""

_NOTE: Final = """
INSERT INTO drift (kind, subscription, number, event_key, detail, found_at, seen_at)
SELECT *, $6::timestamptz, $6::timestamptz FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[])
ON CONFLICT (kind, subscription, number, event_key) DO UPDATE SET detail = excluded.detail, seen_at = excluded.seen_at
"""

_CLEAR_NUMBERS: Final = """
DELETE FROM drift WHERE subscription = $1 AND number BETWEEN $2 AND $3 AND kind = ANY($4::text[]) AND seen_at < $5
"""
_CLEAR_EVENTS: Final = """
DELETE FROM drift
WHERE subscription = 0 AND event_key >= $1 AND event_key < $2 AND kind = ANY($3::text[]) AND seen_at < $4
"""

_KINDS: Final = "SELECT kind, count(*) FROM drift GROUP BY kind"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not add up: of a number, of a subscription as a whole (number 0), or of an event."""

    kind: str
    subscription: int = 0
    number: int = 0
    event_key: int = 0
    detail: str = ""


async def note(connection: asyncpg.Connection, findings: Collection[Finding], now: datetime) -> None:
    """Keep findings; one that stands already is seen again."""
    if not findings:
        return
    unique = {(f.kind, f.subscription, f.number, f.event_key): f for f in findings}.values()
    columns = zip(*((f.kind, f.subscription, f.number, f.event_key, f.detail) for f in unique), strict=True)
    await connection.execute(_NOTE, *map(list, columns), now)


async def clear_numbers(
    connection: asyncpg.Connection, key: int, first: int, last: int, kinds: Sequence[str], now: datetime
) -> None:
    """Forget findings of these kinds about numbers of a subscription that were not seen again at `now`."""
    await connection.execute(_CLEAR_NUMBERS, key, first, last, list(kinds), now)


async def clear_events(
    connection: asyncpg.Connection, first: int, end: int, kinds: Sequence[str], now: datetime
) -> None:
    """Forget findings of these kinds about events from `first` to before `end` that were not seen again at `now`."""
    await connection.execute(_CLEAR_EVENTS, first, end, list(kinds), now)


async def counts(connection: asyncpg.Connection) -> dict[str, int]:
    """How many findings stand, by kind; every kind is there."""
    found = {row["kind"]: row["count"] for row in await connection.fetch(_KINDS)}
    return {kind: found.get(kind, 0) for kind in KINDS}
