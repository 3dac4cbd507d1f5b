"""The dialects: what matches, what doesn't, and what is refused with the place of the error."""

from typing import Any

import pytest

from schemas.cloudevents import Event
from schemas.filters import DATA, FOLLOWS, FilterError, FollowListsMissing, evaluate, limits, parse, warnings

TYPE = "nl.brp.persoon-verhuisd"


def event(body: bytes = b"{}", **attributes: str | int | bool) -> Event:
    return Event({"specversion": "1.0", "id": "1", "source": "urn:nld:x", "type": TYPE, **attributes}, body)


def data(json: str) -> Event:
    return event(b'{"id":"1","data":%s}' % json.encode())


MATCHING: list[tuple[str, list[Any], Event]] = [
    ("no filter", [], event()),
    ("exact", [{"exact": {"type": TYPE}}], event()),
    ("attribute names in any case", [{"exact": {"Type": TYPE}}], event()),
    ("several attributes mean all", [{"exact": {"type": TYPE, "id": "1"}}], event()),
    ("an integer by its decimal", [{"exact": {"hop": "-7"}}], event(hop=-7)),
    ("a boolean by its word", [{"exact": {"flag": "true"}}], event(flag=True)),
    ("prefix of an integer", [{"prefix": {"hop": "12"}}], event(hop=123)),
    ("an empty operand: present and empty", [{"exact": {"x": ""}}], event(x="")),
    ("an empty prefix: present and empty", [{"prefix": {"x": ""}}], event(x="")),
    ("suffix", [{"suffix": {"type": "verhuisd"}}], event()),
    ("not exact on an absent attribute", [{"not": {"exact": {"x": "v"}}}], event()),
    ("not not", [{"not": {"not": {"exact": {"id": "1"}}}}], event()),
    ("any", [{"any": [{"exact": {"id": "2"}}, {"prefix": {"id": "1"}}]}], event()),
    ("all", [{"all": [{"exact": {"id": "1"}}, {"prefix": {"id": "1"}}]}], event()),
    ("sql", [{"sql": "type LIKE 'nl.brp.%' AND id = 1"}], event()),
    ("sql on an int attribute", [{"sql": "hop + 1 = 8"}], event(hop=7)),
    ("not around an sql that errs", [{"not": {"sql": "x = 'v'"}}], event()),
    ("data equality", [{DATA: {"/a/b": "x"}}], data('{"a":{"b":"x"}}')),
    ("data: 1 is 1.0", [{DATA: {"/a": 1}}], data('{"a":1.0}')),
    ("data null", [{DATA: {"/a": None}}], data('{"a":null}')),
    ("data in an array", [{DATA: {"/a/1": 5}}], data('{"a":[4,5]}')),
    ("data: number as member name", [{DATA: {"/0": 5}}], data('{"0":5}')),
    ("data pointer escapes", [{DATA: {"/a~1b~0c": 5}}], data('{"a/b~c":5}')),
    ("data itself", [{DATA: {"": "text"}}], data('"text"')),
    ("data in", [{DATA: {"/a": {"in": [1, "b"]}}}], data('{"a":"b"}')),
    ("data prefix", [{DATA: {"/postcode": {"prefix": "12"}}}], data('{"postcode":"1234AB"}')),
    ("data range", [{DATA: {"/a": {"ge": 1, "lt": 2}}}], data('{"a":1.5}')),
    ("a date by calendar", [{DATA: {"/d": {"ge": "2025-01-01"}}}], data('{"d":"2025-01-01T00:30:00+01:00"}')),
    (
        "instants over offsets",
        [{DATA: {"/d": {"le": "2025-01-01T00:30:00+01:00"}}}],
        data('{"d":"2024-12-31T23:30:00Z"}'),
    ),
    ("data exists, though null", [{DATA: {"/a": {"exists": True}}}], data('{"a":null}')),
    ("data doesn't exist", [{DATA: {"/a": {"exists": False}}}], event()),
    ("an enormous number", [{DATA: {"/a": {"gt": 1}}}], data('{"a":1e999}')),
]
OTHER: list[tuple[str, list[Any], Event]] = [
    ("another value", [{"exact": {"type": TYPE.upper()}}], event()),
    ("an absent attribute", [{"exact": {"x": ""}}], event()),
    ("one of several attributes differs", [{"exact": {"type": TYPE, "id": "2"}}], event()),
    ("an empty prefix on a value", [{"prefix": {"x": ""}}], event(x="v")),
    ("an empty suffix on an absent attribute", [{"suffix": {"x": ""}}], event()),
    ("a boolean is no number", [{"exact": {"flag": "1"}}], event(flag=True)),
    ("the array is an and", [{"exact": {"id": "1"}}, {"exact": {"id": "2"}}], event()),
    ("sql NOT on an absent attribute errs", [{"sql": "NOT (x = 'v')"}], event()),
    ("sql that isn't boolean", [{"sql": "id"}], event()),
    ("sql divides by zero", [{"sql": "1 / 0 = 0 OR TRUE"}], event()),
    ("data: true is not 1", [{DATA: {"/a": 1}}], data('{"a":true}')),
    ("data: false is not 0", [{DATA: {"/a": False}}], data('{"a":0}')),
    ("data: a string is no number", [{DATA: {"/a": {"ge": 1}}}], data('{"a":"5"}')),
    ("data: true isn't compared", [{DATA: {"/a": {"ge": 0}}}], data('{"a":true}')),
    ("data: null is not absent", [{DATA: {"/a": None}}], data("{}")),
    ("data: index with a leading zero", [{DATA: {"/a/01": 5}}], data('{"a":[4,5]}')),
    ("data: past the end", [{DATA: {"/a/2": 5}}], data('{"a":[4,5]}')),
    ("data: a step into a string", [{DATA: {"/a/b": "x"}}], data('{"a":"b"}')),
    ("data: an object is no scalar", [{DATA: {"/a": {"in": [None, ""]}}}], data('{"a":{}}')),
    ("no such date", [{DATA: {"/d": {"ge": "2025-01-01"}}}], data('{"d":"2025-02-30"}')),
    ("a date is no instant", [{DATA: {"/d": {"ge": "2025-01-01T00:00:00Z"}}}], data('{"d":"2025-02-03"}')),
    ("data_base64 is no data", [{DATA: {"": {"exists": True}}}], event(b'{"data_base64":"AA=="}')),
]
REFUSED: list[tuple[str, Any, str]] = [
    ("not an array", {"exact": {"id": "1"}}, "/filters"),
    ("not an object", ["exact"], "/filters/0"),
    ("no dialect", [{}], "/filters/0"),
    ("two dialects", [{"exact": {"id": "1"}, "prefix": {"id": "1"}}], "/filters/0"),
    ("unknown dialect", [{"regex": {"id": "1"}}], "/filters/0/regex"),
    ("dialects in another case", [{"EXACT": {"id": "1"}}], "/filters/0/EXACT"),
    ("empty exact", [{"exact": {}}], "/filters/0/exact"),
    ("empty all", [{"all": []}], "/filters/0/all"),
    ("empty any", [{"any": []}], "/filters/0/any"),
    ("empty not", [{"not": {}}], "/filters/0/not"),
    ("not with an array", [{"not": [{"exact": {"id": "1"}}]}], "/filters/0/not"),
    ("a number", [{"exact": {"id": 1}}], "/filters/0/exact/id"),
    ("null", [{"exact": {"id": None}}], "/filters/0/exact/id"),
    ("empty name", [{"exact": {"": "x"}}], "/filters/0/exact/"),
    ("a name with a space", [{"exact": {"a b": "x"}}], "/filters/0/exact/a b"),
    ("data as an attribute", [{"exact": {"data": "x"}}], "/filters/0/exact/data"),
    ("deep inside", [{"all": [{"not": {"any": [{"exact": {"a/b": "x"}}]}}]}], "/filters/0/all/0/not/any/0/exact/a~1b"),
    ("sql that doesn't parse", [{"sql": "id = "}], "/filters/0/sql"),
    ("sql that isn't text", [{"sql": True}], "/filters/0/sql"),
    ("sql with an unknown function", [{"sql": "REGEX(id) = 'x'"}], "/filters/0/sql"),
    ("data pointer without slash", [{DATA: {"a": 1}}], "/filters/0/urn:bode:filter:data/a"),
    ("data pointer with a bad escape", [{DATA: {"/a~2": 1}}], "/filters/0/urn:bode:filter:data/~1a~02"),
    ("data equal to an array", [{DATA: {"/a": [1]}}], "/filters/0/urn:bode:filter:data/~1a"),
    ("data compared with a word", [{DATA: {"/a": {"lt": "x"}}}], "/filters/0/urn:bode:filter:data/~1a/lt"),
    ("data with an unknown operator", [{DATA: {"/a": {"like": "x"}}}], "/filters/0/urn:bode:filter:data/~1a/like"),
    ("data in nothing", [{DATA: {"/a": {"in": []}}}], "/filters/0/urn:bode:filter:data/~1a/in"),
    ("a follow list under not", [{"not": {FOLLOWS: {"subject": "l"}}}], "/filters/0/not/urn:bode:filter:follows"),
    ("a lone surrogate", [{"exact": {"id": "\ud800"}}], "/filters/0/exact/id"),
    ("a pointer with a lone surrogate", [{DATA: {"/\ud800": 1}}], "/filters/0/urn:bode:filter:data"),
    ("too many operands", [{"any": [{"exact": {"id": "1"}}] * 1025}], "/filters/0/any"),
    ("too long a value", [{"exact": {"id": "x" * 4097}}], "/filters/0/exact/id"),
]


