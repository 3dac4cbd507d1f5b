"""How CloudEvents travel: which headers are attributes, in AMQP 0-9-1 and HTTP, and which content type means what.

Pure mappings; what they return goes to `schemas.cloudevents.from_binary`, which judges it.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from urllib.parse import unquote_to_bytes

from schemas.cloudevents_rules import InvalidEvent


class ContentMode(StrEnum):
    """Where the attributes of a message are."""

    STRUCTURED = "structured"
    BATCH = "batch"
    BINARY = "binary"


_AMQP_PREFIXES = ("cloudEvents:", "cloudEvents_")
_HTTP_PREFIX = "ce-"
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.S)


def content_mode(content_type: str | None) -> ContentMode:
    """By the media type alone; its case and parameters don't matter (HTTP binding 3; AMQP binding 3).

    Raises InvalidEvent for event formats that aren't JSON, of which the attributes would otherwise seem to be missing.
    """
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type == "application/cloudevents+json":
        return ContentMode.STRUCTURED
    if media_type == "application/cloudevents-batch+json":
        return ContentMode.BATCH
    if media_type.startswith("application/cloudevents"):
        raise InvalidEvent("event-format-unsupported", "the event format must be JSON")
    return ContentMode.BINARY


def amqp_attributes(
    headers: Mapping[str, object], content_type: str | None = None
) -> dict[str, str | int | bool | None]:
    """The attributes among AMQP headers (AMQP binding 3.1.3): both prefixes, native types made CloudEvents types.

    0-9-1 libraries give text as str or as bytes in UTF-8, and timestamps as datetime (UTC if it doesn't say).
    `content_type` becomes `datacontenttype` unless a header states that. Raises InvalidEvent.
    """
    attributes: dict[str, str | int | bool | None] = {}
    for header, value in headers.items():
        if not header.startswith(_AMQP_PREFIXES):
            continue
        name = header[len(_AMQP_PREFIXES[0]) :]
        converted = _from_amqp(name, value)
        if name in attributes and attributes[name] != converted:
            raise InvalidEvent("duplicate-member", "stands under both prefixes, with two values", _shown(name))
        attributes[name] = converted
    if content_type:
        attributes.setdefault("datacontenttype", content_type)
    return attributes


def http_attributes(headers: Iterable[tuple[str, str]]) -> dict[str, str | int | bool | None]:
    """The attributes among HTTP headers, by lower-case name (HTTP binding 3.1.3), all of them strings.

    Values are unquoted, then percent-decoded, then read as UTF-8. `content-type` becomes `datacontenttype`.
    `headers` has one pair for each header line, as WSGI and ASGI servers give them (Latin-1). Raises InvalidEvent.
    """
    attributes: dict[str, str | int | bool | None] = {}
    content_type: str | None = None
    for header, value in headers:
        lowered = header.lower()
        if lowered == "content-type":
            content_type = value.strip()
        elif lowered.startswith(_HTTP_PREFIX):
            name = lowered[len(_HTTP_PREFIX) :]
            if name in attributes:
                raise InvalidEvent("duplicate-member", "is there in two headers", _shown(name))
            attributes[name] = _from_http(name, value)
    if content_type:
        attributes.setdefault("datacontenttype", content_type)
    return attributes


def _from_amqp(name: str, value: object) -> str | int | bool | None:
    if value is None or isinstance(value, str | int):  # bool is an int
        return value
    if isinstance(value, bytes | bytearray):
        return _decoded(name, bytes(value))
    if isinstance(value, datetime):
        aware = value if value.tzinfo else value.replace(tzinfo=UTC)
        return aware.isoformat().replace("+00:00", "Z")
    raise InvalidEvent("attribute-type-invalid", "must be a string, a boolean, a whole number or a time", _shown(name))


def _from_http(name: str, value: str) -> str:
    value = value.strip(" \t")
    if quoted := _QUOTED.fullmatch(value):
        value = re.sub(r"\\(.)", r"\1", quoted[1], flags=re.S)
    try:
        raw = value.encode("latin-1")
    except UnicodeEncodeError:
        raw = value.encode("utf-8", "surrogatepass")
    return _decoded(name, unquote_to_bytes(raw))


def _decoded(name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidEvent("not-utf8", "must be text in UTF-8", _shown(name)) from None


def _shown(name: str) -> str:
    return name[:40].encode("ascii", "backslashreplace").decode()
