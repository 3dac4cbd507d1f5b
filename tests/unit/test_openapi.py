"""The OpenAPI document keeps the rules, whichever routes there are: this walks all of it."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any
from unittest.mock import Mock

import jsonschema_rs
import pytest
from fastapi.routing import iter_route_contexts

from broker.api.app import create_app
from broker.api.context import BrokerContext
from subscriptions.callers import ApiSettings
from subscriptions.context import Context
from subscriptions.http import Route
from tests.authorisation import MATRIX

METHODS = ("get", "put", "post", "patch", "delete")
CAMEL = re.compile(r"[a-z][a-z0-9]*([A-Z][a-z0-9]*)*")
SEGMENT = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*|\{[a-z][A-Za-z]*\}")
PROBLEM = "application/problem+json"
ONLY_FORWARD = {"PUT /subscriptions/{id}/cursor"}  # two acknowledgements don't overwrite each other: the further counts
DYNAMIC = {"SubscriptionPatch", "SubscriptionReplacement", "DomainBody"}  # take back what was read, whatever it is


@cache
def document() -> dict[str, Any]:
    context = Mock(spec=Context, settings=ApiSettings())
    return create_app(context, Mock(spec=BrokerContext), []).openapi()


OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, item in document()["paths"].items()
    for method, operation in item.items()
    if method in METHODS
}
SCHEMAS: dict[str, Any] = document()["components"]["schemas"]
each_operation = pytest.mark.parametrize("name", OPERATIONS)
each_schema = pytest.mark.parametrize("name", SCHEMAS)


def test_the_document_says_who_to_ask_and_which_version_it_is() -> None:
    info = document()["info"]
    assert {"name", "email", "url"} <= info["contact"].keys()
    assert re.fullmatch(r"\d+\.\d+\.\d+", info["version"])
    assert info["description"]
    assert info["license"]
    assert document()["openapi"].startswith("3.1")


def test_each_operation_has_an_id_of_its_own() -> None:
    ids = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(ids)) == len(ids)
    assert all(CAMEL.fullmatch(each) for each in ids)


@each_operation
def test_an_operation_has_summary_description_tag_and_declared_problems(name: str) -> None:
    operation = OPERATIONS[name]
    assert operation["summary"]
    assert operation["description"]
    assert len(operation["tags"]) == 1
    responses = operation["responses"]
    wanted = {"400", "406", "429", "500", "503"}
    wanted |= {"404"} if "{" in name else set()
    wanted |= {"401", "403"} if operation.get("security") else set()
    wanted |= {"413", "415"} if "requestBody" in operation else set()
    assert wanted <= responses.keys()
    assert "422" not in responses
    assert [status for status in responses if status < "400"], "it says what success is"
    for status, response in responses.items():
        assert response["description"]
        assert {"API-Version", "X-Request-Id"} <= response["headers"].keys()
        if status >= "400":
            [(media_type, content)] = response["content"].items()
            assert media_type == PROBLEM
            assert content["example"]["status"] == int(status)


@each_operation
def test_bodies_and_answers_have_an_example_that_is_valid(name: str) -> None:
    operation = OPERATIONS[name]
    for place in (operation.get("requestBody", {}), *operation["responses"].values()):
        for media_type, content in place.get("content", {}).items():
            examples = [content["example"]] if "example" in content else [
                each["value"] for each in content.get("examples", {}).values()
            ]  # fmt: skip
            assert examples, f"{media_type} has no example: give the fields of its model examples"
            schema = {**content["schema"], "components": document()["components"]}
            for example in examples:
                jsonschema_rs.validator_for(schema, validate_formats=True).validate(example)


@each_operation
def test_parameters_are_named_by_the_rules_and_described(name: str) -> None:
    for segment in name.partition("/")[2].split("/"):
        assert SEGMENT.fullmatch(segment), segment
    for parameter in OPERATIONS[name].get("parameters", []):
        assert parameter.get("description") or parameter["in"] == "path", parameter["name"]
        if parameter["in"] == "query":
            assert CAMEL.fullmatch(parameter["name"])


@each_operation
def test_what_is_made_has_a_place_and_can_be_asked_for_again_without_making_it_twice(name: str) -> None:
    operation = OPERATIONS[name]
    headers = {each["name"] for each in operation.get("parameters", []) if each["in"] == "header"}
    if "201" in operation["responses"]:
        assert "Location" in operation["responses"]["201"]["headers"]
        assert "Idempotency-Key" in headers
    if "Idempotency-Key" in headers:
        assert name.startswith("POST ")
        assert "409" in operation["responses"]


@each_operation
def test_what_can_be_changed_is_read_with_an_etag_and_changed_with_if_match(name: str) -> None:
    method, path = name.split()
    if method in ("PUT", "PATCH") and name not in ONLY_FORWARD:
        headers = {each["name"] for each in OPERATIONS[name].get("parameters", []) if each["in"] == "header"}
        assert "If-Match" in headers
        assert "412" in OPERATIONS[name]["responses"]
        assert "ETag" in OPERATIONS[name]["responses"]["200"]["headers"]
        if (read := OPERATIONS.get(f"GET {path}")) is not None:
            assert "ETag" in read["responses"]["200"]["headers"]


@each_operation
def test_a_list_has_the_parameters_and_members_of_a_page(name: str) -> None:
    operation = OPERATIONS[name]
    content = operation["responses"].get("200", {}).get("content", {}).get("application/json", {})
    reference = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
    if reference.endswith("Page"):
        assert {"limit", "cursor"} <= {each["name"] for each in operation["parameters"]}
        assert {"next", "previous", "results"} <= set(SCHEMAS[reference]["properties"])


@each_schema
def test_every_schema_and_every_field_is_described(name: str) -> None:
    schema = SCHEMAS[name]
    assert re.fullmatch(r"[A-Z][A-Za-z0-9]*", name), "named in UpperCamelCase"
    assert schema.get("description") or schema.get("title"), "its docstring says what it is"
    for field, part in schema.get("properties", {}).items():
        kind = SCHEMAS.get(part.get("$ref", "").rpartition("/")[2], {})
        assert part.get("description") or kind.get("description"), f"{name}.{field}"
        assert CAMEL.fullmatch(field), f"{name}.{field}"


@each_schema
def test_every_text_says_by_an_example_what_it_looks_like(name: str) -> None:
    if "examples" in SCHEMAS[name] or name in DYNAMIC:
        return
    for field, part in SCHEMAS[name].get("properties", {}).items():
        if "examples" in part or any(_has_example(each) for each in _alternatives(part)):
            continue
        assert not any(each.get("type") == "string" for each in _alternatives(part)), f"{name}.{field} has no example"


def _alternatives(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for part in (schema, *schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield part
        if part.get("type") == "array":
            yield from _alternatives(part.get("items", {}))


def _has_example(schema: dict[str, Any]) -> bool:
    return not schema.keys().isdisjoint(("examples", "enum", "const", "format"))


def test_moments_are_date_times_and_named_at_or_from_or_until() -> None:
    for name, schema in SCHEMAS.items():
        for field, part in schema.get("properties", {}).items():
            formats = {each.get("format") for each in _alternatives(part)}
            if re.search(r"(At|From|Until|Since)$", field) and formats <= {None}:
                assert not any(each.get("type") == "string" for each in _alternatives(part)), f"{name}.{field}"
            assert not {"time", "date-time-local"} & formats


def test_a_route_that_says_nothing_of_itself_is_not_accepted() -> None:
    async def silent() -> None: ...

    with pytest.raises(TypeError, match="operation"):
        Route("/silent", silent)


def test_every_operation_says_in_the_matrix_who_may_do_it() -> None:
    """Who adds an operation adds a row to tests/authorisation.py; tests/e2e/test_authorisation.py calls it."""
    assert {operation["operationId"] for operation in OPERATIONS.values()} == MATRIX.keys()


RESOURCES = {
    "events", "domains", "event-types", "subscriptions", "subscription-previews", "subscription-requests",
    "follow-lists", "grants", "organisations", "holds", "dead-letters", "rejections", "traces",
    "disclosures", "handshakes",
}  # fmt: skip
BESIDE_THE_DOCUMENT = {"/v1/openapi.json", "/v1/asyncapi.json"}  # documents themselves


def test_everything_that_is_served_is_in_the_document_under_the_name_of_a_resource() -> None:
    context = Mock(spec=Context, settings=ApiSettings())
    served = set(_served(create_app(context, Mock(spec=BrokerContext), []).router.routes))
    assert len(served) > 30
    declared = {(method, f"/v1{path}") for method, _, path in (name.partition(" ") for name in OPERATIONS)}
    assert {(method, path) for method, path in served if path not in BESIDE_THE_DOCUMENT} == declared
    assert {path.split("/")[2] for _, path in declared} <= RESOURCES


def _served(routes: Any) -> Iterator[tuple[str, str]]:
    """Methods and paths of all routes, those of included routers under their prefixes."""
    for route in iter_route_contexts(routes):
        for method in (route.methods or ()) - {"HEAD"}:
            yield method, re.sub(r":[a-z]+\}", "}", route.path)
