"""Subscriptions as the API says them, after the Dutch Notification API."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from schemas.resources.base import Answer, EventType, Page, Printable, Resource, either
from schemas.resources.credentials import SinkCredential, SinkIdentity, SinkTls
from schemas.resources.protocol_settings import ProtocolSettings


def _iso_duration(value: timedelta) -> str:
    return f"PT{value.total_seconds():.3f}".rstrip("0").rstrip(".") + "S"


Delay = Annotated[
    timedelta,
    Field(ge=timedelta(milliseconds=10), le=timedelta(days=7)),
    PlainSerializer(_iso_duration, return_type=str),
    WithJsonSchema({"anyOf": [{"type": "string", "format": "duration"}, {"type": "number", "exclusiveMinimum": 0}]}),
]


class Protocol(StrEnum):
    """How notifications are delivered: posted to a sink, published to a RabbitMQ, or fetched by their provider."""

    HTTP = "HTTP"
    AMQP = "AMQP"
    PULL = "PULL"


class Status(StrEnum):
    """Where a subscription is in its life."""

    REQUESTED = "requested"
    VALIDATING = "validating"
    ACTIVE = "active"
    PAUSED = "paused"
    DISABLED = "disabled"
    REFUSED = "refused"
    ENDED = "ended"


class Ordering(StrEnum):
    """What stays in order."""

    SUBJECT = "subject"
    SUBSCRIPTION = "subscription"
    NONE = "none"


class RetryPolicy(Resource):
    """When failed attempts are repeated, in place of the broker's own schedule."""

    delays: list[Delay] = Field(
        min_length=1,
        max_length=50,
        description="Time between an attempt and the next, in order, as ISO 8601 durations (or seconds); there are as "
        "many retries as delays, and each is varied by ±20 %.",
        examples=[["PT1S", "PT5S", "PT1M", "PT1H"]],
    )

    @model_validator(mode="after")
    def _bounded(self) -> "RetryPolicy":
        if sum(self.delays, timedelta()) > timedelta(days=30):
            raise PydanticCustomError("retry", "must add up to 30 days at most")
        return self


HEARTBEAT_SECONDS: Final = "heartbeatSeconds"
_LEAST_HEARTBEAT_SECONDS: Final = 10
_MOST_HEARTBEAT_SECONDS: Final = 86_400
_SINK = "https://afnemer.example.nl/notificaties"
_EXAMPLE: Final[dict[str, Any]] = {
    "sink": _SINK,
    "protocol": "HTTP",
    "source": "urn:nld:oin:00000001823288444000:systeem:BRP-component",
    "types": ["nl.brp.persoon-verhuisd"],
    "filters": [{"prefix": {"subject": "9999"}}],
    "subscriberReference": "burgerzaken",
}


def _check_config(config: dict[str, str]) -> dict[str, str]:
    seconds = config.get(HEARTBEAT_SECONDS)
    if seconds is not None and not (
        seconds.isascii()
        and seconds.isdigit()
        and len(seconds) <= 5
        and _LEAST_HEARTBEAT_SECONDS <= int(seconds) <= _MOST_HEARTBEAT_SECONDS
    ):
        raise PydanticCustomError("heartbeat", "heartbeatSeconds must be a whole number from 10 to 86400")
    return config


