"""CloudEvents 1.0 in structured, binary and batch form, read under the NL GOV profile 1.1.

Whatever the form it came in, an event becomes one `Event`, whose `body` is what receivers get: a JSON object on one
line, attributes in order of name and each once, then `data` with every byte as it was published (only line breaks
between its tokens become spaces). So Bode's view of an event and a receiver's can't differ: a body in which a member
occurs twice is refused, and names written with escapes are written without. What is inside `data` is the
registry's affair, beyond that it is JSON in UTF-8.

    InvalidEvent    raised by everything that reads (drawn in `cloudevents_rules`)
"""

import re
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple, cast

import msgspec
import orjson

from schemas.cloudevents_rules import (
    REJECTION_CODES,
    RESERVED_NAMES,
    WARNING_CODES,
    AttributeValue,
    InvalidEvent,
    Names,
    check_names,
    check_types,
    check_values,
    is_json,
    is_rfc3339,
)

__all__ = [
    "DEFAULT_MAX_BYTES",
    "MAX_DEPTH",
    "REJECTION_CODES",
    "RESERVED_NAMES",
    "WARNING_CODES",
    "AttributeValue",
    "Draft",
    "Event",
    "InvalidEvent",
    "from_batch",
    "from_binary",
    "from_structured",
    "is_rfc3339",
    "to_structured",
]

DEFAULT_MAX_BYTES = 262_144
MAX_DEPTH = 512
"""Arrays and objects inside each other, the event itself included. The JSON libraries of receivers stop at 1,000 or
so, some counting the depth of their own call stack: a fixed bound makes the answer the same everywhere."""


