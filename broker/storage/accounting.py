"""Loss accounting (promise 2): what the counters say is held against the rows themselves, and names what is off.

    matched (last number) = delivered + pending + dead + cancelled     for each subscription, over its rows
    every number from 1 on has one row, or stands in retired_numbers
    every attempt has its delivery; and, in `event_checks`, every delivery its event, every event its id

Numbers are counted in blocks of 1,000. A block in which all is delivered or cancelled is *closed*: it changes no more,
its counts are kept, and later checks read them instead of its rows. So the cost of comparing totals follows what is
new, pending or dead, never the past. The rows of closed blocks are looked at again by a slow round over everything.

Each look is one snapshot (REPEATABLE READ), so traffic beside it makes no difference.
"""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import asyncpg

from broker.storage import drift
from broker.storage.drift import (
    ATTEMPT_DANGLING,
    EVENT_MISSING,
    MOST_NAMED,
    PAYLOAD_MISSING,
    ROW_EXTRA,
    ROW_MISSING,
    STATE_CHANGED,
    TOTAL_WRONG,
    Finding,
)
from broker.storage.evidence import BLOCK, RETIRED

SPAN: Final = 20
"""Blocks that one query counts."""
_MOST_BLOCKS: Final = 200
"""New blocks that one check takes in; what is left waits for the next."""

_LOCK: Final = "hashtext('bode accounting')"

_SUBSCRIPTIONS: Final = """
SELECT subscription.key, coalesce(account.matched, 0) <> coalesce(numbers.last_sequence, 0)
       OR coalesce(account.ended, 0) <> coalesce(totals.delivered + totals.dead + totals.cancelled, 0) AS changed,
       account.checked_at, coalesce(account.took_ms, 0) AS took_ms
FROM (SELECT key FROM subscriptions WHERE key > $1 ORDER BY key LIMIT $2) AS subscription
LEFT JOIN subscription_numbers AS numbers ON numbers.subscription = subscription.key
LEFT JOIN delivery_totals AS totals ON totals.subscription = subscription.key
LEFT JOIN accounts AS account ON account.subscription = subscription.key
ORDER BY subscription.key
"""
"""The next subscriptions, with whether anything of them was given out or ended since they were checked."""

_ACCOUNT: Final = """
SELECT coalesce(numbers.last_sequence, 0) AS matched, coalesce(totals.delivered, 0) AS delivered,
       coalesce(totals.dead, 0) AS dead, coalesce(totals.cancelled, 0) AS cancelled,
       coalesce(account.through, 0) AS through, coalesce(account.delivered, 0) AS closed_delivered,
       coalesce(account.cancelled, 0) AS closed_cancelled,
       ARRAY(SELECT block FROM account_blocks WHERE subscription = asked.key AND NOT closed ORDER BY block) AS open
FROM (SELECT $1::bigint AS key) AS asked
LEFT JOIN subscription_numbers AS numbers ON numbers.subscription = asked.key
LEFT JOIN delivery_totals AS totals ON totals.subscription = asked.key
LEFT JOIN accounts AS account ON account.subscription = asked.key
"""

_COUNT: Final = f"""
SELECT asked.block, kept.rows + gone.rows AS rows, kept.total + gone.total AS total,
       kept.delivered + gone.delivered AS delivered, kept.cancelled + gone.cancelled AS cancelled,
       kept.pending, kept.dead
FROM unnest($2::bigint[]) AS asked (block)
CROSS JOIN LATERAL (
    SELECT count(*) AS rows, coalesce(sum(sequence), 0)::numeric AS total,
           count(*) FILTER (WHERE state = 'delivered') AS delivered,
           count(*) FILTER (WHERE state = 'cancelled') AS cancelled,
           count(*) FILTER (WHERE state = 'pending') AS pending, count(*) FILTER (WHERE state = 'dead') AS dead
    FROM deliveries
    WHERE subscription = $1 AND sequence BETWEEN asked.block * {BLOCK} + 1 AND (asked.block + 1) * {BLOCK}
) AS kept
CROSS JOIN LATERAL (
    SELECT coalesce(sum(last - first + 1), 0)::bigint AS rows,
           coalesce(sum((first + last) * (last - first + 1) / 2), 0)::numeric AS total,
           coalesce(sum(last - first + 1) FILTER (WHERE state = 'delivered'), 0)::bigint AS delivered,
           coalesce(sum(last - first + 1) FILTER (WHERE state = 'cancelled'), 0)::bigint AS cancelled
    FROM retired_numbers AS retired
    WHERE subscription = $1 AND first BETWEEN asked.block * {BLOCK} + 1 AND (asked.block + 1) * {BLOCK} AND {RETIRED}
) AS gone
ORDER BY asked.block
"""
"""Counts blocks of a subscription by their rows, and by what is retired of them."""

