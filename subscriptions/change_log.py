"""The change log: what matching must see of the changes that people make, in commit order.

Promise 8 rests on one advisory lock. A change takes it exclusively before it reads or writes anything; an ingest
transaction takes it shared before it reads the head, and holds it until its commit. So a change that has been
answered holds for every event accepted afterwards, versions are contiguous in commit order, and what a change decides
on (is there a grant?) cannot alter under it. Because the lock comes first, no row lock is ever held while waiting.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple, TypeAlias

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    DateTime,
    Table,
    Text,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.problems import Unavailable
from subscriptions.database import metadata
from subscriptions.history import Actor, say_who

CHANGES_CHANNEL: Final = "bode_changes"
"""NOTIFY channel that wakes readers; a reader that missed it loses nothing, because it reads the log."""

_LOCK_KEY: Final = 0x626F_6465_0001
_LOCK_TIMEOUT: Final = "5s"
_LOCK_NOT_AVAILABLE: Final = "55P03"

TAKE_SHARED_SQL: Final = f"SELECT pg_advisory_xact_lock_shared({_LOCK_KEY})"
"""First statement of an ingest transaction (READ COMMITTED): no change commits until this transaction ends."""

READ_HEAD_SQL: Final = "SELECT coalesce((SELECT version FROM change_log_head), 0)"
"""The version of the last change. A statement of its own, after TAKE_SHARED_SQL: one that takes the lock and reads
at once would read the snapshot from before the wait."""


Settled: TypeAlias = Callable[[int], Awaitable[None]]
"""Returns when every process that sends has applied this version of the log, or can no longer send."""


class ChangeKind(StrEnum):
    """What a change touched; `everything` asks readers to load all again (bulk loads, restores)."""

    ORGANISATION = "organisation"
    DOMAIN = "domain"
    EVENT_TYPE = "event-type"
    GRANT = "grant"
    SUBSCRIPTION = "subscription"
    FOLLOW_LIST = "follow-list"
    HOLD = "hold"
    EVERYTHING = "everything"


change_log = Table(
    "change_log",
    metadata,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("changed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column(
        "kind",
        Text,
        nullable=False,
        comment="organisation, domain, event-type, grant, subscription, follow-list, hold or everything",
    ),
    Column("entity", Text, nullable=False, comment="id of the row that changed; empty for everything"),
    CheckConstraint(
        "kind IN ('organisation', 'domain', 'event-type', 'grant', 'subscription', 'follow-list', 'hold', "
        "'everything')",
        name="kind",
    ),
    comment="Changes that matching must see, contiguous in commit order",
)

change_log_head = Table(
    "change_log_head",
    metadata,
    Column("single", Boolean, primary_key=True, server_default=text("true")),
    Column("version", BigInteger, nullable=False),
    CheckConstraint("single", name="single_row"),
    comment="Version of the last change; one row, absent before the first",
)


class Entry(NamedTuple):
    """One line of the log, as a reader gets it."""

    kind: ChangeKind
    entity: str


@asynccontextmanager
async def changing(
    engine: AsyncEngine, settled: Settled | None = None, actor: Actor | None = None
) -> AsyncIterator[AsyncConnection]:
    """Opens a transaction that may change what matching sees, holding the change lock from its first statement.

    Write with the service functions (they call `record_changes`); leaving the block commits, then wakes readers, then
    waits for `settled`, so that a caller who is answered afterwards finds the change in force everywhere. The history
    names `actor`, or else the broker.

    Raises:
        Unavailable: events were being accepted for longer than the lock timeout; nothing was done.
    """
    async with engine.connect() as connection:
        async with connection.begin():
            await take_change_lock(connection)
            if actor is not None:
                await say_who(connection, actor)
            before = await read_head(connection)
            yield connection
            version = await read_head(connection)
    if version != before:
        await wake_readers(engine)
        if settled is not None:
            await settled(version)


def moment_of_change() -> ColumnElement[datetime]:
    """The moment of a statement under the change lock, so that rows are in order of commit by it.

    `now()` is the moment at which the transaction began, perhaps before another that committed first: in a list by
    that, a row could come to stand before a cursor that was given out already.
    """
    return func.clock_timestamp()


async def take_change_lock(connection: AsyncConnection) -> None:
    """Takes the change lock exclusively until the transaction ends, waiting at most the lock timeout."""
    try:
        await connection.execute(
            text("SELECT set_config('lock_timeout', :timeout, true)").bindparams(timeout=_LOCK_TIMEOUT)
        )
        await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK_KEY})"))
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
            raise Unavailable("The change could not be made now; nothing was changed. Try again.") from error
        raise


async def read_head(connection: AsyncConnection) -> int:
    """Returns the version of the last change; 0 before the first."""
    return int((await connection.execute(text(READ_HEAD_SQL))).scalar_one())


async def read_head_and_time(connection: AsyncConnection) -> tuple[int, datetime]:
    """The version of the last change, and what time it is by PostgreSQL's clock."""
    version, now = (await connection.execute(text(f"SELECT ({READ_HEAD_SQL}), clock_timestamp()"))).one()
    return int(version), now