@pytest.mark.parametrize(("filters", "given"), [case[1:] for case in MATCHING], ids=[case[0] for case in MATCHING])
def test_matches(filters: list[Any], given: Event) -> None:
    assert evaluate(parse(filters), given)
    assert not evaluate(parse([{"not": {"all": filters}}] if filters else [{"not": {"sql": "TRUE"}}]), given)


@pytest.mark.parametrize(("filters", "given"), [case[1:] for case in OTHER], ids=[case[0] for case in OTHER])
def test_does_not_match(filters: list[Any], given: Event) -> None:
    assert not evaluate(parse(filters), given)


@pytest.mark.parametrize(("filters", "pointer"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_is_refused_with_its_place(filters: Any, pointer: str) -> None:
    with pytest.raises(FilterError) as refused:
        parse(filters)
    assert refused.value.pointer == pointer


def nested(levels: int) -> dict[str, Any]:
    return {"not": nested(levels - 1)} if levels > 1 else {"exact": {"id": "1"}}


def test_depth_is_bounded() -> None:
    parse([nested(limits.MAX_DEPTH)])
    with pytest.raises(FilterError, match="nested at most"):
        parse([nested(limits.MAX_DEPTH + 1)])


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ([{"any": [{"exact": {f"a{i}": "1" for i in range(1000)}}] * 5}], "parts"),
        ([{"any": [{"exact": {"id": "x" * 4000}}] * 20}], "characters"),
        ([{"sql": " OR ".join([f"x = '{i}'"] * 150)} for i in range(7)], "operators and operands"),
        ([{"sql": f"x LIKE '%{i}_%'"} for i in range(17)], "LIKE patterns with a _ between two %"),
    ],
)
def test_size_is_bounded(filters: list[Any], said: str) -> None:
    with pytest.raises(FilterError, match=f"together have more than .* {said}"):
        parse(filters)


