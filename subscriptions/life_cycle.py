"""The life of a subscription, transition by transition.

Each transition names the states that it leaves, writes the change log, and needs a transaction opened by
`change_log.changing`. The states are drawn in `tables`. A changed sink must consent again: until then the
subscription is `disabled`, so that what matches meanwhile is numbered and kept.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from sqlalchemy import case, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.problems import Conflict, NotFound
from subscriptions.change_log import ChangeKind, record_changes
from subscriptions.database import AnyRow
from subscriptions.tables import Status, subscriptions

NO_GRANT: Final = "no-grant: no registry has granted anything that this subscription asks for"
SINK_CHANGED: Final = "sink-changed: waits for the new sink's consent"
HANDSHAKE_FAILED: Final = "handshake-failed"

CancelSubscription: TypeAlias = Callable[[AsyncConnection, int], Awaitable[None]]
"""Cancels (reason `subscription-ended`), in the given transaction, what is pending: `(connection, key)`."""


class Validation(NamedTuple):
    """A handshake that is due: whether the sink consents to notifications."""

    key: int
    id: UUID
    sink: str
    created_at: datetime


async def claim_validations(connection: AsyncConnection, limit: int, lease: timedelta) -> list[Validation]:
    """Claims handshakes that are due, for `lease`: after that, whoever asks gets them again."""
    due = (
        select(subscriptions.c.id)
        .where(subscriptions.c.validate_at <= func.now())
        .order_by(subscriptions.c.validate_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    claimed = await connection.execute(
        update(subscriptions)
        .where(subscriptions.c.id.in_(due.scalar_subquery()))
        .values(validate_at=func.now() + lease)
        .returning(subscriptions.c.key, subscriptions.c.id, subscriptions.c.sink, subscriptions.c.created_at)
    )
    return [Validation(row.key, row.id, row.sink, row.created_at) for row in claimed]


async def activate(
    connection: AsyncConnection, subscription_id: UUID, *, sink: str, allowed_rate: int | None = None
) -> bool:
    """Records a sink's consent: a subscription that waited for it is active (one that is paused stays so).

    Returns whether it applied: not when the sink was changed, or the subscription ended, during the handshake.
    """
    values = {
        "status": case((subscriptions.c.status == Status.PAUSED, Status.PAUSED.value), else_=Status.ACTIVE.value),
        "status_reason": None,
        "validate_at": None,
        "validated_at": func.now(),
        "allowed_rate": allowed_rate,
    }
    return await _settle_validation(connection, subscription_id, sink, values)


async def handshake_failed(
    connection: AsyncConnection, subscription_id: UUID, *, sink: str, reason: str, retry_at: datetime | None
) -> bool:
    """Records that a sink did not consent, and when to ask again; `None` is the last word.

    After the last word a new subscription is refused, and one whose sink was changed stays as it is; either can be
    tried again by resuming it or by changing its sink. Returns whether it applied, as `activate` does.
    """
    values: dict[str, Any] = {"status_reason": f"{HANDSHAKE_FAILED}: {reason}", "validate_at": retry_at}
    if retry_at is None:
        values["status"] = case(
            (subscriptions.c.status == Status.VALIDATING, Status.REFUSED.value), else_=subscriptions.c.status
        )
    return await _settle_validation(connection, subscription_id, sink, values)


async def _settle_validation(
    connection: AsyncConnection, subscription_id: UUID, sink: str, values: dict[str, Any]
) -> bool:
    return await _change(
        connection,
        subscription_id,
        values,
        subscriptions.c.sink == sink,
        subscriptions.c.validate_at.is_not(None),
        subscriptions.c.status.in_((Status.VALIDATING, Status.DISABLED, Status.PAUSED)),
    )


async def disable(connection: AsyncConnection, subscription_id: UUID, reason: str) -> bool:
    """Stops sending because of what the sink did (410); what matches is numbered and kept.

    Returns whether it applied: not when it was disabled already, or never active.
    """
    return await _change(
        connection,
        subscription_id,
        {"status": Status.DISABLED, "status_reason": reason},
        subscriptions.c.status.in_((Status.ACTIVE, Status.PAUSED)),
    )


async def pause(connection: AsyncConnection, subscription_id: UUID) -> None:
    """Stops sending because its provider asks; what matches is numbered and kept.

    Raises:
        Conflict: it isn't active.
    """
    left = (Status.ACTIVE, Status.PAUSED)
    values = {"status": Status.PAUSED, "status_reason": None}
    if not await _change(connection, subscription_id, values, subscriptions.c.status.in_(left)):
        raise Conflict("Only an active subscription can be paused.")


async def resume(connection: AsyncConnection, subscription_id: UUID) -> None:
    """Sends again; first asks for the sink's consent when that is missing.

    Raises:
        Conflict: it waits for a grant or for its first handshake, or a registry refused it.
    """
    consented = subscriptions.c.validated_at.is_not(None)
    values = {
        "status": case(
            (consented, Status.ACTIVE.value),
            (subscriptions.c.status == Status.REFUSED, Status.VALIDATING.value),
            else_=Status.DISABLED.value,
        ),
        "status_reason": case((consented, None), else_=SINK_CHANGED),
        "validate_at": case((consented, None), else_=func.now()),
    }
    can_resume = or_(
        subscriptions.c.status.in_((Status.ACTIVE, Status.PAUSED, Status.DISABLED)),
        (subscriptions.c.status == Status.REFUSED) & subscriptions.c.status_reason.startswith(HANDSHAKE_FAILED),
    )
    if not await _change(connection, subscription_id, values, can_resume):
        raise Conflict("Only a paused or disabled subscription, or one whose handshake failed, can be resumed.")


async def end(
    connection: AsyncConnection, subscription_id: UUID, *, organisation_id: UUID, cancel: CancelSubscription
) -> None:
    """Ends a subscription for good and cancels what is pending.

    Raises:
        NotFound: the organisation has no such subscription, or it ended before.
    """
    key = (
        await connection.execute(
            select(subscriptions.c.key).where(
                subscriptions.c.id == subscription_id,
                subscriptions.c.organisation_id == organisation_id,
                subscriptions.c.status != Status.ENDED,
            )
        )
    ).scalar_one_or_none()
    if key is None:
        raise NotFound
    values = {"status": Status.ENDED, "status_reason": None, "ended_at": func.now(), "validate_at": None}
    await _change(connection, subscription_id, values, subscriptions.c.status != Status.ENDED)
    await cancel(connection, key)


def after_sink_change(row: AnyRow) -> dict[str, Any]:
    """Returns the columns that follow from a new sink: consent, pace and handshake belong to the old one."""
    values: dict[str, Any] = {"validated_at": None, "allowed_rate": None}
    match Status(row.status):
        case Status.REQUESTED | Status.ENDED:
            pass
        case Status.VALIDATING | Status.REFUSED:
            values |= {"status": Status.VALIDATING, "status_reason": None, "validate_at": func.now()}
        case Status.ACTIVE | Status.DISABLED:
            values |= {"status": Status.DISABLED, "status_reason": SINK_CHANGED, "validate_at": func.now()}
        case Status.PAUSED:
            values |= {"status_reason": SINK_CHANGED, "validate_at": func.now()}
    return values


async def _change(connection: AsyncConnection, subscription_id: UUID, values: dict[str, Any], *conditions: Any) -> bool:
    # Changes a subscription that meets the conditions, and logs it; returns whether there was one.
    changed = await connection.execute(
        update(subscriptions)
        .where(subscriptions.c.id == subscription_id, *conditions)
        .values(**values, version=subscriptions.c.version + 1, updated_at=func.now())
    )
    if changed.rowcount == 0:
        return False
    await record_changes(connection, [(ChangeKind.SUBSCRIPTION, subscription_id)])
    return True
