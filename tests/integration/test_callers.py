from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from fixtures import api, declared_database
from managing import World, subscription
from sqlalchemy import event, select, update

from schemas.identifiers import sample_oin
from subscriptions.callers import Scope, create_key
from subscriptions.tables import api_keys

RANDOM = Random()

url = declared_database()
bode = api(rate_per_second=50, burst=60)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer bode_unknown",
        "Bearer " + "x" * 43,
        "Basic Ym9kZTpib2Rl",
        "Bearer bode_" + "é" * 40,
        "Bearer bode_" + "x" * 5000,
    ],
)
async def test_without_a_known_key_nothing_is_answered(bode: World, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    answer = await bode.call("GET", "/subscriptions", headers=headers)
    assert (answer.status, answer.json["code"]) == (401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_a_key_without_the_scope_is_forbidden_whatever_the_body(bode: World) -> None:
    publisher = await bode.party(Scope.PUBLISH)
    json_type = {"content-type": "application/json"}
    attempts = [
        await bode.call("POST", "/subscriptions", key=publisher.key, body=subscription()),
        await bode.call("POST", "/subscriptions", key=publisher.key, raw=b"{", headers=json_type),
        await bode.call("POST", "/subscriptions", key=publisher.key, raw=b"x" * 2_000_000),
        await bode.call("GET", "/subscriptions?limit=x", key=publisher.key),
    ]
    assert [(answer.status, answer.json["code"]) for answer in attempts] == [(403, "forbidden")] * 4


async def test_who_isnt_known_learns_nothing_from_the_body(bode: World) -> None:
    json_type = {"content-type": "application/json"}
    for raw in (b"{", b"x" * 2_000_000, b'{"colour": "red"}'):
        assert (await bode.call("POST", "/subscriptions", raw=raw, headers=json_type)).status == 401


async def test_the_scheme_is_case_insensitive(bode: World) -> None:
    provider = await bode.provider()
    answer = await bode.call("GET", "/subscriptions", headers={"authorization": f"bearer {provider.key}"})
    assert answer.status == 200


async def test_a_key_of_the_operator_cannot_act_as_an_organisation(bode: World) -> None:
    async with bode.engine.begin() as connection:
        key, _ = await create_key(connection, organisation_id=None, scopes=[Scope.OPERATE, Scope.CONSUME])
    answer = await bode.call("POST", "/subscriptions", key=key, body=subscription())
    assert answer.status == 403


async def test_the_operator_gives_out_and_revokes_keys(bode: World) -> None:
    operator, provider = await bode.operator(), await bode.provider()
    keys = f"/organisations/{provider.id}/keys"
    made = await bode.call("POST", keys, key=operator, body={"scopes": ["events.consume"], "label": "test"})
    assert made.status == 201
    key = made.json["key"]
    assert key.startswith("bode_")
    assert made.json["hint"] == key[-4:]
    assert (await bode.call("GET", "/subscriptions", key=key)).status == 200
    listed = await bode.call("GET", keys, key=operator)
    assert listed.json["count"] == 2
    assert key not in listed.text
    path = f"{keys}/{made.json['id']}"
    assert (await bode.call("GET", path, key=operator)).json["lastUsedAt"] is not None
    assert (await bode.call("DELETE", path, key=operator)).status == 204
    bode.clock.now += 2
    assert (await bode.call("GET", "/subscriptions", key=key)).status == 401
    assert [(await bode.call(method, path, key=operator)).status for method in ("GET", "DELETE")] == [404, 404]


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({"scopes": []}, "/scopes"),
        ({"scopes": ["operate"]}, "/scopes/0"),
        ({"scopes": ["events.consume"], "expiresAt": "2020-01-01T00:00:00Z"}, "/expiresAt"),
        ({"scopes": ["events.consume"], "expiresAt": "2099-01-01T00:00:00"}, "/expiresAt"),
        ({}, "/scopes"),
    ],
)
async def test_a_key_that_cannot_be_is_refused(bode: World, body: object, name: str) -> None:
    operator, provider = await bode.operator(), await bode.provider()
    answer = await bode.call("POST", f"/organisations/{provider.id}/keys", key=operator, body=body)
    assert (answer.status, answer.json["invalidParams"][0]["name"]) == (400, name)


