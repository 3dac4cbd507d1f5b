from collections.abc import Iterator
from typing import Any

import pytest
from fixtures import api, declared_database
from managing import Party, World, fresh_domain, subscription

from subscriptions.callers import Scope
from subscriptions.directory import load

SCHEMA = {"type": "object", "required": ["gemeente"], "properties": {"gemeente": {"type": "string"}}}

url = declared_database()
bode = api()


async def describe(bode: World, registry: Party, type_: str, **members: Any) -> Any:
    body = {"type": type_, "meaning": "Something has happened."} | members
    answer = await bode.call("POST", "/event-types", key=registry.key, body=body)
    assert answer.status == 201, answer.text
    return answer.json


async def test_a_registry_describes_its_types_and_every_caller_reads_them(bode: World) -> None:
    domain = fresh_domain()
    registry, provider = await bode.registry(domain), await bode.provider()
    said = {
        "timeMeaning": "When it was registered.",
        "documentationLink": "https://example.nl/",
        "informationLevel": "informatierijk",
        "dataSchema": SCHEMA,
        "validation": "reject",
        "filterAttributes": ["gemeente", "/gemeente"],
        "retentionDays": 30,
        "deprecatedAt": "2027-01-01T00:00:00Z",
        "sunsetAt": "2028-01-01T00:00:00Z",
        "successor": f"{domain}.iets-v2",
    }
    described = await describe(bode, registry, f"{domain}.iets", **said)
    assert described.items() >= said.items()
    assert (described["registry"], described["version"]) == (registry.oin, 1)
    for key in (registry.key, provider.key, await bode.operator()):
        read = await bode.call("GET", described["url"], key=key)
        assert (read.status, read.json, read.headers["etag"]) == (200, described, '"1"')
        for query in (f"domain={domain}", f"type={domain}.iets"):
            listed = await bode.call("GET", f"/event-types?{query}", key=key)
            assert listed.json["results"] == [described]
    assert (await bode.call("GET", described["url"])).status == 401
    assert (await bode.call("GET", f"/event-types?domain={domain}.iets-anders", key=provider.key)).json["count"] == 0


async def test_each_version_of_a_description_is_kept(bode: World) -> None:
    domain = fresh_domain()
    registry = await bode.registry(domain)
    described = await describe(bode, registry, f"{domain}.iets", dataSchema=SCHEMA)
    assert described["updatedAt"] >= described["createdAt"]
    changed = described | {"meaning": "Something else.", "dataSchema": None}
    etag = {"if-match": '"1"'}
    answer = await bode.call("PUT", described["url"], key=registry.key, body=changed, headers=etag)
    assert (answer.status, answer.json["version"], answer.json["dataSchema"]) == (200, 2, None)
    assert (await bode.call("PUT", described["url"], key=registry.key, body=changed, headers=etag)).status == 412
    versions = (await bode.call("GET", described["url"] + "/versions", key=registry.key)).json["results"]
    assert [(each["version"], each["description"]["dataSchema"]) for each in versions] == [(1, SCHEMA), (2, None)]
    assert versions[1]["description"]["meaning"] == "Something else."


async def test_a_type_that_is_withdrawn_is_gone_and_can_be_described_again(bode: World) -> None:
    domain = fresh_domain()
    registry = await bode.registry(domain)
    described = await describe(bode, registry, f"{domain}.iets")
    stale = await bode.call("DELETE", described["url"], key=registry.key, headers={"if-match": '"9"'})
    assert stale.status == 412
    assert (await bode.call("DELETE", described["url"], key=registry.key)).status == 204
    for path in ("", "/versions", "/findings"):
        assert (await bode.call("GET", described["url"] + path, key=registry.key)).status == 404
    assert (await describe(bode, registry, f"{domain}.iets"))["version"] == 1


async def test_only_the_owner_of_a_type_describes_it(bode: World) -> None:
    domain = fresh_domain()
    registry, stranger, provider = await bode.registry(domain), await bode.registry(), await bode.provider()
    described = await describe(bode, registry, f"{domain}.iets")
    body = {"type": f"{domain}.iets", "meaning": "Mine."}
    for method, path in (
        ("POST", "/event-types"),
        ("PUT", described["url"]),
        ("DELETE", described["url"]),
        ("GET", described["url"] + "/findings"),
    ):
        for party in (stranger, provider):
            sent = body if method in ("POST", "PUT") else None
            assert (await bode.call(method, path, key=party.key, body=sent)).status == 403, (method, party)
    again = await bode.call("POST", "/event-types", key=registry.key, body=body)
    assert (again.status, again.json["code"]) == (409, "conflict")
    assert (await bode.call("GET", described["url"], key=registry.key)).json == described


