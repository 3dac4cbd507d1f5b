"""What a process holds in memory of everything that people decide: who speaks for whom, who may receive what.

Loaded once, then kept current from the change log. A failure to read is raised, never an empty answer: an absent
grant and an unreadable one are different things.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from schemas.data_schemas import DataSchema
from schemas.filters import parse
from schemas.notices import is_own
from subscriptions.change_log import ChangeKind, read_changes, read_head
from subscriptions.coverage import domains_of, patterns_covering
from subscriptions.database import AnyRow, AnySelect
from subscriptions.entries import (
    Change,
    DomainChanged,
    DomainEntry,
    EventTypeChanged,
    EventTypeEntry,
    FollowListsChanged,
    GrantChanged,
    GrantEntry,
    HoldChanged,
    OrganisationChanged,
    OrganisationEntry,
    ReloadNeeded,
    SubscriptionChanged,
    SubscriptionEntry,
)
from subscriptions.held import HoldEntry, Holds
from subscriptions.notices import NO_GRANT_NEEDED
from subscriptions.tables import (
    MATCHED,
    STANDING,
    DataValidation,
    HoldScope,
    Ordering,
    Protocol,
    Status,
    domains,
    event_types,
    grants,
    holds,
    organisations,
    subscriptions,
)

OIN_SOURCE: Final = "urn:nld:oin:"
_STREAMING: Final = {"yield_per": 2_000}
_MEMO_LIMIT: Final = 100_000
_ROWS: Final = (
    ChangeKind.ORGANISATION,
    ChangeKind.DOMAIN,
    ChangeKind.EVENT_TYPE,
    ChangeKind.GRANT,
    ChangeKind.SUBSCRIPTION,
    ChangeKind.HOLD,
)


@dataclass(slots=True)
class Directory:
    """The view in memory. `apply` is the only thing that changes it; everything else answers without I/O."""

    organisations: dict[UUID, OrganisationEntry] = field(default_factory=dict)
    domains: dict[UUID, DomainEntry] = field(default_factory=dict)
    event_types: dict[UUID, EventTypeEntry] = field(default_factory=dict)
    grants: dict[UUID, GrantEntry] = field(default_factory=dict)
    subscriptions: dict[int, SubscriptionEntry] = field(default_factory=dict)
    holds: Holds = field(default_factory=Holds)
    _by_amqp_user: dict[str, OrganisationEntry] = field(default_factory=dict, repr=False)
    _by_source: dict[str, OrganisationEntry] = field(default_factory=dict, repr=False)
    _by_oin: dict[str, OrganisationEntry] = field(default_factory=dict, repr=False)
    _by_domain: dict[str, UUID] = field(default_factory=dict, repr=False)
    _by_type: dict[str, EventTypeEntry] = field(default_factory=dict, repr=False)
    _by_provider: dict[UUID, dict[UUID, GrantEntry]] = field(default_factory=dict, repr=False)
    _granting: dict[tuple[UUID, str], tuple[GrantEntry, ...]] = field(default_factory=dict, repr=False, compare=False)

    def organisation_of_user(self, amqp_user: str) -> OrganisationEntry | None:
        """Returns the organisation that a RabbitMQ user speaks for.

        The API, which RabbitMQ lets publish as any user, names an organisation without one by its OIN.
        """
        return self._by_amqp_user.get(amqp_user) or self._by_oin.get(amqp_user)

    def organisation_of_source(self, source: str) -> OrganisationEntry | None:
        """Returns the organisation that may speak for a source: by its OIN in the URN, or because it's listed."""
        listed = self._by_source.get(source)
        if listed is not None:
            return listed
        if not source.startswith(OIN_SOURCE):
            return None
        return self._by_oin.get(source[len(OIN_SOURCE) :].partition(":")[0])

    def may_speak_for(self, organisation_id: UUID, source: str) -> bool:
        """Tells whether an organisation may publish events of a source."""
        owner = self.organisation_of_source(source)
        return owner is not None and owner.id == organisation_id

    def owner_of_type(self, event_type: str) -> UUID | None:
        """Returns the organisation that owns an event type: that of the longest domain it lies in."""
        return next((self._by_domain[name] for name in domains_of(event_type) if name in self._by_domain), None)

    def validated(self, event_type: str) -> EventTypeEntry | None:
        """Returns the description that events of a type are held against: its owner's, unless validation is off."""
        entry = self._by_type.get(event_type)
        if entry is None or entry.schema is None or entry.validation is DataValidation.OFF:
            return None
        return entry if entry.organisation_id == self.owner_of_type(event_type) else None

    def delay_of(self, event_type: str) -> timedelta | None:
        """Returns how long events of a type wait before they are delivered, as its owner says."""
        entry = self._by_type.get(event_type)
        if entry is None or entry.delay is None or entry.organisation_id != self.owner_of_type(event_type):
            return None
        return entry.delay

    def granted(self, provider_id: UUID, event_type: str, now: datetime) -> UUID | None:
        """Returns the oldest grant by which a provider may receive a type now, or None.

        A grant counts only while its registry owns the type. One that held when it was made doesn't cease to when the
        clock is set back (promise 8), so this is not for moments that have passed: see `granted_then`. Bode's own types
        need none: who gets a notice was decided when it was accepted.
        """
        candidates = self._candidates(provider_id, event_type)
        if candidates is None:
            return NO_GRANT_NEEDED
        for grant in candidates:
            begun = grant.valid_from <= now or grant.valid_from <= grant.created_at
            if begun and (grant.valid_until is None or now < grant.valid_until):
                return grant.id
        return None

    def granted_then(self, provider_id: UUID, event_type: str, moment: datetime) -> bool:
        """Whether a grant that stands today held at a moment that has passed."""
        candidates = self._candidates(provider_id, event_type)
        return candidates is None or any(
            grant.valid_from <= moment and (grant.valid_until is None or moment < grant.valid_until)
            for grant in candidates
        )

    def _candidates(self, provider_id: UUID, event_type: str) -> tuple[GrantEntry, ...] | None:
        """Grants that cover a type, the oldest first, whenever they hold; None: it needs none."""
        memo = (provider_id, event_type)
        candidates = self._granting.get(memo)
        if candidates is None:
            if is_own(event_type):
                return None
            if len(self._granting) >= _MEMO_LIMIT:  # types come from outside: never let them fill the memory
                self._granting.clear()
            candidates = self._granting[memo] = self._covering(provider_id, event_type)
        return candidates

    def _covering(self, provider_id: UUID, event_type: str) -> tuple[GrantEntry, ...]:
        owner = self.owner_of_type(event_type)
        covering = patterns_covering(event_type)
        found = [
            grant
            for grant in self._by_provider.get(provider_id, {}).values()
            if grant.registry_id == owner and not covering.isdisjoint(grant.types)
        ]
        return tuple(sorted(found, key=lambda grant: (grant.created_at, grant.id)))

    def apply(self, changes: Sequence[Change]) -> None:
        """Applies changes in the order of the log; applying one twice does no harm.

        Raises:
            ValueError: one of them is `ReloadNeeded`; the caller loads a new directory instead.
        """
        for change in changes:
            match change:
                case OrganisationChanged(identity, organisation):
                    self._put_organisation(identity, organisation)
                case DomainChanged(identity, domain):
                    self._put_domain(identity, domain)
                case EventTypeChanged(identity, event_type):
                    self._put_event_type(identity, event_type)
                case GrantChanged(identity, grant):
                    self._put_grant(identity, grant)
                case SubscriptionChanged(key, None):
                    self.subscriptions.pop(key, None)
                case SubscriptionChanged(key, SubscriptionEntry() as subscription):
                    self.subscriptions[key] = subscription
                case HoldChanged(hold, stands):
                    self.holds.put(hold, stands=stands)
                case FollowListsChanged():
                    pass  # the lists are held elsewhere
                case ReloadNeeded():
                    raise ValueError("the change log asks for a new directory")

    def _put_organisation(self, identity: UUID, entry: OrganisationEntry | None) -> None:
        before = self.organisations.pop(identity, None)
        if before is not None:
            self._by_oin.pop(before.oin, None)
            self._by_amqp_user.pop(before.amqp_user or "", None)
            for source in before.sources:
                self._by_source.pop(source, None)
        if entry is not None:
            self.organisations[identity] = entry
            self._by_oin[entry.oin] = entry
            if entry.amqp_user:
                self._by_amqp_user[entry.amqp_user] = entry
            for source in entry.sources:
                self._by_source[source] = entry

    def _put_domain(self, identity: UUID, entry: DomainEntry | None) -> None:
        before = self.domains.pop(identity, None)
        if before is not None:
            self._by_domain.pop(before.name, None)
        if entry is not None:
            self.domains[identity] = entry
            self._by_domain[entry.name] = entry.organisation_id
        self._granting.clear()

    def _put_event_type(self, identity: UUID, entry: EventTypeEntry | None) -> None:
        before = self.event_types.pop(identity, None)
        if before is not None:
            self._by_type.pop(before.type, None)
        if entry is not None:
            self.event_types[identity] = entry
            self._by_type[entry.type] = entry

    def _put_grant(self, identity: UUID, entry: GrantEntry | None) -> None:
        before = self.grants.pop(identity, None)
        if before is not None:
            standing = self._by_provider[before.provider_id]
            del standing[identity]
            if not standing:
                del self._by_provider[before.provider_id]
        if entry is not None:
            self.grants[identity] = entry
            self._by_provider.setdefault(entry.provider_id, {})[identity] = entry
        self._granting.clear()


