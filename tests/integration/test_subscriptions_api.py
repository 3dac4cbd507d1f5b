from datetime import UTC, datetime
from uuid import uuid4

from fixtures import api, declared_database
from managing import World, fresh_domain, subscription
from sqlalchemy import func, select

from schemas.resources import Health
from subscriptions import organisations
from subscriptions.change_log import take_change_lock

url = declared_database()
bode = api()


async def test_creation_answers_with_the_whole_resource_and_its_secret(bode: World) -> None:
    provider = await bode.provider()
    body = subscription(
        types=["nl.brp.persoon-verhuisd"],
        source="urn:nld:oin:00000001823288444000:systeem:BRP",
        domain="nl.brp",
        filters=[{"prefix": {"subject": "9999"}}, {"not": {"exact": {"Type": "nl.brp.x"}}}],
        config={"team": "burgerzaken"},
        subscriberReference="burgerzaken",
        protocolSettings={"headers": {"X-Team": "a"}, "method": "POST"},
        ordering="none",
        retry={"delays": ["PT1S", "PT1M", "P1D"]},
    )
    answer = await bode.call("POST", "/subscriptions", key=provider.key, body=body)
    made = answer.json
    assert answer.status == 201
    assert answer.headers["location"] == made["url"] == f"http://bode.example/v1/subscriptions/{made['id']}"
    assert answer.headers["etag"] == '"1"'
    assert answer.headers["api-version"] == "0.1.0"
    assert made["secret"].startswith("whsec_")
    assert {name: made[name] for name in body if name != "retry"} == {n: v for n, v in body.items() if n != "retry"}
    assert made["retry"] == {"delays": ["PT1S", "PT60S", "PT86400S"]}
    assert (made["status"], made["organisation"], made["version"]) == ("requested", provider.oin, 1)
    assert made["health"] == {
        "lastSequence": 0,
        "deliveredThrough": 0,
        "pending": 0,
        "oldestPendingAt": None,
        "expiresNextAt": None,
        "deadLetters": 0,
        "lastOutcome": None,
    }


async def test_only_creation_and_rotation_show_a_secret(bode: World) -> None:
    provider = await bode.provider()
    made = await bode.subscribe(provider)
    path = f"/subscriptions/{made['id']}"
    body = {**subscription(), "subscriberReference": "x"}
    answers = [
        await bode.call("GET", path, key=provider.key),
        await bode.call("GET", "/subscriptions", key=provider.key),
        await bode.call("PUT", path, key=provider.key, body=body),
        await bode.call("PATCH", path, key=provider.key, body={"ordering": "none"}),
        await bode.call("GET", path, key=await bode.operator()),
    ]
    assert [answer.status for answer in answers] == [200] * 5
    assert all("secret" not in answer.text and "whsec_" not in answer.text for answer in answers)
    rotated = await bode.call("POST", f"{path}/secret", key=provider.key, body={"overlapSeconds": 60})
    assert rotated.json["secret"].startswith("whsec_")
    assert rotated.json["secret"] != made["secret"]
    assert rotated.json["previousExpiresAt"] is not None
    at_once = await bode.call("POST", f"{path}/secret", key=provider.key, body={"overlapSeconds": 0})
    assert at_once.json["previousExpiresAt"] is None
    without_body = await bode.call("POST", f"{path}/secret", key=provider.key)
    assert without_body.status == 200


async def test_what_was_read_can_be_put_back(bode: World) -> None:
    provider = await bode.provider()
    made = await bode.subscribe(provider, filters=[{"exact": {"subject": ""}}], retry={"delays": [1.5, 90]})
    for read in (made, (await bode.call("GET", f"/subscriptions/{made['id']}", key=provider.key)).json):
        put = await bode.call("PUT", f"/subscriptions/{made['id']}", key=provider.key, body=read)
        assert put.status == 200, put.text
        changing = {"version", "updatedAt", "secret"}
        assert {k: v for k, v in put.json.items() if k not in changing} == {
            k: v for k, v in made.items() if k not in changing
        }
    forged = await bode.call(
        "PUT", f"/subscriptions/{made['id']}", key=provider.key, body={**made, "secret": "whsec_b3du"}
    )
    assert (forged.status, forged.json["invalidParams"][0]["name"]) == (400, "/secret")


async def test_replacement_returns_what_is_absent_to_its_default(bode: World) -> None:
    provider = await bode.provider()
    made = await bode.subscribe(provider, types=["nl.brp.x"], ordering="none", subscriberReference="x")
    put = await bode.call("PUT", f"/subscriptions/{made['id']}", key=provider.key, body=subscription())
    assert put.json["ordering"] == "subject"
    assert not {"types", "subscriberReference"} & set(put.json)


