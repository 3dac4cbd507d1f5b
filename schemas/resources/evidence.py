"""Evidence, as the API says it: what became of every number of a subscription, and of every delivery of an event."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from pydantic import Field

from schemas.resources.base import Answer
from schemas.resources.outcomes import Rejection


class DeliveryState(StrEnum):
    """How a delivery stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"
    CANCELLED = "cancelled"


class TombstoneState(StrEnum):
    """Why a number is left out of the digests."""

    PENDING = "pending"
    DEAD = "dead"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class DeliveryCounts(Answer):
    """Deliveries by state."""

    delivered: int = Field(ge=0, description="Accepted by the sink.")
    pending: int = Field(ge=0, description="Not ended: waiting, under way or to be tried again.")
    dead: int = Field(ge=0, description="Given up; see the dead letters.")
    cancelled: int = Field(ge=0, description="Not sent, for a reason such as `grant-ended`.")


class NumberCounts(DeliveryCounts):
    """The numbers of a range by state; together they are the range."""

    expired: int = Field(ge=0, description="Ended so long ago that their event is no longer kept.")


class Block(Answer):
    """Up to 1,000 numbers, from 1 + a multiple of 1,000, with the digest of those delivered."""

    from_: int = Field(alias="from", ge=1, description="First number of the block within the range.")
    to: int = Field(ge=1, description="Last number of the block within the range.")
    delivered: int = Field(ge=0, description="How many numbers the digest covers.")
    digest: str = Field(
        description="SHA-256, in lower-case hex, over one line for each delivered number, in order of number: the "
        "number in decimal, a space, the SHA-256 in lower-case hex of `source`, a line feed and `id` of the event in "
        "UTF-8, and a line feed. Without numbers: the SHA-256 of nothing.",
        examples=["e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"],
    )


class Tombstone(Answer):
    """Adjacent numbers that no digest covers, for the same reason."""

    from_: int = Field(alias="from", ge=1, description="First number.")
    to: int = Field(ge=1, description="Last number.")
    state: TombstoneState = Field(
        description="`pending`: it may still come; `dead`: given up; `cancelled`: not sent; `expired`: ended so long "
        "ago that its event is no longer kept."
    )
    reason: str | None = Field(description="Why; null while it is pending.", examples=["grant-ended"])


class Reconciliation(Answer):
    """Every number of a range: delivered and covered by a digest, or named by a tombstone."""

    subscription: UUID = Field(description="The subscription.")
    last_sequence: int = Field(ge=0, description="Last number that was given; 0: none was.")
    complete_through: int = Field(
        ge=0,
        description="Every number from 1 up to this one has ended: it is delivered, dead, cancelled or expired. "
        "The next number, if there is one, is pending.",
    )
    from_: int = Field(alias="from", ge=1, description="First number of this answer.")
    to: int = Field(ge=0, description="Last number of this answer; lower than `from`: there are none in the range.")
    clipped: bool = Field(description="Whether more was asked for than `lastSequence`.")
    counts: NumberCounts = Field(description="The numbers from `from` to `to` by state.")
    blocks: list[Block] = Field(description="The range in blocks, in order.")
    tombstones: list[Tombstone] = Field(
        description="Every number from `from` to `to` that no digest covers, in order; adjacent ones together."
    )
    next: str | None = Field(
        description="URL of what follows `to` in the range asked for; null: this is all of it.",
        examples=[
            "https://bode.example.nl/v1/subscriptions/5148d940-aaaa-4f8e-aaef-c559e26e09dc/reconciliation?from=100001"
        ],
    )


class FailedAttempt(Answer):
    """An attempt that the sink did not accept."""

    attempt: int = Field(ge=1, description="Which attempt of its delivery it was, from 1.")
    started_at: datetime = Field(description="When it was made.")
    milliseconds: int = Field(ge=0, description="Until the answer was read, or given up.")
    status: int | None = Field(description="HTTP status; null: no answer.")
    reason: str | None = Field(description="Why it failed.", examples=["status"])
    excerpt: str | None = Field(
        default=None,
        description="First bytes of the sink's answer; for its provider only.",
        examples=["<html>Service Unavailable</html>"],
    )


class Condition(Answer):
    """One condition of a filter."""

    text: str = Field(description="The condition, in words.", examples=["type is 'nl.brp.persoon-verhuisd'"])
    holds: bool = Field(description="Whether the event meets it.")


