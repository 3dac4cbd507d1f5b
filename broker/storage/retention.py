"""What age takes away before its day is dropped: what is pending is cancelled, payloads of types that go early erased.

A day (UTC) is kept as long as the longest retention of a type that occurs in it. An event whose own type is kept for
less loses its payload in place: its row stays, so its deliveries can still be proved. The payload of a dead letter
stays until someone has decided.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

import asyncpg

from broker.storage.tables import key_at

PAYLOAD_EXPIRED: Final = "payload-expired"
BATCH: Final = 1_000

_DAYS: Final = """
SELECT to_date(right(relname, 8), 'YYYYMMDD') AS day FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
WHERE inhparent = 'deliveries'::regclass AND relname ~ '^deliveries_[0-9]{8}$' ORDER BY 1
"""

_RETENTIONS: Final = """
SELECT DISTINCT retention_days FROM event_types WHERE retention_days IS NOT NULL AND retention_days <> $1 ORDER BY 1
"""

_LATER: Final = """
SELECT EXISTS (SELECT FROM event_types WHERE retention_days > $1) AND EXISTS (
    SELECT FROM {events} AS event
    WHERE event.type IN (SELECT type FROM event_types WHERE retention_days > $1)
)
"""
"""Whether a day holds events of a type that is kept for longer than its age.

It reads the day only if there are such types, up to the first such event: the one statement that may take minutes."""
_LATER_SECONDS: Final = 600

_COUNT_CANCELLED: Final = """
totals AS (
    INSERT INTO delivery_totals AS total (subscription, cancelled)
    SELECT subscription, count(*) FROM cancelled GROUP BY subscription ORDER BY subscription
    ON CONFLICT (subscription) DO UPDATE SET cancelled = total.cancelled + excluded.cancelled
)
"""

_CANCEL: Final = f"""
WITH chosen AS (
    SELECT subscription, sequence, event_key FROM {{deliveries}} WHERE state = 'pending'
    ORDER BY subscription, sequence LIMIT {BATCH} FOR UPDATE
), cancelled AS (
    UPDATE {{deliveries}} AS delivery
    SET state = 'cancelled', ended_at = $1, next_attempt_at = NULL, reason = '{PAYLOAD_EXPIRED}'
    FROM chosen
    WHERE delivery.subscription = chosen.subscription AND delivery.sequence = chosen.sequence
      AND delivery.event_key = chosen.event_key AND delivery.state = 'pending'
    RETURNING delivery.subscription
), {_COUNT_CANCELLED}
SELECT count(*) FROM cancelled
"""
"""Cancels some of what is pending of a day, and counts it, in one statement (promise 2)."""

_NEXT: Final = f"""
SELECT portion.key, coalesce(kind.retention_days, $2) <= $3 AS expired
FROM (SELECT key, type FROM {{events}} WHERE key > $1 ORDER BY key LIMIT {BATCH}) AS portion
LEFT JOIN event_types AS kind ON kind.type = portion.type
ORDER BY portion.key
"""

_CANCEL_OF_EVENTS: Final = f"""
WITH cancelled AS (
    UPDATE {{deliveries}}
    SET state = 'cancelled', ended_at = $2, next_attempt_at = NULL, reason = '{PAYLOAD_EXPIRED}'
    WHERE event_key = ANY($1::bigint[]) AND state = 'pending'
    RETURNING subscription
), {_COUNT_CANCELLED}
SELECT count(*) FROM cancelled
"""

_ERASE: Final = """
UPDATE {events} AS event SET body = ''
WHERE key = ANY($1::bigint[]) AND body <> ''
  AND NOT EXISTS (SELECT FROM {deliveries} WHERE event_key = event.key AND state IN ('dead', 'pending'))
"""


@dataclass(frozen=True, slots=True)
class Day:
    """The partitions of one day of acceptance."""

    day: date

    @property
    def events(self) -> str:
        """Its partition of `events`."""
        return f"events_{self.day:%Y%m%d}"

    @property
    def deliveries(self) -> str:
        """Its partition of `deliveries`."""
        return f"deliveries_{self.day:%Y%m%d}"

    @property
    def attempts(self) -> str:
        """Its partition of `attempts`."""
        return f"attempts_{self.day:%Y%m%d}"

    @property
    def first_key(self) -> int:
        """Its smallest event key."""
        return key_at(datetime.combine(self.day, time(), UTC))

    @property
    def end_key(self) -> int:
        """The first event key of the next day."""
        return key_at(datetime.combine(self.day + timedelta(days=1), time(), UTC))

    def age(self, now: datetime) -> int:
        """Whole days since its last event can have been accepted; negative while it lasts."""
        return (now - datetime.combine(self.day + timedelta(days=1), time(), UTC)).days


async def days(connection: asyncpg.Connection) -> list[Day]:
    """The days that have partitions, oldest first."""
    return [Day(row["day"]) for row in await connection.fetch(_DAYS)]


async def retentions(connection: asyncpg.Connection, default: int) -> list[int]:
    """Every retention in days that some type has, and the default."""
    return sorted({default, *(row[0] for row in await connection.fetch(_RETENTIONS, default))})


async def may_go(connection: asyncpg.Connection, day: Day, default: int, now: datetime) -> bool:
    """Whether nothing of a day has to be kept any longer."""
    age = day.age(now)
    if age < default:
        return False
    async with connection.transaction():
        await connection.execute(f"SET LOCAL statement_timeout = '{_LATER_SECONDS}s'")
        later: bool = await connection.fetchval(_LATER.format(events=day.events), age, timeout=_LATER_SECONDS)
    return not later


async def cancel_pending(connection: asyncpg.Connection, day: Day, now: datetime) -> int:
    """Cancel up to a thousand deliveries of a day that are still pending; how many there were."""
    count: int = await connection.fetchval(_CANCEL.format(deliveries=day.deliveries), now)
    return count


async def erase(
    connection: asyncpg.Connection, day: Day, after: int, default: int, now: datetime
) -> tuple[int, int | None]:
    """Look at the next thousand events of a day and erase the payloads that are past the retention of their type.

    What is pending of them is cancelled in the same commit. How many were erased, and where to go on; None: at the end.
    """
    async with connection.transaction():
        rows = await connection.fetch(_NEXT.format(events=day.events), after, default, day.age(now))
        expired = [row["key"] for row in rows if row["expired"]]
        erased = 0
        if expired:
            await connection.fetchval(_CANCEL_OF_EVENTS.format(deliveries=day.deliveries), expired, now)
            done = await connection.execute(_ERASE.format(events=day.events, deliveries=day.deliveries), expired)
            erased = int(done.rpartition(" ")[2])
    return erased, None if len(rows) < BATCH else rows[-1]["key"]