async def test_a_merge_patch_keeps_what_is_absent_and_drops_what_is_null(bode: World) -> None:
    provider = await bode.provider()
    made = await bode.subscribe(provider, types=["nl.brp.x"], config={"a": "1", "b": "2"}, subscriberReference="x")
    patch = {"config": {"a": None, "c": "3"}, "subscriberReference": None, "types": ["nl.brp.y"]}
    for media_type in ("application/merge-patch+json", "application/json"):
        answer = await bode.call(
            "PATCH",
            f"/subscriptions/{made['id']}",
            key=provider.key,
            body=patch,
            headers={"content-type": media_type},
        )
        assert answer.status == 200, answer.text
        assert answer.json["config"] == {"b": "2", "c": "3"}
        assert answer.json["types"] == ["nl.brp.y"]
        assert answer.json["sink"] == made["sink"]
        assert "subscriberReference" not in answer.json
    removed = await bode.call("PATCH", f"/subscriptions/{made['id']}", key=provider.key, body={"sink": None})
    assert (removed.status, removed.json["invalidParams"][0]["name"]) == (400, "/sink")


async def test_a_change_of_another_version_is_refused(bode: World) -> None:
    provider = await bode.provider()
    made = await bode.subscribe(provider)
    path = f"/subscriptions/{made['id']}"
    stale = {"if-match": '"7"'}
    for method, body in (("PUT", subscription()), ("PATCH", {"ordering": "none"}), ("DELETE", None)):
        answer = await bode.call(method, path, key=provider.key, body=body, headers=stale)
        assert (answer.status, answer.json["code"]) == (412, "precondition-failed")
    fresh = await bode.call("PATCH", path, key=provider.key, body={"ordering": "none"}, headers={"if-match": '"1"'})
    assert (fresh.status, fresh.headers["etag"]) == (200, '"2"')
    odd = await bode.call("DELETE", path, key=provider.key, headers={"if-match": "latest"})
    assert (odd.status, odd.json["invalidParams"][0]["in"]) == (400, "header")


async def test_another_organisations_subscription_is_not_found(bode: World) -> None:
    owner, stranger = await bode.provider(), await bode.provider()
    made = await bode.subscribe(owner)
    path = f"/subscriptions/{made['id']}"
    attempts = [
        ("GET", path, None),
        ("PUT", path, subscription()),
        ("PATCH", path, {"status": "paused"}),
        ("DELETE", path, None),
        ("POST", f"{path}/secret", {}),
    ]
    for method, place, body in attempts:
        assert (await bode.call(method, place, key=stranger.key, body=body)).status == 404
    assert (await bode.call("GET", "/subscriptions", key=stranger.key)).json["results"] == []
    unknown = [f"/subscriptions/{uuid4()}", "/subscriptions/17", "/subscriptions/"]
    assert [(await bode.call("GET", place, key=owner.key)).status for place in unknown] == [404] * 3
    still = await bode.call("GET", path, key=owner.key)
    assert {k: v for k, v in made.items() if k != "secret"} == still.json


async def test_the_operator_sees_subscriptions_without_what_may_name_persons(bode: World) -> None:
    provider, operator = await bode.provider(), await bode.operator()
    made = await bode.subscribe(
        provider, filters=[{"exact": {"subject": "999990019"}}], subscriberReference="r", config={"c": "d"}
    )
    answer = await bode.call("GET", f"/subscriptions/{made['id']}", key=operator)
    assert answer.status == 200
    assert not {"filters", "subscriberReference", "config"} & set(answer.json)
    assert "999990019" not in answer.text
    denied = await bode.call("DELETE", f"/subscriptions/{made['id']}", key=operator)
    assert denied.status == 403


async def test_an_ended_subscription_is_gone_but_listed_on_request(bode: World) -> None:
    provider = await bode.provider()
    made = await bode.subscribe(provider)
    path = f"/subscriptions/{made['id']}"
    answer = await bode.call("DELETE", path, key=provider.key)
    assert (answer.status, answer.text) == (204, "")
    assert [(await bode.call(method, path, key=provider.key)).status for method in ("GET", "DELETE")] == [404, 404]
    assert (await bode.call("GET", "/subscriptions", key=provider.key)).json["count"] == 0
    ended = (await bode.call("GET", "/subscriptions?status=ended", key=provider.key)).json["results"]
    assert [(found["id"], found["status"]) for found in ended] == [(made["id"], "ended")]
    assert [kind for kind, *_ in bode.cancelled] == ["subscription"]


async def test_health_comes_from_whoever_knows_it(bode: World) -> None:
    provider = await bode.provider()
    made = await bode.subscribe(provider)
    async with bode.engine.connect() as connection:
        key = (
            await connection.exec_driver_sql(f"SELECT key FROM subscriptions WHERE id = '{made['id']}'")
        ).scalar_one()
    since = datetime(2026, 3, 1, 12, tzinfo=UTC)
    bode.health[key] = Health(
        last_sequence=12,
        delivered_through=9,
        pending=3,
        oldest_pending_at=since,
        dead_letters=0,
        last_outcome="delivered",
    )
    answer = await bode.call("GET", f"/subscriptions/{made['id']}", key=provider.key)
    assert answer.json["health"]["deliveredThrough"] == 9
    assert answer.json["health"]["oldestPendingAt"] == "2026-03-01T12:00:00Z"


