import json
import time
from typing import Any

import pytest

from schemas.data_schemas import MAX_WEIGHT, NO_DATA, DataSchema, Finding, InvalidSchema, check

ADDRESS = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["datumAanvang"],
    "properties": {
        "datumAanvang": {"type": "string", "format": "date"},
        "adres": {"$ref": "#/$defs/adres"},
        "bewoners": {"type": "object", "additionalProperties": {"type": "object", "required": ["sinds"]}},
        "nummers": {"type": "array", "items": {"type": "integer"}},
    },
    "unevaluatedProperties": False,
    "$defs": {
        "adres": {"type": "object", "properties": {"postcode": {"type": "string", "pattern": "^[0-9]{4}[A-Z]{2}$"}}},
    },
}  # fmt: skip


def body(data: Any) -> bytes:
    return b'{"id":"1","type":"nl.x.y","data":' + json.dumps(data).encode() + b"}"


def doubling(levels: int, keyword: str = "allOf") -> dict[str, Any]:
    """A schema of some lines that is two to the power of `levels` when its references are written out."""
    steps = {f"n{level}": {keyword: [{"$ref": f"#/$defs/n{level - 1}"}] * 2} for level in range(1, levels + 1)}
    return {"$defs": {"n0": {"type": "object"}, **steps}, "$ref": f"#/$defs/n{levels}"}


@pytest.mark.parametrize(
    "schema",
    [True, False, {}, ADDRESS, {"$id": "https://example.nl/schema"}, doubling(6), {"const": {"$ref": "x"}}],
)  # fmt: skip
def test_a_schema_that_is_taken(schema: Any) -> None:
    check(schema)


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ([], ""),
        ("string", ""),
        ({"type": "nothing"}, "/type"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "/$schema"),
        ({"$schema": "https://evil.example/meta"}, "/$schema"),
        ({"$ref": "https://evil.example/schema"}, "/$ref"),
        ({"$ref": "file:///etc/passwd"}, "/$ref"),
        ({"properties": {"a": {"$ref": "other.json"}}}, "/properties/a/$ref"),
        ({"$ref": "#anchor", "$defs": {"a": {}}}, "/$ref"),
        ({"$ref": "#/$defs/absent"}, "/$ref"),
        ({"$ref": "#/$defs/a/0x", "$defs": {"a": []}}, "/$ref"),
        ({"$dynamicRef": "#a"}, "/$dynamicRef"),
        ({"properties": {"a": {"$id": "https://evil.example/"}}}, "/properties/a/$id"),
        ({"$ref": "#"}, ""),
        ({"properties": {"child": {"$ref": "#"}}}, ""),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"not": {"$ref": "#/$defs/a"}}}},
         "/$defs/a"),
        (doubling(40), "/$defs/n"),
        (doubling(40, "anyOf"), "/$defs/n"),
        ({"anyOf": [{"const": number} for number in range(MAX_WEIGHT + 1)]}, ""),
        ({"pattern": "(?=look)ahead"}, "/pattern"),
        ({"pattern": "(a)\\1"}, "/pattern"),
        ({"pattern": "a{10000}{10000}"}, "/pattern"),
        ({"patternProperties": {"(": {}}}, "/patternProperties/("),
        ({"description": "x" * 70_000}, ""),
        ({"properties": {"a": 1}}, "/properties/a"),
    ],
)  # fmt: skip
def test_a_schema_that_is_refused_with_its_place(schema: Any, pointer: str) -> None:
    with pytest.raises(InvalidSchema) as refused:
        check(schema)
    assert refused.value.pointer.startswith(pointer)


def test_a_schema_nested_too_deeply_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(40):
        schema = {"items": schema}
    with pytest.raises(InvalidSchema):
        check(schema)


@pytest.mark.parametrize(
    ("data", "finding"),
    [
        ({"datumAanvang": "2026-11-24"}, None),
        ({"datumAanvang": "2026-11-24", "adres": {"postcode": "9999AB"}}, None),
        ({}, Finding("", "required")),
        ([], Finding("", "type")),
        (None, Finding("", "type")),
        ({"datumAanvang": "gisteren"}, Finding("/datumAanvang", "format")),
        ({"datumAanvang": "2026-11-24", "adres": {"postcode": "999990342"}}, Finding("/adres/postcode", "pattern")),
        ({"datumAanvang": "2026-11-24", "nummers": [1, "2"]}, Finding("/nummers/1", "type")),
        ({"datumAanvang": "2026-11-24", "999990342": 1}, Finding("", "unevaluatedProperties")),
        ({"datumAanvang": "2026-11-24", "bewoners": {"999990342": {}}}, Finding("/bewoners/*", "required")),
        ({"datumAanvang": "2026-11-24", "bewoners": {"sinds": 1}}, Finding("/bewoners/sinds", "type")),
    ],
)
def test_a_finding_names_place_and_keyword_and_never_what_was_given(data: Any, finding: Finding | None) -> None:
    assert DataSchema(ADDRESS).find(body(data)) == finding


@pytest.mark.parametrize("tail", [b"}", b',"data_base64":"AAAA"}', b',"data":"\\ud800"}'])
def test_an_event_without_json_data_does_not_meet_a_schema(tail: bytes) -> None:
    assert DataSchema({}).find(b'{"id":"1","type":"nl.x.y"' + tail) == NO_DATA


def test_a_pattern_that_backtracks_elsewhere_is_linear_here() -> None:
    schema = DataSchema({"type": "string", "pattern": "^(a+)+$"})
    check({"type": "string", "pattern": "^(a+)+$"})
    started = time.process_time()
    assert schema.find(body("a" * 50_000 + "b")) == Finding("", "pattern")
    assert time.process_time() - started < 20  # an engine that backtracks would not end before the universe does