async def test_who_takes_over_a_domain_takes_over_what_is_said_of_its_types(bode: World) -> None:
    domain = fresh_domain()
    former, owner, operator = await bode.registry(domain), await bode.registry(), await bode.operator()
    described = await describe(bode, former, f"{domain}.deel.iets", dataSchema=SCHEMA, validation="reject")
    assert (await load(bode.engine))[1].validated(f"{domain}.deel.iets") is not None
    moved = {"name": f"{domain}.deel", "organisation": owner.oin}
    assert (await bode.call("POST", "/domains", key=operator, body=moved)).status == 201
    assert (await load(bode.engine))[1].validated(f"{domain}.deel.iets") is None
    assert (await bode.call("PUT", described["url"], key=former.key, body=described)).status == 403
    again = await describe(bode, owner, f"{domain}.deel.iets")
    assert again["registry"] == owner.oin
    assert (await bode.call("GET", described["url"], key=owner.key)).status == 404


@pytest.mark.parametrize(
    ("members", "name"),
    [
        ({"type": "iets"}, "/type"),
        ({"meaning": ""}, "/meaning"),
        ({"validation": "report"}, "/dataSchema"),
        ({"validation": "always"}, "/validation"),
        ({"dataSchema": {"$ref": "https://evil.example/"}}, "/dataSchema"),
        ({"dataSchema": {"$ref": "#"}}, "/dataSchema"),
        ({"dataSchema": []}, "/dataSchema"),
        ({"filterAttributes": ["data"]}, "/filterAttributes"),
        ({"filterAttributes": ["Subject!"]}, "/filterAttributes"),
        ({"filterAttributes": ["/adres~2"]}, "/filterAttributes"),
        ({"retentionDays": 0}, "/retentionDays"),
        ({"informationLevel": "veel"}, "/informationLevel"),
        ({"deprecatedAt": "2028-01-01T00:00:00Z", "sunsetAt": "2027-01-01T00:00:00Z"}, "/sunsetAt"),
        ({"colour": "red"}, "/colour"),
    ],
)
async def test_a_description_that_cannot_be_names_the_field(bode: World, members: dict[str, Any], name: str) -> None:
    domain = fresh_domain()
    registry = await bode.registry(domain)
    body = {"type": f"{domain}.iets", "meaning": "Something."} | members
    answer = await bode.call("POST", "/event-types", key=registry.key, body=body)
    assert answer.status == 400, answer.text
    assert answer.json["invalidParams"][0]["name"].startswith(name)
    assert (await bode.call("GET", f"/event-types?domain={domain}", key=registry.key)).json["count"] == 0


async def test_a_type_keeps_its_name(bode: World) -> None:
    domain = fresh_domain()
    registry = await bode.registry(domain)
    described = await describe(bode, registry, f"{domain}.iets")
    other = described | {"type": f"{domain}.anders"}
    answer = await bode.call("PUT", described["url"], key=registry.key, body=other)
    assert (answer.status, answer.json["invalidParams"][0]["name"]) == (400, "/type")


