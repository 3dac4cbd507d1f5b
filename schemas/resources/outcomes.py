"""What became of events and deliveries, as the API says it: rejections and dead letters."""

from datetime import datetime
from uuid import UUID

from pydantic import Field

from schemas.resources.base import Answer, Page


class Rejection(Answer):
    """A message that was published and became no event."""

    id: int = Field(description="Identifier of the rejection.")
    rejected_at: datetime = Field(description="When it was rejected, or rejected again, last.")
    times: int = Field(ge=1, description="How often this same message came.")
    code: str = Field(description="Why, as one of a bounded set.", examples=["missing-attribute"])
    detail: str = Field(description="Why, in words.", examples=["type is required"])
    attribute: str | None = Field(
        default=None, description="The attribute at fault, where it is one.", examples=["type"]
    )
    source: str | None = Field(
        default=None,
        description="The event's source, where it could be read.",
        examples=["urn:nld:oin:00000001823288444000:systeem:BRP-component"],
    )
    event_id: str | None = Field(
        default=None,
        description="The event's id, where it could be read.",
        examples=["f3dce042-cd6e-4977-844d-05be8dce7cea"],
    )
    event_type: str | None = Field(
        default=None, description="The event's type, where it could be read.", examples=["nl.brp.persoon-verhuisd"]
    )
    bytes: int = Field(ge=0, description="Size of the message's body.")


class DeadLetter(Answer):
    """A delivery that ran out of attempts, or whose answer was final; kept until someone decides."""

    id: str = Field(description="Id of the delivery; its `webhook-id`.", examples=["dlv_0f3b…_17"])
    subscription: UUID = Field(description="The subscription that it was for.")
    subscription_sequence: int = Field(ge=1, description="Its number within the subscription.")
    source: str | None = Field(
        description="The event's source; null: its payload is no longer kept.",
        examples=["urn:nld:oin:00000001823288444000:systeem:BRP-component"],
    )
    event_id: str | None = Field(description="The event's id.", examples=["f3dce042-cd6e-4977-844d-05be8dce7cea"])
    type: str | None = Field(description="The event's type.", examples=["nl.brp.persoon-verhuisd"])
    accepted_at: datetime = Field(description="When the event was accepted.")
    ended_at: datetime = Field(description="When the delivery was given up.")
    attempts: int = Field(ge=1, description="Attempts made.")
    status: int | None = Field(description="HTTP status of the last attempt; null: no answer.")
    reason: str = Field(description="Why the last attempt failed.", examples=["status-500"])


class RejectionPage(Page[Rejection]):
    """One page of rejections, in order of time."""


class DeadLetterPage(Page[DeadLetter]):
    """One page of dead letters, by subscription and number."""
