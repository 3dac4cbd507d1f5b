"""Pulling, as the API says it: a subscription's log by number, and how far a provider has come."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import Field

from schemas.resources.base import Answer, Resource
from schemas.resources.evidence import Tombstone
from schemas.resources.holds import HoldScope


class PullHeld(Answer):
    """Why a pull goes no further: what follows is held, and kept."""

    scope: HoldScope = Field(description="What is held.", examples=["source"])
    since: datetime = Field(description="Since when.")


class PulledEvents(Answer):
    """Numbers of a subscription in order: each is an event, or is named by a tombstone."""

    subscription: UUID = Field(description="The subscription.")
    last_sequence: int = Field(ge=0, description="Last number that was given; 0: none was.")
    complete_through: int = Field(ge=0, description="Every number up to this one has ended.")
    events: list[dict[str, Any]] = Field(
        description="CloudEvents in order of number, each as a notification of it: with `subscription` and "
        "`subscriptionsequence`.",
        examples=[
            [
                {
                    "specversion": "1.0",
                    "id": "f3dce042-cd6e-4977-844d-05be8dce7cea",
                    "source": "urn:nld:oin:00000001823288444000:systeem:BRP-component",
                    "type": "nl.brp.persoon-verhuisd",
                    "subscription": "5148d940-aaaa-4f8e-aaef-c559e26e09dc",
                    "subscriptionsequence": "2",
                }
            ]
        ],
    )
    tombstones: list[Tombstone] = Field(
        description="Numbers of this answer whose content can't be shown, in order; adjacent ones together."
    )
    through: int = Field(ge=0, description="Last number of this answer: the next pull's `after`.")
    cursor: str = Field(
        max_length=200,
        description="Acknowledges every number up to `through`, by PUT to the subscription's cursor.",
        examples=["AWUzb2Z…"],
    )
    delayed_until: datetime | None = Field(
        description="Set where the number after `through` waits until then for the delay of its type. Null: it doesn't."
    )
    held: PullHeld | None = Field(
        description="Set where the number after `through` is held: it comes when the hold ends. Null: nothing is."
    )


class PullCursor(Answer):
    """How far a provider that pulls says that it has come."""

    subscription: UUID = Field(description="The subscription.")
    through: int = Field(ge=0, description="Every number up to this one was acknowledged; 0: none.")
    last_sequence: int = Field(ge=0, description="Last number that was given; 0: none was.")


class Acknowledgement(Resource):
    """That everything up to a place in the log was taken over."""

    cursor: str = Field(
        min_length=1, max_length=200, description="From a pull of the same subscription.", examples=["AWUzb2Z…"]
    )


class Acknowledged(PullCursor):
    """What an acknowledgement did."""

    ended: int = Field(ge=0, description="Deliveries that were pending or dead letters, and are delivered now.")