async def test_pages_neither_repeat_nor_hide_anything_while_others_write(bode: World) -> None:
    provider = await bode.provider()
    made = [(await bode.subscribe(provider))["id"] for _ in range(7)]
    seen: list[str] = []
    page = (await bode.call("GET", "/subscriptions?limit=2", key=provider.key)).json
    assert (page["count"], page["previous"]) == (7, None)
    steps = 0
    while True:
        seen += [found["id"] for found in page["results"]]
        if page["next"] is None:
            break
        steps += 1
        if steps == 1:
            await bode.call("DELETE", f"/subscriptions/{made[0]}", key=provider.key)  # was on the first page
        if steps == 2:
            made.append((await bode.subscribe(provider))["id"])
        page = (await bode.call("GET", page["next"], key=provider.key)).json
    assert seen == made
    back = (await bode.call("GET", page["previous"], key=provider.key)).json
    assert [found["id"] for found in back["results"]] == made[4:6]
    again = (await bode.call("GET", back["next"], key=provider.key)).json
    assert [found["id"] for found in again["results"]] == made[6:]
    first = (await bode.call("GET", back["previous"], key=provider.key)).json
    assert [found["id"] for found in first["results"]] == made[2:4]


async def test_who_began_first_but_came_after_is_listed_after(bode: World) -> None:
    registry = await bode.registry()
    async with bode.engine.begin() as early:
        began = (await early.execute(select(func.now()))).scalar_one()
        later = await bode.call("POST", "/domains", key=registry.key, body={"name": fresh_domain()})
        await take_change_lock(early)
        row = await organisations.create_domain(early, organisation_id=registry.id, name=fresh_domain())
    assert row.created_at > began
    listed, page = [], "/domains?limit=500"
    while page:
        answer = (await bode.call("GET", page, key=registry.key)).json
        listed += [domain["uuid"] for domain in answer["results"]]
        page = answer["next"]
    assert listed.index(later.json["uuid"]) < listed.index(str(row.id))


async def test_a_cursor_serves_only_the_list_and_the_caller_it_was_given_for(bode: World) -> None:
    provider, stranger = await bode.provider(), await bode.provider()
    for _ in range(2):
        await bode.subscribe(provider)
        await bode.subscribe(stranger)
    following = (await bode.call("GET", "/subscriptions?limit=1", key=provider.key)).json["next"]
    cursor = following.partition("cursor=")[2]
    tampered = [
        (stranger.key, following),
        (provider.key, f"/grants?cursor={cursor}"),
        (provider.key, f"/subscriptions?cursor={cursor[:-2]}AA"),
        (provider.key, "/subscriptions?cursor=AQ"),
        (provider.key, "/subscriptions?cursor="),
        (provider.key, "/subscriptions?limit=0"),
        (provider.key, "/subscriptions?limit=x"),
    ]
    for key, place in tampered:
        answer = await bode.call("GET", place, key=key)
        assert (answer.status, answer.json["invalidParams"][0]["in"]) == (400, "query")


async def test_the_document_is_open_and_names_every_route(bode: World) -> None:
    answer = await bode.call("GET", "/openapi.json")
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "*")
    document = answer.json
    assert set(document["paths"]) >= {"/subscriptions", "/subscriptions/{id}", "/grants", "/domains", "/organisations"}
    assert document["servers"] == [{"url": "/v1"}]
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert bool(operation["security"]) is not path.startswith("/handshakes/"), (method, path)
            assert "422" not in operation["responses"]
            for status, response in operation["responses"].items():
                assert "API-Version" in response["headers"]
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"]


async def test_domains_are_registered_by_registries_and_never_inside_anothers(bode: World) -> None:
    name = fresh_domain()
    registry, other, operator = await bode.registry(name), await bode.registry(), await bode.operator()
    reader = await bode.provider()
    below = {"name": f"{name}.adres", "documentationLink": "https://example.nl", "filterAttributes": ["gemeente"]}
    assert (await bode.call("POST", "/domains", key=other.key, body=below)).status == 409
    made = await bode.call("POST", "/domains", key=registry.key, body=below)
    assert (made.status, made.json["organisation"]) == (201, registry.oin)
    found = await bode.call("GET", f"/domains?name={name}.adres", key=reader.key)
    assert found.json["results"] == [made.json]
    assert (await bode.call("GET", f"/domains/{made.json['uuid']}", key=reader.key)).json == made.json
    assert (await bode.call("POST", "/domains", key=registry.key, body=below)).status == 409
    assert (await bode.call("POST", "/domains", key=reader.key, body=below)).status == 403
    theirs = {"name": fresh_domain(), "organisation": other.oin}
    assert (await bode.call("POST", "/domains", key=registry.key, body=theirs)).status == 403
    assert (await bode.call("POST", "/domains", key=operator, body=theirs)).status == 201
    around = {"name": name.rpartition(".")[0] + "x.y", "organisation": other.oin}
    assert (await bode.call("POST", "/domains", key=operator, body=around)).status == 201
