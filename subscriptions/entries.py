"""What a directory holds of each row, and what can change in it. All of it is immutable."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias
from uuid import UUID

from schemas.data_schemas import DataSchema
from schemas.filters import Condition
from subscriptions.held import HoldEntry
from subscriptions.tables import DataValidation, Ordering, Status


@dataclass(frozen=True, slots=True)
class OrganisationEntry:
    """An organisation as ingest sees it."""

    id: UUID
    oin: str
    name: str
    amqp_user: str | None
    sources: frozenset[str]


@dataclass(frozen=True, slots=True)
class DomainEntry:
    """A namespace of event types and its owner."""

    id: UUID
    name: str
    organisation_id: UUID


@dataclass(frozen=True, slots=True)
class EventTypeEntry:
    """A described event type, as far as it matters to acceptance. It counts only while its registry owns the type."""

    id: UUID
    type: str
    organisation_id: UUID
    validation: DataValidation
    schema: DataSchema | None
    delay: timedelta | None = None
    """How long its events wait before they are delivered."""


@dataclass(frozen=True, slots=True)
class GrantEntry:
    """A grant that has not been revoked; `valid_until` is the first moment at which it no longer holds."""

    id: UUID
    registry_id: UUID
    provider_id: UUID
    types: tuple[str, ...]
    valid_from: datetime
    valid_until: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SubscriptionEntry:
    """A subscription that is matched."""

    key: int
    id: UUID
    organisation_id: UUID
    condition: Condition
    ordering: Ordering
    status: Status
    pulled: bool = False
    """Its provider fetches; nothing is sent."""

    @property
    def sent(self) -> bool:
        """Whether what matches is sent now, not only kept."""
        return self.status is Status.ACTIVE and not self.pulled


@dataclass(frozen=True, slots=True)
class OrganisationChanged:
    """The organisation is as `entry` from now on."""

    id: UUID
    entry: OrganisationEntry


@dataclass(frozen=True, slots=True)
class DomainChanged:
    """The domain is as `entry` from now on."""

    id: UUID
    entry: DomainEntry


@dataclass(frozen=True, slots=True)
class EventTypeChanged:
    """The event type is described as `entry` from now on, or no longer."""

    id: UUID
    entry: EventTypeEntry | None


@dataclass(frozen=True, slots=True)
class GrantChanged:
    """The grant is as `entry` from now on, or revoked."""

    id: UUID
    entry: GrantEntry | None


@dataclass(frozen=True, slots=True)
class SubscriptionChanged:
    """The subscription is as `entry` from now on, or no longer matched."""

    key: int
    entry: SubscriptionEntry | None


@dataclass(frozen=True, slots=True)
class HoldChanged:
    """The hold stands from now on, or has ended."""

    hold: HoldEntry
    stands: bool


@dataclass(frozen=True, slots=True)
class FollowListsChanged:
    """Subjects came onto follow lists or left them; who holds the lists reads which (`follow_lists.read_steps`)."""


@dataclass(frozen=True, slots=True)
class ReloadNeeded:
    """The log doesn't say what changed: load everything again."""


Change: TypeAlias = (
    OrganisationChanged
    | DomainChanged
    | EventTypeChanged
    | GrantChanged
    | SubscriptionChanged
    | HoldChanged
    | FollowListsChanged
    | ReloadNeeded
)
