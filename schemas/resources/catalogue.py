"""Event types as the API says them: what a registry publishes, what it means, and what may be done with it."""

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import AfterValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from schemas.data_schemas import InvalidSchema, check
from schemas.filters import limits
from schemas.filters.dialects import NAME_CHARACTERS, NOT_ATTRIBUTES
from schemas.resources.base import DOMAIN_PATTERN, Answer, Moment, Page, Resource


class InformationLevel(StrEnum):
    """How much an event says of its subject: that something happened, or also what."""

    POOR = "informatiearm"
    RICH = "informatierijk"


class DataValidation(StrEnum):
    """What becomes of an event whose `data` doesn't meet its schema."""

    OFF = "off"
    REPORT = "report"
    REJECT = "reject"


_EXAMPLE: Final[dict[str, Any]] = {
    "type": "nl.brp.persoon-verhuisd",
    "meaning": "A person's address of residence has changed.",
    "timeMeaning": "When the change was registered.",
    "informationLevel": "informatierijk",
    "dataSchema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "required": ["datumAanvang"],
        "properties": {"datumAanvang": {"type": "string", "format": "date"}},
    },
    "validation": "report",
    "filterAttributes": ["subject", "gemeente", "/datumAanvang"],
    "retentionDays": 90,
}


_POINTER: Final = re.compile(r"(?:/(?:[^/~]|~[01])*)+")
"""RFC 6901, section 3."""


def _check_schema(schema: dict[str, Any] | bool | None) -> dict[str, Any] | bool | None:
    if schema is not None:
        try:
            check(schema)
        except InvalidSchema as error:
            place = f" at '{error.pointer}'" if error.pointer else ""
            raise PydanticCustomError(
                "json-schema", "{detail}{place}", {"detail": error.detail, "place": place}
            ) from None
    return schema


def _check_filter_attributes(names: list[str] | None) -> list[str] | None:
    for name in names or ():
        if _POINTER.fullmatch(name):
            continue
        if len(name) > limits.MAX_NAME or not NAME_CHARACTERS.issuperset(name) or name in NOT_ATTRIBUTES:
            raise PydanticCustomError(
                "filter-attribute", "must hold names of attributes in lower case, or JSON Pointers into data (/adres)"
            )
    return names


Text = Annotated[str, Field(min_length=1, max_length=4000)]
Link = Annotated[str, Field(max_length=2048, pattern=r"^https?://[^\s]+$")]
TypeName = Annotated[str, Field(min_length=3, max_length=255, pattern=DOMAIN_PATTERN)]


