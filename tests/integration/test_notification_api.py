"""What is valid by the text of the Dutch Notification API or the CloudEvents Subscriptions API is accepted here.

The published documents are read where they lie, if they do; the cases beside them are written after their text. What
was decided where the two disagree stands in docs/decisions.
"""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml
from fixtures import api, declared_database
from managing import World, fresh_domain

from schemas.cloudevents import from_structured

FOLDER = Path(__file__).parents[2].parent / "shared" / "specs"
NOTIFICATION, SUBSCRIPTIONS = "notification-api-0.1.5.yaml", "cloudevents-subscriptions-openapi.yaml"
PROFILE = {
    "specversion": "1.0",
    "id": "2febb675-b06c-4f3a-8fc3-f6649aa25ae4",
    "type": "nl.vng.zgw.zaken.status_gewijzigd",
    "source": "urn:nld:oin:00000001234567890000:systeem:Zaaksysteem",
    "domain": "nl.vng.zgw.zaken",
}

url = declared_database()
bode = api()


def published(name: str) -> dict[str, Any]:
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"the published specification is not there: {path}")
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    return document


def members(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """The properties of a schema of the document, those of `allOf` included."""
    if "$ref" in schema:
        return members(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    found = dict(schema.get("properties", {}))
    for part in schema.get("allOf", ()):
        found |= members(part, schemas)
    return found


def example(schema: dict[str, Any], schemas: dict[str, Any]) -> Any:
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    return schema.get("example")


SINK = {"sink": "https://endpoint.example.com/webhook", "protocol": "HTTP"}
CASES: dict[str, dict[str, Any]] = {
    "only what is required": {},
    "empty lists mean everything": {"types": [], "filters": [], "config": {}},
    "settings as in the Notification API": {"protocolSettings": {"headers": {"X-Team": "a"}, "method": "POST"}},
    "settings as in CloudEvents": {"protocolsettings": {"headers": {"X-Team": "a"}, "method": "POST"}},
    "a source that is a URN": {"source": "urn:nld:oin:00000001234567890000:systeem:Zaaksysteem"},
    "a source that is a relative reference": {"source": "/zaken/systeem"},
    "a domain": {"domain": "nl.vng.zaken"},
    "any type at all": {"types": ["com.github.pull.create", "X"]},
    "config": {"config": {"interval": "5"}},
    "a reference": {"subscriberReference": "1285c6bc-1b54-48d8-96e2-c55a3f970c39"},
    "three dialects": {"filters": [{"exact": {"type": "a"}}, {"prefix": {"type": "b"}}, {"suffix": {"subject": "c"}}]},
    "several attributes in one": {"filters": [{"exact": {"type": "a", "source": "b"}}]},
    "filter attributes of a domain": {"filters": [{"exact": {"nl.vng.zgw.zaken.bronorganisatie": "224557609"}}]},
    "all, any and not within each other": {
        "filters": [{"all": [{"any": [{"exact": {"id": "1"}}, {"not": {"suffix": {"type": "x"}}}]}]}]
    },
    "sql": {"filters": [{"sql": "source LIKE '%cloudevents%'"}]},
}  # fmt: skip
READ_ONLY = {"url": "https://example.com", "id": "a2de4777-1160-4562-a996-b79d27b30c99"}


@pytest.mark.parametrize("case", CASES)
async def test_a_request_that_is_valid_by_the_text_makes_a_subscription(case: str, bode: World) -> None:
    provider = await bode.provider()
    answer = await bode.call("POST", "/subscriptions", key=provider.key, body={**SINK, **CASES[case]})
    assert answer.status == 201, answer.text
    shown = {name: value for name, value in answer.json.items() if value not in ([], {})}
    for name, value in CASES[case].items():
        assert shown.get("protocolSettings" if name == "protocolsettings" else name, value) == value
    place = f"/subscriptions/{answer.json['id']}"
    for method in ("PUT", "PATCH"):  # both take the whole resource, in the Notification API
        again = await bode.call(method, place, key=provider.key, body={**SINK, **CASES[case], **READ_ONLY})
        assert again.status == 200, (method, again.text)
        assert again.json["id"] == answer.json["id"]


@pytest.mark.parametrize(
    ("filters", "place"),
    [
        ([{"regex": {"type": "x"}}], "/filters/0/regex"),
        ([{"all": []}], "/filters/0/all"),
        ([{"any": []}], "/filters/0/any"),
        ([{}], "/filters/0"),
        ([{"exact": {}}], "/filters/0/exact"),
        ([{"exact": {"type": "x"}, "prefix": {"type": "y"}}], "/filters/0"),
        ([{"not": {"exact": {"type": ["x"]}}}], "/filters/0/not/exact/type"),
    ],
)
async def test_what_the_broken_union_of_filters_would_let_through_is_refused(
    filters: list[Any], place: str, bode: World
) -> None:
    provider = await bode.provider()
    answer = await bode.call("POST", "/subscriptions", key=provider.key, body={**SINK, "filters": filters})
    assert (answer.status, answer.json["invalidParams"][0]["name"]) == (400, place)


@pytest.mark.parametrize("name", [NOTIFICATION, SUBSCRIPTIONS])
async def test_every_example_of_a_published_subscription_is_accepted(name: str, bode: World) -> None:
    provider, schemas = await bode.provider(), published(name)["components"]["schemas"]
    examples = {
        field: given
        for field, schema in members(schemas["SubscriptionRequest"], schemas).items()
        if (given := example(schema, schemas)) is not None
    }
    assert {"sink", "protocol"} <= examples.keys()
    answer = await bode.call("POST", "/subscriptions", key=provider.key, body=examples)
    assert answer.status == 201, answer.text
    for field, given in examples.items():
        assert answer.json[field] == given


async def test_our_answers_are_what_the_published_documents_say(bode: World) -> None:
    provider, registry = await bode.provider(), await bode.registry()
    made = await bode.subscribe(provider, types=["nl.brp.x"], filters=[{"exact": {"subject": "a"}}])
    listed = (await bode.call("GET", "/subscriptions", key=provider.key)).json
    domains = (await bode.call("GET", "/domains", key=registry.key)).json
    problem = (await bode.call("POST", "/subscriptions", key=provider.key, body={})).json
    for name in (NOTIFICATION, SUBSCRIPTIONS):
        schemas = published(name)["components"]["schemas"]
        for field in ("id", "sink", "protocol", "types", "filters"):
            assert field in members(schemas["Subscription"], schemas)
            assert field in made
    schemas = published(NOTIFICATION)["components"]["schemas"]
    for kind, answered in (("Domain", domains["results"][0]), ("ValidationError", problem)):
        schema = {**schemas[kind], "components": {"schemas": schemas}}
        jsonschema_rs.Draft4Validator(_without_nullable(schema)).validate(answered)
    assert {"count", "results"} <= listed.keys()


def _without_nullable(schema: Any) -> Any:
    text = json.dumps(schema, default=str)
    return json.loads(text.replace('"nullable": true, ', "").replace(', "nullable": true', ""))


@pytest.mark.parametrize("extra", [{}, {"documentationLink": None}, {"filterAttributes": []},
    {"documentationLink": "https://www.vngrealisatie.nl/x.html", "filterAttributes": ["bronorganisatie", "a b"]},
    {"url": "https://example.com", "uuid": "7a22eb38-bca6-463f-9955-54ab040287cb"},
])  # fmt: skip
async def test_a_domain_that_is_valid_by_the_text_is_registered_and_found_by_its_name(
    extra: dict[str, Any], bode: World
) -> None:
    registry, name = await bode.registry(), fresh_domain()
    made = await bode.call("POST", "/domains", key=registry.key, body={"name": name, **extra})
    assert made.status == 201, made.text
    found = (await bode.call("GET", f"/domains?name={name}", key=registry.key)).json
    assert [domain["uuid"] for domain in found["results"]] == [made.json["uuid"]]


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"time": "2022-03-16T15:29:30.833664Z", "datacontenttype": "application/json", "data": {"a": [1, True]}},
        {"time": None, "subject": None, "dataschema": None, "dataref": None, "data_base64": None, "sequence": None},
        {"sequence": "42", "sequencetype": "Integer"},
        {"dataref": "https://zaken.example.nl/1"},
        {"subscription": "a2de4777-1160-4562-a996-b79d27b30c99", "subscriberReference": "1285c6bc"},
        {"subscription": None, "subscriberReference": None},
        {"data": "text"}, {"data": 1.5}, {"data": []}, {"data": True}, {"data": None}, {"myextension": "x"},
    ],
)  # fmt: skip
def test_an_event_that_is_valid_by_the_text_is_accepted_and_what_is_chained_is_not_passed_on(
    extra: dict[str, Any],
) -> None:
    event = from_structured(json.dumps({**PROFILE, **extra}).encode())
    body = json.loads(event.body)
    assert body["domain"] == PROFILE["domain"]
    assert not {"subscription", "subscriberReference"} & body.keys()
    kept = {name: value for name, value in extra.items() if name not in ("subscription", "subscriberReference")}
    assert {name: body.get(name) for name in kept} == kept


async def test_both_apis_discover_methods_by_options(bode: World) -> None:
    made = await bode.subscribe(await bode.provider())
    for place, methods in (
        ("/subscriptions", {"GET", "HEAD", "POST", "OPTIONS"}),
        (f"/subscriptions/{made['id']}", {"GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"}),
    ):
        answer = await bode.call("OPTIONS", place)
        assert answer.status == 200
        assert set(answer.headers["allow"].split(", ")) == methods