@dataclass(frozen=True, slots=True)
class Event:
    """A valid event. `attributes` has every context attribute, extensions included, and no nulls."""

    attributes: Mapping[str, AttributeValue]
    body: bytes
    warnings: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Unique within `source`."""
        return cast("str", self.attributes["id"])

    @property
    def source(self) -> str:
        """URI-reference of the producer."""
        return cast("str", self.attributes["source"])

    @property
    def type(self) -> str:
        """Reverse domain name of the event type."""
        return cast("str", self.attributes["type"])

    @property
    def subject(self) -> str | None:
        """Whom or what it is about. Personal: never in a log, a metric or a URL."""
        return cast("str | None", self.attributes.get("subject"))

    @property
    def time(self) -> str | None:
        """RFC 3339, as published."""
        return cast("str | None", self.attributes.get("time"))


class Draft(NamedTuple):
    """An event that a tool wants to publish: unchecked attributes, and data that JSON can say (None for none)."""

    attributes: dict[str, AttributeValue]
    data: Any | None

    def encode(self) -> bytes:
        """The structured form, canonical."""
        return to_structured(self.attributes, self.data)


_Members = dict[str, msgspec.Raw]
_members = msgspec.json.Decoder(_Members)
_texts: msgspec.json.Decoder[list[AttributeValue]] = msgspec.json.Decoder(cast("type[list[AttributeValue]]", list[str]))
_values = msgspec.json.Decoder(list[Any])
_items = msgspec.json.Decoder(list[msgspec.Raw])
_anything = msgspec.json.Decoder(msgspec.Raw)


def from_structured(body: bytes, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Event:
    """Reads `application/cloudevents+json`. Raises InvalidEvent. The size counts as received and as canonical."""
    _check_size(body, max_bytes)
    _check_json_text(body)
    try:
        members = _members.decode(body)
    except msgspec.ValidationError:
        raise InvalidEvent("not-an-object", "an event is a JSON object") from None
    except (msgspec.DecodeError, RecursionError):
        raise InvalidEvent("not-json", "the body isn't valid JSON") from None
    data, data_base64 = members.pop("data", None), members.pop("data_base64", None)
    known = check_names(tuple(members))
    joined = b"[" + b",".join(cast("list[bytes]", members.values())) + b"]"
    if len(body) != _compact_length(known, joined, data, data_base64) and _has_twins(body, _members.decode(body)):
        raise InvalidEvent("duplicate-member", "a member occurs more than once")
    attributes = _read_attributes(known, joined)
    plain = joined.isascii() and 0x5C not in joined and 0x7F not in joined  # no escapes, no DEL
    warnings = check_values(known, attributes, plain=plain)
    if data_base64 is not None and bytes(data_base64) != b"null":
        if data is not None and bytes(data) != b"null":
            raise InvalidEvent("data-and-data-base64", "an event has one of them at most")
        return _event(attributes, b',"data_base64":"', _check_base64(data_base64), b'"}', warnings, max_bytes)
    if data is None:
        return _event(attributes, b"", b"", b"}", warnings, max_bytes)
    return _event(attributes, b',"data":', _one_line(bytes(data)), b"}", warnings, max_bytes)


def from_binary(
    attributes: Mapping[str, str | int | bool | None],
    content_type: str | None,
    data: bytes,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Event:
    """Reads an event whose attributes came beside its data. Raises InvalidEvent.

    `attributes` by their names, without the transport's prefix; `content_type` becomes `datacontenttype`. JSON
    becomes `data` as it is; text in UTF-8 becomes a JSON string; what else there is becomes `data_base64`. Without
    a content type, what is JSON is taken as JSON. No bytes, no data.
    """
    _check_size(data, max_bytes)
    content_type = content_type or None
    given = dict(attributes)
    stated = given.get("datacontenttype")
    if content_type is not None:
        if stated is not None and stated != content_type:
            raise InvalidEvent("datacontenttype-invalid", "contradicts the content type", "datacontenttype")
        given["datacontenttype"] = content_type
    names = check_names(tuple(given))
    known = check_types(names, given.values())
    warnings = check_values(names, known)
    represented = _represent(cast("str | None", known.get("datacontenttype")), data)
    return _event(known, *represented, warnings, max_bytes)


def from_batch(body: bytes, *, max_bytes: int = DEFAULT_MAX_BYTES) -> list[Event]:
    """Reads `application/cloudevents-batch+json`, all or nothing. Raises InvalidEvent; its detail counts from 1.

    `max_bytes` holds for each event; the size of the whole is for the caller to bound.
    """
    try:
        items = _items.decode(body)
    except msgspec.ValidationError:
        raise InvalidEvent("not-an-array", "a batch is a JSON array of events") from None
    except (msgspec.DecodeError, RecursionError):
        raise InvalidEvent("not-json", "the body isn't valid JSON") from None
    return list(_events(items, max_bytes))


def to_structured(attributes: Mapping[str, AttributeValue], data: Any | None = None) -> bytes:
    """Writes an event in the canonical form, unchecked. `data`: what JSON can say, or bytes; None for no data."""
    rest = b"}"
    if isinstance(data, bytes):
        rest = b',"data_base64":"' + b64encode(data) + b'"}'
    elif data is not None:
        rest = b',"data":' + orjson.dumps(data) + b"}"
    return orjson.dumps(dict(attributes), option=orjson.OPT_SORT_KEYS)[:-1] + rest


def _events(items: list[msgspec.Raw], max_bytes: int) -> Iterator[Event]:
    for place, item in enumerate(items, start=1):
        try:
            yield from_structured(bytes(item), max_bytes=max_bytes)
        except InvalidEvent as invalid:
            invalid.detail = f"event {place} of the batch: {invalid.detail}"
            raise


def _event(
    attributes: dict[str, AttributeValue],
    before: bytes,
    data: bytes,
    after: bytes,
    warnings: tuple[str, ...],
    max_bytes: int,
) -> Event:
    body = b"".join((orjson.dumps(attributes, option=orjson.OPT_SORT_KEYS)[:-1], before, data, after))
    _check_size(body, max_bytes)
    return Event(attributes, body, warnings)


def _check_size(body: bytes, max_bytes: int) -> None:
    if len(body) > max_bytes:
        raise InvalidEvent("too-large", f"an event has {max_bytes} bytes at most")


_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.S)
_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def _check_json_text(body: bytes) -> None:
    """What msgspec doesn't see in the values that it skips: UTF-8, and depth but for its own stack's end."""
    try:
        body.decode()
    except UnicodeDecodeError:
        raise InvalidEvent("not-utf8", "JSON is in UTF-8") from None
    if len(body) > 2 * MAX_DEPTH and body.count(b"[") + body.count(b"{") > MAX_DEPTH:
        brackets = _STRING.sub(b"", body).translate(None, _BUT_BRACKETS)
        if max(accumulate(_STEPS[bracket] for bracket in brackets), default=0) > MAX_DEPTH:
            raise InvalidEvent("nested-too-deeply", f"JSON is nested {MAX_DEPTH} levels at most")


def _compact_length(known: Names, joined: bytes, data: msgspec.Raw | None, data_base64: msgspec.Raw | None) -> int:
    """The length of an object without any space, of which every member was there once: a twin would make it longer."""
    length = known.length + len(joined) + 3 * len(known.names)
    if data is not None:
        length += len(data) + len('"data":,')
    if data_base64 is not None:
        length += len(data_base64) + len('"data_base64":,')
    return length


def _read_attributes(known: Names, joined: bytes) -> dict[str, AttributeValue]:
    try:  # most events have strings only: a quarter of the time; as many values as names by construction
        return dict(zip(known.names, _texts.decode(joined), strict=False))
    except msgspec.ValidationError:
        pass
    try:
        return check_types(known, _values.decode(joined))
    except (msgspec.DecodeError, RecursionError):  # it was valid JSON: a number out of every range, or arrays
        raise InvalidEvent("attribute-type-invalid", "a value is out of range") from None


_BEFORE_VALUE = re.compile(rb'[ \t\n\r]*[{,][ \t\n\r]*"((?:[^"\\]|\\.)*+)"[ \t\n\r]*:[ \t\n\r]*', re.S)


def _has_twins(body: bytes, members: _Members) -> bool:
    """Walks over a valid object by the members that were decoded; it comes out at the end if each was there once."""
    place = 0
    for name, value in members.items():
        found = _BEFORE_VALUE.match(body, place)
        if found is None or not body.startswith(value, found.end()):
            return True
        written = found[1]
        if written != name.encode() and (b"\\" not in written or msgspec.json.decode(b'"%b"' % written) != name):
            return True
        place = found.end() + len(value)
    return body[place:].strip(b" \t\n\r") not in (b"}", b"{}")


_LINE_BREAKS = bytes.maketrans(b"\n\r", b"  ")


def _one_line(json: bytes) -> bytes:
    """JSON strings can't hold line breaks: they are between tokens, where a space means the same."""
    return json.translate(_LINE_BREAKS) if b"\n" in json or b"\r" in json else json


