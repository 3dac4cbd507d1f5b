"""How notifications are delivered by each protocol, after `protocolsettings` of the CloudEvents Subscriptions API."""

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from schemas.amqp_addresses import Address, InvalidAddress
from schemas.resources.base import Printable, Resource, either

_RESERVED_HEADERS: Final = frozenset(
    {
        "authorization", "connection", "cookie", "cookie2", "date", "expect", "forwarded", "host", "http2-settings",
        "keep-alive", "range", "te", "trailer", "traceparent", "tracestate", "transfer-encoding", "upgrade",
        "user-agent", "via",
    }
)  # fmt: skip
_RESERVED_HEADER_PREFIXES: Final = ("accept-", "ce-", "content-", "if-", "proxy-", "sec-", "webhook-", "x-forwarded-")
_LONGEST_HEADER_NAME: Final = 100
_HEADERS_BYTES: Final = 8192
"""Of all headers together: what servers take of a request's head is little more."""


def _sendable_headers(headers: dict[str, str] | None) -> dict[str, str] | None:
    for name, value in (headers or {}).items():
        if not name or not name.isascii() or not all(char.isalnum() or char in "!#$%&'*+-.^_`|~" for char in name):
            raise PydanticCustomError("header", "must be named by HTTP header names")
        if name.lower() in _RESERVED_HEADERS or name.lower().startswith(_RESERVED_HEADER_PREFIXES):
            raise PydanticCustomError("header", "must not set headers of credentials, framing or notification itself")
        if not (value.isascii() and value.isprintable()) or value != value.strip():
            raise PydanticCustomError("header", "must have values of printable ASCII")
        if len(name) > _LONGEST_HEADER_NAME:
            raise PydanticCustomError("header", f"must have names of {_LONGEST_HEADER_NAME} characters at most")
    if len({name.lower() for name in headers or ()}) < len(headers or ()):
        raise PydanticCustomError("header", "must not set a header twice: case makes no difference in names")
    if sum(len(name) + len(value) + 4 for name, value in (headers or {}).items()) > _HEADERS_BYTES:
        raise PydanticCustomError("header", f"must have {_HEADERS_BYTES} bytes at most together")
    return headers


class SignatureScheme(StrEnum):
    """A signature scheme of Standard Webhooks."""

    HMAC_SHA256 = "v1"
    ED25519 = "v1a"


def _unlike(schemes: list[SignatureScheme] | None) -> list[SignatureScheme] | None:
    if schemes is not None and len(set(schemes)) < len(schemes):
        raise PydanticCustomError("signatures", "must not name a scheme twice")
    return schemes


class BatchSettings(Resource):
    """Up to what notifications are sent together, as `application/cloudevents-batch+json`."""

    max_count: int = Field(default=100, ge=2, le=1000, description="Notifications in one request, at most.")
    max_bytes: int = Field(
        default=1_048_576,
        ge=4096,
        le=4_194_304,
        description="Bytes of one request's body, at most; a notification that is larger goes alone.",
    )
    linger_milliseconds: int = Field(
        default=100,
        ge=0,
        le=60_000,
        description="How long a notification waits for others, at most, when there is no backlog; 0: not at all.",
    )


class HttpSettings(Resource):
    """How the HTTP request of a notification is made."""

    headers: Annotated[dict[str, Annotated[str, Field(max_length=1024)]], AfterValidator(_sendable_headers)] | None = (
        Field(
            default=None,
            max_length=20,
            description="Headers added to each notification. They are shown when read: no place for credentials.",
            examples=[{"X-Department": "burgerzaken"}],
        )
    )
    method: Literal["POST"] = Field(default="POST", description="HTTP method; notifications are posted.")
    signatures: Annotated[list[SignatureScheme], Field(min_length=1), AfterValidator(_unlike)] | None = Field(
        default=None,
        description="Signatures that each notification bears: `v1` (HMAC-SHA256 with the subscription's secret; the "
        "default) and `v1a` (Ed25519 with the broker's key, of which the public half is at /.well-known/jwks.json).",
        examples=[["v1", "v1a"]],
    )
    batch: BatchSettings | None = Field(
        default=None,
        description="Send notifications in batches: JSON arrays, also when there is only one; absent: each alone.",
        examples=[{"maxCount": 100, "maxBytes": 1_048_576, "lingerMilliseconds": 100}],
    )


def _address(text: str) -> str:
    try:
        Address.parse(text)
    except InvalidAddress as error:
        raise PydanticCustomError("address", "{reason}", {"reason": str(error)}) from None
    return text


class AmqpSettings(Resource):
    """Where on the RabbitMQ of the sink notifications go."""

    address: Annotated[str, Field(max_length=2048), AfterValidator(_address)] = Field(
        description="A queue, or an exchange with or without routing key, in RabbitMQ's address format (version 2): "
        "`/queues/<queue>`, `/exchanges/<exchange>`, `/exchanges/<exchange>/<routing key>`, percent-encoded. It must "
        "be there: we declare nothing.",
        examples=["/queues/notificaties"],
    )
    link_name: Annotated[Printable, Field(min_length=1, max_length=100)] | None = Field(
        default=None,
        validation_alias=either("linkName"),
        description="The name that our connection shows under there; absent: the broker's DNS name, and the "
        "identifier of the subscription.",
        examples=["bode"],
    )
    sender_settlement_mode: Literal["unsettled"] = Field(
        default="unsettled",
        validation_alias=either("senderSettlementMode"),
        description="Each message is confirmed by the RabbitMQ; that is the only way.",
    )
    signatures: Annotated[list[SignatureScheme], Field(min_length=1), AfterValidator(_unlike)] | None = Field(
        default=None, description="Signatures that each notification bears, as with HTTP.", examples=[["v1", "v1a"]]
    )


_OF_AMQP: Final = frozenset({"address", "linkname", "sendersettlementmode", "linkproperties"})


def _kind_of_settings(given: Any) -> str:
    """Which settings these are meant to be, by their members: what protocol they are for is a member beside them."""
    if isinstance(given, AmqpSettings):
        return "amqp"
    names = {name.lower() for name in given if isinstance(name, str)} if isinstance(given, dict) else set()
    return "amqp" if names & _OF_AMQP else "http"


ProtocolSettings = Annotated[
    Annotated[HttpSettings, Tag("http")] | Annotated[AmqpSettings, Tag("amqp")], Discriminator(_kind_of_settings)
]
