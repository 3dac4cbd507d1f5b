"""Test notifications: asked for over the API, sent by a delivery process, which alone has a way out to sinks."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final, NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.problems import Conflict, NotFound, TooManyRequests
from subscriptions.database import AnyRow
from subscriptions.holds import covering_subscription
from subscriptions.tables import MATCHED, Protocol, subscriptions, test_notifications

MOST_A_MINUTE: Final = 6
"""For each subscription: a sink is to be tried, not to be tested under load."""
_KEPT: Final = timedelta(days=1)


class Waiting(NamedTuple):
    """A test notification that a delivery process has claimed."""

    id: UUID
    subscription: int


async def ask(connection: AsyncConnection, subscription_id: UUID, *, organisation_id: UUID) -> AnyRow:
    """Asks for a test notification, and forgets those of yesterday. Needs a transaction.

    Raises:
        NotFound: the organisation has no such subscription.
        Conflict: its sink has not consented, so nothing may be sent to it; or it is held, or only pulled.
        TooManyRequests: there were enough of them in the last minute.
    """
    row = (
        await connection.execute(
            select(
                subscriptions.c.status,
                subscriptions.c.validated_at,
                subscriptions.c.protocol,
                covering_subscription().label("held"),
            )
            .where(subscriptions.c.id == subscription_id, subscriptions.c.organisation_id == organisation_id)
            .with_for_update(of=subscriptions)  # one at a time, so that they can be counted
        )
    ).one_or_none()
    if row is None or row.status == "ended":
        raise NotFound
    if row.protocol == Protocol.PULL:
        raise Conflict("Notifications are not sent to this subscription: there is no sink to try.")
    if row.status not in MATCHED or row.validated_at is None:
        raise Conflict("The sink has not consented yet, so nothing can be sent to it.")
    if row.held:
        raise Conflict("What goes to this subscription is held now, tests too.")
    table = test_notifications.c
    await connection.execute(
        delete(test_notifications).where(
            table.subscription_id == subscription_id, table.requested_at < func.now() - _KEPT
        )
    )
    recent = select(func.count()).where(
        table.subscription_id == subscription_id, table.requested_at > func.now() - timedelta(minutes=1)
    )
    if (await connection.execute(recent)).scalar_one() >= MOST_A_MINUTE:
        raise TooManyRequests(60 / MOST_A_MINUTE)
    made = await connection.execute(
        insert(test_notifications).values(id=uuid4(), subscription_id=subscription_id).returning(test_notifications)
    )
    asked: AnyRow = made.one()
    return asked


async def get(connection: AsyncConnection, subscription_id: UUID, id: UUID, *, organisation_id: UUID) -> AnyRow:
    """Returns a test notification, or raises `NotFound`."""
    statement = (
        select(test_notifications)
        .join(subscriptions, subscriptions.c.id == test_notifications.c.subscription_id)
        .where(
            test_notifications.c.id == id,
            test_notifications.c.subscription_id == subscription_id,
            subscriptions.c.organisation_id == organisation_id,
        )
    )
    row: AnyRow | None = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise NotFound
    return row


async def claim(connection: AsyncConnection, limit: int, lease: timedelta) -> Sequence[Waiting]:
    """Claims what waits to be sent, for `lease`; a subscription whose sink may not be sent to any more is left."""
    table = test_notifications.c
    waiting = (
        select(table.id, subscriptions.c.key)
        .join(subscriptions, subscriptions.c.id == table.subscription_id)
        .where(
            table.sent_at.is_(None),
            or_(table.claimed_until.is_(None), table.claimed_until < func.now()),
            subscriptions.c.status.in_(MATCHED),
            subscriptions.c.validated_at.is_not(None),
            ~covering_subscription(),
        )
        .order_by(table.requested_at)
        .limit(limit)
        .with_for_update(skip_locked=True, of=test_notifications)
        .cte("waiting")
    )
    claimed = await connection.execute(
        update(test_notifications)
        .where(table.id == waiting.c.id)
        .values(claimed_until=func.now() + lease)
        .returning(table.id, waiting.c.key)
    )
    return [Waiting(*row) for row in claimed]


async def record(
    connection: AsyncConnection,
    id: UUID,
    *,
    milliseconds: int,
    status: int | None,
    reason: str | None,
    excerpt: bytes | None,
) -> None:
    """Records what came of a test notification; `excerpt` is sealed (`secrets.answer_purpose`)."""
    await connection.execute(
        update(test_notifications)
        .where(test_notifications.c.id == id, test_notifications.c.sent_at.is_(None))
        .values(sent_at=func.now(), milliseconds=milliseconds, status=status, reason=reason, excerpt=excerpt)
    )
