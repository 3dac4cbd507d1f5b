"""What happens around a subscription: its history, a registry's answer to it, and test notifications."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import Field

from schemas.resources.base import GRANT_TYPE_PATTERN, Answer, Moment, Page, Printable, Resource
from schemas.resources.subscriptions import Status


class Role(StrEnum):
    """As what somebody changed a subscription."""

    PROVIDER = "provider"
    REGISTRY = "registry"
    OPERATOR = "operator"
    SINK = "sink"
    BROKER = "broker"


class SubscriptionChange(Answer):
    """A change of a subscription: who, when, and which members. No values."""

    at: datetime = Field(description="When.")
    role: Role = Field(description="As what: `sink` consented by callback, `broker` did it by itself.")
    organisation: str | None = Field(
        description="OIN of the caller's organisation; null: the operator's, or nobody's.",
        examples=["00000001823288444000"],
    )
    key: UUID | None = Field(description="Identifier of the caller's API key, of your own organisation; null: none.")
    version: int = Field(ge=1, description="Version of the subscription after the change.")
    status: Status = Field(description="Status after the change.")
    status_reason: str | None = Field(description="Reason of that status; null: none.", examples=["sink-changed"])
    changed: list[str] = Field(description="Members that changed; `created` for the first.", examples=[["filters"]])


class SubscriptionRequest(Answer):
    """A subscription that waits for a grant, as far as it is a registry's to know."""

    url: str = Field(description="URL of this resource.", json_schema_extra={"format": "uri"})
    id: UUID = Field(description="Identifier of the subscription.")
    provider: str = Field(description="OIN of the provider that asks.", examples=["00000001001299992000"])
    provider_name: str = Field(description="Its name.", examples=["Gemeente Voorbeeld"])
    types: list[str] = Field(
        description="Event types that it asks for, of all registries; empty: all within `domain`.",
        examples=[["nl.brp.persoon-verhuisd"]],
    )
    domain: str | None = Field(description="Only types within this domain; null: any.", examples=["nl.brp"])
    source: str | None = Field(
        description="Only this source; null: any.", examples=["urn:nld:oin:00000001823288444000:systeem:BRP"]
    )
    created_at: datetime = Field(description="When the subscription was made.")


class ApprovalBody(Resource):
    """A registry's yes: the grant that it gives."""

    legal_basis: Annotated[Printable, Field(min_length=1, max_length=1000)] = Field(
        description="The decision or law that allows it.", examples=["Wet BRP, artikel 3.2, besluit 2026-17"]
    )
    types: (
        Annotated[
            list[Annotated[str, Field(min_length=3, max_length=255, pattern=GRANT_TYPE_PATTERN)]],
            Field(min_length=1, max_length=200),
        ]
        | None
    ) = Field(
        default=None,
        description="Types to grant; absent: what it asks for in your domains.",
        examples=[["nl.brp.persoon-verhuisd"]],
    )
    valid_from: Moment | None = Field(default=None, description="From when it holds; absent: from now.")
    valid_until: Moment | None = Field(default=None, description="When it ends; absent: when it is revoked.")


class RefusalBody(Resource):
    """A registry's no."""

    reason: Annotated[Printable, Field(min_length=1, max_length=1000)] = Field(
        description="Why, in words for the provider.", examples=["No legal basis was named."]
    )


class Refusal(Answer):
    """A registry's no, and what it did to the subscription."""

    subscription: UUID = Field(description="Identifier of the subscription.")
    reason: str = Field(description="Why.", examples=["No legal basis was named."])
    refused_at: datetime = Field(description="When.")
    status: Status = Field(description="`refused`, or `requested` as long as another registry may still approve.")


class TestState(StrEnum):
    """How far a test notification is."""

    WAITING = "waiting"
    ANSWERED = "answered"
    FAILED = "failed"


class TestNotification(Answer):
    """A test notification, and what the sink answered."""

    url: str = Field(description="URL of this resource.", json_schema_extra={"format": "uri"})
    id: UUID = Field(description="Its identifier; `webhook-id` is `test_` and this.")
    subscription: UUID = Field(description="Identifier of the subscription.")
    state: TestState = Field(
        description="`waiting` to be sent; `answered`, with a status or by a confirm of RabbitMQ; `failed`: no answer."
    )
    requested_at: datetime = Field(description="When it was asked for.")
    sent_at: datetime | None = Field(description="When it was sent; null: not yet.")
    milliseconds: int | None = Field(description="Until the answer was read, or given up; null: not sent yet.")
    status: int | None = Field(
        description="HTTP status of the answer; null: there is none, as of a queue.", examples=[204]
    )
    reason: str | None = Field(
        description="Why there was no answer, or why it would count as a failure; null: it would count as a success.",
        examples=["timeout"],
    )
    answer: str | None = Field(description="First bytes of the answer, 1 KiB at most; null: none.", examples=["ok"])


class SubscriptionChangePage(Page[SubscriptionChange]):
    """One page of changes, oldest first."""


class SubscriptionRequestPage(Page[SubscriptionRequest]):
    """One page of requests, in order of creation."""
