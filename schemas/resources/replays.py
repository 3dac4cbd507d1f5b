"""Replays, as the API says them: what is to be sent again, and how far that is."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import Field

from schemas.resources.base import Answer, Moment, Page, Printable, Resource

MOST_NUMBERS = 10_000
MOST_EVENTS = 1_000
_LARGEST = 2**63 - 1


class ReplayBody(Resource):
    """What is to be sent again: numbers from one to another, what was accepted in a time, or a list of either kind."""

    first_sequence: int | None = Field(default=None, ge=1, le=_LARGEST, description="First number.", examples=[1])
    last_sequence: int | None = Field(
        default=None, ge=1, le=_LARGEST, description="Last number; absent: the last that was given.", examples=[200000]
    )
    accepted_from: Moment | None = Field(
        default=None, description="What was accepted at this moment or later, to the millisecond."
    )
    accepted_until: Moment | None = Field(
        default=None, description="What was accepted before this moment; absent: all since `acceptedFrom`."
    )
    numbers: list[Annotated[int, Field(ge=1, le=_LARGEST)]] | None = Field(
        default=None, min_length=1, max_length=MOST_NUMBERS, description="These numbers.", examples=[[3, 17, 18]]
    )
    event_ids: list[Annotated[Printable, Field(min_length=1, max_length=2048)]] | None = Field(
        default=None,
        min_length=1,
        max_length=MOST_EVENTS,
        description="The events with these ids, of whatever source.",
        examples=[["f3dce042-cd6e-4977-844d-05be8dce7cea"]],
    )
    per_second: int = Field(
        default=200,
        ge=1,
        le=5_000,
        description="Most notifications a second. The sink's own pace holds too, and what is new goes first.",
    )


class ReplayState(StrEnum):
    """How a replay stands."""

    RUNNING = "running"
    DONE = "done"
    CANCELLED = "cancelled"


class Replay(Answer):
    """Numbers of a subscription that are sent again, and how far that is."""

    url: str = Field(description="URL of this resource.", json_schema_extra={"format": "uri"})
    id: UUID = Field(description="Its identifier.")
    subscription: UUID = Field(description="The subscription.")
    state: ReplayState = Field(
        description="`running`: under way, or waiting while the subscription is not active; `done`; `cancelled`."
    )
    reason: str | None = Field(
        description="Why it was cancelled: `requested` or `subscription-ended`; null: it wasn't.",
        examples=["requested"],
    )
    requested_at: datetime = Field(description="When it was asked for.")
    ended_at: datetime | None = Field(description="When it was done or cancelled; null: it is not.")
    first_sequence: int = Field(ge=1, description="First number.")
    last_sequence: int = Field(ge=1, description="Last number.")
    requested: int = Field(ge=1, description="How many numbers were asked for.")
    settled_through: int = Field(ge=0, description="Every number asked for up to this one is sent, failed or skipped.")
    sent: int = Field(ge=0, description="Sent again, and accepted by the sink.")
    failed: int = Field(ge=0, description="Sent again, and refused for over a minute, or for good.")
    skipped: dict[str, int] = Field(
        description="How many could not be sent again, by reason: `payload-expired`, `grant-ended`, another reason of "
        "a cancellation, or `pending`: it is sent anyway.",
        examples=[{"payload-expired": 12}],
    )
    last_failure: str | None = Field(description="Why an attempt failed last; null: none did.", examples=["status-500"])
    per_second: int = Field(ge=1, description="Most notifications a second.")


class ReplayPage(Page[Replay]):
    """One page of replays, in order of request."""