class Explanation(Answer):
    """The filter of a subscription, as it is now, held against the event."""

    matches: bool = Field(description="Whether the event meets every condition of at least one alternative.")
    alternatives: list[list[Condition]] = Field(
        description="Each is a list of conditions that must hold together; none at all: no event can match."
    )


class TracedDelivery(Answer):
    """What became of the event for one subscription."""

    id: str = Field(description="Id of the delivery; its `webhook-id`.", examples=["dlv_0f3b…_17"])
    subscription: UUID = Field(description="The subscription.")
    organisation: str = Field(description="OIN of its provider.", examples=["00000001001299992000"])
    subscription_sequence: int = Field(ge=1, description="Its number within the subscription.")
    state: DeliveryState = Field(description="How it stands.")
    attempts: int = Field(ge=0, description="Attempts made.")
    next_attempt_at: datetime | None = Field(description="When it is tried again; null: at once, or never.")
    ended_at: datetime | None = Field(description="When it ended; null: it is pending.")
    status: int | None = Field(description="HTTP status of the last attempt; null: no answer, or no attempt.")
    reason: str | None = Field(
        description="Why it is dead or cancelled, or why the last attempt failed.", examples=["status"]
    )
    failed_attempts: list[FailedAttempt] = Field(description="The attempts that failed, in order; the first hundred.")
    explanation: Explanation | None = Field(
        default=None,
        description="Why it matches, by its filter as it is now; for its provider, while the body is kept.",
    )


class Why(StrEnum):
    """Why a subscription got no delivery of an event."""

    YOUNGER = "younger"
    FILTER = "filter"
    INACTIVE = "inactive"
    NOT_GRANTED = "not-granted"
    CHANGED = "changed"


class NotDelivered(Answer):
    """A subscription of yours that the event was not numbered for."""

    subscription: UUID = Field(description="The subscription.")
    why: Why = Field(
        description="`younger`: it was made after the event was accepted; `not-granted`: no grant covered the event "
        "then; `filter`: a condition isn't met; `inactive`: it is not in a state that is matched; `changed`: it would "
        "match now, so filter, state or grant were different then."
    )
    changed_since: bool = Field(description="Whether the subscription was changed after the event was accepted.")
    explanation: Explanation | None = Field(
        default=None, description="Its filter held against the event, where a grant covered the event."
    )


class ProviderCounts(Answer):
    """The deliveries of an event to one provider."""

    organisation: str = Field(description="OIN of the provider.", examples=["00000001001299992000"])
    name: str = Field(description="Its name.", examples=["Gemeente Voorbeeld"])
    subscriptions: int = Field(ge=1, description="How many of its subscriptions matched.")
    counts: DeliveryCounts = Field(description="Their deliveries by state.")


class TracedEvent(Answer):
    """An accepted event, with what the caller may see of its way."""

    source: str = Field(
        description="The event's source.", examples=["urn:nld:oin:00000001823288444000:systeem:BRP-component"]
    )
    type: str = Field(description="The event's type.", examples=["nl.brp.persoon-verhuisd"])
    registry: str | None = Field(
        description="OIN of the registry that published it; null: a notice of Bode's own.",
        examples=["00000001823288444000"],
    )
    accepted_at: datetime = Field(description="When it was accepted: committed with all its deliveries.")
    matched: int = Field(ge=0, description="How many subscriptions matched; a provider is told of its own.")
    counts: DeliveryCounts = Field(description="The deliveries to them by state.")
    providers: list[ProviderCounts] | None = Field(
        default=None, description="The same for each provider; for the event's registry and the operator."
    )
    deliveries: list[TracedDelivery] | None = Field(
        default=None, description="Each delivery, up to 100; for the provider its own, for the operator all."
    )
    not_delivered: list[NotDelivered] | None = Field(
        default=None,
        description="The provider's subscriptions that it was not numbered for, up to 100, where a grant covers the "
        "event's type.",
    )


class Trace(Answer):
    """All that is known under an event id, in as far as the caller may see it."""

    id: str = Field(description="The event id.", examples=["f3dce042-cd6e-4977-844d-05be8dce7cea"])
    events: list[TracedEvent] = Field(description="Accepted events with this id, oldest first, up to 20.")
    rejections: list[Rejection] | None = Field(
        default=None,
        description="Messages with this id that were rejected, among the last 10,000: a registry's own; the operator's "
        "are those of all.",
    )