async def load(engine: AsyncEngine) -> tuple[int, Directory]:
    """Reads everything in one snapshot, streaming, and returns it with the version that it belongs to."""
    directory = Directory()
    async with snapshot(engine) as connection:
        version = await read_head(connection)
        for row in await connection.execute(_ORGANISATIONS):
            directory.apply([OrganisationChanged(row.id, _organisation(row))])
        for row in await connection.execute(_DOMAINS):
            directory.apply([DomainChanged(row.id, _domain(row))])
        for row in await connection.execute(_EVENT_TYPES):
            directory.apply([EventTypeChanged(row.id, _event_type(row))])
        for row in await connection.execute(_HOLDS):
            directory.apply([HoldChanged(_hold(row), stands=True)])
        async with connection.stream(_GRANTS, execution_options=_STREAMING) as granted:
            async for rows in granted.partitions():
                directory.apply([GrantChanged(row.id, _grant(row)) for row in rows])
        matched = _SUBSCRIPTIONS.where(subscriptions.c.status.in_(MATCHED))
        async with connection.stream(matched, execution_options=_STREAMING) as found:
            async for rows in found.partitions():  # row by row would cost a switch of context for each
                directory.subscriptions.update((row.key, _subscription(row)) for row in rows)
    return version, directory


async def load_changes(engine: AsyncEngine, since_version: int) -> tuple[int, list[Change]]:
    """Returns the head of the log and what changed after `since_version`, each thing once, as it is at the head.

    A caller that holds the shared change lock (see `change_log`) gets the very last change.
    """
    async with snapshot(engine) as connection:
        version, entries = await read_changes(connection, since_version)
        if any(entry.kind is ChangeKind.EVERYTHING for entry in entries):
            return version, [ReloadNeeded()]
        changes: list[Change] = []
        if any(entry.kind is ChangeKind.FOLLOW_LIST for entry in entries):
            changes.append(FollowListsChanged())
        for kind in _ROWS:
            touched = list(dict.fromkeys(UUID(entry.entity) for entry in entries if entry.kind is kind))
            if touched:
                changes += await _read(connection, kind, touched)
        return version, changes


