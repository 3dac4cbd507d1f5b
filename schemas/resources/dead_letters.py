"""Dead letters, as the API says them: with their attempts, and what may be decided about them."""

from typing import Annotated
from uuid import UUID

from pydantic import Field

from schemas.resources.base import Answer, Moment, Printable, Resource
from schemas.resources.evidence import FailedAttempt
from schemas.resources.outcomes import DeadLetter

_Reason = Annotated[Printable, Field(min_length=1, max_length=200)]


class DeadLetterDetail(DeadLetter):
    """A dead letter with its attempts."""

    failed_attempts: list[FailedAttempt] = Field(
        description="Its attempts, oldest first, a hundred at most. After a retry they are counted from 1 again."
    )


class DeadLetterSelection(Resource):
    """Which dead letters of a subscription: those that meet every member given; without any, all of them."""

    numbers: list[Annotated[int, Field(ge=1, le=2**63 - 1)]] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="Their numbers within the subscription; absent: any.",
        examples=[[17, 23]],
    )
    reason: str | None = Field(
        default=None,
        max_length=200,
        description="Exactly this `reason`; absent: any.",
        examples=["status-500"],
    )
    ended_from: Moment | None = Field(default=None, description="Given up at this moment or later; absent: any.")
    ended_until: Moment | None = Field(default=None, description="Given up before this moment; absent: any.")


class DeadLetterDiscard(Resource):
    """Why a dead letter is to be given up for good."""

    reason: _Reason = Field(
        description="Why, in words that name nobody: it stands in reconciliation.", examples=["superseded by hand"]
    )


class DeadLetterDiscards(DeadLetterSelection):
    """Which dead letters are to be given up for good, and why."""

    because: _Reason = Field(
        description="Why, in words that name nobody: it stands in reconciliation.", examples=["superseded by hand"]
    )


class DeadLettersRetried(Answer):
    """What a retry did."""

    subscription: UUID = Field(description="The subscription.")
    retried: int = Field(ge=0, description="Dead letters that are pending now, and will be sent again.")
    cancelled: int = Field(ge=0, description="Those that no grant covers any more: cancelled with `grant-ended`.")
    more: bool = Field(description="Whether there may be more: an answer does 10,000 at most. Ask again.")


class DeadLettersDiscarded(Answer):
    """What a discard did."""

    subscription: UUID = Field(description="The subscription.")
    discarded: int = Field(ge=0, description="Dead letters that are cancelled now, with the reason.")
    more: bool = Field(description="Whether there may be more: an answer does 10,000 at most. Ask again.")