def _check_base64(encoded: msgspec.Raw) -> bytes:
    try:
        text = msgspec.json.decode(encoded, type=str)
        b64decode(text, validate=True)
    except (msgspec.ValidationError, ValueError):
        raise InvalidEvent("data-base64-invalid", "must be a string in base64 (RFC 4648, 4)", "data_base64") from None
    return text.encode("ascii")


_CHARSET = re.compile(r';[ \t]*charset="?([^";\s]+)', re.I)


def _represent(content_type: str | None, data: bytes) -> tuple[bytes, bytes, bytes]:
    """The end of the canonical body (JSON event format, 3.1): what stands before the data, the data, what after."""
    if not data:
        return b"", b"", b"}"
    found = _CHARSET.search(content_type or "")
    charset = found[1].lower() if found else None
    if charset in (None, "utf-8", "utf8", "us-ascii"):
        if content_type is None or is_json(content_type):
            try:
                _check_json_text(data)
                return b',"data":', _one_line(bytes(_anything.decode(data)).strip(b" \t\n\r")), b"}"
            except (msgspec.DecodeError, RecursionError, InvalidEvent) as invalid:
                if content_type is not None:
                    if isinstance(invalid, InvalidEvent):
                        raise
                    raise InvalidEvent("data-not-json", "the content type says JSON, the data isn't") from None
        elif charset is not None or content_type.lower().startswith("text/"):
            try:
                return b',"data":', orjson.dumps(data.decode()), b"}"
            except UnicodeDecodeError:  # not what its type says: kept byte for byte
                pass
    return b',"data_base64":"', b64encode(data), b'"}'
