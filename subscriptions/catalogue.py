"""The catalogue: what registries say of the event types that they publish.

An organisation describes types in its own domains. What it says counts only while it owns the type: when a part of a
domain passes to another owner, that one's description takes the place of the former.
"""

from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import delete, func, insert, literal, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.problems import Conflict, Forbidden, InvalidInput, NotFound, PreconditionFailed
from schemas.resources import DataValidation, EventTypeReplacement
from subscriptions.change_log import ChangeKind, moment_of_change, record_changes
from subscriptions.coverage import patterns_covering
from subscriptions.database import AnyRow, AnySelect
from subscriptions.organisations import owner_of
from subscriptions.tables import event_type_versions, event_types, grants, organisations

DESCRIBED = (
    "type", "meaning", "time_meaning", "documentation_link", "information_level", "data_schema", "validation",
    "filter_attributes", "retention_days", "delay_seconds", "deprecated_at", "sunset_at", "successor",
)  # fmt: skip
"""The columns that a registry decides on, named as the members of a description."""


async def describe(connection: AsyncConnection, body: EventTypeReplacement, *, organisation_id: UUID) -> AnyRow:
    """Puts a type in the catalogue; what a former owner of the type said of it is replaced.

    Raises:
        Forbidden: the type lies outside the organisation's domains.
        Conflict: it is in the catalogue already.
    """
    _check(body)
    if await owner_of(connection, body.type) != organisation_id:
        raise Forbidden("/type does not lie in a domain of your organisation.")
    former = delete(event_types).where(
        event_types.c.type == body.type, event_types.c.organisation_id != organisation_id
    )
    left = (await connection.execute(former.returning(event_types.c.id))).scalars().all()
    identity, moment = uuid4(), moment_of_change()
    values = {"id": identity, "organisation_id": organisation_id, "created_at": moment, "updated_at": moment}
    try:
        async with connection.begin_nested():
            await connection.execute(insert(event_types).values(**values, **_columns(body)))
    except IntegrityError as error:
        raise Conflict("This event type is in the catalogue already: replace its description.") from error
    return await _conclude(connection, identity, *left)


async def replace(
    connection: AsyncConnection,
    event_type_id: UUID,
    body: EventTypeReplacement,
    *,
    organisation_id: UUID,
    expected: int | None,
) -> AnyRow:
    """Replaces the description of a type; the former one stays among its versions.

    Raises:
        NotFound: there is no such event type.
        Forbidden: it isn't the organisation's, or no longer.
        PreconditionFailed: it has another version than `expected`.
        InvalidInput: the type itself would change.
    """
    _check(body)
    row = await _own(connection, event_type_id, organisation_id)
    if expected is not None and row.version != expected:
        raise PreconditionFailed
    if body.type != row.type:
        raise InvalidInput.field("/type", "read-only", "can't be changed: describe the other type as one of its own")
    await connection.execute(
        update(event_types)
        .where(event_types.c.id == event_type_id, event_types.c.version == row.version)
        .values(**_columns(body), version=row.version + 1, updated_at=moment_of_change())
    )
    return await _conclude(connection, event_type_id)


async def withdraw(
    connection: AsyncConnection, event_type_id: UUID, *, organisation_id: UUID, expected: int | None
) -> None:
    """Takes a description out of the catalogue, with its versions and its report; events go on as without one.

    Raises:
        NotFound: there is no such event type.
        Forbidden: it isn't the organisation's, or no longer.
        PreconditionFailed: it has another version than `expected`.
    """
    row = await _own(connection, event_type_id, organisation_id)
    if expected is not None and row.version != expected:
        raise PreconditionFailed
    await connection.execute(delete(event_types).where(event_types.c.id == event_type_id))
    await record_changes(connection, [(ChangeKind.EVENT_TYPE, event_type_id)])


async def get(connection: AsyncConnection, event_type_id: UUID) -> AnyRow:
    """Returns an event type with its registry's OIN (`oin`), or raises `NotFound`."""
    row: AnyRow | None = (await connection.execute(described().where(event_types.c.id == event_type_id))).one_or_none()
    if row is None:
        raise NotFound
    return row


def described() -> AnySelect:
    """The event types with the OINs of their registries (`oin`)."""
    return select(event_types, organisations.c.oin.label("oin")).join_from(event_types, organisations)


def versions_of(event_type_id: UUID) -> AnySelect:
    """The versions of a description."""
    return select(event_type_versions).where(event_type_versions.c.event_type_id == event_type_id)


async def restricted_types(
    connection: AsyncConnection, provider_id: UUID, *, types: Sequence[str], domain: str | None
) -> list[tuple[str, frozenset[str]]]:
    """Returns which types of those that are asked for may be filtered on some attributes only, and on which.

    Without `types` a subscription asks for what is granted to its provider, now or to come, within `domain`.
    """
    statement = select(event_types.c.type, event_types.c.filter_attributes).where(
        event_types.c.filter_attributes.is_not(None)
    )
    if types:
        statement = statement.where(event_types.c.type.in_(list(types)))
    if domain is not None:
        inside = event_types.c.type.startswith(domain + ".", autoescape=True)
        statement = statement.where(or_(event_types.c.type == domain, inside))
    found = [(row.type, frozenset(row.filter_attributes)) for row in await connection.execute(statement)]
    if types or not found:
        return found
    standing = select(func.unnest(grants.c.types)).where(
        grants.c.provider_id == provider_id,
        grants.c.revoked_at.is_(None),
        or_(grants.c.valid_until.is_(None), grants.c.valid_until > func.now()),
    )
    granted = set((await connection.execute(standing)).scalars())
    return [(name, allowed) for name, allowed in found if not granted.isdisjoint(patterns_covering(name))]


def _check(body: EventTypeReplacement) -> None:
    if body.validation is not DataValidation.OFF and body.data_schema is None:
        raise InvalidInput.field("/dataSchema", "missing", "is required when events are validated")
    if body.delay_seconds and body.retention_days and body.delay_seconds >= body.retention_days * 86_400:
        reason = "must be shorter than retentionDays: its events would go before they are delivered"
        raise InvalidInput.field("/delaySeconds", "delay", reason)
    if body.deprecated_at and body.sunset_at and body.sunset_at < body.deprecated_at:
        raise InvalidInput.field("/sunsetAt", "sunset", "must not be before deprecatedAt")


async def _own(connection: AsyncConnection, event_type_id: UUID, organisation_id: UUID) -> AnyRow:
    row = await get(connection, event_type_id)
    if row.organisation_id != organisation_id or await owner_of(connection, row.type) != organisation_id:
        raise Forbidden("This event type is another registry's.")
    return row


async def _conclude(connection: AsyncConnection, event_type_id: UUID, *left: UUID) -> AnyRow:
    """Keep the version, and let acceptance know."""
    row = await get(connection, event_type_id)
    said = EventTypeReplacement.model_construct(**{name: getattr(row, name) for name in DESCRIBED})
    await connection.execute(
        insert(event_type_versions).values(
            event_type_id=event_type_id,
            version=row.version,
            description=literal(
                said.model_dump(mode="json", by_alias=True, include=set(DESCRIBED), warnings=False),
                event_type_versions.c.description.type,
            ),
        )
    )
    await record_changes(connection, [(ChangeKind.EVENT_TYPE, identity) for identity in (*left, event_type_id)])
    return row


def _columns(body: EventTypeReplacement) -> dict[str, Any]:
    return {name: getattr(body, name) for name in DESCRIBED}
