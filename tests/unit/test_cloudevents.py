"""What is accepted and what is refused, rule by rule, with the code that the registry reads."""

import json
from typing import Any

import pytest

from schemas.cloudevents import (
    DEFAULT_MAX_BYTES,
    MAX_DEPTH,
    REJECTION_CODES,
    WARNING_CODES,
    Event,
    InvalidEvent,
    from_batch,
    from_binary,
    from_structured,
    to_structured,
)

SOURCE = "urn:nld:oin:00000001823288444000:systeem:BRP-component"
GOOD: dict[str, Any] = {
    "specversion": "1.0",
    "id": "f3dce042-cd6e-4977-844d-05be8dce7cea",
    "source": SOURCE,
    "type": "nl.brp.persoon-verhuisd",
}
UNSET = object()


def body(**changes: Any) -> bytes:
    return json.dumps({k: v for k, v in (GOOD | changes).items() if v is not UNSET}).encode()


def raw(members: str) -> bytes:
    return (json.dumps(GOOD)[:-1] + ", " + members + "}").encode()


def code_of(data: bytes, **options: int) -> str:
    with pytest.raises(InvalidEvent) as refused:
        from_structured(data, **options)
    assert refused.value.code in REJECTION_CODES
    return refused.value.code


NOT_EVENTS = [
    ("not-json", b""),
    ("not-json", b"hello"),
    ("not-json", b'{"id": "1"'),
    ("not-json", body() + b"x"),
    ("not-json", body() + body()),
    ("not-json", b"\xef\xbb\xbf" + body()),
    ("not-an-object", b"[]"),
    ("not-an-object", b'"text"'),
    ("not-an-object", b"null"),
    ("not-json", raw('"data": NaN')),
    ("not-json", raw('"data": [Infinity]')),
    ("not-json", raw('"data": 01')),
    ("not-json", raw('"data": [1,]')),
    ("not-json", raw("'data': 1")),
    ("not-json", raw('"data": "a\x01b"')),
    ("not-json", raw('"data": {"a": "\\q"}')),
    ("not-json", raw('"data": ["\\ud800"]')),
    ("not-json", raw('"data": ["\\ud800\\u0041"]')),
    ("not-json", raw('"data": {"\\udc00 and more": 1}')),
    ("not-utf8", raw('"data": "?"').replace(b"?", b"\xff")),
    ("not-utf8", raw('"data": {"a": ["?"]}').replace(b"?", b"\xed\xa0\x80")),
    ("not-utf8", raw('"name": "?"').replace(b"?", b"\xc0\xaf")),
    ("nested-too-deeply", raw('"data": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH)),
    ("nested-too-deeply", raw('"data": ' + '{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH)),
    ("nested-too-deeply", raw('"data": ' + "[" * 100_000 + "]" * 100_000)),
    ("duplicate-member", raw('"id": "2"')),
    ("duplicate-member", raw('"data": 1, "data": 1')),
    ("duplicate-member", raw('"\\u0069d": "2"')),
    ("duplicate-member", json.dumps(GOOD, separators=(",", ":"))[:-1].encode() + b',"id":"2"}'),
    ("duplicate-member", b'{"id":"' + b"1" * 9 + b'",' + body()[1:]),
]


@pytest.mark.parametrize(("code", "data"), NOT_EVENTS)
def test_what_is_not_one_json_object_in_utf8_is_refused(code: str, data: bytes) -> None:
    assert code_of(data) == code


BROKEN = [
    ("missing-attribute", {"id": UNSET}),
    ("missing-attribute", {"id": None}),
    ("missing-attribute", {"source": UNSET}),
    ("missing-attribute", {"type": UNSET}),
    ("missing-attribute", {"specversion": UNSET}),
    ("specversion-unsupported", {"specversion": "0.3"}),
    ("specversion-unsupported", {"specversion": "1.1"}),
    ("attribute-type-invalid", {"specversion": 1}),
    ("attribute-type-invalid", {"id": 5}),
    ("attribute-type-invalid", {"subject": True}),
    ("attribute-type-invalid", {"time": 1700000000}),
    ("attribute-type-invalid", {"extra": 1.5}),
    ("attribute-type-invalid", {"extra": 1.0}),
    ("attribute-type-invalid", {"extra": {}}),
    ("attribute-type-invalid", {"extra": ["a"]}),
    ("attribute-type-invalid", {"extra": 2**31}),
    ("attribute-type-invalid", {"extra": -(2**31) - 1}),
    ("attribute-type-invalid", {"extra": 10**400}),
    ("attribute-type-invalid", {"sequence": 1}),
    ("attribute-name-invalid", {"Extra": "a"}),
    ("attribute-name-invalid", {"extra-name": "a"}),
    ("attribute-name-invalid", {"extra_name": "a"}),
    ("attribute-name-invalid", {"": "a"}),
    ("attribute-name-invalid", {"éxtra": "a"}),
    ("attribute-name-invalid", {"extra\n": "a"}),
    ("attribute-name-invalid", {"someReference": "a"}),
    ("attribute-empty", {"id": ""}),
    ("attribute-empty", {"source": ""}),
    ("attribute-empty", {"type": ""}),
    ("attribute-empty", {"subject": ""}),
    ("attribute-empty", {"dataschema": ""}),
    ("attribute-empty", {"sequence": ""}),
    ("attribute-characters-invalid", {"id": "a\u0000b"}),
    ("attribute-characters-invalid", {"subject": "a\nb"}),
    ("attribute-characters-invalid", {"subject": "a\x7f"}),
    ("attribute-characters-invalid", {"extra": "\x85"}),
    ("attribute-characters-invalid", {"extra": "\ufdd0"}),
    ("attribute-characters-invalid", {"extra": "\U0010ffff"}),
    ("source-not-uri-reference", {"source": "urn:nld:met spatie"}),
    ("source-not-uri-reference", {"source": "urn:nld:caf\u00e9"}),
    ("source-not-uri-reference", {"source": "urn:nld:%zz"}),
    ("source-not-uri-reference", {"source": "1a:b"}),
    ("source-not-uri-reference", {"source": "a#b#c"}),
    ("type-not-reverse-domain", {"type": "verhuisd"}),
    ("type-not-reverse-domain", {"type": "nl..verhuisd"}),
    ("type-not-reverse-domain", {"type": ".nl.brp"}),
    ("type-not-reverse-domain", {"type": "nl.brp."}),
    ("type-not-reverse-domain", {"type": "nl.brp.persoon verhuisd"}),
    ("type-not-reverse-domain", {"type": "nl.brp.#"}),
    ("type-not-reverse-domain", {"type": "https://brp.nl/verhuisd"}),
    ("type-not-reverse-domain", {"type": "nl." + "a" * 251}),
    ("type-version-invalid", {"type": "nl.brp.v1.verhuisd.v2"}),
    ("type-version-invalid", {"type": "nl.brp.verhuisd.v1.2"}),
    ("dataschema-not-absolute", {"dataschema": "/schemas/verhuisd"}),
    ("dataschema-not-absolute", {"dataschema": "schema.json"}),
    ("dataschema-not-absolute", {"dataschema": "https://example.nl/schema#/defs"}),
    ("datacontenttype-invalid", {"datacontenttype": "json"}),
    ("datacontenttype-invalid", {"datacontenttype": "application/json; charset"}),
    ("datacontenttype-invalid", {"datacontenttype": "application / json"}),
    ("dataref-not-uri-reference", {"dataref": "https://example.nl/a b"}),
    ("sequence-invalid", {"sequence": "one", "sequencetype": "Integer"}),
    ("sequence-invalid", {"sequence": "2147483648", "sequencetype": "Integer"}),
    ("missing-attribute", {"sequencetype": "Integer"}),
    ("data-and-data-base64", {"data": 1, "data_base64": "AAAA"}),
    ("data-base64-invalid", {"data_base64": "AAA"}),
    ("data-base64-invalid", {"data_base64": "AA AA"}),
    ("data-base64-invalid", {"data_base64": "é"}),
    ("data-base64-invalid", {"data_base64": 5}),
    ("data-base64-invalid", {"data_base64": ["AAAA"]}),
]


@pytest.mark.parametrize(("code", "changes"), BROKEN)
def test_an_event_that_breaks_a_must_is_refused_under_its_code(code: str, changes: dict[str, Any]) -> None:
    assert code_of(body(**changes)) == code


NOT_TIMES = [
    "2026-01-02", "2026-01-02T03:04:05", "2026-01-02 03:04:05Z", "2026-13-02T03:04:05Z", "2026-00-02T03:04:05Z",
    "2026-02-29T03:04:05Z", "2026-04-31T03:04:05Z", "2026-01-00T03:04:05Z", "2026-01-32T03:04:05Z",
    "2026-01-02T24:00:00Z", "2026-01-02T03:60:05Z", "2026-01-02T03:04:61Z", "2026-01-02T03:04:60Z",
    "2026-01-31T22:59:60Z", "2026-06-30T23:59:60+01:00", "26-01-02T03:04:05Z", "2026-01-02T03:04Z",
    "2026-01-02T03:04:05.Z", "2026-01-02T03:04:05+0100", "2026-01-02T03:04:05+24:00", "2026-01-02T03:04:05+01:60",
    "2026-01-02T03:04:05Z ", "٢٠٢٦-01-02T03:04:05Z", "1900-02-29T00:00:00Z", "now", "2026-W01-1T00:00:00Z",
]  # fmt: skip
TIMES = [
    "2026-01-02T03:04:05Z", "2026-01-02t03:04:05z", "2026-01-02T03:04:05.123456789+01:00", "2024-02-29T00:00:00-00:00",
    "2000-02-29T23:59:59Z", "2026-12-31T23:59:60Z", "2026-07-01T01:59:60+02:00", "2026-06-30T18:59:60-05:00",
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-01-31T00:00:00Z",
]  # fmt: skip


@pytest.mark.parametrize("time", NOT_TIMES)
def test_time_that_is_not_rfc_3339_is_refused(time: str) -> None:
    assert code_of(body(time=time)) == "time-invalid"


@pytest.mark.parametrize("time", TIMES)
def test_time_in_rfc_3339_is_accepted_as_written(time: str) -> None:
    assert from_structured(body(time=time)).time == time


ACCEPTED: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    ((), {}),
    ((), {"subject": "999990342", "time": "2021-12-10T17:31:00Z", "nlbrpnationaliteit": "0083", "sequence": "1234"}),
    ((), {"empty": "", "number": 5, "yes": True, "lowest": -(2**31), "highest": 2**31 - 1}),
    ((), {"type": "nl.brp.verhuizing.binnengemeentelijk.v2"}),
    ((), {"type": "com.github.pull_request.opened"}),
    ((), {"sequence": "-2147483648", "sequencetype": "Integer"}),
    ((), {"sequence": "0012a", "sequencetype": "integer"}),
    ((), {"dataschema": "https://example.nl/schemas/verhuisd?v=1"}),
    ((), {"dataschema": "urn:nld:schema:1"}),
    ((), {"datacontenttype": 'application/vnd.brp+json; charset="utf-8"', "data": {}}),
    ((), {"dataref": "https://example.nl/api/personen/1?x=%20"}),
    ((), {"subject": "Bergen (L) \U0001f600"}),
    ((), {"source": "urn:nld:kvknr:09220932.burgerzakensysteem"}),
    (("attribute-name-long",), {"a" * 21: "x"}),
    (("id-not-uuid",), {"id": "doc2021033441"}),
    (("source-not-urn-nld",), {"source": "https://github.com/cloudevents"}),
    (("source-not-urn-nld",), {"source": "mailto:cncf-wg-serverless@lists.cncf.io"}),
    (("source-not-urn-nld",), {"source": "/cloudevents/spec/pull/123"}),
    (("source-not-urn-nld",), {"source": "1-555-123-4567"}),
    (("source-not-urn-nld",), {"source": "//[2001:db8::7]:80/a?b#c"}),
    (("source-without-organisation",), {"source": "urn:nld:gemeente-nijmegen.burgerzakensysteem"}),
    (("source-without-organisation",), {"source": "urn:nld:gemeente-Bergen%20%28L%29.burgerzakensysteem"}),
    (("source-without-organisation",), {"source": "urn:nld:oin:123:systeem:x"}),
    (("source-without-system",), {"source": "urn:nld:oin:00000001823288444000"}),
    (("source-without-organisation", "source-without-system"), {"source": "urn:nld:gemeente-nijmegen"}),
    (("datacontenttype-not-json",), {"datacontenttype": "text/xml", "data": "<a/>"}),
    (("reserved-attribute-replaced",), {"subscription": "1", "subscriptionsequence": "7", "subscriberreference": "r"}),
]


@pytest.mark.parametrize(("warnings", "changes"), ACCEPTED)
def test_a_should_that_is_not_met_is_accepted_with_a_warning(
    warnings: tuple[str, ...], changes: dict[str, Any]
) -> None:
    event = from_structured(body(**changes))

    assert event.warnings == warnings
    assert set(warnings) <= WARNING_CODES
    assert from_structured(event.body).attributes == event.attributes


def test_every_code_is_shown_by_a_table() -> None:
    shown = {code for code, _ in NOT_EVENTS} | {code for code, _ in BROKEN} | {"time-invalid", "too-large"}
    elsewhere = {"not-an-array", "data-not-json", "event-format-unsupported"}

    assert shown | elsewhere == REJECTION_CODES
    assert {warning for warnings, _ in ACCEPTED for warning in warnings} == WARNING_CODES


def test_unset_attributes_are_left_out_and_unknown_ones_kept() -> None:
    event = from_structured(body(subject=None, geheimnummer=None, gemeente="9999"))

    assert event.attributes == GOOD | {"gemeente": "9999"}
    assert json.loads(event.body) == GOOD | {"gemeente": "9999"}
    assert (event.subject, event.time) == (None, None)


def test_names_that_bode_adds_itself_are_not_taken_from_a_publisher() -> None:
    event = from_structured(body(subscription="forged", subscriptionsequence=1, data=1))

    assert event.attributes == GOOD
    assert b"forged" not in event.body


def test_data_stays_as_it_was_written_but_for_line_breaks_between_tokens() -> None:
    written = '{"a": 1.0, "b" :1e999,\r\n "b": 10000000000000000000001, "c": "\\u00e9\\/\\n"}'

    event = from_structured(raw(f'"data": {written} , "extra": "\\u0078"'))

    assert event.body.endswith(b',"data":' + written.replace("\r\n", "  ").encode() + b"}")
    assert b'"extra":"x"' in event.body


def test_the_body_is_in_order_of_name_whatever_the_order_it_came_in() -> None:
    members = list((GOOD | {"data": "b", "aaa": "1"}).items())

    one = from_structured(json.dumps(dict(members)).encode())
    other = from_structured(json.dumps(dict(reversed(members)), indent=2).encode())

    assert one.body == other.body
    assert b"\n" not in other.body


@pytest.mark.parametrize(
    ("members", "end"),
    [
        ('"data": null', b',"data":null}'),
        ('"data_base64": null', b'"}'),
        ('"data": null, "data_base64": "AA=="', b',"data_base64":"AA=="}'),
        ('"data": 5, "data_base64": null', b',"data":5}'),
        ('"data_base64": "\\/w=="', b',"data_base64":"/w=="}'),
        ('"data": ""', b',"data":""}'),
    ],
)
def test_null_stands_for_no_data_base64_and_is_a_value_of_data(members: str, end: bytes) -> None:
    assert from_structured(raw(members)).body.endswith(end)


@pytest.mark.parametrize("brackets", ["[" * 600 + "]" * 600, '\\"[{'])
def test_brackets_in_text_do_not_count_as_depth(brackets: str) -> None:
    assert from_structured(body(data=[brackets, "x" * 2000])).body


def test_the_deepest_data_allowed_is_accepted() -> None:
    depth = MAX_DEPTH - 1

    assert from_structured(raw('"data": ' + "[" * depth + "]" * depth)).body.endswith(b"]}")


def test_size_is_bounded_and_64_kib_always_passes() -> None:
    assert len(from_structured(body(data="x" * 65_000), max_bytes=65_536).body) > 65_000
    assert code_of(body(data="x" * 300_000)) == "too-large"
    assert from_structured(body(data="x" * (DEFAULT_MAX_BYTES - 300)))
    assert code_of(body() + b" " * 1000, max_bytes=1000) == "too-large"


def test_the_canonical_body_counts_too() -> None:
    with pytest.raises(InvalidEvent) as refused:
        from_binary(GOOD, "application/octet-stream", bytes(1000), max_bytes=1200)

    assert refused.value.code == "too-large"


def test_a_batch_is_all_or_nothing_and_says_which_event_is_wrong() -> None:
    assert [event.id for event in from_batch(b" [" + body() + b"," + body(id="2") + b"] ")] == [GOOD["id"], "2"]
    assert from_batch(b"[]") == []
    for code, data in [
        ("not-an-array", body()),
        ("not-json", b"[" + body()),
        ("not-json", b"[" * 100_000),
        ("not-an-object", b"[1]"),
        ("missing-attribute", b"[" + body() + b"," + body(id=UNSET) + b"]"),
    ]:
        with pytest.raises(InvalidEvent) as refused:
            from_batch(data)
        assert refused.value.code == code
    assert "event 2" in refused.value.detail


@pytest.mark.parametrize(
    ("content_type", "data", "end"),
    [
        ("application/json", b' {"a":\n1.0} ', b',"data":{"a": 1.0}}'),
        ("application/vnd.brp+json; charset=UTF-8", b"[]", b',"data":[]}'),
        ("application/json", b"null", b',"data":null}'),
        ("application/json", b"", b'"}'),
        (None, b'{"a":1}', b',"data":{"a":1}}'),
        (None, b"hello", b',"data_base64":"aGVsbG8="}'),
        ("text/plain", "é\n".encode(), ',"data":"é\\n"}'.encode()),
        ("text/plain; charset=us-ascii", b"a", b',"data":"a"}'),
        ("text/plain; charset=iso-8859-1", b"a", b',"data_base64":"YQ=="}'),
        ("text/plain", b"\xff", b',"data_base64":"/w=="}'),
        ("application/xml; charset=utf-8", b"<a/>", b',"data":"<a/>"}'),
        ("application/xml", b"<a/>", b',"data_base64":"PGEvPg=="}'),
        ("application/octet-stream", b"\x00", b',"data_base64":"AA=="}'),
        ("application/json; charset=utf-16", "1".encode("utf-16"), b',"data_base64":"//4xAA=="}'),
    ],
)
def test_binary_mode_becomes_structured(content_type: str | None, data: bytes, end: bytes) -> None:
    event = from_binary(GOOD, content_type, data)

    assert event.body.endswith(end)
    assert event.attributes.get("datacontenttype") == content_type
    assert from_structured(event.body) == event


@pytest.mark.parametrize(
    ("code", "attributes", "content_type", "data"),
    [
        ("data-not-json", {}, "application/json", b"hello"),
        ("data-not-json", {}, "application/json", b"1 2"),
        ("not-utf8", {}, "application/json", b'"\xff"'),
        ("nested-too-deeply", {}, "application/json", b"[" * 600 + b"]" * 600 ),
        ("data-not-json", {}, "application/json", b'"\\ud800"'),
        ("attribute-name-invalid", {"data": "x"}, None, b""),
        ("attribute-name-invalid", {"data_base64": "x"}, None, b""),
        ("datacontenttype-invalid", {"datacontenttype": "text/plain"}, "application/json", b"1"),
        ("datacontenttype-invalid", {}, "json", b"1"),
        ("attribute-type-invalid", {"id": 5}, None, b""),
        ("attribute-characters-invalid", {"subject": "\ud800"}, None, b""),
        ("missing-attribute", {"type": None}, None, b""),
        ("too-large", {}, "text/plain", b"x" * 300_000),
    ],
)  # fmt: skip
def test_binary_mode_is_refused_by_the_same_rules(
    code: str, attributes: dict[str, Any], content_type: str | None, data: bytes
) -> None:
    with pytest.raises(InvalidEvent) as refused:
        from_binary(GOOD | attributes, content_type, data)

    assert refused.value.code == code


def test_what_tools_write_is_what_the_broker_would_have_made_of_it() -> None:
    for data, end in [({"a": 1}, b',"data":{"a":1}}'), (b"\x00", b',"data_base64":"AA=="}'), (None, b'"}')]:
        written = to_structured(GOOD, data)

        assert written.endswith(end)
        assert from_structured(written) == Event(GOOD, written)


def test_neither_code_nor_detail_repeats_a_value() -> None:
    for changes in ({"subject": "999990342\n"}, {"id": 999990342.5}, {"time": "999990342"}, {"source": "999990342 "}):
        with pytest.raises(InvalidEvent) as refused:
            from_structured(body(**changes))
        assert "999990342" not in str(refused.value)
