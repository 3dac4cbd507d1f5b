"""Previews as the API says them: what a filter would have matched, how it is found, and why it matches one event."""

from datetime import date, datetime
from typing import Annotated, Any, Final, TypeAlias

from pydantic import ConfigDict, Field

from schemas.resources.base import Answer, EventType, Printable, Resource
from schemas.resources.evidence import Explanation

Day: TypeAlias = date
_EXAMPLE: Final[dict[str, Any]] = {
    "types": ["nl.brp.persoon-verhuisd"],
    "filters": [{"exact": {"gemeente": "9999"}}],
    "days": 7,
}


class EventReference(Resource):
    """An event, by what its registry called it."""

    source: Annotated[Printable, Field(min_length=1, max_length=2048)] = Field(
        description="`source` of the event.", examples=["urn:nld:oin:00000001823288444000:systeem:BRP-component"]
    )
    id: Annotated[str, Field(min_length=1, max_length=4096)] = Field(
        description="`id` of the event.", examples=["f3dce042-cd6e-4977-844d-05be8dce7cea"]
    )


class PreviewBody(Resource):
    """What a subscription would ask for, and over how many days it is tried."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    source: Annotated[Printable, Field(min_length=1, max_length=2048)] | None = Field(
        default=None,
        description="As in a subscription.",
        examples=["urn:nld:oin:00000001823288444000:systeem:BRP-component"],
    )
    domain: Annotated[Printable, Field(min_length=1, max_length=255)] | None = Field(
        default=None, description="As in a subscription.", examples=["nl.brp"]
    )
    types: Annotated[list[EventType], Field(max_length=1024)] | None = Field(
        default=None, description="As in a subscription.", examples=[["nl.brp.persoon-verhuisd"]]
    )
    filters: Annotated[list[dict[str, Any]], Field(max_length=1024)] | None = Field(
        default=None, description="As in a subscription.", examples=[[{"exact": {"gemeente": "9999"}}]]
    )
    days: int = Field(default=7, ge=1, le=31, description="How many days are tried, today (UTC) included.")
    event: EventReference | None = Field(
        default=None, description="One event that you were or may be sent, to be told why it matches or not."
    )


class PreviewedDay(Answer):
    """What a day had."""

    date: Day = Field(description="The day, in UTC, by acceptance.")
    examined: int = Field(ge=0, description="Events that you may see, held against the filter.")
    matched: int = Field(ge=0, description="Those that match.")
    complete: bool = Field(description="Whether these are all events of the day; else its latest ones.")


class PreviewedType(Answer):
    """What a type had."""

    type: str = Field(description="The event type.", examples=["nl.brp.persoon-verhuisd"])
    examined: int = Field(ge=0, description="Events that you may see, held against the filter.")
    matched: int = Field(ge=0, description="Those that match.")


class PlannedAlternative(Answer):
    """One way in which an event can match: all of its conditions hold."""

    looked_up: list[str] = Field(
        description="Conditions found in an index, whatever the number of subscriptions.",
        examples=[["type is 'nl.brp.persoon-verhuisd'", "gemeente is '9999'"]],
    )
    evaluated: list[str] = Field(
        description="Conditions evaluated for events that the index found.", examples=[["not (subject is present)"]]
    )
    evaluated_always: bool = Field(description="Nothing is looked up but the type: evaluated for every event of it.")
    note: str | None = Field(
        description="What that means, in words; null: nothing to note.",
        examples=["This filter is evaluated for every event of its type."],
    )


class Preview(Answer):
    """What a subscription would have matched. No payloads: a look at an event is a disclosure."""

    since: datetime = Field(description="From when events were tried.")
    until: datetime = Field(description="Until when.")
    complete: bool = Field(
        description="Whether all events were tried that you may see; else a sample, each day's latest."
    )
    examined: int = Field(ge=0, description="Events held against the filter.")
    matched: int = Field(ge=0, description="Those that match.")
    days: list[PreviewedDay] = Field(description="By day, latest first.")
    types: list[PreviewedType] = Field(description="By type, those that match most first.")
    alternatives: list[PlannedAlternative] = Field(
        description="How the filter is found in matching; none at all: no event can match."
    )
    event: Explanation | None = Field(description="Why the event matches or not; null: none was asked about.")