class SubscriptionBody(Resource):
    """What a provider says of a subscription; each member that is absent or null has its default."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    sink: Annotated[str, Field(min_length=1, max_length=2048)] | None = Field(
        default=None,
        description="Absolute http(s) URL that notifications are posted to (HTTP), or the RabbitMQ that they are "
        "published to (AMQP): `amqps://host[:port][/virtual host]`, the virtual host percent-encoded, `/` where it is "
        "absent. No user, password or fragment. Required for HTTP; a subscription that is pulled has none.",
        examples=[_SINK],
        json_schema_extra={"format": "uri"},
    )
    protocol: Protocol = Field(
        description="How notifications are delivered: `HTTP` posts them to the sink; `AMQP` publishes them to your "
        "RabbitMQ (the sink), or, without sink, puts them into your queue on the broker's; with `PULL` you fetch them, "
        "and there is no sink, handshake, signing secret or retry. It can't be changed later.",
        examples=["HTTP"],
    )
    protocol_settings: ProtocolSettings | None = Field(
        default=None,
        validation_alias=either("protocolSettings"),
        description="How the HTTP request is made, or where on the RabbitMQ of the sink notifications go.",
    )
    sink_credential: SinkCredential | None = Field(
        default=None,
        validation_alias=either("sinkCredential"),
        description="What the sink asks to see; for a RabbitMQ a user and its password (`PLAIN`). Stored encrypted, "
        "and never shown: absent leaves it as it is, null takes it away, and so does another sink, which must not see "
        "it.",
    )
    sink_tls: SinkTls | None = Field(
        default=None,
        validation_alias=either("sinkTls"),
        description="How we show ourselves to the sink in TLS, and whom we believe. Stored encrypted, and given as a "
        "whole; stays and goes as `sinkCredential` does.",
    )
    source: Annotated[Printable, Field(min_length=1, max_length=2048)] | None = Field(
        default=None,
        description="Only events of this source.",
        examples=["urn:nld:oin:00000001823288444000:systeem:BRP-component"],
    )
    domain: Annotated[Printable, Field(min_length=1, max_length=255)] | None = Field(
        default=None, description="Only events of types within this domain.", examples=["nl.brp"]
    )
    types: Annotated[list[EventType], Field(max_length=1024)] | None = Field(
        default=None,
        description="Only events of these types; absent or empty: of any.",
        examples=[["nl.brp.persoon-verhuisd"]],
    )
    filters: Annotated[list[dict[str, Any]], Field(max_length=1024)] | None = Field(
        default=None,
        description="Filters of the CloudEvents Subscriptions API, all of which must hold; absent or empty: none.",
        examples=[[{"prefix": {"subject": "9999"}}]],
    )
    config: (
        Annotated[
            dict[str, Annotated[str, Field(max_length=1024)]], Field(max_length=50), AfterValidator(_check_config)
        ]
        | None
    ) = Field(
        default=None,
        description="Free parameters; kept and shown. One is interpreted: `heartbeatSeconds`, a whole number from 10 to"
        " 86400, asks for a heartbeat whenever the sink has been quiet for so long.",
        examples=[{"team": "burgerzaken", "heartbeatSeconds": "300"}],
    )
    subscriber_reference: Annotated[Printable, Field(min_length=1, max_length=255)] | None = Field(
        default=None, description="Sent along with each notification, for your own routing.", examples=["burgerzaken"]
    )
    ordering: Ordering = Field(
        default=Ordering.SUBJECT,
        description="What is kept in order: the events of one source and subject, all events, or none.",
    )
    retry: RetryPolicy | None = Field(
        default=None, description="Your own schedule of retries; absent: the broker's, of five days at least."
    )

    @property
    def heartbeat_seconds(self) -> int | None:
        """How long its sink may be quiet before it is sent a heartbeat; None: none is asked for."""
        seconds = (self.config or {}).get(HEARTBEAT_SECONDS)
        return None if seconds is None else int(seconds)


class _ReadOnly(Resource):
    """Members that only we set: taken in a replacement as they were read, and ignored."""

    url: Any = Field(default=None, description="Ignored: set by the broker.")
    id: Any = Field(default=None, description="Ignored: set by the broker.")
    organisation: Any = Field(default=None, description="Ignored: set by the broker.")
    status_reason: Any = Field(default=None, description="Ignored: set by the broker.")
    allowed_rate: Any = Field(default=None, description="Ignored: set by the broker.")
    version: Any = Field(default=None, description="Ignored: set by the broker.")
    created_at: Any = Field(default=None, description="Ignored: set by the broker.")
    updated_at: Any = Field(default=None, description="Ignored: set by the broker.")
    health: Any = Field(default=None, description="Ignored: set by the broker.")
    queue: Any = Field(default=None, description="Ignored: set by the broker.")
    sink_identity: Any = Field(default=None, description="Ignored: set by the broker.")
    secret: str | None = Field(default=None, description="Ignored when it is the present one; it can't be set.")


class SubscriptionReplacement(SubscriptionBody, _ReadOnly):
    """A subscription as it shall be; what is absent gets its default, and the status stays as it is."""

    status: Any = Field(default=None, description="Ignored here: PATCH pauses and resumes.")


class SubscriptionPatch(_ReadOnly):
    """A JSON merge patch (RFC 7396) of a subscription: absent stays, null returns to the default."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "paused"}]})

    status: Literal["active", "paused"] | None = Field(
        default=None, description="`paused` stops sending and keeps what matches; `active` resumes."
    )
    sink: str | None = Field(default=None, description="As in a subscription.", examples=[_SINK])
    protocol: Protocol | None = Field(default=None, description="As in a subscription.")
    protocol_settings: dict[str, Any] | None = Field(
        default=None, validation_alias=either("protocolSettings"), description="As in a subscription; merged."
    )
    sink_credential: Any = Field(
        default=None, validation_alias=either("sinkCredential"), description="As in a subscription."
    )
    sink_tls: Any = Field(default=None, validation_alias=either("sinkTls"), description="As in a subscription.")
    source: str | None = Field(default=None, description="As in a subscription.")
    domain: str | None = Field(default=None, description="As in a subscription.")
    types: list[str] | None = Field(default=None, description="As in a subscription; replaced as a whole.")
    filters: list[dict[str, Any]] | None = Field(default=None, description="As in a subscription; replaced as a whole.")
    config: dict[str, str | None] | None = Field(default=None, description="As in a subscription; merged.")
    subscriber_reference: str | None = Field(default=None, description="As in a subscription.")
    ordering: Ordering | None = Field(default=None, description="As in a subscription.")
    retry: dict[str, Any] | None = Field(default=None, description="As in a subscription; merged.")


