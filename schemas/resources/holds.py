"""Holds as the API says them: what is kept back from leaving, until it is released or cancelled."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from schemas.resources.base import Answer, Page, Printable, Resource

_SOURCE: Final = "urn:nld:oin:00000001823288444000:systeem:BRP-component"
_EXAMPLE: Final[dict[str, Any]] = {
    "scope": "source",
    "value": _SOURCE,
    "reason": "Since 9:40 the conversion publishes wrong addresses.",
}


_MOST_BYTES: Final = 2048


def _short(value: str) -> str:
    """No more bytes than an index can hold; a `source` has one for each character (RFC 3986)."""
    if len(value.encode()) > _MOST_BYTES:
        raise PydanticCustomError("value", "must have 2048 bytes at most")
    return value


class HoldScope(StrEnum):
    """What a hold is of."""

    SOURCE = "source"
    EVENT_TYPE = "event-type"
    ORGANISATION = "organisation"
    SUBSCRIPTION = "subscription"


class HoldStatus(StrEnum):
    """How far a hold is."""

    ACTIVE = "active"
    CANCELLING = "cancelling"
    RELEASED = "released"
    CANCELLED = "cancelled"


Reason = Annotated[Printable, Field(min_length=1, max_length=500)]


class HoldBody(Resource):
    """A hold that is asked for."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    scope: HoldScope = Field(
        description="What is held: events of a `source` or of an `event-type`, or what goes to an `organisation` or to "
        "a `subscription`."
    )
    value: Annotated[Printable, Field(min_length=1, max_length=_MOST_BYTES), AfterValidator(_short)] = Field(
        description="Which: a `source`, a `type`, the OIN of a provider, or the id of a subscription.",
        examples=[_SOURCE],
    )
    reason: Reason = Field(
        description="Why. Kept with the hold, for those who may place holds like it.", examples=[_EXAMPLE["reason"]]
    )


class HoldRelease(Resource):
    """Why a hold ends and what it kept may go; the reason may be left out."""

    reason: Reason | None = Field(default=None, description="Why it is released.", examples=["All is well."])


class HoldCancellation(Resource):
    """Why what a hold kept is never sent."""

    reason: Reason = Field(
        description="Why. It becomes the reason of each delivery that is cancelled, which its provider sees.",
        examples=["Published by mistake; the right events follow."],
    )


class Hold(Answer):
    """A hold: nothing that it covers leaves, and everything is kept."""

    url: str = Field(description="URL of this resource.", json_schema_extra={"format": "uri"})
    id: UUID = Field(description="Identifier of the hold.")
    scope: HoldScope = Field(description="What is held.", examples=["source"])
    value: str = Field(description="Which.", examples=[_SOURCE])
    status: HoldStatus = Field(
        description="`active`; `cancelling`: it still holds, while what it kept is being cancelled; `released` and "
        "`cancelled`: it has ended.",
        examples=["active"],
    )
    reason: str = Field(description="Why it was placed.", examples=[_EXAMPLE["reason"]])
    placed_at: datetime = Field(description="When.")
    placed_by: str | None = Field(
        description="OIN of the registry that placed it; null: the operator.", examples=["00000001823288444000"]
    )
    end_reason: str | None = Field(
        description="Why it was released or cancelled; null: not said, or neither.",
        examples=["All is well."],
    )
    end_asked_at: datetime | None = Field(description="When its release or cancellation was asked for.")
    ended_at: datetime | None = Field(description="When it ended; null: it still holds.")
    ended_by: str | None = Field(
        description="OIN of the registry that ended it; null: the operator, or nobody yet.",
        examples=["00000001823288444000"],
    )
    cancelled: int = Field(ge=0, description="Deliveries that were cancelled with it so far.")


class HoldPage(Page[Hold]):
    """One page of holds, in order of placing."""
