"""Which ingest queues there are and whose, and which domains lead to the queues of their own registry.

A lease's number says more than which: `ordinal * BLOCK + slot`, where slot 0 is that of the shared queues and each
registry has one of its own. Processes share leases by number, so the queues of one registry come to different ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import and_, delete, exists, func, insert, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.storage.leases import QUEUE_LEASE
from broker.storage.tables import domain_routes, ingest_queues, leases
from subscriptions.tables import domains, organisations

_BLOCK: Final = 10_000
"""More registries than this can't have queues of their own."""

_SAME: Final = and_(
    domain_routes.c.name == domains.c.name, domain_routes.c.organisation_id == domains.c.organisation_id
)
_domain_is_there: Final = exists().where(_SAME)


@dataclass(frozen=True, slots=True)
class IngestQueue:
    """A queue of RabbitMQ that events come in by, and whose it is; nobody's is shared by all."""

    number: int
    name: str
    organisation_id: UUID | None


@dataclass(frozen=True, slots=True)
class Owned:
    """A domain with its registry, and whether it has had a route before."""

    name: str
    organisation_id: UUID
    oin: str
    routed: bool


async def keep_shared(connection: AsyncConnection, names: Sequence[str]) -> None:
    """Note the shared queues; idempotent."""
    values = [{"number": ordinal * _BLOCK, "name": name} for ordinal, name in enumerate(names)]
    await connection.execute(upsert(ingest_queues).on_conflict_do_nothing(), values)


async def keep_queues(connection: AsyncConnection, organisation_id: UUID, names: Sequence[str]) -> list[str]:
    """The names of a registry's queues: those that it has, or from now on these."""
    await connection.execute(text("LOCK TABLE ingest_queues IN SHARE ROW EXCLUSIVE MODE"))
    own = select(ingest_queues.c.name).where(ingest_queues.c.organisation_id == organisation_id)
    found = list((await connection.execute(own.order_by(ingest_queues.c.number))).scalars())
    if found:
        return found
    highest = select(func.coalesce(func.max(ingest_queues.c.number % _BLOCK), 0))
    slot = (await connection.execute(highest)).scalar_one() + 1
    if slot >= _BLOCK:
        raise OverflowError("there are too many registries with queues of their own")
    values = [
        {"number": ordinal * _BLOCK + slot, "name": name, "organisation_id": organisation_id}
        for ordinal, name in enumerate(names)
    ]
    await connection.execute(insert(ingest_queues), values)
    return list(names)


async def open_queues(connection: AsyncConnection, names: Sequence[str]) -> None:
    """Make the leases of queues that are there in RabbitMQ; from now on processes take them. Idempotent."""
    numbers = select(text(f"'{QUEUE_LEASE}'"), ingest_queues.c.number).where(ingest_queues.c.name.in_(names))
    await connection.execute(upsert(leases).from_select(["kind", "number"], numbers).on_conflict_do_nothing())


async def read_queues(connection: AsyncConnection, numbers: Sequence[int]) -> list[IngestQueue]:
    """The queues with these numbers."""
    wanted = select(ingest_queues.c.number, ingest_queues.c.name, ingest_queues.c.organisation_id)
    found = await connection.execute(wanted.where(ingest_queues.c.number.in_(numbers)))
    return [IngestQueue(row.number, row.name, row.organisation_id) for row in found]


async def claim(connection: AsyncConnection, name: str, organisation_id: UUID) -> bool:
    """Reserve the route of a domain for a registry; False when it is another's."""
    wanted = upsert(domain_routes).values(name=name, organisation_id=organisation_id)
    made = await connection.execute(
        wanted.on_conflict_do_update(
            index_elements=[domain_routes.c.name],
            set_={"made_at": func.now()},
            where=domain_routes.c.organisation_id == organisation_id,
        ).returning(domain_routes.c.name)
    )
    return made.one_or_none() is not None


async def forget(connection: AsyncConnection, name: str) -> bool:
    """Give up the route of a domain that isn't there; False when it is."""
    gone = delete(domain_routes).where(domain_routes.c.name == name, ~_domain_is_there)
    return (await connection.execute(gone.returning(domain_routes.c.name))).one_or_none() is not None


async def read_abandoned(connection: AsyncConnection, age: timedelta) -> list[tuple[str, str]]:
    """Routes (name, OIN of the registry) of which the domain has not come about within `age`."""
    found = await connection.execute(
        select(domain_routes.c.name, organisations.c.oin)
        .join_from(domain_routes, organisations)
        .where(
            domain_routes.c.made_at < func.now() - age,
            ~_domain_is_there,
        )
    )
    return [(row.name, row.oin) for row in found]


async def read_domains(connection: AsyncConnection) -> list[Owned]:
    """All domains with their registries."""
    found = await connection.execute(
        select(domains.c.name, domains.c.organisation_id, organisations.c.oin, domain_routes.c.name.label("route"))
        .join_from(domains, organisations)
        .outerjoin(domain_routes, _SAME)
        .order_by(domains.c.created_at, domains.c.name)
    )
    return [Owned(row.name, row.organisation_id, row.oin, row.route is not None) for row in found]
