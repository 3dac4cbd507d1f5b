"""What holds for every event and for every hostile input, found by Hypothesis."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.cloudevents import REJECTION_CODES, Event, InvalidEvent, from_binary, from_structured
from schemas.cloudevents_bindings import amqp_attributes, http_attributes

characters = st.characters(exclude_categories=["Cc", "Cs"]).filter(
    lambda c: not (0xFDD0 <= ord(c) <= 0xFDEF or ord(c) & 0xFFFE == 0xFFFE)
)
texts = st.text(characters, min_size=1, max_size=30)
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=25).filter(lambda n: n != "data")
values = texts | st.integers(-(2**31), 2**31 - 1) | st.booleans()
any_text = st.text(st.characters(exclude_categories=["Cs"]))
documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=12,
)
KNOWN = {
    "specversion", "id", "source", "type", "subject", "time", "dataschema", "datacontenttype", "dataref",
    "sequence", "sequencetype", "subscription", "subscriptionsequence", "subscriberreference",
}  # fmt: skip


def assert_event_or_refusal(read: Callable[[], Event]) -> None:
    """Either a known code, or an event that reads the same again."""
    code, event = None, None
    try:
        event = read()
    except InvalidEvent as invalid:
        code = invalid.code
    if event is None:
        assert code in REJECTION_CODES
    else:
        again = from_structured(event.body)
        assert (again.attributes, again.body) == (event.attributes, event.body)


@st.composite
def events(draw: st.DrawFn, extension: st.SearchStrategy[Any] = values) -> dict[str, Any]:
    extensions = draw(st.dictionaries(names.filter(lambda n: n not in KNOWN), extension, max_size=5))
    required = {
        "specversion": "1.0",
        "id": draw(texts),
        "source": "/a",
        "type": draw(st.sampled_from(["nl.a", "nl.b.c"])),
    }
    return required | extensions | draw(st.just({}) | st.fixed_dictionaries({"subject": texts}))


@given(events(), st.none() | st.just("data"), documents, st.booleans(), st.sampled_from([None, 0, 2]))
def test_reading_what_was_read_changes_nothing(
    attributes: dict[str, Any], data: str | None, document: Any, ascii_only: bool, indent: int | None
) -> None:
    members = attributes | ({data: document} if data else {})

    once = from_structured(json.dumps(members, ensure_ascii=ascii_only, indent=indent).encode())
    twice = from_structured(once.body)

    assert twice == once
    assert once.attributes == attributes
    assert json.loads(once.body) == members
    assert b"\n" not in once.body
    assert once.body.endswith(b"}")


@given(events(), documents)
def test_amqp_binary_and_structured_forms_of_one_event_are_one(attributes: dict[str, Any], document: Any) -> None:
    attributes |= {"datacontenttype": "application/json"}
    data = json.dumps(document).encode()

    structured = from_structured(json.dumps(attributes | {"data": document}).encode())
    headers = {f"cloudEvents:{name}": value for name, value in attributes.items() if name != "datacontenttype"}

    assert from_binary(amqp_attributes(headers, "application/json"), "application/json", data) == structured


@given(events(extension=texts), documents)
def test_http_binary_and_structured_forms_of_one_event_are_one(attributes: dict[str, Any], document: Any) -> None:
    attributes |= {"datacontenttype": "application/json"}
    data = json.dumps(document).encode()

    structured = from_structured(json.dumps(attributes | {"data": document}).encode())
    headers = [(f"ce-{name}", quote(value)) for name, value in attributes.items() if name != "datacontenttype"]

    assert from_binary(http_attributes([*headers, ("content-type", "application/json")]), None, data) == structured


@given(
    st.dictionaries(
        st.sampled_from([*sorted(KNOWN), "data", "data_base64", "X", "extra"]) | st.text(max_size=3),
        st.none()
        | st.text(max_size=6)
        | st.integers()
        | st.floats()
        | st.lists(st.none(), max_size=2)
        | st.just("1.0")
        | st.just("nl.a"),
    ).map(json.dumps)
    | st.text(max_size=60)
    | st.binary(max_size=60)
)
@settings(max_examples=300)
@example(b'{"specversion":"1.0"}' * 2)
@example('{"data_base64": 1e999, "specversion": "1.0", "id": "1", "source": "a", "type": "nl.a"}')
def test_hostile_input_is_an_event_or_refused_under_a_known_code(hostile: str | bytes) -> None:
    body = hostile if isinstance(hostile, bytes) else hostile.encode("utf-8", "surrogatepass")
    assert_event_or_refusal(lambda: from_structured(body))


@given(
    st.dictionaries(
        st.text(max_size=5) | st.sampled_from(sorted(KNOWN)), st.none() | st.text() | st.integers() | st.booleans()
    ),
    st.none() | st.text(max_size=20),
    st.binary(),
)
def test_hostile_binary_input_is_an_event_or_refused_under_a_known_code(
    attributes: dict[str, str | int | bool | None], content_type: str | None, data: bytes
) -> None:
    given_attributes = {"specversion": "1.0", "id": "1", "source": "/a", "type": "nl.a"} | attributes
    assert_event_or_refusal(lambda: from_binary(given_attributes, content_type, data))


@given(events(), st.data())
def test_a_member_that_is_there_twice_is_always_found(attributes: dict[str, Any], data: st.DataObject) -> None:
    members = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in attributes.items()]
    twin = data.draw(st.sampled_from(members))
    members.insert(data.draw(st.integers(0, len(members))), twin)
    separator = data.draw(st.sampled_from([",", ", ", " ,\n"]))
    try:
        from_structured(("{" + separator.join(members) + "}").encode())
    except InvalidEvent as invalid:
        code = invalid.code
    assert code == "duplicate-member"
