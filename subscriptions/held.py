"""What is held now, as a process has it in memory. Pure.

Holds that overlap add up: something goes when no hold covers it.
"""

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from schemas.resources import HoldScope


@dataclass(frozen=True, slots=True)
class HoldEntry:
    """A hold that stands."""

    id: UUID
    scope: HoldScope
    value: str
    target_id: UUID | None
    """The organisation or subscription, where it is of one."""
    placed_at: datetime


@dataclass(slots=True)
class Holds:
    """The holds that stand."""

    entries: dict[UUID, HoldEntry] = field(default_factory=dict)
    _of: dict[tuple[HoldScope, str | UUID], HoldEntry] = field(default_factory=dict, repr=False)

    def put(self, hold: HoldEntry, *, stands: bool) -> None:
        """A hold stands now, or no longer; of what is held twice the later hold may come first."""
        place = (hold.scope, hold.target_id or hold.value)
        if stands:
            self.entries[hold.id] = self._of[place] = hold
        elif self.entries.pop(hold.id, None) is not None and self._of[place].id == hold.id:
            del self._of[place]

    @property
    def of_events(self) -> bool:
        """Whether a source or a type is held, so that each event has to be asked for."""
        return any(entry.target_id is None for entry in self.entries.values())

    def of_source(self, source: str) -> HoldEntry | None:
        """The hold of a source."""
        return self._of.get((HoldScope.SOURCE, source))

    def of_type(self, event_type: str) -> HoldEntry | None:
        """The hold of an event type."""
        return self._of.get((HoldScope.EVENT_TYPE, event_type))

    def of_subscription(self, organisation_id: UUID, subscription_id: UUID) -> HoldEntry | None:
        """The hold of everything that goes to a subscription: its own, or its organisation's."""
        if not self.entries:
            return None
        return self._of.get((HoldScope.SUBSCRIPTION, subscription_id)) or self._of.get(
            (HoldScope.ORGANISATION, organisation_id)
        )