@pytest.mark.parametrize(
    ("members", "status"),
    [
        ({"types": ["{d}.iets"], "filters": [{"exact": {"gemeente": "9999"}}]}, 201),
        ({"types": ["{d}.iets"], "filters": [{"urn:bode:filter:data": {"/adres/postcode": {"prefix": "9"}}}]}, 201),
        ({"types": ["{d}.iets"], "source": "urn:nld:oin:1", "domain": "{d}"}, 201),
        ({"types": ["{d}.iets"], "filters": [{"exact": {"subject": "999990342"}}]}, 400),
        ({"types": ["{d}.iets"], "filters": [{"sql": "subject LIKE '9%'"}]}, 400),
        ({"types": ["{d}.iets"], "filters": [{"urn:bode:filter:data": {"/999990342": {"exists": True}}}]}, 400),
        ({"types": ["{d}.vrij"], "filters": [{"exact": {"subject": "999990342"}}]}, 201),
        ({"domain": "{d}", "filters": [{"exact": {"subject": "999990342"}}]}, 400),
        ({"filters": [{"exact": {"subject": "999990342"}}]}, 400),
        ({"filters": [{"all": [{"exact": {"type": "{d}.vrij"}}, {"exact": {"subject": "999990342"}}]}]}, 201),
    ],
)
async def test_only_what_the_catalogue_allows_is_filtered_on(bode: World, members: dict[str, Any], status: int) -> None:
    domain = fresh_domain()
    registry, provider = await bode.registry(domain), await bode.provider()
    await describe(bode, registry, f"{domain}.iets", filterAttributes=["gemeente", "/adres"])
    await describe(bode, registry, f"{domain}.vrij")
    await describe(bode, registry, f"{domain}.nooit", filterAttributes=[])
    await bode.grant(registry, provider, f"{domain}.iets", f"{domain}.vrij")
    filled = _fill(members, domain)
    answer = await bode.call("POST", "/subscriptions", key=provider.key, body=subscription(**filled))
    assert answer.status == status, answer.text
    if status == 400:
        assert [(param["name"], param["code"]) for param in answer.json["invalidParams"]] == [
            ("/filters", "filter-attribute")
        ]
        assert "999990342" not in answer.text
        made = await bode.subscribe(provider, types=[f"{domain}.iets"])
        patch = {"filters": filled["filters"], "types": filled.get("types")}
        changed = await bode.call("PATCH", made["url"], key=provider.key, body=patch)
        assert changed.status == 400
        assert (await bode.call("GET", made["url"], key=provider.key)).json["version"] == 1


async def test_a_type_that_isnt_granted_restricts_nobody_who_asks_for_everything(bode: World) -> None:
    domain = fresh_domain()
    registry, provider = await bode.registry(domain), await bode.provider()
    await describe(bode, registry, f"{domain}.iets", filterAttributes=[])
    await bode.subscribe(provider, filters=[{"exact": {"subject": "999990342"}}])


def _fill(value: Any, domain: str) -> Any:
    if isinstance(value, dict):
        return {name: _fill(content, domain) for name, content in value.items()}
    if isinstance(value, list):
        return [_fill(content, domain) for content in value]
    return value.replace("{d}", domain) if isinstance(value, str) else value


async def test_the_report_is_for_the_registry_and_the_operator(bode: World) -> None:
    domain = fresh_domain()
    registry = await bode.registry(domain)
    described = await describe(bode, registry, f"{domain}.iets")
    publisher = await bode.party(Scope.PUBLISH)
    for key, status in ((registry.key, 200), (await bode.operator(), 200), (publisher.key, 403)):
        assert (await bode.call("GET", described["url"] + "/findings", key=key)).status == status


async def test_the_catalogue_is_an_asyncapi_document(bode: World) -> None:
    domain = fresh_domain()
    registry, provider = await bode.registry(domain), await bode.provider()
    referring = {"$ref": "#/$defs/x", "$defs": {"x": {"type": "object"}}}
    await describe(bode, registry, f"{domain}.iets", dataSchema=referring, filterAttributes=["gemeente"])
    await describe(bode, registry, f"{domain}.vervallen", deprecatedAt="2026-01-01T00:00:00Z")
    assert (await bode.call("GET", "/asyncapi.json")).status == 401
    answer = await bode.call("GET", "/asyncapi.json", key=provider.key)
    assert answer.status == 200
    document = answer.json
    assert document["asyncapi"] == "3.0.0"
    channel = document["channels"][f"{domain}.iets"]
    assert channel["address"] == f"{domain}.iets"
    assert channel["bindings"]["amqp"]["exchange"]["name"] == "bode.events"
    message = document["components"]["messages"][f"{domain}.iets"]
    assert message["x-filter-attributes"] == ["gemeente"]
    data = message["payload"]["schema"]["properties"]["data"]
    assert data["$defs"] == referring["$defs"]
    assert document["components"]["messages"][f"{domain}.vervallen"]["payload"]["schema"]["deprecated"] is True
    assert {each["action"] for each in document["operations"].values()} == {"receive", "send"}
    references = list(_references(document))
    assert len(references) >= 10
    for reference in references:
        place = document
        for step in reference.removeprefix("#/").split("/"):
            place = place[step.replace("~1", "/").replace("~0", "~")]


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for content in value:
            yield from _references(content)
    elif isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for content in value.values():
            yield from _references(content)