async def _read(connection: AsyncConnection, kind: ChangeKind, touched: list[UUID]) -> list[Change]:
    match kind:
        case ChangeKind.ORGANISATION:
            found = await connection.execute(_ORGANISATIONS.where(organisations.c.id == func.any(touched)))
            return [OrganisationChanged(row.id, _organisation(row)) for row in found]
        case ChangeKind.DOMAIN:
            found = await connection.execute(_DOMAINS.where(domains.c.id == func.any(touched)))
            return [DomainChanged(row.id, _domain(row)) for row in found]
        case ChangeKind.EVENT_TYPE:
            found = await connection.execute(_EVENT_TYPES.where(event_types.c.id == func.any(touched)))
            described = {row.id: _event_type(row) for row in found}
            return [EventTypeChanged(identity, described.get(identity)) for identity in touched]
        case ChangeKind.GRANT:
            found = await connection.execute(_GRANTS.where(grants.c.id == func.any(touched)))
            standing = {row.id: _grant(row) for row in found}
            return [GrantChanged(identity, standing.get(identity)) for identity in touched]
        case ChangeKind.SUBSCRIPTION:
            found = await connection.execute(_SUBSCRIPTIONS.where(subscriptions.c.id == func.any(touched)))
            return [
                SubscriptionChanged(row.key, _subscription(row) if row.status in MATCHED else None) for row in found
            ]
        case ChangeKind.HOLD:
            found = await connection.execute(_EVERY_HOLD.where(holds.c.id == func.any(touched)))
            return [HoldChanged(_hold(row), stands=row.status in STANDING) for row in found]
        case ChangeKind.FOLLOW_LIST:
            return [FollowListsChanged()]
        case ChangeKind.EVERYTHING:
            return [ReloadNeeded()]


