"""Headers of both transports become attributes, and content types a mode."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from schemas.cloudevents import InvalidEvent
from schemas.cloudevents_bindings import ContentMode, amqp_attributes, content_mode, http_attributes


@pytest.mark.parametrize(
    ("content_type", "mode"),
    [
        ("application/cloudevents+json", ContentMode.STRUCTURED),
        ("Application/CloudEvents+JSON; charset=utf-8", ContentMode.STRUCTURED),
        (" application/cloudevents+json ;charset=UTF-8", ContentMode.STRUCTURED),
        ("application/cloudevents-batch+json", ContentMode.BATCH),
        ("application/json", ContentMode.BINARY),
        ("text/plain", ContentMode.BINARY),
        ("", ContentMode.BINARY),
        (None, ContentMode.BINARY),
    ],
)
def test_the_media_type_tells_the_mode(content_type: str | None, mode: ContentMode) -> None:
    assert content_mode(content_type) is mode


@pytest.mark.parametrize(
    "content_type", ["application/cloudevents+xml", "application/cloudevents", "application/cloudevents+avro"]
)
def test_an_event_format_other_than_json_is_refused(content_type: str) -> None:
    with pytest.raises(InvalidEvent) as refused:
        content_mode(content_type)

    assert refused.value.code == "event-format-unsupported"


def test_amqp_headers_under_either_prefix_are_attributes_in_cloudevents_types() -> None:
    winter = timezone(timedelta(hours=1))
    headers: dict[str, Any] = {
        "cloudEvents:id": "1",
        "cloudEvents_type": b"nl.brp.verhuisd",
        "cloudEvents:subject": bytearray("é".encode()),
        "cloudEvents:number": 5,
        "cloudEvents:yes": True,
        "cloudEvents:none": None,
        "cloudEvents:time": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "cloudEvents:local": datetime(2026, 1, 2, 3, 4, 5, 120000, tzinfo=winter),
        "cloudEvents:naive": datetime(2026, 1, 2, 3, 4, 5),
        "x-death": [{"count": 1}],
        "cloudevents:other": "no",
    }

    assert amqp_attributes(headers, "application/json") == {
        "id": "1",
        "type": "nl.brp.verhuisd",
        "subject": "é",
        "number": 5,
        "yes": True,
        "none": None,
        "time": "2026-01-02T03:04:05Z",
        "local": "2026-01-02T03:04:05.120000+01:00",
        "naive": "2026-01-02T03:04:05Z",
        "datacontenttype": "application/json",
    }


@pytest.mark.parametrize(
    ("code", "headers"),
    [
        ("attribute-type-invalid", {"cloudEvents:a": 1.5}),
        ("attribute-type-invalid", {"cloudEvents:a": ["x"]}),
        ("attribute-type-invalid", {"cloudEvents:a": {}}),
        ("not-utf8", {"cloudEvents:a": b"\xff"}),
        ("duplicate-member", {"cloudEvents:a": "1", "cloudEvents_a": "2"}),
    ],
)
def test_amqp_headers_that_cannot_be_attributes_are_refused(code: str, headers: dict[str, Any]) -> None:
    with pytest.raises(InvalidEvent) as refused:
        amqp_attributes(headers)

    assert refused.value.code == code


def test_the_same_value_under_both_amqp_prefixes_is_one_attribute() -> None:
    assert amqp_attributes({"cloudEvents:a": "1", "cloudEvents_a": b"1"}) == {"a": "1"}


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("plain", "plain"),
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ("%41%zz%4", "A%zz%4"),
        ('"quoted \\"text\\" %41"', 'quoted "text" A'),
        (" padded ", "padded"),
        ("Ã©", "é"),  # UTF-8 as it looks in Latin-1
        ("€", "€"),
    ],
)
def test_http_headers_are_unquoted_percent_decoded_and_read_as_utf8(header: str, value: str) -> None:
    assert http_attributes([("CE-Subject", header), ("host", "x")]) == {"subject": value}


def test_the_http_content_type_is_the_data_content_type() -> None:
    assert http_attributes([("Content-Type", "text/plain"), ("ce-id", "1")]) == {
        "id": "1",
        "datacontenttype": "text/plain",
    }


@pytest.mark.parametrize(
    ("code", "headers"),
    [
        ("not-utf8", [("ce-subject", "%FF")]),
        ("duplicate-member", [("ce-id", "1"), ("CE-ID", "1")]),
    ],
)
def test_http_headers_that_cannot_be_attributes_are_refused(code: str, headers: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidEvent) as refused:
        http_attributes(headers)

    assert refused.value.code == code
