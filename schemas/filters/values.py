"""Fields of `data`: finding them by JSON Pointer, and reading scalars, dates and instants."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Final

import msgspec

from schemas.filters.algebra import Measure, Pointer, Scalar

JsonValue = object
ABSENT: Final = object()
"""What a pointer finds when nothing is there; null is something."""

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_INSTANT = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt](\d{2}:\d{2}:)(\d{2})(?:\.(\d{1,9}))?(?:([Zz])|([+-])(\d{2}):(\d{2}))", re.ASCII
)
_EPOCH = datetime(1970, 1, 1)
_ARRAY_INDEX = re.compile(r"0|[1-9]\d{0,8}", re.ASCII)


def decode(body: bytes) -> JsonValue:
    """Parse a structured-mode event; numbers out of a double's range become infinite instead of failing."""
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        return json.loads(body)


def data_of(body: bytes) -> JsonValue:
    """The `data` member of a structured-mode event, or `ABSENT`."""
    document = decode(body)
    return document.get("data", ABSENT) if isinstance(document, dict) else ABSENT


def find(value: JsonValue, pointer: Pointer) -> JsonValue:
    """Follow a JSON Pointer (RFC 6901) from `value`; `ABSENT` when it leads nowhere."""
    for token in pointer:
        if isinstance(value, dict):
            value = value.get(token, ABSENT)
        elif isinstance(value, list):
            if _ARRAY_INDEX.fullmatch(token) is None or int(token) >= len(value):
                return ABSENT
            value = value[int(token)]
        else:
            return ABSENT
    return value


def scalar(value: JsonValue) -> Scalar | None:
    """The scalar under its kind, or nothing for objects, arrays and `ABSENT`."""
    if isinstance(value, str):
        return ("string", value)
    if isinstance(value, bool):
        return ("boolean", value)
    if isinstance(value, int | float):
        return ("number", value)
    return ("null", None) if value is None else None


def number(value: JsonValue) -> int | float | None:
    """A JSON number, or nothing; `true` is not a number."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def calendar_date(value: JsonValue) -> int | None:
    """Days since the year 1 of a date, or of the date as written in a date-time (RFC 3339); else nothing."""
    if not isinstance(value, str):
        return None
    if len(value) != 10:
        if _INSTANT.fullmatch(value) is None:
            return None
        value = value[:10]
    elif _DATE.fullmatch(value) is None:
        return None
    try:
        return date.fromisoformat(value).toordinal()
    except ValueError:
        return None


def instant(value: JsonValue) -> int | None:
    """Nanoseconds since 1970 in UTC of an RFC 3339 date-time; else nothing. A leap second counts as the next."""
    if not isinstance(value, str) or (parts := _INSTANT.fullmatch(value)) is None:
        return None
    day, clock, second, fraction, zulu, sign, hours, minutes = parts.groups()
    seconds = int(second)
    if seconds > 60:
        return None
    try:
        local = datetime.fromisoformat(f"{day}T{clock}00") - _EPOCH
    except ValueError:
        return None
    offset = timedelta()
    if zulu is None:
        if int(hours) > 23 or int(minutes) > 59:
            return None
        offset = timedelta(hours=int(hours), minutes=int(minutes)) * (1 if sign == "+" else -1)
    whole = (local - offset) // timedelta(seconds=1) + seconds
    return whole * 1_000_000_000 + int((fraction or "").ljust(9, "0"))


MEASURES: Final[dict[Measure, Callable[[JsonValue], int | float | None]]] = {
    "number": number,
    "date": calendar_date,
    "instant": instant,
}


def rfc3339(nanoseconds: int) -> str:
    """Write an instant for people."""
    moment = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=nanoseconds // 1000)
    return moment.isoformat().replace("+00:00", "Z")