@asynccontextmanager
async def snapshot(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Opens a transaction in which everything is read as it was at one moment."""
    async with engine.connect() as connection:
        reading = await connection.execution_options(isolation_level="REPEATABLE READ")
        async with reading.begin():
            yield reading


_ORGANISATIONS: Final[AnySelect] = select(
    organisations.c.id,
    organisations.c.oin,
    organisations.c.name,
    organisations.c.amqp_user,
    organisations.c.sources,
)

_DOMAINS: Final[AnySelect] = select(domains.c.id, domains.c.name, domains.c.organisation_id)

_EVENT_TYPES: Final[AnySelect] = select(
    event_types.c.id,
    event_types.c.type,
    event_types.c.organisation_id,
    event_types.c.validation,
    event_types.c.data_schema,
    event_types.c.delay_seconds,
)

# Grants that can still count: neither revoked nor run out.
_GRANTS: Final[AnySelect] = select(
    grants.c.id,
    grants.c.registry_id,
    grants.c.provider_id,
    grants.c.types,
    grants.c.valid_from,
    grants.c.valid_until,
    grants.c.created_at,
).where(grants.c.revoked_at.is_(None), or_(grants.c.valid_until.is_(None), grants.c.valid_until > func.now()))

_SUBSCRIPTIONS: Final[AnySelect] = select(
    subscriptions.c.key,
    subscriptions.c.id,
    subscriptions.c.organisation_id,
    subscriptions.c.source,
    subscriptions.c.domain,
    subscriptions.c.types,
    subscriptions.c.filters,
    subscriptions.c.ordering,
    subscriptions.c.status,
    subscriptions.c.protocol,
)


_EVERY_HOLD: Final[AnySelect] = select(
    holds.c.id, holds.c.scope, holds.c.value, holds.c.target_id, holds.c.placed_at, holds.c.status
)
_HOLDS: Final = _EVERY_HOLD.where(holds.c.status.in_(STANDING))


def _organisation(row: AnyRow) -> OrganisationEntry:
    return OrganisationEntry(row.id, row.oin, row.name, row.amqp_user, frozenset(row.sources))


def _domain(row: AnyRow) -> DomainEntry:
    return DomainEntry(row.id, row.name, row.organisation_id)


def _event_type(row: AnyRow) -> EventTypeEntry:
    schema = None if row.data_schema is None else DataSchema(row.data_schema)
    delay = None if row.delay_seconds is None else timedelta(seconds=row.delay_seconds)
    return EventTypeEntry(row.id, row.type, row.organisation_id, DataValidation(row.validation), schema, delay)


def _hold(row: AnyRow) -> HoldEntry:
    return HoldEntry(row.id, HoldScope(row.scope), row.value, row.target_id, row.placed_at)


def _grant(row: AnyRow) -> GrantEntry:
    return GrantEntry(
        row.id, row.registry_id, row.provider_id, tuple(row.types), row.valid_from, row.valid_until, row.created_at
    )


def _subscription(row: AnyRow) -> SubscriptionEntry:
    # A stored filter that can't be parsed raises: skipping it would be a silent "no match".
    condition = parse(row.filters, source=row.source, types=row.types or None, domain=row.domain)
    pulled = row.protocol == Protocol.PULL.value
    return SubscriptionEntry(
        row.key, row.id, row.organisation_id, condition, Ordering(row.ordering), Status(row.status), pulled
    )