async def record_changes(connection: AsyncConnection, entries: Sequence[tuple[ChangeKind, object]]) -> int:
    """Writes entries to the log in the caller's transaction and returns the new head.

    Takes the change lock itself when the caller's transaction doesn't hold it yet (taking it twice is harmless), but
    a transaction that also locks rows must begin with it: see `changing`.
    """
    if not entries:
        return await read_head(connection)
    await take_change_lock(connection)
    # Guarantees contiguous versions: the row lock and the advisory lock both last until commit.
    statement = upsert(change_log_head).values(single=True, version=len(entries))
    head = (
        await connection.execute(
            statement.on_conflict_do_update(
                index_elements=[change_log_head.c.single],
                set_={"version": change_log_head.c.version + statement.excluded.version},
            ).returning(change_log_head.c.version)
        )
    ).scalar_one()
    first = head - len(entries) + 1
    await connection.execute(
        insert(change_log),
        [
            {"version": first + offset, "kind": kind.value, "entity": str(entity)}
            for offset, (kind, entity) in enumerate(entries)
        ],
    )
    return int(head)


async def read_changes(connection: AsyncConnection, since_version: int) -> tuple[int, list[Entry]]:
    """Returns the head and the entries after `since_version`, oldest first.

    When entries in between were pruned, or the log was set back, the one entry is `everything`. Call it with the
    shared lock held, or in a REPEATABLE READ transaction, so that head and entries belong together.
    """
    head = await read_head(connection)
    if head == since_version:
        return head, []
    everything = [Entry(ChangeKind.EVERYTHING, "")]
    if head < since_version:
        return head, everything
    rows = await connection.execute(
        select(change_log.c.kind, change_log.c.entity)
        .where(change_log.c.version > since_version, change_log.c.version <= head)
        .order_by(change_log.c.version)
    )
    entries = [Entry(ChangeKind(kind), entity) for kind, entity in rows]
    return head, entries if len(entries) == head - since_version else everything


async def prune_changes(connection: AsyncConnection, before: datetime) -> int:
    """Deletes entries from before a moment; a reader that was behind them loads everything again.

    The changes of follow lists that belong to them go with them.
    """
    result = await connection.execute(change_log.delete().where(change_log.c.changed_at < before))
    return result.rowcount


async def wake_readers(engine: AsyncEngine) -> None:
    """Wakes readers of the log, outside any transaction (a NOTIFY in one serialises commits on one lock).

    The change has been made by now: when the wake-up fails, readers find it a little later, and that is all.
    """
    with suppress(SQLAlchemyError, OSError):
        async with engine.connect() as connection:
            autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await autocommit.execute(text(f"NOTIFY {CHANGES_CHANNEL}"))
