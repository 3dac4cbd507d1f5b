"""Requests: subscriptions that wait for a grant, as the registries see them whose types they ask for.

A grant is the approval: approving a request gives one, and a provider that has one needs no approving. A request that
names no types and no domain asks nobody in particular, so nobody is asked; it waits for a grant.
"""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.problems import NotFound
from subscriptions.change_log import ChangeKind, record_changes
from subscriptions.coverage import within
from subscriptions.database import AnyRow, AnySelect
from subscriptions.life_cycle import REFUSED_BY_REGISTRY
from subscriptions.tables import Status, domains, organisations, subscription_refusals, subscriptions

# The owner of a name is that of the longest domain it lies in; a domain that is asked for whole also asks its parts.
_ASKED: Final = """
EXISTS (
    SELECT FROM unnest(
        CASE WHEN cardinality(subscriptions.types) = 0 THEN ARRAY[subscriptions.domain] ELSE subscriptions.types END
    ) AS asked (name)
    WHERE (
        SELECT domains.organisation_id FROM domains
        WHERE asked.name = domains.name OR starts_with(asked.name, domains.name || '.')
        ORDER BY length(domains.name) DESC LIMIT 1
    ) = :registry_id
) OR (
    cardinality(subscriptions.types) = 0 AND EXISTS (
        SELECT FROM domains
        WHERE domains.organisation_id = :registry_id AND starts_with(domains.name, subscriptions.domain || '.')
    )
)
"""


def asked_of(registry_id: UUID) -> AnySelect:
    """The requests that a registry has not answered, with the provider's OIN and name (`oin`, `name`)."""
    refused = select(subscription_refusals.c.subscription_id).where(subscription_refusals.c.registry_id == registry_id)
    return (
        select(
            subscriptions.c.key,
            subscriptions.c.id,
            subscriptions.c.types,
            subscriptions.c.domain,
            subscriptions.c.source,
            subscriptions.c.created_at,
            organisations.c.oin,
            organisations.c.name,
        )
        .join_from(subscriptions, organisations, organisations.c.id == subscriptions.c.organisation_id)
        .where(
            subscriptions.c.status == Status.REQUESTED,
            subscriptions.c.id.not_in(refused),
            text(f"({_ASKED})").bindparams(registry_id=registry_id),
        )
    )


async def get(connection: AsyncConnection, subscription_id: UUID, *, registry_id: UUID) -> AnyRow:
    """Returns a request that a registry has not answered.

    Raises:
        NotFound: there is none, or it asks nothing of this registry.
    """
    statement = asked_of(registry_id).where(subscriptions.c.id == subscription_id)
    row: AnyRow | None = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise NotFound
    return row


async def types_to_grant(connection: AsyncConnection, request: AnyRow, *, registry_id: UUID) -> list[str]:
    """Returns what a request asks for in a registry's domains, as patterns of a grant."""
    owners = await _owners(connection)
    if request.types:
        mine = [name for name in request.types if _owner(owners, name) == registry_id]
        return [name for name in mine if request.domain is None or within(name, request.domain)] or mine
    if _owner(owners, request.domain) == registry_id:
        return [f"{request.domain}.*"]
    return [f"{name}.*" for name, owner in owners.items() if owner == registry_id and within(name, request.domain)]


async def refuse(
    connection: AsyncConnection, subscription_id: UUID, *, registry_id: UUID, oin: str, reason: str
) -> AnyRow:
    """Says no. The subscription is refused when every registry that it asks has; until then it goes on waiting.

    Returns the refusal, with the subscription's `status`. Needs a transaction of `change_log.changing`.

    Raises:
        NotFound: there is no such request, or this registry answered it before.
    """
    request = await get(connection, subscription_id, registry_id=registry_id)
    refusal = (
        await connection.execute(
            insert(subscription_refusals)
            .values(subscription_id=subscription_id, registry_id=registry_id, reason=reason)
            .returning(subscription_refusals.c.refused_at)
        )
    ).scalar_one()
    refused = select(subscription_refusals.c.registry_id).where(
        subscription_refusals.c.subscription_id == subscription_id
    )
    no = set((await connection.execute(refused)).scalars())
    owners = await _owners(connection)
    if _asked(owners, request.types, request.domain) <= no:
        values = {"status": Status.REFUSED, "status_reason": f"{REFUSED_BY_REGISTRY}: {oin}: {reason}"}
    else:
        values = {"status_reason": f"no-grant: {oin} refused: {reason}"}
    changed = await connection.execute(
        update(subscriptions)
        .where(subscriptions.c.id == subscription_id, subscriptions.c.status == Status.REQUESTED)
        .values(**values, version=subscriptions.c.version + 1, updated_at=func.now())
        .returning(subscriptions.c.status, text(":refused_at AS refused_at").bindparams(refused_at=refusal))
    )
    await record_changes(connection, [(ChangeKind.SUBSCRIPTION, subscription_id)])
    row: AnyRow = changed.one()
    return row


async def forget_refusals(connection: AsyncConnection, subscription_id: UUID) -> None:
    """Takes away what registries said: the subscription asks for something else now."""
    await connection.execute(
        delete(subscription_refusals).where(subscription_refusals.c.subscription_id == subscription_id)
    )


async def _owners(connection: AsyncConnection) -> dict[str, UUID]:
    statement = select(domains.c.name, domains.c.organisation_id).order_by(func.length(domains.c.name).desc())
    return {row.name: row.organisation_id for row in await connection.execute(statement)}


def _owner(owners: dict[str, UUID], name: str | None) -> UUID | None:
    return next((owner for domain, owner in owners.items() if name is not None and within(name, domain)), None)


def _asked(owners: dict[str, UUID], types: Sequence[str], domain: str | None) -> set[UUID]:
    """The registries that a subscription asks; a type that nobody owns asks nobody."""
    if types:
        found = {_owner(owners, name) for name in types}
    else:
        found = {_owner(owners, domain), *(owner for name, owner in owners.items() if domain and within(name, domain))}
    return {owner for owner in found if owner is not None}
