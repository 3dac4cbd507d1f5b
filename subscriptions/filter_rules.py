"""What an installation allows of filters: their grammar, the lists that they name, and what they cost every event."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.filters import FOLLOWS, Condition, FilterError, parse
from schemas.filters.problems import member
from schemas.filters.reading import not_among, read_of_type
from schemas.problems import InvalidInput
from schemas.resources import PreviewBody, SubscriptionBody
from subscriptions import catalogue, follow_lists
from subscriptions.tables import Status, subscriptions

CountEvaluated: TypeAlias = Callable[[Condition], int]
"""Counts the alternatives of a condition that matching must evaluate for every event of their type."""


class Asked(NamedTuple):
    """What filters ask of matching: follow lists, and alternatives that are evaluated for every event."""

    lists: tuple[UUID, ...]
    evaluated: int


class Read(NamedTuple):
    """Filters that have been read: their condition, and the follow lists that they name."""

    condition: Condition
    lists: tuple[UUID, ...]


@dataclass(frozen=True, slots=True)
class FilterRules:
    """How filters are judged, and how many costly alternatives the subscriptions of one organisation may have."""

    count_evaluated: CountEvaluated
    most_evaluated: int

    async def validate(
        self,
        connection: AsyncConnection,
        body: SubscriptionBody,
        *,
        organisation_id: UUID,
        subscription_id: UUID | None = None,
    ) -> Asked:
        """Judges the filters of a subscription that is made, or changed when it has an id.

        Raises:
            InvalidInput: one can't be read, is on something that a registry doesn't allow to filter on, names a list
                that isn't the organisation's, or there are too many that are evaluated for every event.
        """
        read = await self.read(connection, body, organisation_id=organisation_id)
        evaluated = self.count_evaluated(read.condition)
        if evaluated:
            others = await _evaluated_by_others(connection, organisation_id, subscription_id)
            if others + evaluated > self.most_evaluated:
                raise InvalidInput.field(
                    "/filters",
                    "filter-limit",
                    f"have {evaluated} alternatives with nothing to look up, evaluated for every event; "
                    f"your subscriptions may have {self.most_evaluated} together, and the others have {others}",
                )
        return Asked(read.lists, evaluated)

    async def read(
        self, connection: AsyncConnection, body: SubscriptionBody | PreviewBody, *, organisation_id: UUID
    ) -> Read:
        """Reads the filters of a subscription, made or only tried, whatever they cost.

        Raises:
            InvalidInput: as `validate`, but for the number.
        """
        try:
            condition = parse(body.filters, source=body.source, types=body.types or None, domain=body.domain)
        except FilterError as error:
            raise InvalidInput.field(error.pointer, "filter", error.detail) from None
        for event_type, allowed in await catalogue.restricted_types(
            connection, organisation_id, types=body.types or (), domain=body.domain
        ):
            refused = not_among(read_of_type(condition, event_type), allowed)
            if refused:
                raise InvalidInput.field(
                    "/filters",
                    "filter-attribute",
                    f"must not be on {_told(refused)} for events of type {event_type}: "
                    "the catalogue says what may be filtered on",
                )
        return Read(condition, await _lists(connection, body.filters, organisation_id))


def _told(refused: Sequence[str]) -> str:
    # Names of attributes are those of specifications; what stands in a pointer may be anything.
    names = [name for name in refused if not name.startswith("/")][:10]
    return ", ".join([*names, *(["fields of data"] if len(names) < len(refused) else [])])


async def _lists(connection: AsyncConnection, filters: Any, organisation_id: UUID) -> tuple[UUID, ...]:
    named = [(pointer, _identity(value)) for pointer, value in _named(filters, "/filters")]
    if not named:
        return ()
    wanted = list(dict.fromkeys(identity for _, identity in named if identity is not None))
    known = await follow_lists.of_organisation(connection, organisation_id, wanted)
    for pointer, identity in named:
        if identity not in known:
            raise InvalidInput.field(pointer, "follow-list", "must be the id of a follow list of your organisation")
    return tuple(wanted)


def _identity(value: Any) -> UUID | None:
    # Only as Bode writes it: matching compares the text, and another spelling would never match.
    try:
        identity = UUID(value)
    except ValueError:
        return None
    return identity if str(identity) == value else None


def _named(value: Any, pointer: str) -> Iterator[tuple[str, Any]]:
    """The places in filters that have been read without error where a list is named."""
    if isinstance(value, list):
        for position, element in enumerate(value):
            yield from _named(element, member(pointer, str(position)))
    elif isinstance(value, dict):
        for name, content in value.items():
            here = member(pointer, name)
            if name == FOLLOWS:
                yield from ((member(here, attribute), list_id) for attribute, list_id in content.items())
            else:
                yield from _named(content, here)


async def _evaluated_by_others(connection: AsyncConnection, organisation_id: UUID, subscription_id: UUID | None) -> int:
    statement = select(func.coalesce(func.sum(subscriptions.c.evaluated), 0)).where(
        subscriptions.c.organisation_id == organisation_id,
        subscriptions.c.evaluated > 0,
        subscriptions.c.status != Status.ENDED,
    )
    if subscription_id is not None:
        statement = statement.where(subscriptions.c.id != subscription_id)
    return int((await connection.execute(statement)).scalar_one())
