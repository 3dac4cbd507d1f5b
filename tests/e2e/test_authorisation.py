"""Every operation, called by anonymous, by other scopes, by another organisation, by the right one, by the operator."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from schemas.identifiers import sample_oin
from tests.authorisation import MATRIX, OWN_ONLY, Row
from tests.e2e.events import event
from tests.e2e.installation import Installation

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALL = ("events.publish", "events.consume", "registry.manage", "disclosures.read")
PREFERRED = {"provider": "events.consume", "registry": "registry.manage"}
_KEYS = "/organisations/{provider}/keys/{key}"
_OURS = {"status", "statusReason", "version", "updatedAt", "health", "lastUsedAt"}  # change by themselves
_RANDOM = Random()


@dataclass
class Party:
    id: str
    oin: str
    keys: dict[tuple[str, ...], str] = field(default_factory=dict)


@dataclass
class Stage:
    """What was made for the test, and hands to call with anyone's key."""

    installation: Installation
    operations: dict[str, tuple[str, list[str]]]
    provider: Party
    registry: Party
    stranger: Party
    names: dict[str, str]
    domain: str

    async def call(self, key: str | None, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        options: dict[str, Any] = {"headers": headers}
        if isinstance(body, bytes):
            options |= {"data": body, "headers": {**headers, "Content-Type": "application/cloudevents+json"}}
            body = None
        status, answer, _ = await self.installation.call(method, path, None, body, **options)
        return status, answer

    async def key(self, party: Party, *scopes: str) -> str:
        if scopes not in party.keys:
            operator = self.installation.key("operator")
            status, made = await self.call(
                operator, "POST", f"/organisations/{party.id}/keys", {"scopes": list(scopes)}
            )
            assert status == 201, made
            party.keys[scopes] = made["key"]
        return party.keys[scopes]

    async def prepare(self, what: str) -> None:
        """Makes what an operation uses up."""
        consume, manage = await self.key(self.provider, *ALL), await self.key(self.registry, *ALL)
        operator = self.installation.key("operator")
        places: dict[str, tuple[str, str, Any]] = {
            "subscription": (consume, "/subscriptions", MATRIX["createSubscription"].body),
            "request": (
                consume,
                "/subscriptions",
                {**MATRIX["createSubscription"].body, "types": ["{domain}.{fresh}"]},
            ),
            "hold": (manage, "/holds", MATRIX["placeHold"].body),
            "grant": (manage, "/grants", MATRIX["createGrant"].body),
            "event_type": (manage, "/event-types", MATRIX["describeEventType"].body),
            "key": (operator, f"/organisations/{self.provider.id}/keys", {"scopes": ["events.publish"]}),
        }
        key, path, body = places[what]
        status, made = await self.call(key, "POST", path, self.filled(body))
        assert status == 201, (what, made)
        self.names[what] = made["id"]
        if "type" in made:
            self.names["type"] = made["type"]

    async def snapshot(self) -> list[Any]:
        """What there is, as its owners see it."""
        owner = await self.key(self.provider, *ALL)
        places = ("subscriptions/{subscription}", "grants/{grant}", "organisations/{provider}", "domains/{domain_id}")
        shown = [await self.call(owner, "GET", self.filled(f"/{place}")) for place in places]
        shown.append(await self.call(self.installation.key("operator"), "GET", self.filled(_KEYS)))
        return [{name: value for name, value in each.items() if name not in _OURS} for _, each in shown]

    def filled(self, template: Any) -> Any:
        if template == "event":
            return event(f"urn:nld:oin:{self.registry.oin}:systeem:X", f"{self.domain}.a", "s")
        text = template if isinstance(template, str) else json.dumps(template)
        fresh = {"fresh": f"x{uuid4().hex[:8]}", "fresh_oin": sample_oin(_RANDOM)}
        for name, value in {**self.names, **fresh}.items():
            text = text.replace("{" + name + "}", value)
        return text if isinstance(template, str) else json.loads(text)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(installation: Installation) -> Stage:
    _, document, _ = await installation.call("GET", "/openapi.json", None)
    operations = {
        operation["operationId"]: (method.upper(), [each["bearer"][0] for each in operation.get("security", [])])
        for item in document["paths"].values()
        for method, operation in item.items()
    }
    parties = []
    for name in ("provider", "registry", "stranger"):
        status, made, _ = await installation.call(
            "POST", "/organisations", "operator", {"oin": sample_oin(_RANDOM), "name": name}
        )
        assert status == 201, made
        parties.append(Party(made["id"], made["oin"]))
    provider, registry, stranger = parties
    domain = f"nl.m{uuid4().hex[:10]}"
    names = {"domain": domain, "provider": provider.id, "provider_oin": provider.oin, "token": "t" * 43}
    stage = Stage(installation, operations, provider, registry, stranger, names, domain)
    manage = await stage.key(registry, *ALL)
    status, made = await stage.call(manage, "POST", "/domains", {"name": domain})
    assert status == 201, made
    names["domain_id"] = made["uuid"]
    for what in ("grant", "subscription", "request", "event_type", "key", "hold"):
        await stage.prepare(what)
    sent = event(f"urn:nld:oin:{registry.oin}:systeem:X", f"{domain}.a", "s")
    names["event"] = json.loads(sent)["id"]
    status, _ = await stage.call(manage, "POST", "/events", sent)
    assert status in (200, 202)
    names["delivery"] = f"dlv_{names['subscription'].replace('-', '')}_1"
    for _ in range(2):  # a list of two has cursors
        await stage.prepare("subscription")
    _, pulled = await stage.call(
        await stage.key(provider, *ALL), "GET", f"/subscriptions/{names['subscription']}/events"
    )
    names["cursor"] = pulled["cursor"]

    async with asyncio.timeout(60):
        while (await stage.call(manage, "GET", f"/traces/{names['event']}"))[0] != 200:
            await asyncio.sleep(0.1)
    return stage


async def test_every_operation_has_a_row_and_every_row_an_operation(stage: Stage) -> None:
    assert stage.operations.keys() == MATRIX.keys()


async def attempt(
    stage: Stage, name: str, row: Row, key: str | None, wanted: int | str, owned: Mapping[str, str]
) -> None:
    method, _ = stage.operations[name]
    names = dict(stage.names)
    if row.prepare and wanted in (200, 201, 202, 204):
        await stage.prepare(row.prepare)
    status, answer = await stage.call(
        key, method, stage.filled(row.path), None if row.body is None else stage.filled(row.body)
    )
    stage.names |= names
    assert status == (200 if wanted == OWN_ONLY else wanted), answer
    if wanted in (OWN_ONLY, 401, 403, 404):
        assert not [each for each in owned.values() if each in json.dumps(answer)], "shows another's"


@pytest.mark.parametrize("name", MATRIX)
async def test_each_caller_is_answered_as_the_matrix_says(name: str, stage: Stage) -> None:
    row, (_, scopes) = MATRIX[name], stage.operations[name]
    owned = {each: stage.names[each] for each in ("provider_oin", "subscription", "grant", "key", "hold")}
    operator = stage.installation.key("operator")
    before = await stage.snapshot()
    await attempt(stage, name, row, None, 401 if scopes else row.right, owned)
    others = [scope for scope in ALL if scope not in scopes]
    if scopes and others:
        for party in (stage.provider, stage.registry):
            await attempt(stage, name, row, await stage.key(party, *others), 403, owned)
    if scopes:
        stranger = 403 if scopes == ["operate"] else row.stranger
        await attempt(stage, name, row, await stage.key(stage.stranger, *ALL), stranger, owned)
    assert await stage.snapshot() == before, "changes another's"
    await attempt(stage, name, row, operator, row.operator, {})
    if row.owner == "operator":
        return await attempt(stage, name, row, operator, row.right, {})
    party = stage.registry if row.owner == "registry" else stage.provider
    own_scopes = [scope for scope in scopes if scope != "operate"]
    for scope in own_scopes or ALL[:1]:
        if row.owner == "anyone" or scope in _usable(row):
            await attempt(stage, name, row, await stage.key(party, scope), row.right, {})
    return None


def _usable(row: Row) -> tuple[str, ...]:
    return ("events.consume",) if row.owner == "provider" else ("registry.manage", "events.publish")


async def test_a_cursor_or_filter_shows_nobody_anothers(stage: Stage) -> None:
    owner, stranger = await stage.key(stage.provider, *ALL), await stage.key(stage.stranger, *ALL)
    _, page = await stage.call(owner, "GET", "/subscriptions?limit=1")
    cursor = page["next"].partition("?")[2]
    status, problem = await stage.call(stranger, "GET", f"/subscriptions?{cursor}")
    assert (status, problem["invalidParams"][0]["name"]) == (400, "cursor")
    for path in (
        f"/organisations?oin={stage.provider.oin}", "/subscriptions?status=ended", "/subscriptions?status=requested",
        "/grants?status=standing",
    ):  # fmt: skip
        _, found = await stage.call(stranger, "GET", path)
        assert stage.provider.oin not in json.dumps(found), path
        assert stage.provider.id not in json.dumps(found), path
    source = f"urn:nld:oin:{stage.registry.oin}:systeem:X"
    assert (await stage.call(stranger, "GET", f"/traces/{stage.names['event']}?source={source}"))[0] == 404