_GAPS: Final = f"""
SELECT number FROM generate_series($2::bigint, $3::bigint) AS number
WHERE NOT EXISTS (SELECT FROM deliveries WHERE subscription = $1 AND sequence = number)
  AND NOT EXISTS (
      SELECT FROM retired_numbers AS retired
      WHERE subscription = $1 AND first BETWEEN (number - 1) / {BLOCK} * {BLOCK} + 1 AND number AND last >= number
        AND {RETIRED})
ORDER BY number LIMIT {MOST_NAMED}
"""

_DOUBLES: Final = f"""
SELECT sequence FROM deliveries WHERE subscription = $1 AND sequence BETWEEN $2 AND $3
GROUP BY sequence HAVING count(*) > 1 OR sequence > $4 ORDER BY sequence LIMIT {MOST_NAMED}
"""

_BEYOND: Final = f"""
SELECT sequence FROM deliveries WHERE subscription = $1 AND sequence > $2 ORDER BY sequence LIMIT {MOST_NAMED}
"""

_WRITE_BLOCKS: Final = """
INSERT INTO account_blocks (subscription, block, delivered, cancelled, closed)
SELECT $1, * FROM unnest($2::bigint[], $3::bigint[], $4::bigint[], $5::bool[])
ON CONFLICT (subscription, block) DO UPDATE
SET delivered = excluded.delivered, cancelled = excluded.cancelled, closed = excluded.closed
"""

_WRITE_ACCOUNT: Final = """
INSERT INTO accounts (subscription, through, delivered, cancelled, matched, ended, checked_at, took_ms)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
ON CONFLICT (subscription) DO UPDATE
SET through = excluded.through, delivered = excluded.delivered, cancelled = excluded.cancelled,
    matched = excluded.matched, ended = excluded.ended, checked_at = excluded.checked_at, took_ms = excluded.took_ms
"""

_READ_BLOCKS: Final = """
SELECT block, delivered, cancelled, closed FROM account_blocks
WHERE subscription = $1 AND block = ANY($2::bigint[])
"""

_FIRST_KEPT: Final = "SELECT sequence FROM deliveries WHERE subscription = $1 ORDER BY sequence LIMIT 1"

_RETIRED_BEFORE: Final = f"""
SELECT coalesce(sum(last - first + 1), 0)::bigint FROM retired_numbers AS retired
WHERE subscription = $1 AND first < $2 AND {RETIRED}
"""
_FORGET_BLOCKS: Final = "DELETE FROM account_blocks WHERE subscription = $1 AND block < $2 AND closed"

_DANGLING: Final = f"""
SELECT DISTINCT attempt.sequence FROM attempts AS attempt
WHERE attempt.subscription = $1 AND attempt.sequence BETWEEN $2 AND $3
  AND NOT EXISTS (
      SELECT FROM deliveries AS delivery
      WHERE delivery.subscription = attempt.subscription AND delivery.sequence = attempt.sequence
        AND delivery.event_key = attempt.event_key)
ORDER BY 1 LIMIT {MOST_NAMED}
"""

_EVENTLESS: Final = f"""
SELECT delivery.sequence, delivery.event_key, event.key IS NULL AS gone FROM deliveries AS delivery
LEFT JOIN events AS event ON event.key = delivery.event_key
WHERE delivery.subscription = $1 AND delivery.sequence BETWEEN $2 AND $3
  AND (event.key IS NULL OR (event.body = '' AND delivery.state IN ('pending', 'dead')))
ORDER BY delivery.sequence LIMIT {MOST_NAMED}
"""

_REPAIR: Final = f"""
WITH gone AS (
    SELECT coalesce(sum(last - first + 1) FILTER (WHERE state = 'delivered'), 0)::bigint AS delivered,
           coalesce(sum(last - first + 1) FILTER (WHERE state = 'cancelled'), 0)::bigint AS cancelled
    FROM retired_numbers AS retired WHERE subscription = $1 AND {RETIRED}
), kept AS (
    SELECT count(*) FILTER (WHERE state = 'delivered') AS delivered, count(*) FILTER (WHERE state = 'dead') AS dead,
           count(*) FILTER (WHERE state = 'cancelled') AS cancelled
    FROM deliveries WHERE subscription = $1
)
UPDATE delivery_totals SET delivered = kept.delivered + gone.delivered, dead = kept.dead,
                           cancelled = kept.cancelled + gone.cancelled
FROM kept, gone WHERE subscription = $1
"""
"""Totals from the rows. The row lock is held from before the snapshot of this statement: see `repair_totals`."""


@dataclass(frozen=True, slots=True)
class Due:
    """A subscription, and what is known of its last check."""

    key: int
    changed: bool
    checked_at: datetime | None
    took_ms: int