class Health(Answer):
    """How the deliveries of a subscription are doing."""

    last_sequence: int = Field(ge=0, description="Number of the last event that matched; 0: none yet.")
    delivered_through: int = Field(ge=0, description="Every number up to this one has been settled.")
    pending: int = Field(ge=0, description="Deliveries that wait or are being tried.")
    oldest_pending_at: datetime | None = Field(description="When the oldest of them was accepted; null: none waits.")
    expires_next_at: datetime | None = Field(
        default=None,
        description="From when retention takes the first of them, if it still waits then; null: none waits.",
    )
    dead_letters: int = Field(ge=0, description="Deliveries that ran out of attempts.")
    last_outcome: str | None = Field(
        description="How the last attempt ended; null: none was made.", examples=["delivered"]
    )

    @classmethod
    def of_nothing(cls) -> "Health":
        """Makes the health of a subscription that has matched nothing yet."""
        return cls(
            last_sequence=0,
            delivered_through=0,
            pending=0,
            oldest_pending_at=None,
            expires_next_at=None,
            dead_letters=0,
            last_outcome=None,
        )


class Subscription(Answer):
    """A subscription: what a provider wants and where it goes."""

    url: str = Field(description="URL of this resource.", json_schema_extra={"format": "uri"})
    id: UUID = Field(description="Identifier of the subscription.")
    organisation: str = Field(description="OIN of the provider.", examples=["00000001823288444000"])
    sink: str | None = Field(
        default=None,
        description="Where notifications are posted or published; absent: they are pulled, or go into `queue`.",
        json_schema_extra={"format": "uri"},
    )
    queue: str | None = Field(
        default=None,
        description="The queue on the broker's RabbitMQ that notifications go into; absent: they don't.",
        examples=["bode.deliver.00000001823288444000.5148d940-aaaa-4f8e-aaef-c559e26e09dc"],
    )
    protocol: Protocol = Field(description="How notifications are delivered.")
    protocol_settings: ProtocolSettings | None = Field(
        default=None, description="How the HTTP request is made, or where on the RabbitMQ notifications go."
    )
    sink_identity: SinkIdentity | None = Field(
        default=None,
        description="What the sink is shown of us by `sinkCredential` and `sinkTls`, without secrets; absent: nothing.",
    )
    source: str | None = Field(default=None, description="Only events of this source.", examples=[_EXAMPLE["source"]])
    domain: str | None = Field(
        default=None, description="Only events of types within this domain.", examples=["nl.brp"]
    )
    types: list[str] | None = Field(
        default=None, description="Only events of these types.", examples=[_EXAMPLE["types"]]
    )
    filters: list[dict[str, Any]] | None = Field(
        default=None,
        description="Filters, all of which must hold. Not shown to the operator: they may name persons.",
        examples=[_EXAMPLE["filters"]],
    )
    config: dict[str, str] | None = Field(
        default=None, description="Free parameters.", examples=[{"team": "burgerzaken"}]
    )
    subscriber_reference: str | None = Field(
        default=None, description="Sent along with each notification.", examples=["burgerzaken"]
    )
    ordering: Ordering = Field(description="What is kept in order.")
    retry: RetryPolicy | None = Field(default=None, description="Your own schedule of retries.")
    status: Status = Field(
        description="`active`, `paused` and `disabled` are matched and numbered; only `active` is sent.",
        examples=["active"],
    )
    status_reason: str | None = Field(
        default=None, description="Why it has this status, where that needs saying.", examples=["no-grant"]
    )
    allowed_rate: int | None = Field(default=None, description="Notifications a minute that the sink allows.")
    version: int = Field(ge=1, description="Raised by each change; also the ETag.")
    created_at: datetime = Field(description="When it was made.")
    updated_at: datetime = Field(description="When it was last changed.")
    health: Health = Field(description="How its deliveries are doing.")


class SubscriptionCreated(Subscription):
    """A new subscription, with the one showing of its secret."""

    secret: str | None = Field(
        default=None,
        description="Standard Webhooks secret that notifications are signed with. Shown now, and never again. Absent "
        "where notifications are pulled: nothing is signed then.",
        examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )


class HandshakeConsent(Answer):
    """What a sink is told that consented by callback; it has no key, so it is told no more."""

    status: Status = Field(description="The status of the subscription now: `active`, or `paused` by its provider.")
    allowed_rate: int | None = Field(description="Notifications a minute that are allowed; null: any number.")


class SecretRotation(Resource):
    """How a secret is replaced."""

    overlap_seconds: int = Field(
        default=86_400,
        ge=0,
        le=7 * 86_400,
        description="How long the old secret goes on signing beside the new one, in seconds; 0: not at all.",
    )


class RotatedSecret(Answer):
    """The new secret of a subscription, shown once."""

    secret: str = Field(
        description="The new Standard Webhooks secret. Shown now, and never again.",
        examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )
    previous_expires_at: datetime | None = Field(description="Until when the old secret signs too; null: it doesn't.")


class SubscriptionPage(Page[Subscription]):
    """One page of subscriptions, in order of creation."""