async def test_only_the_operator_registers_organisations_and_others_see_themselves(bode: World) -> None:
    operator, provider, stranger = await bode.operator(), await bode.provider(), await bode.provider()
    first, second = sample_oin(RANDOM), sample_oin(RANDOM)
    body = {"oin": first, "name": "Testregister", "amqpUser": "test", "sources": ["urn:nld:kvk:1:x"]}
    assert (await bode.call("POST", "/organisations", key=provider.key, body=body)).status == 403
    made = await bode.call("POST", "/organisations", key=operator, body=body)
    assert made.status == 201, made.text
    assert (await bode.call("POST", "/organisations", key=operator, body=body)).status == 409
    patched = await bode.call(
        "PATCH", f"/organisations/{made.json['id']}", key=operator, body={"name": "Register", "amqpUser": None}
    )
    assert (patched.json["name"], patched.json["amqpUser"], patched.json["sources"]) == (
        "Register",
        None,
        ["urn:nld:kvk:1:x"],
    )
    taken = {"oin": second, "name": "Ander", "sources": ["urn:nld:kvk:1:x"]}
    assert (await bode.call("POST", "/organisations", key=operator, body=taken)).status == 409
    anothers = {"oin": second, "name": "Ander", "sources": [f"urn:nld:oin:{first}:x"]}
    assert (await bode.call("POST", "/organisations", key=operator, body=anothers)).status == 400
    no_oin = {"oin": "0000009900000000001X", "name": "Ander"}
    refused = await bode.call("POST", "/organisations", key=operator, body=no_oin)
    assert (refused.status, refused.json["invalidParams"][0]["name"]) == (400, "/oin")
    own = await bode.call("GET", "/organisations", key=provider.key)
    assert [found["id"] for found in own.json["results"]] == [str(provider.id)]
    assert (await bode.call("GET", f"/organisations/{stranger.id}", key=provider.key)).status == 404
    assert (await bode.call("GET", f"/organisations/{stranger.id}", key=operator)).status == 200


async def test_an_expired_key_stops_at_once_also_where_it_is_remembered(bode: World) -> None:
    provider = await bode.provider()
    assert (await bode.call("GET", "/subscriptions", key=provider.key)).status == 200
    async with bode.engine.begin() as connection:
        past = datetime.now(UTC) - timedelta(seconds=1)
        await connection.execute(
            update(api_keys).where(api_keys.c.organisation_id == provider.id).values(expires_at=past)
        )
    bode.clock.now += 1.1
    assert (await bode.call("GET", "/subscriptions", key=provider.key)).status == 401


async def test_a_key_over_its_rate_is_told_when_to_come_back(bode: World) -> None:
    provider, other = await bode.provider(), await bode.provider()
    answers = [await bode.call("GET", "/domains", key=provider.key) for _ in range(61)]
    assert [answer.status for answer in answers[:60]] == [200] * 60
    assert (answers[60].status, answers[60].headers["retry-after"]) == (429, "1")
    assert (await bode.call("GET", "/domains", key=other.key)).status == 200
    bode.clock.now += 1
    again = [(await bode.call("GET", "/domains", key=provider.key)).status for _ in range(51)]
    assert again == [200] * 50 + [429]


async def test_a_burst_of_requests_looks_the_key_up_once_and_writes_its_use_once(bode: World) -> None:
    provider = await bode.provider()
    statements: list[str] = []

    @event.listens_for(bode.engine.sync_engine, "before_cursor_execute")
    def note(*arguments: object) -> None:
        if "api_keys" in str(arguments[2]):
            statements.append(str(arguments[2]).split()[0])

    for _ in range(5):
        await bode.call("GET", "/domains", key=provider.key)
    assert statements == ["SELECT", "UPDATE"]
    bode.clock.now += 1.1
    await bode.call("GET", "/domains", key=provider.key)
    assert statements == ["SELECT", "UPDATE", "SELECT"], "the use was written less than a minute ago"


async def test_keys_are_stored_only_as_digests(bode: World) -> None:
    provider = await bode.provider()
    async with bode.engine.connect() as connection:
        rows = (await connection.execute(select(api_keys))).all()
    assert provider.key not in repr(rows)
    assert provider.key.removeprefix("bode_").encode() not in b"".join(row.digest for row in rows)


async def test_keys_are_listed_in_order_of_commit(bode: World) -> None:
    provider, operator = await bode.provider(), await bode.operator()
    async with bode.engine.connect() as early:
        await early.execute(select(1))  # its now() is before that of the other
        async with bode.engine.begin() as late:
            await create_key(late, organisation_id=provider.id, scopes=[Scope.CONSUME], label="first")
        await create_key(early, organisation_id=provider.id, scopes=[Scope.CONSUME], label="second")
        await early.commit()
    listed = (await bode.call("GET", f"/organisations/{provider.id}/keys", key=operator)).json["results"]
    assert [each["label"] for each in listed] == ["", "first", "second"]