class EventTypeReplacement(Resource):
    """What a registry says of an event type; what is absent has its default."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    type: TypeName = Field(description="The CloudEvents `type`; it can't be changed.", examples=[_EXAMPLE["type"]])
    meaning: Text = Field(description="What has happened when such an event comes.", examples=[_EXAMPLE["meaning"]])
    time_meaning: Text | None = Field(
        default=None, description="What `time` says: of the fact, or of its registration.",
        examples=[_EXAMPLE["timeMeaning"]],
    )  # fmt: skip
    documentation_link: Link | None = Field(
        default=None, description="Where people read about it.", examples=["https://www.rvig.nl/brp"]
    )
    information_level: InformationLevel | None = Field(
        default=None,
        description="`informatiearm`: that something happened, and the receiver asks further; `informatierijk`: what.",
        examples=["informatierijk"],
    )
    data_schema: Annotated[dict[str, Any] | bool | None, AfterValidator(_check_schema)] = Field(
        default=None,
        description="JSON Schema 2020-12 of `data`. References stay within it, and don't recurse; patterns are of "
        "RE2's kind (no look-around, no back references). At most 64 KiB, and 1,000 subschemas with references "
        "written out.",
        examples=[_EXAMPLE["dataSchema"]],
    )
    validation: DataValidation = Field(
        default=DataValidation.OFF,
        description="Whether `data` is held against the schema when an event comes in: `off`; `report`: it is "
        "accepted, and what was found is counted; `reject`: it becomes a rejection.",
        examples=["report"],
    )
    filter_attributes: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=255)]], Field(max_length=100),
        AfterValidator(_check_filter_attributes),
    ] | None = Field(
        default=None,
        description="What may be filtered on besides `type` and `source`: names of attributes, and JSON Pointers into "
        "`data`, which cover what lies under them. Absent: anything; empty: nothing else.",
        examples=[["subject", "gemeente", "/datumAanvang"]],
    )  # fmt: skip
    retention_days: Annotated[int, Field(ge=1, le=36_500)] | None = Field(
        default=None, description="Days that its events are kept; absent: as the installation says.", examples=[90]
    )
    delay_seconds: Annotated[int, Field(ge=1, le=604_800)] | None = Field(
        default=None,
        description="Seconds that each of its events waits before it is delivered, so that a correction can "
        "come before it; shorter than its retention, and a week at most. Absent: none.",
        examples=[3600],
    )
    deprecated_at: Moment | None = Field(
        default=None, description="From when providers should no longer subscribe to it."
    )
    sunset_at: Moment | None = Field(default=None, description="From when it is no longer published.")
    successor: TypeName | None = Field(
        default=None, description="The type that comes in its place.", examples=["nl.brp.persoon-verhuisd.v2"]
    )
    url: Any = Field(default=None, description="Ignored: set by the broker.")
    id: Any = Field(default=None, description="Ignored: set by the broker.")
    registry: Any = Field(default=None, description="Ignored: set by the broker.")
    version: Any = Field(default=None, description="Ignored: set by the broker.")
    created_at: Any = Field(default=None, description="Ignored: set by the broker.")
    updated_at: Any = Field(default=None, description="Ignored: set by the broker.")


class EventTypeBody(EventTypeReplacement):
    """A new event type in the catalogue."""


class EventType(Answer):
    """An event type in the catalogue."""

    url: str = Field(description="URL of this resource.", json_schema_extra={"format": "uri"})
    id: UUID = Field(description="Identifier of the event type.")
    registry: str = Field(description="OIN of the registry that describes it.", examples=["00000001823288444000"])
    type: str = Field(description="The CloudEvents `type`.", examples=[_EXAMPLE["type"]])
    meaning: str = Field(description="What has happened when such an event comes.", examples=[_EXAMPLE["meaning"]])
    time_meaning: str | None = Field(
        description="What `time` says; null: it isn't said.", examples=[_EXAMPLE["timeMeaning"]]
    )
    documentation_link: str | None = Field(
        description="Where people read about it; null: nowhere.", examples=["https://www.rvig.nl/brp"]
    )
    information_level: InformationLevel | None = Field(description="How much it says; null: it isn't said.")
    data_schema: dict[str, Any] | bool | None = Field(
        description="JSON Schema 2020-12 of `data`; null: none.", examples=[_EXAMPLE["dataSchema"]]
    )
    validation: DataValidation = Field(description="Whether `data` is held against the schema when an event comes in.")
    filter_attributes: list[str] | None = Field(
        description="What may be filtered on; null: anything.", examples=[_EXAMPLE["filterAttributes"]]
    )
    retention_days: int | None = Field(description="Days that its events are kept; null: as the installation says.")
    delay_seconds: int | None = Field(
        description="Seconds that each of its events waits before it is delivered; null: none.", examples=[3600]
    )
    deprecated_at: datetime | None = Field(description="From when providers should no longer subscribe to it.")
    sunset_at: datetime | None = Field(description="From when it is no longer published.")
    successor: str | None = Field(
        description="The type that comes in its place; null: none.", examples=["nl.brp.persoon-verhuisd.v2"]
    )
    version: int = Field(ge=1, description="Raised by each change; also the ETag.")
    created_at: datetime = Field(description="When it was described first.")
    updated_at: datetime = Field(description="When the description was last changed.")


class EventTypeVersion(Answer):
    """A version of the description of an event type, as it was."""

    version: int = Field(ge=1, description="Its number, from 1.")
    created_at: datetime = Field(description="From when it held.")
    description: dict[str, Any] = Field(
        description="What was said of the event type, as in an event type.", examples=[_EXAMPLE]
    )


class DataFinding(Answer):
    """Something that `data` of accepted events had against the schema. No values."""

    pointer: str = Field(
        description="JSON Pointer into `data`; names that the schema doesn't spell out stand as `*`.",
        examples=["/adres/postcode"],
    )
    keyword: str = Field(
        description="The keyword of JSON Schema that was not met; `data`: there was no JSON data.", examples=["pattern"]
    )
    times: int = Field(ge=1, description="How often.")
    first_at: datetime = Field(description="When it was found first.")
    last_at: datetime = Field(description="When it was found last.")


class EventTypePage(Page[EventType]):
    """One page of event types, in order of creation."""


class EventTypeVersionPage(Page[EventTypeVersion]):
    """One page of versions, oldest first."""


class DataFindingPage(Page[DataFinding]):
    """One page of findings, in order of their first occurrence."""
