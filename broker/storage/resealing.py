"""Encrypting again with the first key of the ring, so that an older key may go.

Each sealed column is walked along its primary key in portions; what the first key sealed already is passed over, so
the walk may be stopped and repeated. A row that was changed meanwhile is left alone: whoever changed it sealed it with
the first key, as every process does by then (docs/operations.md).
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Column, Table, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncEngine

from broker.storage.sealing import body_purpose, excerpt_purpose
from broker.storage.tables import attempts, events, installation
from subscriptions.database import AnyRow
from subscriptions.idempotency import kept_answer_purpose
from subscriptions.secrets import (
    KeyRing,
    SealError,
    answer_purpose,
    credential_purpose,
    secret_purpose,
    tls_purpose,
    token_purpose,
)
from subscriptions.signing_keys import seed_purpose
from subscriptions.sink_tables import sink_tokens
from subscriptions.tables import idempotency_keys, signing_keys, subscriptions, test_notifications

_PORTION: Final = 500


@dataclass(frozen=True, slots=True)
class Sealed:
    """A column that holds ciphertexts, and what each is bound to."""

    column: Column[Any]
    order: tuple[Column[Any], ...]
    """Identifies a row."""
    purpose: Callable[[AnyRow], bytes]
    only: Any = None
    """Which rows; None: all."""

    @property
    def table(self) -> Table:
        """Where it stands."""
        return self.column.table


@dataclass(frozen=True, slots=True)
class Resealed:
    """What became of one column: how many rows an older key had sealed, and how many of them are done."""

    column: str
    found: int
    resealed: int
    unreadable: int


_subscription_id: Final = select(subscriptions.c.id).where(subscriptions.c.key == attempts.c.subscription)

SEALED: Final = (
    Sealed(
        installation.c.value,
        (installation.c.name,),
        lambda row: row.name.encode(),
        installation.c.name == "fingerprint-key",
    ),
    Sealed(signing_keys.c.seed, (signing_keys.c.kid,), lambda row: seed_purpose(row.kid)),
    Sealed(subscriptions.c.secret, (subscriptions.c.id,), lambda row: secret_purpose(row.id)),
    Sealed(subscriptions.c.previous_secret, (subscriptions.c.id,), lambda row: secret_purpose(row.id)),
    Sealed(subscriptions.c.sink_credential, (subscriptions.c.id,), lambda row: credential_purpose(row.id)),
    Sealed(subscriptions.c.sink_tls, (subscriptions.c.id,), lambda row: tls_purpose(row.id)),
    Sealed(sink_tokens.c.sealed, (sink_tokens.c.subscription_id,), lambda row: token_purpose(row.subscription_id)),
    Sealed(test_notifications.c.excerpt, (test_notifications.c.id,), lambda row: answer_purpose(row.id)),
    Sealed(idempotency_keys.c.answer, (idempotency_keys.c.digest,), lambda row: kept_answer_purpose(row.digest)),
    Sealed(events.c.body, (events.c.key,), lambda row: body_purpose(row.key), events.c.body != b""),
    Sealed(
        attempts.c.excerpt,
        (attempts.c.subscription, attempts.c.sequence, attempts.c.attempt),
        lambda row: excerpt_purpose(row.subscription_id),
    ),
)
"""Every sealed column there is; a test compares it with the tables."""


async def reseal(engine: AsyncEngine, keys: KeyRing) -> AsyncIterator[Resealed]:
    """Encrypt again what other keys than the first sealed, column by column.

    What no key opens stays as it is and is counted; it doesn't stop the rest.
    """
    for sealed in SEALED:
        total = Resealed(f"{sealed.table.name}.{sealed.column.name}", 0, 0, 0)
        while True:  # until a walk finds nothing that it can do: rows with equal keys may be passed over in one
            walked = await _walk(engine, sealed, keys, total.column)
            total = Resealed(
                total.column,
                max(total.found, walked.found),
                total.resealed + walked.resealed,
                walked.unreadable,
            )
            if not walked.resealed:
                break
        yield total


async def _walk(engine: AsyncEngine, sealed: Sealed, keys: KeyRing, name: str) -> Resealed:
    found = resealed = unreadable = 0
    after: tuple[Any, ...] | None = None
    while rows := await _portion(engine, sealed, keys, after):
        after = tuple(getattr(rows[-1], column.name) for column in sealed.order)
        found += len(rows)
        done, failed = await _reseal_portion(engine, sealed, keys, rows)
        resealed += done
        unreadable += failed
    return Resealed(name, found, resealed, unreadable)


async def _portion(engine: AsyncEngine, sealed: Sealed, keys: KeyRing, after: tuple[Any, ...] | None) -> list[AnyRow]:
    statement = select(*sealed.order, sealed.column.label("sealed"))
    if sealed.table is attempts:
        statement = statement.add_columns(_subscription_id.scalar_subquery().label("subscription_id"))
    statement = statement.where(
        sealed.column.is_not(None), func.substring(sealed.column, 1, len(keys.first)) != keys.first
    )
    if sealed.only is not None:
        statement = statement.where(sealed.only)
    if after is not None:
        statement = statement.where(tuple_(*sealed.order) > tuple_(*after))
    async with engine.connect() as connection:
        return list((await connection.execute(statement.order_by(*sealed.order).limit(_PORTION))).all())


async def _reseal_portion(engine: AsyncEngine, sealed: Sealed, keys: KeyRing, rows: list[AnyRow]) -> tuple[int, int]:
    done = failed = 0
    async with engine.begin() as connection:
        for row in rows:
            purpose = sealed.purpose(row)
            try:
                again = keys.seal(keys.open(row.sealed, purpose), purpose)
            except SealError:
                failed += 1
                continue
            same = [column == getattr(row, column.name) for column in sealed.order]
            changed = await connection.execute(
                update(sealed.table).where(*same, sealed.column == row.sealed).values({sealed.column: again})
            )
            done += changed.rowcount
    return done, failed
