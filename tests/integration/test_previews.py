"""Previews over the API, on events that were accepted, sealed, in a migrated database."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from accepting import RING, Broker, Publisher, broker
from fastapi import APIRouter
from managing import Answer

from broker.api import previews
from broker.api.context import BrokerContext
from broker.ingest.view import View
from broker.storage import installation
from broker.storage.tables import KEY_SHIFT
from subscriptions.context import API_PREFIX

DAY = (24 * 3600 * 1000) << KEY_SHIFT
BSN = "999990342"
FOLLOWS = "urn:bode:filter:follows"


@dataclass
class Scene:
    bode: Broker
    registry: Publisher
    provider_id: UUID
    oin: str
    key: str

    async def accept(self, *messages: Any) -> None:
        await (await self.bode.acceptor()).accept(list(messages))

    async def preview(self, *filters: Any, key: str | None = None, **members: Any) -> Answer:
        body = {"filters": list(filters)} | members
        return await self.bode.world.call("POST", "/subscription-previews", key=key or self.key, body=body)

    async def told(self, *filters: Any, **members: Any) -> Any:
        answered = await self.preview(*filters, **members)
        assert answered.status == 200, answered.text
        return answered.json


@pytest.fixture
async def scene(url: str) -> AsyncIterator[Scene]:
    async with broker(url) as bode:
        router = APIRouter(prefix=API_PREFIX)
        router.include_router(previews.router)
        bode.world.app.include_router(router)
        fingerprints = await installation.fingerprints(bode.pool, RING)
        context: Any = BrokerContext.__new__(BrokerContext)
        object.__setattr__(context, "view", View(bode.world.engine))
        object.__setattr__(context, "fingerprints", fingerprints)
        bode.world.app.state.broker_context = context
        registry = await bode.publisher()
        provider_id, oin, key = await bode.provider()
        yield Scene(bode, registry, provider_id, oin, key)


async def test_it_counts_what_is_granted_by_day_and_type_and_shows_no_payload(scene: Scene) -> None:
    stranger = await scene.bode.publisher()
    await scene.bode.grant(scene.registry, scene.oin)
    here = [scene.registry.message("iets", subject=BSN, gemeente=code) for code in ("9999", "9999", "0001")]
    await scene.accept(*here, scene.registry.message("anders", gemeente="9999"), stranger.message(gemeente="9999"))
    await scene.bode.pool.execute(
        "UPDATE events SET key = key - $1 WHERE id = $2", DAY, here[0].content.id
    )  # sealed under another key now: it can't be opened, and must not be read as no match
    await scene.bode.pool.execute("DELETE FROM events WHERE id = $1", here[0].content.id)
    told = await scene.told({"exact": {"gemeente": "9999"}}, days=3)
    assert (told["examined"], told["matched"], told["complete"]) == (3, 2, True)
    assert [(day["examined"], day["matched"], day["complete"]) for day in told["days"]] == [
        (3, 2, True), (0, 0, True), (0, 0, True),
    ]  # fmt: skip
    domain = scene.registry.domain
    assert {(each["type"], each["examined"], each["matched"]) for each in told["types"]} == {
        (f"{domain}.iets", 2, 1),
        (f"{domain}.anders", 1, 1),
    }
    assert BSN not in json.dumps(told)


@pytest.mark.parametrize("granted", [False, True])
async def test_what_is_not_granted_is_not_counted(scene: Scene, granted: bool) -> None:
    if granted:  # now, but not when they were accepted
        await scene.accept(scene.registry.message())
        await scene.bode.grant(scene.registry, scene.oin)
    else:
        await scene.accept(scene.registry.message())
    assert (await scene.told())["examined"] == 0
    if granted:
        await scene.accept(scene.registry.message())
        assert (await scene.told())["matched"] == 1


async def test_what_the_type_decides_opens_no_body(scene: Scene) -> None:
    await scene.bode.grant(scene.registry, scene.oin)
    await scene.accept(scene.registry.message("iets"), scene.registry.message("anders"))
    await scene.bode.pool.execute("UPDATE events SET body = 'x' WHERE organisation_id = $1", scene.registry.id)
    told = await scene.told(types=[f"{scene.registry.domain}.iets"])
    assert (told["examined"], told["matched"]) == (2, 1)


async def test_a_sample_is_the_latest_and_is_said_to_be_one(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    await scene.bode.grant(scene.registry, scene.oin)
    for number in range(10):
        await scene.accept(scene.registry.message(nummer=str(number)))
    filters = {"any": [{"exact": {"nummer": str(number)}} for number in range(5)]}
    assert (await scene.told(filters, days=1))["matched"] == 5
    monkeypatch.setattr(previews, "MOST_OPENED", 4)
    told = await scene.told(filters, days=1)
    assert (told["examined"], told["matched"], told["complete"]) == (4, 0, False)
    monkeypatch.setattr(previews, "MOST_OPENED", 1000)
    monkeypatch.setattr(previews, "MOST_ROWS", 7)
    told = await scene.told(filters, days=1)
    assert (told["examined"], told["matched"], told["complete"]) == (7, 2, False)
    monkeypatch.setattr(previews, "MOST_ROWS", 1000)
    monkeypatch.setattr(previews, "MOST_BYTES", 1000)
    told = await scene.told(filters, days=1)
    assert told["complete"] is False
    assert 0 < told["examined"] < 10
    monkeypatch.setattr(previews, "_SECONDS", -1)
    told = await scene.told(filters, days=2)
    assert (told["examined"], told["complete"]) == (0, False)


@pytest.mark.parametrize(
    ("members", "plan"),
    [
        (
            {"types": ["nl.x.y"], "filters": [{"exact": {"gemeente": "9999"}}]},
            [(["type is 'nl.x.y'", "gemeente is '9999'"], [], False)],
        ),
        (
            {"types": ["nl.x.y"], "filters": [{"not": {"exact": {"gemeente": "9999"}}}]},
            [(["type is 'nl.x.y'"], ["not (gemeente is '9999')"], True)],
        ),
        ({"filters": [{"not": {"exact": {"gemeente": "9999"}}}]}, [([], ["not (gemeente is '9999')"], True)]),
        ({"filters": []}, [([], [], False)]),
        (
            {"filters": [{"any": [{"exact": {"a": "1"}}, {"exact": {"b": "2"}}]}]},
            [(["a is '1'"], [], False), (["b is '2'"], [], False)],
        ),
        ({"filters": [{"all": [{"exact": {"a": "1"}}, {"exact": {"a": "2"}}]}]}, []),
    ],
)
async def test_it_tells_what_is_looked_up_and_what_is_evaluated(scene: Scene, members: Any, plan: Any) -> None:
    told = await scene.told(*members["filters"], **{name: members[name] for name in members if name != "filters"})
    assert [(each["lookedUp"], each["evaluated"], each["evaluatedAlways"]) for each in told["alternatives"]] == plan
    for each in told["alternatives"]:
        assert (each["note"] is not None) == each["evaluatedAlways"]
        if each["evaluatedAlways"] and each["lookedUp"]:
            assert each["note"] == "This filter is evaluated for every event of its type."


async def test_it_tells_of_one_event_why_it_matches(scene: Scene) -> None:
    await scene.bode.grant(scene.registry, scene.oin)
    message = scene.registry.message(subject=BSN, gemeente="9999")
    await scene.accept(message)
    event = {"source": scene.registry.source, "id": message.content.id}
    for code, holds in (("9999", True), ("0001", False)):
        told = await scene.told({"exact": {"gemeente": code}}, event=event)
        assert told["event"] == {
            "matches": holds,
            "alternatives": [[{"text": f"gemeente is '{code}'", "holds": holds}]],
        }
    assert "event" not in await scene.told() or (await scene.told())["event"] is None


async def test_of_an_event_that_is_not_the_callers_nothing_is_told(scene: Scene) -> None:
    message = scene.registry.message()
    await scene.accept(message)
    for wanted in (message.content.id, "there-is-none"):
        refused = await scene.preview(event={"source": scene.registry.source, "id": wanted})
        assert refused.status == 400
        assert [(each["name"], each["code"]) for each in refused.json["invalidParams"]] == [("/event", "event")]


async def test_filters_are_judged_as_those_of_a_subscription(scene: Scene) -> None:
    for members, name in (
        ({"filters": [{"nonsense": {}}]}, "/filters/0/nonsense"),
        (
            {"filters": [{FOLLOWS: {"subject": "5148d940-aaaa-4f8e-aaef-c559e26e09dc"}}]},
            f"/filters/0/{FOLLOWS}/subject",
        ),
        ({"days": 32}, "/days"),
        ({"days": 0}, "/days"),
        ({"sink": "https://x.example/"}, "/sink"),
    ):
        answered = await scene.bode.world.call("POST", "/subscription-previews", key=scene.key, body=members)
        assert (answered.status, answered.json["invalidParams"][0]["name"]) == (400, name)
    operator = await scene.bode.world.operator()
    assert (await scene.preview(key=operator)).status == 403


async def test_few_at_a_time_and_a_failure_gives_its_place_back(scene: Scene) -> None:
    await scene.bode.grant(scene.registry, scene.oin)
    await scene.accept(scene.registry.message(gemeente="9999"))
    scene.bode.world.app.state.previews_under_way = 2
    assert (await scene.preview()).status == 429
    scene.bode.world.app.state.previews_under_way = 0
    await scene.bode.pool.execute("UPDATE events SET body = 'x' WHERE organisation_id = $1", scene.registry.id)
    for _ in range(3):
        failed = await scene.preview({"exact": {"gemeente": "9999"}})
        assert failed.status == 500, "what can't be opened is a failure, not an event that doesn't match"
    assert scene.bode.world.app.state.previews_under_way == 0