def test_equal_subscriptions_give_the_same_object() -> None:
    first = parse([{"exact": {"ID": "1", "x": "2"}}, {"sql": "id = 'a'"}])
    second = parse([{"all": [{"exact": {"id": "1"}}, {"exact": {"x": "2"}}]}, {"sql": "id  =  'a'"}])
    assert first is second
    assert parse([{DATA: {"/a": True}}]) is not parse([{DATA: {"/a": 1}}])


def test_source_types_and_domain_narrow_the_filters() -> None:
    def matches(**members: Any) -> bool:
        return evaluate(parse(None, **members), event())

    assert matches(types=[TYPE, "nl.x"])
    assert matches(types=[])
    assert matches(source="urn:nld:x")
    assert matches(domain="nl.brp")
    assert matches(domain=TYPE)
    assert not matches(types=["nl.brp"])
    assert not matches(domain="nl.br")
    assert not matches(domain="nl.brp", source="urn:nld:y")


@pytest.mark.parametrize(
    ("members", "pointer"),
    [
        ({"types": "nl.x"}, "/types"),
        ({"types": ["nl.x", ""]}, "/types/1"),
        ({"source": ""}, "/source"),
        ({"domain": "."}, "/domain"),
        ({"domain": 1}, "/domain"),
    ],
)
def test_bad_members_are_refused_with_their_place(members: dict[str, Any], pointer: str) -> None:
    with pytest.raises(FilterError) as refused:
        parse(None, **members)
    assert refused.value.pointer == pointer


def test_a_follow_list_that_cannot_be_consulted_is_an_error_not_a_no() -> None:
    condition = parse([{FOLLOWS: {"subject": "list-1"}}])
    assert evaluate(condition, event(subject="9"), lambda name, subject: (name, subject) == ("list-1", "9"))
    assert not evaluate(condition, event(subject="8"), lambda name, subject: (name, subject) == ("list-1", "9"))
    with pytest.raises(FollowListsMissing):
        evaluate(condition, event(subject="9"))


@pytest.mark.parametrize(
    ("expression", "codes"),
    [
        ("a = 'x' AND b = 'y' OR c = 'z'", ("mixed-logic-without-parentheses",)),
        ("(a = 'x' AND b = 'y') OR c = 'z'", ()),
        ("NOT a = 'x'", ("not-binds-tightly",)),
        ("NOT a LIKE 'x'", ("not-binds-tightly",)),
        ("(NOT a) = true", ()),
        ("NOT (a = 'x')", ()),
        ("1 + 1", ("never-boolean",)),
    ],
)
def test_what_may_not_mean_what_it_looks_like_is_warned_about(expression: str, codes: tuple[str, ...]) -> None:
    assert warnings(parse([{"any": [{"not": {"sql": expression}}, {"exact": {"id": "1"}}]}])) == codes
