"""Organisations and the domains of event types that they own.

Whoever owns a domain decides who may receive its types, so a domain can't be claimed inside or around another's.
"""

from collections.abc import Sequence
from typing import Final
from uuid import UUID, uuid4

from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.identifiers import is_oin
from schemas.notices import DOMAIN, is_own
from schemas.problems import Conflict, InvalidInput, NotFound
from subscriptions.change_log import ChangeKind, moment_of_change, record_changes
from subscriptions.coverage import domains_of
from subscriptions.database import AnyRow
from subscriptions.tables import domains, organisations

OIN_SOURCE: Final = "urn:nld:oin:"
_TAKEN: Final = "There is a domain with this name already."


async def create_organisation(
    connection: AsyncConnection,
    *,
    oin: str,
    name: str,
    amqp_user: str | None = None,
    sources: Sequence[str] = (),
) -> AnyRow:
    """Registers an organisation.

    Raises:
        InvalidInput: not an OIN, or a source that can't be listed.
        Conflict: the OIN, the RabbitMQ user or a source is already someone's.
    """
    if not is_oin(oin):
        raise InvalidInput.field("/oin", "oin", "must be an OIN of 20 positions")
    await _check_sources(connection, sources, None)
    moment = moment_of_change()
    values = {
        "id": uuid4(),
        "oin": oin,
        "name": name,
        "amqp_user": amqp_user,
        "sources": list(sources),
        "created_at": moment,
        "updated_at": moment,
    }
    try:
        async with connection.begin_nested():
            row: AnyRow = (
                await connection.execute(insert(organisations).values(values).returning(organisations))
            ).one()
    except IntegrityError as error:
        raise Conflict("There is an organisation with this OIN or RabbitMQ user already.") from error
    await record_changes(connection, [(ChangeKind.ORGANISATION, row.id)])
    return row


async def change_organisation(
    connection: AsyncConnection,
    organisation_id: UUID,
    *,
    name: str,
    amqp_user: str | None,
    sources: Sequence[str],
) -> AnyRow:
    """Changes everything of an organisation but its OIN.

    Raises:
        NotFound: there is no such organisation.
        InvalidInput: a source that can't be listed.
        Conflict: the RabbitMQ user or a source is already someone's.
    """
    await _check_sources(connection, sources, organisation_id)
    try:
        async with connection.begin_nested():
            row: AnyRow | None = (
                await connection.execute(
                    update(organisations)
                    .where(organisations.c.id == organisation_id)
                    .values(name=name, amqp_user=amqp_user, sources=list(sources), updated_at=moment_of_change())
                    .returning(organisations)
                )
            ).one_or_none()
    except IntegrityError as error:
        raise Conflict("There is an organisation with this RabbitMQ user already.") from error
    if row is None:
        raise NotFound
    await record_changes(connection, [(ChangeKind.ORGANISATION, organisation_id)])
    return row


async def find_organisation(connection: AsyncConnection, *, oin: str) -> AnyRow | None:
    """Returns the organisation with an OIN."""
    return (await connection.execute(select(organisations).where(organisations.c.oin == oin))).one_or_none()


async def get_organisation(connection: AsyncConnection, organisation_id: UUID) -> AnyRow:
    """Returns an organisation, or raises `NotFound`."""
    row = (await connection.execute(select(organisations).where(organisations.c.id == organisation_id))).one_or_none()
    if row is None:
        raise NotFound
    return row


async def create_domain(
    connection: AsyncConnection,
    *,
    organisation_id: UUID,
    name: str,
    description: str | None = None,
    documentation_link: str | None = None,
    filter_attributes: Sequence[str] = (),
    by_operator: bool = False,
) -> AnyRow:
    """Registers a domain for an organisation.

    Only the operator may put a domain inside or around another organisation's.

    Raises:
        Conflict: the name is taken, or lies inside or around another's domain.
    """
    await check_domain(connection, organisation_id, name, by_operator=by_operator)
    try:
        async with connection.begin_nested():
            row: AnyRow = (
                await connection.execute(
                    insert(domains)
                    .values(
                        id=uuid4(),
                        name=name,
                        organisation_id=organisation_id,
                        description=description,
                        documentation_link=documentation_link,
                        filter_attributes=list(filter_attributes),
                        created_at=moment_of_change(),
                    )
                    .returning(domains)
                )
            ).one()
    except IntegrityError as error:
        raise Conflict(_TAKEN) from error
    await record_changes(connection, [(ChangeKind.DOMAIN, row.id)])
    return row


async def check_domain(
    connection: AsyncConnection, organisation_id: UUID, name: str, *, by_operator: bool = False
) -> None:
    """Tells whether an organisation may register a domain, as things are now.

    Raises:
        Conflict: the name is taken, or lies inside or around another's domain, or is Bode's own.
    """
    if is_own(name):
        raise Conflict(f"Domains within {DOMAIN} are Bode's own.")
    around = select(domains.c.name, domains.c.organisation_id).where(
        or_(domains.c.name.in_(domains_of(name)), domains.c.name.startswith(name + ".", autoescape=True))
    )
    found = (await connection.execute(around)).all()
    if any(row.name == name for row in found):
        raise Conflict(_TAKEN)
    if not by_operator and any(row.organisation_id != organisation_id for row in found):
        raise Conflict("This domain lies inside or around a domain of another organisation.")


async def owner_of(connection: AsyncConnection, name: str) -> UUID | None:
    """Returns the organisation that owns an event type or domain: that of the longest domain it lies in."""
    longest = (
        select(domains.c.organisation_id)
        .where(domains.c.name.in_(domains_of(name)))
        .order_by(func.length(domains.c.name).desc())
        .limit(1)
    )
    return (await connection.execute(longest)).scalar_one_or_none()


async def _check_sources(connection: AsyncConnection, sources: Sequence[str], own_id: UUID | None) -> None:
    for position, source in enumerate(sources):
        if source.startswith(OIN_SOURCE):
            reason = "need not be listed: a source that starts with urn:nld:oin: belongs to the organisation it names"
            raise InvalidInput.field(f"/sources/{position}", "source", reason)
    if not sources:
        return
    taken = select(organisations.c.id).where(organisations.c.sources.overlap(list(sources)))
    if set((await connection.execute(taken)).scalars()) - {own_id}:
        raise Conflict("One of the sources belongs to another organisation.")
