"""Holds: what may not leave, decided by people. Each change needs a transaction of `change_log.changing`.

    active ──► released                   what it kept goes, in order
       └─────► cancelling ──► cancelled   what it had kept when that was asked is cancelled, while it still holds

When the change has settled, nothing that is held starts to leave anywhere; what was being sent may end.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, exists, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.problems import Conflict, Forbidden, InvalidInput, NotFound
from schemas.resources import HoldBody, HoldScope, HoldStatus
from subscriptions.change_log import ChangeKind, moment_of_change, record_changes
from subscriptions.database import AnyRow, AnySelect
from subscriptions.history import Actor
from subscriptions.organisations import OIN_SOURCE, find_organisation, owner_of
from subscriptions.tables import STANDING, Status, holds, organisations, subscriptions


class Registry(NamedTuple):
    """Who holds its own; the operator is none."""

    id: UUID
    oin: str
    sources: Sequence[str]

    def speaks_for(self, source: str) -> bool:
        """Tells whether it may publish events of a source."""
        own = OIN_SOURCE + self.oin
        return source == own or source.startswith(own + ":") or source in self.sources


async def registry_of(connection: AsyncConnection, organisation_id: UUID) -> Registry:
    """Returns an organisation as one that holds its own."""
    found = await connection.execute(
        select(organisations.c.id, organisations.c.oin, organisations.c.sources).where(
            organisations.c.id == organisation_id
        )
    )
    return Registry(*found.one())


async def place(connection: AsyncConnection, body: HoldBody, *, registry: Registry | None, actor: Actor) -> AnyRow:
    """Places a hold; `registry` None: the operator does.

    Raises:
        Forbidden: a registry holds what isn't its own.
        InvalidInput: there is no such organisation or subscription.
        Conflict: it is held already.
    """
    if registry is not None and not await _is_own(connection, registry, body.scope, body.value):
        raise Forbidden("A registry holds its own sources and the types of its own domains.")
    value, target, owner = await _target(connection, body)
    values = {
        "id": uuid4(),
        "scope": body.scope.value,
        "value": value,
        "target_id": target,
        "owner_id": owner,
        "reason": body.reason,
        "status": HoldStatus.ACTIVE.value,
        "placed_at": moment_of_change(),
        "placed_by": actor.organisation_id,
        "placed_key": actor.key_id,
    }
    try:
        async with connection.begin_nested():
            row: AnyRow = (await connection.execute(insert(holds).values(values).returning(holds))).one()
    except IntegrityError as error:
        standing = select(holds.c.id).where(
            holds.c.scope == body.scope.value, holds.c.value == value, holds.c.status.in_(STANDING)
        )
        known = (await connection.execute(standing)).scalar_one_or_none()
        if known is None:
            raise
        raise Conflict(f"This is held already, by {known}.") from error
    await record_changes(connection, [(ChangeKind.HOLD, row.id)])
    return row


async def release(connection: AsyncConnection, row: AnyRow, reason: str | None, actor: Actor) -> None:
    """Ends a hold: what it kept goes, in order, unless another hold covers it.

    Raises:
        Conflict: it has ended, or is being cancelled.
    """
    values = {"status": HoldStatus.RELEASED.value, "ended_at": moment_of_change()}
    if not await _ask_end(connection, row.id, values, reason, actor):
        raise Conflict("Only an active hold can be released; this one has ended, or is being cancelled.")
    await record_changes(connection, [(ChangeKind.HOLD, row.id)])
    await _failing_starts_anew(connection)


async def cancel(connection: AsyncConnection, row: AnyRow, reason: str, actor: Actor) -> None:
    """Begins to cancel what a hold kept up to now; it holds until that is done.

    Raises:
        Conflict: it has ended, or is being cancelled already.
    """
    if not await _ask_end(connection, row.id, {"status": HoldStatus.CANCELLING.value}, reason, actor):
        raise Conflict("Only an active hold can be cancelled; this one has ended, or is being cancelled.")
    await record_changes(connection, [(ChangeKind.HOLD, row.id)])


async def cancelled(connection: AsyncConnection, hold_id: UUID) -> bool:
    """Ends a hold of which all has been cancelled; returns whether this did it."""
    ended = await connection.execute(
        update(holds)
        .where(holds.c.id == hold_id, holds.c.status == HoldStatus.CANCELLING.value)
        .values(status=HoldStatus.CANCELLED.value, ended_at=moment_of_change())
    )
    if not ended.rowcount:
        return False
    await record_changes(connection, [(ChangeKind.HOLD, hold_id)])
    await _failing_starts_anew(connection)
    return True


async def get(connection: AsyncConnection, hold_id: UUID, *, registry: Registry | None) -> AnyRow:
    """Returns a hold, with the OINs of who placed and ended it.

    Raises:
        NotFound: there is none, or it isn't of this registry's own.
    """
    row: AnyRow | None = (await connection.execute(visible_to(registry).where(holds.c.id == hold_id))).one_or_none()
    if row is None:
        raise NotFound
    return row


def check_may_end(row: AnyRow, registry: Registry | None) -> None:
    """Raises `Forbidden` where a registry would end a hold of the operator."""
    if registry is not None and row.placed_by != registry.id:
        raise Forbidden("The operator placed this hold, and the operator ends it.")


def visible_to(registry: Registry | None) -> AnySelect:
    """The holds that a registry may see: those that it placed, and those of its sources and types; None: all."""
    placing, ending = organisations.alias(), organisations.alias()
    statement = (
        select(holds, placing.c.oin.label("placing_oin"), ending.c.oin.label("ending_oin"))
        .join_from(holds, placing, placing.c.id == holds.c.placed_by, isouter=True)
        .join(ending, ending.c.id == holds.c.ended_by, isouter=True)
    )
    if registry is None:
        return statement
    return statement.where(or_(holds.c.placed_by == registry.id, holds.c.owner_id == registry.id))


def covering_subscription() -> ColumnElement[bool]:
    """Whether all that goes to a row of `subscriptions` is held."""
    return exists().where(
        holds.c.status.in_(STANDING), holds.c.target_id.in_((subscriptions.c.id, subscriptions.c.organisation_id))
    )


async def _is_own(connection: AsyncConnection, registry: Registry, scope: HoldScope, value: str) -> bool:
    if scope is HoldScope.SOURCE:
        return registry.speaks_for(value)
    return scope is HoldScope.EVENT_TYPE and await owner_of(connection, value) == registry.id


async def _target(connection: AsyncConnection, body: HoldBody) -> tuple[str, UUID | None, UUID | None]:
    """The value as it is stored, the organisation or subscription that it names, and the registry whose it is."""
    match body.scope:
        case HoldScope.SOURCE:
            return body.value, None, await _speaker(connection, body.value)
        case HoldScope.EVENT_TYPE:
            return body.value, None, await owner_of(connection, body.value)
        case HoldScope.ORGANISATION:
            organisation = await find_organisation(connection, oin=body.value)
            if organisation is None:
                reason = "must be the OIN of an organisation that is registered here"
                raise InvalidInput.field("/value", "organisation", reason)
            return body.value, organisation.id, None
        case HoldScope.SUBSCRIPTION:
            identity = await _subscription(connection, body.value)
            return str(identity), identity, None


async def _speaker(connection: AsyncConnection, source: str) -> UUID | None:
    """The organisation that may speak for a source, if any."""
    listed = select(organisations.c.id).where(organisations.c.sources.contains([source]))
    found: UUID | None = (await connection.execute(listed)).scalar_one_or_none()
    if found is None and source.startswith(OIN_SOURCE):
        owner = await find_organisation(connection, oin=source[len(OIN_SOURCE) :].partition(":")[0])
        found = None if owner is None else owner.id
    return found


async def _subscription(connection: AsyncConnection, value: str) -> UUID:
    try:
        identity = UUID(value)
    except ValueError:
        identity = None
    standing = select(subscriptions.c.id).where(subscriptions.c.id == identity, subscriptions.c.status != Status.ENDED)
    if identity is None or (await connection.execute(standing)).scalar_one_or_none() is None:
        raise InvalidInput.field("/value", "subscription", "must be the id of a subscription that has not ended")
    return identity


async def _ask_end(
    connection: AsyncConnection, hold_id: UUID, values: dict[str, Any], reason: str | None, actor: Actor
) -> bool:
    asked = await connection.execute(
        update(holds)
        .where(holds.c.id == hold_id, holds.c.status == HoldStatus.ACTIVE.value)
        .values(
            **values,
            end_reason=reason,
            end_asked_at=moment_of_change(),
            ended_by=actor.organisation_id,
            ended_key=actor.key_id,
        )
    )
    return bool(asked.rowcount)


async def _failing_starts_anew(connection: AsyncConnection) -> None:
    """Time that sinks were held must not count as time that they accepted nothing."""
    await connection.execute(
        update(subscriptions).where(subscriptions.c.failing_since.is_not(None)).values(failing_since=None)
    )
