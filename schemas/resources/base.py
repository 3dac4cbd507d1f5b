"""What the bodies of the management API share: member names, refusal of what isn't known, pages."""

from datetime import UTC, datetime
from typing import Annotated, Final, Generic, TypeVar

from pydantic import AfterValidator, AliasChoices, AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

DOMAIN_PATTERN: Final = r"^[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?)+$"
"""Reverse domain notation, at least two labels."""
GRANT_TYPE_PATTERN: Final = DOMAIN_PATTERN.removesuffix("$") + r"(?:\.\*)?$"
"""An event type, or all within a domain: `nl.bag.*`."""


class Resource(BaseModel):
    """The root of all bodies: camelCase members, none that isn't known."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", serialize_by_alias=True, frozen=True)


class Answer(Resource):
    """The root of what we answer; made in code by the names of its fields."""

    model_config = ConfigDict(populate_by_name=True)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise PydanticCustomError("printable", "must hold printable characters only")
    return text


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("moment", "must be from the year 1 to 9999 in UTC") from None


def either(name: str) -> AliasChoices:
    """A name in camelCase, or all in lower case as the CloudEvents Subscriptions API has it."""
    return AliasChoices(name, name.lower())


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A moment that a caller names, in UTC; at the ends of the calendar an offset can lead out of it."""
Printable = Annotated[str, AfterValidator(_printable)]
EventType = Annotated[Printable, Field(min_length=1, max_length=255)]
DomainName = Annotated[str, Field(min_length=3, max_length=255, pattern=DOMAIN_PATTERN)]
Oin = Annotated[str, Field(min_length=20, max_length=20, pattern=r"^[0-9A-Za-z]{20}$")]

Item = TypeVar("Item")


class Page(Answer, Generic[Item]):
    """One page of a list, in order of creation."""

    count: int = Field(ge=0, description="How many there are in all pages together.")
    next: str | None = Field(
        description="URL of the next page; null: this is the last.",
        examples=["https://bode.example.nl/v1/subscriptions?cursor=AQIDBA"],
    )
    previous: str | None = Field(
        description="URL of the page before; null: this is the first.",
        examples=["https://bode.example.nl/v1/subscriptions?cursor=AQIDBQ"],
    )
    results: list[Item] = Field(description="What is on this page.")
