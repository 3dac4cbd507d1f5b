"""The life of a subscription, transition by transition.

Each transition names the states that it leaves, writes the change log, and needs a transaction opened by
`change_log.changing`. The states are drawn in `tables`. A changed sink must consent again: until then the
subscription is `disabled`, so that what matches meanwhile is numbered and kept.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, TypeAlias
from uuid import UUID

from sqlalchemy import ColumnElement, case, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.problems import Conflict, NotFound
from subscriptions.change_log import ChangeKind, record_changes
from subscriptions.database import AnyRow
from subscriptions.follow_lists import name_lists
from subscriptions.notices import say_disabled
from subscriptions.sink_tables import sink_expiries, sink_tokens
from subscriptions.tables import Status, subscriptions

NO_GRANT: Final = "no-grant: no registry has granted anything that this subscription asks for"
REFUSED_BY_REGISTRY: Final = "refused-by-registry"
SINK_CHANGED: Final = "sink-changed: waits for the new sink's consent"
HANDSHAKE_FAILED: Final = "handshake-failed"
RENEWAL_REFUSED: Final = "renewal-refused"
CONSENT_WITHDRAWN: Final = "consent-withdrawn"

CancelSubscription: TypeAlias = Callable[[AsyncConnection, int], Awaitable[None]]
"""Cancels (reason `subscription-ended`), in the given transaction, what is pending: `(connection, key)`."""


class Validation(NamedTuple):
    """A handshake that is due: whether the sink consents, or still does, to notifications."""

    key: int
    id: UUID
    sink: str
    claimed_until: datetime
    refused_since: datetime | None
    consented: bool
    """It consented before: this is a renewal."""
    by_callback: bool
    """It did so by callback."""
    identified: bool = False
    """It is shown a credential or a certificate."""


async def claim_validations(
    connection: AsyncConnection, limit: int, lease: timedelta, *, fresh_only: bool = False
) -> list[Validation]:
    """Claims handshakes that are due, for `lease`: after that, whoever asks gets them again.

    Sinks that were not asked before come first, so that those which never answer don't hold up a new subscription;
    `fresh_only` leaves the others for later.
    """
    fresh = subscriptions.c.validated_at.is_(None) & subscriptions.c.refused_since.is_(None)
    due = (
        select(subscriptions.c.id)
        .where(subscriptions.c.validate_at <= func.now(), *([fresh] if fresh_only else []))
        .order_by(fresh.desc(), subscriptions.c.validate_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
        .cte("due")
    )
    claimed = await connection.execute(
        update(subscriptions)
        .where(subscriptions.c.id == due.c.id)
        .values(validate_at=func.now() + lease)
        .returning(
            subscriptions.c.key,
            subscriptions.c.id,
            subscriptions.c.sink,
            subscriptions.c.validate_at,
            subscriptions.c.refused_since,
            subscriptions.c.validated_at.is_not(None),
            subscriptions.c.consented_by_callback,
            subscriptions.c.sink_credential.is_not(None) | subscriptions.c.sink_tls.is_not(None),
        )
    )
    return [Validation(*row) for row in claimed]


async def activate(
    connection: AsyncConnection,
    subscription_id: UUID,
    *,
    sink: str,
    allowed_rate: int | None = None,
    renew_at: datetime | None = None,
    by_callback: bool = False,
    claimed_until: datetime | None = None,
) -> bool:
    """Records a sink's consent: a subscription that waited for it is active (one that is paused stays so).

    `renew_at` is when to ask again. A renewal that says nothing new raises no version. `claimed_until` names the claim
    under which it was asked, where another sink may have the same URL. Returns whether it applied: not when the sink
    was changed, or the subscription ended, during the handshake.
    """
    values: dict[str, Any] = {
        "validate_at": renew_at,
        "validated_at": func.now(),
        "refused_since": None,
        "consented_by_callback": by_callback,
    }
    renewed = await connection.execute(
        update(subscriptions)
        .where(
            *_asked(subscription_id, sink, claimed_until),
            subscriptions.c.validated_at.is_not(None),
            subscriptions.c.status_reason.is_(None),
            subscriptions.c.allowed_rate.is_not_distinct_from(allowed_rate),
        )
        .values(**values)
    )
    if renewed.rowcount:
        return True
    values |= {
        "status": case((subscriptions.c.status == Status.PAUSED, Status.PAUSED.value), else_=Status.ACTIVE.value),
        "status_reason": None,
        "allowed_rate": allowed_rate,
    }
    return await _change(connection, subscription_id, values, *_asked(subscription_id, sink, claimed_until))


async def handshake_failed(
    connection: AsyncConnection,
    subscription_id: UUID,
    *,
    sink: str,
    reason: str,
    retry_at: datetime | None,
    claimed_until: datetime | None = None,
) -> bool:
    """Records that a sink did not consent, and when to ask again; `None` is the last word.

    After the last word a new subscription is refused, one whose sink was changed stays as it is, and one whose sink
    had consented before is disabled (a paused one stays paused); each can be tried again by resuming it or by
    changing its sink. `claimed_until` names the claim under which it was asked: a sink that consented by callback
    meanwhile has not failed. Returns whether it applied, as `activate` does.
    """
    renewal = subscriptions.c.validated_at.is_not(None)
    values: dict[str, Any] = {
        "status_reason": case(
            (renewal, f"{CONSENT_WITHDRAWN if retry_at is None else RENEWAL_REFUSED}: {reason}"),
            else_=f"{HANDSHAKE_FAILED}: {reason}",
        ),
        "validate_at": retry_at,
        "refused_since": func.coalesce(subscriptions.c.refused_since, func.now()),
    }
    if retry_at is None:
        values |= {
            "status": case(
                (subscriptions.c.status == Status.VALIDATING, Status.REFUSED.value),
                (subscriptions.c.status == Status.ACTIVE, Status.DISABLED.value),
                else_=subscriptions.c.status,
            ),
            "validated_at": None,
            "refused_since": None,
        }
    former = select(subscriptions.c.status).where(subscriptions.c.id == subscription_id)
    was_active = (await connection.execute(former)).scalar_one_or_none() == Status.ACTIVE
    applied = await _change(connection, subscription_id, values, *_asked(subscription_id, sink, claimed_until))
    if applied and was_active and retry_at is None:
        await say_disabled(connection, subscription_id, CONSENT_WITHDRAWN)
    return applied


async def ask_later(
    connection: AsyncConnection, subscription_id: UUID, *, sink: str, at: datetime, claimed_until: datetime
) -> None:
    """Puts off a renewal that came to nothing: no answer, or none that says anything. Consent stays as it was."""
    await connection.execute(
        update(subscriptions).where(*_asked(subscription_id, sink, claimed_until)).values(validate_at=at)
    )


def _asked(subscription_id: UUID, sink: str, claimed_until: datetime | None = None) -> list[ColumnElement[bool]]:
    # The subscription, as long as the handshake that it had is still the one that counts.
    conditions = [
        subscriptions.c.id == subscription_id,
        subscriptions.c.sink == sink,
        subscriptions.c.validate_at.is_not(None),
        subscriptions.c.status.in_((Status.VALIDATING, Status.ACTIVE, Status.DISABLED, Status.PAUSED)),
    ]
    if claimed_until is not None:
        conditions.append(subscriptions.c.validate_at == claimed_until)
    return conditions


async def disable(connection: AsyncConnection, subscription_id: UUID, reason: str) -> bool:
    """Stops sending, and asking for consent, because of what the sink did; what matches is numbered and kept.

    Returns whether it applied: not when it was disabled already, or never active.
    """
    disabled = await _change(
        connection,
        subscription_id,
        {"status": Status.DISABLED, "status_reason": reason, "validate_at": None},
        subscriptions.c.status.in_((Status.ACTIVE, Status.PAUSED)),
    )
    if disabled:
        await say_disabled(connection, subscription_id, reason)
    return disabled


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
    """Sends again; first asks for the sink's consent when that is missing, and meanwhile when it was disabled.

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
        "validate_at": case(
            (subscriptions.c.sink.is_(None), None),
            (consented & (subscriptions.c.status != Status.DISABLED), subscriptions.c.validate_at),
            else_=func.now(),
        ),
        "refused_since": None,
        "failing_since": None,
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
    values |= {"sink_credential": None, "sink_tls": None}
    await _change(connection, subscription_id, values, subscriptions.c.status != Status.ENDED)
    for table in (sink_tokens, sink_expiries):
        await connection.execute(delete(table).where(table.c.subscription_id == subscription_id))
    await name_lists(connection, subscription_id, organisation_id, ())
    await cancel(connection, key)


def after_grant(*, has_sink: bool) -> dict[str, Any]:
    """Returns the columns of a subscription that has the grant it waited for: now its sink is asked, if it has one."""
    if not has_sink:
        return {"status": Status.ACTIVE, "status_reason": None, "validated_at": func.now()}
    return {"status": Status.VALIDATING, "status_reason": None, "validate_at": func.now()}


def is_refused_by_registry(row: AnyRow) -> bool:
    """Tells whether registries said no, so that a sink's consent changes nothing."""
    return bool(row.status == Status.REFUSED and (row.status_reason or "").startswith(REFUSED_BY_REGISTRY))


def after_sink_change(row: AnyRow) -> dict[str, Any]:
    """Returns the columns that follow from a new sink: consent, pace and handshake belong to the old one."""
    values: dict[str, Any] = {
        "validated_at": None,
        "refused_since": None,
        "consented_by_callback": False,
        "allowed_rate": None,
        "failing_since": None,
    }
    if is_refused_by_registry(row):
        return values
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
