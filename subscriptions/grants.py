"""Grants: a registry's permission for one provider to receive event types.

A registry grants only what lies in its own domains. A new grant takes up the subscriptions that waited for it; a
revocation cancels what is pending on it before the change is answered.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final, TypeAlias
from uuid import UUID, uuid4

from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.notices import is_own
from schemas.problems import Forbidden, InvalidInput, NotFound
from subscriptions import life_cycle
from subscriptions.change_log import ChangeKind, moment_of_change, record_changes
from subscriptions.coverage import domain_of_pattern, overlaps
from subscriptions.database import AnyRow
from subscriptions.life_cycle import REFUSED_BY_REGISTRY
from subscriptions.organisations import find_organisation, owner_of
from subscriptions.tables import Status, grants, organisations, subscriptions

CancelUngranted: TypeAlias = Callable[[AsyncConnection, UUID, UUID], Awaitable[None]]
"""Cancels (reason `grant-ended`), in the given transaction, what is pending for a provider on a grant:
`(connection, provider_id, grant_id)`."""

_OIN_SOURCE: Final = "urn:nld:oin:"
_WAITING: Final = or_(
    subscriptions.c.status == Status.REQUESTED,
    (subscriptions.c.status == Status.REFUSED) & subscriptions.c.status_reason.startswith(REFUSED_BY_REGISTRY),
)
"""Subscriptions that wait for a grant; a registry that refused may think better of it."""


async def create_grant(
    connection: AsyncConnection,
    *,
    registry_id: UUID,
    provider_oin: str,
    types: Sequence[str],
    legal_basis: str,
    valid_from: datetime | None = None,
    valid_until: datetime | None = None,
) -> AnyRow:
    """Grants types to a provider and takes up its subscriptions that waited for a grant.

    Raises:
        InvalidInput: the provider isn't known, or the validity ends before it begins.
        Forbidden: a type lies outside the registry's domains.
    """
    for position, pattern in enumerate(types):
        if await owner_of(connection, domain_of_pattern(pattern)) != registry_id:
            raise Forbidden(f"/types/{position} does not lie in a domain of your organisation.")
    provider = await find_organisation(connection, oin=provider_oin)
    if provider is None:
        raise InvalidInput.field("/provider", "provider", "must be the OIN of an organisation that is registered here")
    begin = valid_from or (await connection.execute(select(func.now()))).scalar_one()
    if valid_until is not None and valid_until <= begin:
        raise InvalidInput.field("/validUntil", "validity", "must be later than validFrom, or than now")
    row: AnyRow = (
        await connection.execute(
            insert(grants)
            .values(
                id=uuid4(),
                registry_id=registry_id,
                provider_id=provider.id,
                types=list(dict.fromkeys(types)),
                legal_basis=legal_basis,
                valid_from=begin,
                valid_until=valid_until,
                created_at=moment_of_change(),
            )
            .returning(grants)
        )
    ).one()
    taken_up = await take_up_requested(connection, provider.id)
    await record_changes(
        connection, [(ChangeKind.GRANT, row.id), *((ChangeKind.SUBSCRIPTION, identity) for identity in taken_up)]
    )
    return row


async def revoke_grant(
    connection: AsyncConnection, grant_id: UUID, *, registry_id: UUID, cancel_ungranted: CancelUngranted
) -> None:
    """Revokes a grant and cancels what is pending on it, in one transaction.

    Raises:
        NotFound: this registry has no such grant, or it was revoked before.
    """
    provider_id = (
        await connection.execute(
            update(grants)
            .where(grants.c.id == grant_id, grants.c.registry_id == registry_id, grants.c.revoked_at.is_(None))
            .values(revoked_at=func.now())
            .returning(grants.c.provider_id)
        )
    ).scalar_one_or_none()
    if provider_id is None:
        raise NotFound
    await record_changes(connection, [(ChangeKind.GRANT, grant_id)])
    await cancel_ungranted(connection, provider_id, grant_id)


async def could_receive(
    connection: AsyncConnection,
    provider_id: UUID,
    *,
    types: Sequence[str],
    domain: str | None,
    source: str | None,
) -> bool:
    """Tells whether a grant, now or to come, covers anything that a subscription asks for.

    Who asks for Bode's own types and nothing else needs none.
    """
    if all(map(is_own, types)) if types else domain is not None and is_own(domain):
        return True
    standing = (
        select(grants.c.types, organisations.c.oin, organisations.c.sources)
        .join_from(grants, organisations, organisations.c.id == grants.c.registry_id)
        .where(
            grants.c.provider_id == provider_id,
            grants.c.revoked_at.is_(None),
            or_(grants.c.valid_until.is_(None), grants.c.valid_until > func.now()),
        )
    )
    for row in await connection.execute(standing):
        if source is not None and not _speaks_for(row, source):
            continue
        if overlaps(row.types, types=types, domain=domain):
            return True
    return False


def _speaks_for(registry: AnyRow, source: str) -> bool:
    own = _OIN_SOURCE + registry.oin
    return source == own or source.startswith(own + ":") or source in registry.sources


async def take_up_requested(connection: AsyncConnection, provider_id: UUID) -> list[UUID]:
    """Moves on a provider's subscriptions that a grant now covers, also those that registries had refused.

    They ask their sinks; those that have none are active.

    Returns which.
    """
    waiting = select(
        subscriptions.c.id,
        subscriptions.c.types,
        subscriptions.c.domain,
        subscriptions.c.source,
        subscriptions.c.sink.is_not(None).label("has_sink"),
    ).where(subscriptions.c.organisation_id == provider_id, _WAITING)
    covered = [
        row
        for row in (await connection.execute(waiting)).all()
        if await could_receive(connection, provider_id, types=row.types, domain=row.domain, source=row.source)
    ]
    for has_sink in sorted({row.has_sink for row in covered}):
        alike = [row.id for row in covered if row.has_sink == has_sink]
        await connection.execute(
            update(subscriptions)
            .where(subscriptions.c.id == func.any(alike), _WAITING)
            .values(
                **life_cycle.after_grant(has_sink=has_sink),
                version=subscriptions.c.version + 1,
                updated_at=func.now(),
            )
        )
    return [row.id for row in covered]
