"""Makes the organisations of the demo, with their keys: five registries, two providers and an operator.

Registry `<x>` owns the domain `nl.<x>`, describes its types, and has granted all of it to both providers. Made once;
keys are made anew where the database doesn't know those that were kept.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from broker.tools.demo_catalogue import describe_types
from broker.tools.identities import PROVIDERS, SOURCES, Identities, Provider, Registry
from subscriptions.callers import Scope, create_key
from subscriptions.change_log import changing
from subscriptions.grants import create_grant
from subscriptions.organisations import create_domain, create_organisation, find_organisation
from subscriptions.secrets import digest_of
from subscriptions.tables import api_keys, domains, grants

_REGISTRY_SCOPES: Final = (Scope.PUBLISH, Scope.MANAGE)
_PROVIDER_SCOPES: Final = (Scope.CONSUME,)


async def prepare(engine: AsyncEngine, data_dir: Path) -> Identities:
    """Make what is missing of the demo's organisations, domains, event types, grants and keys. Idempotent."""
    known = Identities.read(data_dir)
    async with changing(engine) as connection:
        operator = await _key(connection, known.operator if known else None, None, (Scope.OPERATE,), "demo operator")
        registries: dict[str, Registry] = {}
        organisations: dict[str, UUID] = {}
        for name, source in SOURCES.items():
            oin = source.split(":")[3]
            organisation = await _organisation(connection, oin, f"Demo {name.upper()}", name)
            organisations[name] = organisation
            await _domain(connection, organisation, f"nl.{name}")
            former = known.registries[name].key if known and name in known.registries else None
            key = await _key(connection, former, organisation, _REGISTRY_SCOPES, f"demo {name}")
            registries[name] = Registry(oin, key, source)
        await describe_types(connection, organisations)
        providers: dict[str, Provider] = {}
        for name, oin in PROVIDERS.items():
            organisation = await _organisation(connection, oin, f"Demo {name}", None)
            former = known.providers[name].key if known and name in known.providers else None
            key = await _key(connection, former, organisation, _PROVIDER_SCOPES, f"demo {name}")
            providers[name] = Provider(oin, key)
            for registry in SOURCES:
                await _grant(connection, registries[registry].oin, organisation, oin, f"nl.{registry}.*")
    identities = Identities(operator, registries, providers)
    identities.keep(data_dir)
    return identities


async def _organisation(connection: AsyncConnection, oin: str, name: str, amqp_user: str | None) -> UUID:
    row = await find_organisation(connection, oin=oin)
    if row is None:
        row = await create_organisation(connection, oin=oin, name=name, amqp_user=amqp_user)
    identity: UUID = row.id
    return identity


async def _domain(connection: AsyncConnection, organisation: UUID, name: str) -> None:
    found = await connection.execute(select(domains.c.id).where(domains.c.name == name))
    if found.one_or_none() is None:
        await create_domain(connection, organisation_id=organisation, name=name, description=f"Demo events of {name}")


async def _grant(connection: AsyncConnection, registry_oin: str, provider: UUID, provider_oin: str, types: str) -> None:
    registry = await find_organisation(connection, oin=registry_oin)
    assert registry is not None
    standing = select(grants.c.id).where(
        grants.c.registry_id == registry.id, grants.c.provider_id == provider, grants.c.revoked_at.is_(None)
    )
    if (await connection.execute(standing)).first() is None:
        await create_grant(
            connection, registry_id=registry.id, provider_oin=provider_oin, types=[types], legal_basis="demo"
        )


async def _key(
    connection: AsyncConnection, former: str | None, organisation: UUID | None, scopes: Sequence[Scope], label: str
) -> str:
    if former is not None:
        standing = select(api_keys.c.id).where(api_keys.c.digest == digest_of(former), api_keys.c.revoked_at.is_(None))
        if (await connection.execute(standing)).one_or_none() is not None:
            return former
    key, _ = await create_key(connection, organisation_id=organisation, scopes=scopes, label=label)
    return key
