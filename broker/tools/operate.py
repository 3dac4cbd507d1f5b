"""`bode reconcile`: every counter, row, event, id and attempt held against the others, trusting nothing counted before.

It reads from the database in portions, beside the traffic. Its cost grows with what is kept, as that of a full count
must; the running comparison of `bode deliver` does the same in small steps.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
from rich.table import Table

from broker.storage import accounting, event_checks
from broker.storage.drift import TOTAL_WRONG, Finding

_PORTION: Final = 200
_MOST_SHOWN: Final = 50

_NAMES: Final = "SELECT key, id FROM subscriptions WHERE key = ANY($1::bigint[])"
_KEY: Final = "SELECT key FROM subscriptions WHERE id = $1"


class UnknownSubscription(LookupError):
    """There is no such subscription."""


async def reconcile(
    connection: asyncpg.Connection, subscription: UUID | None, *, repair: bool, progress: Callable[[str], None]
) -> list[Finding]:
    """Everything that is off, of one subscription or of all; with `repair`, wrong totals are set right first.

    Raises:
        UnknownSubscription: no subscription has this id.
    """
    if subscription is not None:
        key = await connection.fetchval(_KEY, subscription)
        if key is None:
            raise UnknownSubscription(str(subscription))
        return await _one(connection, key, repair=repair, events=True)
    findings: list[Finding] = []
    key, count = 0, 0
    while dues := await accounting.subscriptions_after(connection, key, _PORTION):
        for due in dues:
            findings += await _one(connection, due.key, repair=repair, events=False)
        key, count = dues[-1].key, count + len(dues)
        progress(f"{count} subscriptions counted")
    after: int | None = 0
    bounds = await event_checks.bounds_of(connection)
    while after is not None:
        found, after = await event_checks.check(connection, after, datetime.now(UTC), bounds=bounds, note=False)
        findings += found
    return findings


async def _one(connection: asyncpg.Connection, key: int, *, repair: bool, events: bool) -> list[Finding]:
    findings = await accounting.recount(connection, key)
    if repair and any(finding.kind == TOTAL_WRONG for finding in findings):
        await accounting.repair_totals(connection, key)
        findings = await accounting.recount(connection, key)
    first: int | None = 1
    while first is not None:
        found, first = await accounting.check_numbers(
            connection, key, first, datetime.now(UTC), note=False, events=events
        )
        findings += [finding for finding in found if finding not in findings]
    return findings


async def named(connection: asyncpg.Connection, findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Findings with the ids that people know subscriptions by."""
    keys = list({finding.subscription for finding in findings if finding.subscription})
    ids = {row["key"]: str(row["id"]) for row in await connection.fetch(_NAMES, keys)}
    return [
        {
            "kind": finding.kind,
            "subscription": ids.get(finding.subscription),
            "number": finding.number or None,
            "event": finding.event_key or None,
            "detail": finding.detail or None,
        }
        for finding in findings
    ]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """What is off, for people: at most fifty lines, and how many of each kind."""
    counts = Counter(row["kind"] for row in rows)
    title = ", ".join(f"{count} × {kind}" for kind, count in sorted(counts.items()))
    made = Table(title=title)
    for column in ("kind", "subscription", "number", "event", "detail"):
        made.add_column(column)
    for row in rows[:_MOST_SHOWN]:
        made.add_row(*("" if value is None else str(value) for value in row.values()))
    if len(rows) > _MOST_SHOWN:
        made.add_row("…", f"{len(rows) - _MOST_SHOWN} more: see --json")
    return made
