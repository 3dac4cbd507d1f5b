import asyncio
import json
from random import Random
from typing import Any
from uuid import uuid4

import pytest
from fixtures import api, declared_database
from managing import World, fresh_domain, subscription, world
from sqlalchemy import select, text

from schemas.identifiers import sample_oin
from subscriptions.idempotency import forget_expired
from subscriptions.tables import idempotency_keys

HEADER = "idempotency-key"

url = declared_database()
bode = api()


def key() -> dict[str, str]:
    return {HEADER: str(uuid4())}


async def test_who_asks_again_gets_the_first_answer_secret_included_and_makes_nothing(bode: World) -> None:
    provider, headers = await bode.provider(), key()
    first, again, quoted = [
        await bode.call("POST", "/subscriptions", key=provider.key, body=subscription(), headers=sent)
        for sent in (headers, headers, {HEADER: f'"{headers[HEADER]}"'})
    ]
    assert (first.status, again.status, quoted.status) == (201, 201, 201)
    assert first.json == again.json == quoted.json
    assert first.json["secret"].startswith("whsec_")
    assert first.headers["location"] == again.headers["location"]
    assert first.headers["etag"] == again.headers["etag"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert (await bode.call("GET", "/subscriptions", key=provider.key)).json["count"] == 1


async def test_everything_that_is_made_is_made_once(bode: World) -> None:
    registry, provider = await bode.registry(domain := fresh_domain()), await bode.provider()
    operator = await bode.operator()
    made = await bode.subscribe(provider)
    asking = await bode.subscribe(provider, types=[f"{domain}.y"])
    places: list[tuple[str, str, Any]] = [
        (f"/subscriptions/{made['id']}/secret", provider.key, {"overlapSeconds": 60}),
        ("/grants", registry.key, {"provider": provider.oin, "types": [f"{domain}.x"], "legalBasis": "wet"}),
        ("/domains", registry.key, {"name": fresh_domain()}),
        ("/organisations", operator, {"oin": sample_oin(Random()), "name": "Nieuw"}),
        (f"/organisations/{provider.id}/keys", operator, {"scopes": ["events.consume"]}),
        (f"/subscription-requests/{asking['id']}/refusals", registry.key, {"reason": "No legal basis."}),
    ]
    for path, caller, body in places:
        headers = key()
        first = await bode.call("POST", path, key=caller, body=body, headers=headers)
        again = await bode.call("POST", path, key=caller, body=body, headers=headers)
        assert first.status in (200, 201), (path, first.text)
        assert (again.status, again.json) == (first.status, first.json), path
        assert again.headers["idempotency-replayed"] == "true"
        assert again.headers.get("location") == first.headers.get("location")
    assert (await bode.call("GET", f"/organisations/{provider.id}/keys", key=operator)).json["count"] == 2
    assert (await bode.call("GET", "/grants", key=registry.key)).json["count"] == 1


async def test_of_many_at_the_same_time_one_makes_it_and_all_are_answered_alike(bode: World) -> None:
    provider, operator = await bode.provider(), await bode.operator()
    for path, caller, body in (
        ("/subscriptions", provider.key, subscription()),
        (f"/organisations/{provider.id}/keys", operator, {"scopes": ["events.consume"]}),  # without the change lock
    ):
        headers = key()
        before = (await bode.call("GET", path, key=caller)).json["count"]
        answers = await asyncio.gather(
            *(bode.call("POST", path, key=caller, body=body, headers=headers) for _ in range(8))
        )
        assert [answer.status for answer in answers] == [201] * 8
        assert len({answer.text for answer in map(_same, answers)}) == 1
        assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
        assert (await bode.call("GET", path, key=caller)).json["count"] == before + 1


def _same(answer: Any) -> Any:
    return type(answer)(answer.status, {}, json.dumps(answer.json, sort_keys=True))


async def test_a_key_with_another_request_is_a_conflict_that_names_it(bode: World) -> None:
    provider, headers = await bode.provider(), key()
    await bode.call("POST", "/subscriptions", key=provider.key, body=subscription(), headers=headers)
    other = await bode.call(
        "POST", "/subscriptions", key=provider.key, body=subscription(ordering="none"), headers=headers
    )
    made = (await bode.call("GET", "/subscriptions", key=provider.key)).json["results"][0]
    elsewhere = await bode.call("POST", f"/subscriptions/{made['id']}/secret", key=provider.key, headers=headers)
    for answer in (other, elsewhere):
        assert (answer.status, answer.json["code"]) == (409, "idempotency-key-reused")
        [param] = answer.json["invalidParams"]
        assert (param["in"], param["name"]) == ("header", "Idempotency-Key")
    assert (await bode.call("GET", "/subscriptions", key=provider.key)).json["count"] == 1


async def test_a_key_is_its_organisations_own(bode: World) -> None:
    one, other, headers = await bode.provider(), await bode.provider(), key()
    answers = [
        await bode.call("POST", "/subscriptions", key=party.key, body=subscription(), headers=headers)
        for party in (one, other)
    ]
    assert [answer.status for answer in answers] == [201, 201]
    assert answers[0].json["id"] != answers[1].json["id"]
    assert answers[1].json["organisation"] == other.oin


async def test_who_may_no_longer_do_it_is_not_told_what_was_done(bode: World) -> None:
    provider, headers = await bode.provider(), key()
    await bode.call("POST", "/subscriptions", key=provider.key, body=subscription(), headers=headers)
    async with bode.engine.begin() as connection:
        statement = text("UPDATE api_keys SET scopes = '{events.publish}' WHERE organisation_id = :id")
        await connection.execute(statement, {"id": provider.id})
    async with world(str(bode.engine.url.render_as_string(hide_password=False))) as fresh:
        again = await fresh.call("POST", "/subscriptions", key=provider.key, body=subscription(), headers=headers)
    assert again.status == 403


async def test_a_problem_is_found_again_and_does_not_use_the_key_up(bode: World) -> None:
    provider, headers = await bode.provider(), key()
    for _ in range(2):
        bad = await bode.call("POST", "/subscriptions", key=provider.key, body=subscription(sink="/x"), headers=headers)
        assert bad.status == 400
    good = await bode.call("POST", "/subscriptions", key=provider.key, body=subscription(), headers=headers)
    assert good.status == 201


@pytest.mark.parametrize("value", ["", '""', "x" * 256, "a b", "é", "a\x7f"])
async def test_a_key_that_cannot_be_one_is_named(bode: World, value: str) -> None:
    provider = await bode.provider()
    answer = await bode.call("POST", "/subscriptions", key=provider.key, body=subscription(), headers={HEADER: value})
    assert answer.status == 400, answer.text
    assert (answer.json["invalidParams"][0]["in"], answer.json["invalidParams"][0]["name"]) == (
        "header", "Idempotency-Key",
    )  # fmt: skip
    assert (await bode.call("GET", "/subscriptions", key=provider.key)).json["count"] == 0


async def test_an_expired_key_is_forgotten_and_can_be_used_again(bode: World) -> None:
    provider, headers = await bode.provider(), key()
    first = await bode.call("POST", "/subscriptions", key=provider.key, body=subscription(), headers=headers)
    async with bode.engine.begin() as connection:
        await connection.execute(text("UPDATE idempotency_keys SET expires_at = now() - interval '1 s'"))
    again = await bode.call("POST", "/subscriptions", key=provider.key, body=subscription(), headers=headers)
    assert again.status == 201
    assert again.json["id"] != first.json["id"]
    async with bode.engine.begin() as connection:
        await connection.execute(text("UPDATE idempotency_keys SET expires_at = now()"))
    async with bode.engine.begin() as connection:
        await forget_expired(connection)
        assert (await connection.execute(select(idempotency_keys))).all() == []


async def test_what_is_stored_shows_neither_key_nor_request_nor_answer(bode: World) -> None:
    provider = await bode.provider()
    body = subscription(filters=[{"exact": {"subject": "999990019"}}])
    answer = await bode.call("POST", "/subscriptions", key=provider.key, body=body, headers={HEADER: "999990019"})
    assert answer.status == 201
    async with bode.engine.connect() as connection:
        rows = (await connection.execute(select(idempotency_keys))).all()
    stored = repr([tuple(row) for row in rows])
    assert rows
    assert "999990019" not in stored
    assert "whsec_" not in stored
    assert answer.json["id"] not in stored