@dataclass(slots=True)
class _Sums:
    delivered: int = 0
    cancelled: int = 0
    dead: int = 0
    pending: int = 0

    def add(self, row: asyncpg.Record) -> None:
        self.delivered += row["delivered"]
        self.cancelled += row["cancelled"]
        self.dead += row["dead"]
        self.pending += row["pending"]


@asynccontextmanager
async def alone(connection: asyncpg.Connection) -> AsyncIterator[bool]:
    """Whether nobody else keeps accounts now; held until the block ends, or the connection does."""
    taken: bool = await connection.fetchval(f"SELECT pg_try_advisory_lock({_LOCK})")
    try:
        yield taken
    finally:
        if taken:
            await connection.execute(f"SELECT pg_advisory_unlock({_LOCK})")


async def subscriptions_after(connection: asyncpg.Connection, key: int, limit: int) -> list[Due]:
    """The next subscriptions by key, of every state."""
    rows = await connection.fetch(_SUBSCRIPTIONS, key, limit)
    return [Due(row["key"], row["changed"], row["checked_at"], row["took_ms"]) for row in rows]


async def check_totals(connection: asyncpg.Connection, key: int, now: datetime) -> tuple[list[Finding], bool]:
    """Compare the totals of a subscription with its rows: open blocks and what is new are counted, closed ones known.

    What is found is noted in `drift`, and what is well again goes from it. The second answer is False when there is
    more that is new than one check takes in: then the totals have not been compared yet, and the next call goes on.
    Call it `alone`.
    """
    started = time.perf_counter()
    async with connection.transaction(isolation="repeatable_read"):
        account = await connection.fetchrow(_ACCOUNT, key)
        matched, through = account["matched"], account["through"]
        fresh = list(range(through // BLOCK, min((matched - 1) // BLOCK + 1, through // BLOCK + _MOST_BLOCKS)))
        findings: list[Finding] = []
        written: list[tuple[int, int, int, bool]] = []
        closed, rest = _Sums(account["closed_delivered"], account["closed_cancelled"]), _Sums()
        for start in range(0, len(blocks := [*account["open"], *fresh]), SPAN):
            for row in await connection.fetch(_COUNT, key, blocks[start : start + SPAN]):
                block = row["block"]
                findings += await _number_faults(connection, key, row, matched)
                whole = (block + 1) * BLOCK <= matched
                is_closed = whole and row["rows"] == BLOCK and not row["pending"] and not row["dead"]
                (closed if is_closed else rest).add(row)
                if whole:
                    written.append((block, row["delivered"], row["cancelled"], is_closed))
                    through = max(through, (block + 1) * BLOCK)
        caught_up = through >= matched // BLOCK * BLOCK
        if caught_up:
            findings += [
                Finding(ROW_EXTRA, key, row["sequence"]) for row in await connection.fetch(_BEYOND, key, matched)
            ]
            findings += [
                Finding(TOTAL_WRONG, key, 0, 0, f"{state}: total {told}, rows {counted}")
                for state, told, counted in (
                    ("delivered", account["delivered"], closed.delivered + rest.delivered),
                    ("dead", account["dead"], rest.dead),
                    ("cancelled", account["cancelled"], closed.cancelled + rest.cancelled),
                )
                if told != counted
            ][:1]
        await connection.execute(_WRITE_BLOCKS, key, *map(list, zip(*written, strict=True)) if written else [[]] * 4)
        took = int((time.perf_counter() - started) * 1000)
        ended = account["delivered"] + account["dead"] + account["cancelled"]
        await connection.execute(
            _WRITE_ACCOUNT, key, through, closed.delivered, closed.cancelled, matched if caught_up else -1, ended, now,
            took,
        )  # fmt: skip
        await drift.note(connection, findings, now)
        kinds = [TOTAL_WRONG, ROW_MISSING, ROW_EXTRA]
        if caught_up:
            await drift.clear_numbers(connection, key, 0, 0, kinds, now)
            await drift.clear_numbers(connection, key, matched + 1, 2**62, kinds, now)
        for block in blocks:
            await drift.clear_numbers(connection, key, block * BLOCK + 1, (block + 1) * BLOCK, kinds, now)
    return findings, caught_up


async def check_numbers(
    connection: asyncpg.Connection, key: int, first: int, now: datetime, *, note: bool = True, events: bool = False
) -> tuple[list[Finding], int | None]:
    """Look at the rows of up to 20 blocks from that of `first` on, closed or not, and at their attempts.

    With `events` each delivery's event is looked for too. The second answer is where to go on; None: at the end. What
    is retired before the first row is taken in one step.
    """
    async with connection.transaction(isolation="repeatable_read"):
        account = await connection.fetchrow(_ACCOUNT, key)
        matched = account["matched"]
        first = (first - 1) // BLOCK * BLOCK + 1
        if first > matched:
            return [], None
        skipped = first == 1
        if skipped:
            first = await _skip_retired(connection, key, matched)
        blocks = list(range((first - 1) // BLOCK, min((first - 1) // BLOCK + SPAN, (matched - 1) // BLOCK + 1)))
        last = (blocks[-1] + 1) * BLOCK
        counted = await connection.fetch(_COUNT, key, blocks)
        known = {row["block"]: row for row in await connection.fetch(_READ_BLOCKS, key, blocks)}
        findings: list[Finding] = []
        for row in counted:
            findings += await _number_faults(connection, key, row, matched)
            block = known.get(row["block"])
            if block is not None and block["closed"] and _differs(block, row):
                findings.append(Finding(STATE_CHANGED, key, row["block"] * BLOCK + 1, 0, _difference(block, row)))
        findings += [
            Finding(ATTEMPT_DANGLING, key, row["sequence"])
            for row in await connection.fetch(_DANGLING, key, first, last)
        ]
        if events:
            findings += [
                Finding(EVENT_MISSING if row["gone"] else PAYLOAD_MISSING, key, row["sequence"], row["event_key"])
                for row in await connection.fetch(_EVENTLESS, key, first, last)
            ]
        if note:
            kinds = [ROW_MISSING, ROW_EXTRA, STATE_CHANGED, ATTEMPT_DANGLING]
            await drift.note(connection, findings, now)
            await drift.clear_numbers(connection, key, first, last, kinds, now)
            await connection.execute(_FORGET_BLOCKS, key, (first - 1) // BLOCK if skipped else 0)
    return findings, None if last >= matched else last + 1


async def _skip_retired(connection: asyncpg.Connection, key: int, matched: int) -> int:
    """The first number of the first block that may have rows, when all before it is retired; else 1."""
    kept: int = await connection.fetchval(_FIRST_KEPT, key) or matched
    block = (kept - 1) // BLOCK
    if await connection.fetchval(_RETIRED_BEFORE, key, block * BLOCK + 1) != block * BLOCK:
        return 1
    return block * BLOCK + 1


async def recount(connection: asyncpg.Connection, key: int) -> list[Finding]:
    """Count every number of a subscription anew in one snapshot, trusting nothing that was counted before."""
    findings: list[Finding] = []
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        account = await connection.fetchrow(_ACCOUNT, key)
        matched, sums = account["matched"], _Sums()
        blocks = range((matched - 1) // BLOCK + 1)
        for start in range(0, len(blocks), SPAN):
            for row in await connection.fetch(_COUNT, key, list(blocks[start : start + SPAN])):
                findings += await _number_faults(connection, key, row, matched)
                sums.add(row)
        findings += [Finding(ROW_EXTRA, key, row["sequence"]) for row in await connection.fetch(_BEYOND, key, matched)]
        for state in ("delivered", "dead", "cancelled"):
            if account[state] != getattr(sums, state):
                detail = f"{state}: total {account[state]}, rows {getattr(sums, state)}"
                findings.append(Finding(TOTAL_WRONG, key, 0, 0, detail))
    return findings


async def repair_totals(connection: asyncpg.Connection, key: int) -> None:
    """Set a subscription's totals to what its rows say.

    Outcomes that are recorded at the same time wait for the row lock, and add theirs afterwards.
    """
    async with connection.transaction():
        await connection.execute("INSERT INTO delivery_totals (subscription) VALUES ($1) ON CONFLICT DO NOTHING", key)
        await connection.execute("SELECT FROM delivery_totals WHERE subscription = $1 FOR UPDATE", key)
        await connection.execute(_REPAIR, key)


async def _number_faults(
    connection: asyncpg.Connection, key: int, row: asyncpg.Record, matched: int
) -> Sequence[Finding]:
    """What is wrong with the numbers of a block: named one by one only where their count or sum is off."""
    first = row["block"] * BLOCK + 1
    last = min(first + BLOCK - 1, matched)
    expected = last - first + 1
    if row["rows"] == expected and row["total"] == (first + last) * expected // 2:
        return []
    gaps = [r["number"] for r in await connection.fetch(_GAPS, key, first, last)]
    doubles = [r["sequence"] for r in await connection.fetch(_DOUBLES, key, first, first + BLOCK - 1, matched)]
    return [
        *(Finding(ROW_MISSING, key, number) for number in gaps),
        *(Finding(ROW_EXTRA, key, number) for number in doubles if number <= matched),
    ]


def _differs(block: asyncpg.Record, row: asyncpg.Record) -> bool:
    return (block["delivered"], block["cancelled"]) != (row["delivered"], row["cancelled"])


def _difference(block: asyncpg.Record, row: asyncpg.Record) -> str:
    states = ("delivered", "cancelled")
    return "; ".join(f"{state}: counted {block[state]}, now {row[state]}" for state in states)
