"""Requests for approval, history and credentials of subscriptions, over the API."""

import json
from typing import Any
from uuid import UUID

import pytest
from fixtures import api, declared_database
from managing import RING, Party, World, fresh_domain
from sqlalchemy import select

from subscriptions.change_log import changing
from subscriptions.life_cycle import activate
from subscriptions.secrets import credential_purpose
from subscriptions.tables import subscriptions

SINK = "https://afnemer.example/hook"
PLAIN = {"credentialType": "PLAIN", "identifier": "bode", "secret": "geheim-123"}
TOKEN = {"credentialType": "ACCESSTOKEN", "accessToken": "geheim-456", "accessTokenExpiresUtc": "2027-01-01T00:00:00Z"}

url = declared_database()
bode = api()


async def requests(bode: World, registry: Party) -> list[Any]:
    results: list[Any] = (await bode.call("GET", "/subscription-requests", key=registry.key)).json["results"]
    return results


async def answer(bode: World, registry: Party, made: Any, what: str, **body: Any) -> Any:
    path = f"/subscription-requests/{made['id']}/{what}"
    return await bode.call("POST", path, key=registry.key, body=body)


async def read(bode: World, provider: Party, made: Any) -> Any:
    return (await bode.call("GET", made["url"], key=provider.key)).json


async def test_a_registry_sees_what_asks_for_its_types_and_nothing_of_the_filters(bode: World) -> None:
    domain, other = fresh_domain(), fresh_domain()
    registry, neighbour, provider = await bode.registry(domain), await bode.registry(other), await bode.provider()
    filters = [{"exact": {"subject": "999990342"}}]
    made = await bode.subscribe(provider, types=[f"{domain}.iets", f"{other}.iets"], filters=filters)
    whole = await bode.subscribe(provider, domain=domain)
    await bode.subscribe(provider)  # asks nobody in particular
    await bode.subscribe(provider, types=[f"{domain}x.iets"])
    seen = await requests(bode, registry)
    assert [each["id"] for each in seen] == [made["id"], whole["id"]]
    assert (seen[0]["provider"], seen[0]["types"]) == (provider.oin, made["types"])
    assert "999990342" not in json.dumps(seen)
    assert SINK not in json.dumps(seen)
    assert [each["id"] for each in await requests(bode, neighbour)] == [made["id"]]
    one = await bode.call("GET", seen[0]["url"], key=registry.key)
    assert one.json == seen[0]
    for key, status in ((provider.key, 403), ((await bode.registry()).key, 404)):
        assert (await bode.call("GET", seen[0]["url"], key=key)).status == status


@pytest.mark.parametrize(
    ("members", "granted"),
    [
        ({"types": ["{d}.iets", "{d}.anders", "nl.elders.iets"]}, ["{d}.iets", "{d}.anders"]),
        ({"domain": "{d}"}, ["{d}.*"]),
        ({"domain": "{d}.deel"}, ["{d}.deel.*"]),
    ],
)
async def test_an_approval_is_a_grant_of_what_is_asked_for(bode: World, members: Any, granted: Any) -> None:
    domain = fresh_domain()
    registry, provider = await bode.registry(domain), await bode.provider()
    filled = json.loads(json.dumps([members, granted]).replace("{d}", domain))
    made = await bode.subscribe(provider, **filled[0])
    assert made["status"] == "requested"
    grant = await answer(bode, registry, made, "approvals", legalBasis="Wet x")
    assert (grant.status, grant.json["types"], grant.json["provider"]) == (201, filled[1], provider.oin)
    assert (await read(bode, provider, made))["status"] == "validating"
    assert await requests(bode, registry) == []
    again = await answer(bode, registry, made, "approvals", legalBasis="Wet x")
    assert again.status == 404


async def test_a_registry_approves_its_own_types_only(bode: World) -> None:
    domain = fresh_domain()
    registry, provider = await bode.registry(domain), await bode.provider()
    made = await bode.subscribe(provider, types=[f"{domain}.iets"])
    refused = await answer(bode, registry, made, "approvals", legalBasis="x", types=["nl.elders.iets"])
    assert refused.status == 403
    assert (await answer(bode, await bode.registry(), made, "approvals", legalBasis="x")).status == 404
    assert (await answer(bode, provider, made, "approvals", legalBasis="x")).status == 403
    assert (await read(bode, provider, made))["status"] == "requested"


async def test_what_a_grant_covers_needs_no_approval(bode: World) -> None:
    domain = fresh_domain()
    registry, provider = await bode.registry(domain), await bode.provider()
    await bode.grant(registry, provider, f"{domain}.*")
    assert (await bode.subscribe(provider, types=[f"{domain}.iets"]))["status"] == "validating"
    assert await requests(bode, registry) == []


async def test_a_refusal_says_why_and_counts_when_all_that_were_asked_refuse(bode: World) -> None:
    domain, other = fresh_domain(), fresh_domain()
    registry, neighbour, provider = await bode.registry(domain), await bode.registry(other), await bode.provider()
    made = await bode.subscribe(provider, types=[f"{domain}.iets", f"{other}.iets", "nl.niemand.iets"])
    first = await answer(bode, registry, made, "refusals", reason="No legal basis.")
    assert (first.status, first.json["status"]) == (200, "requested")
    assert "No legal basis." in (await read(bode, provider, made))["statusReason"]
    assert (await answer(bode, registry, made, "refusals", reason="Again.")).status == 404
    second = await answer(bode, neighbour, made, "refusals", reason="Nor here.")
    assert second.json["status"] == "refused"
    shown = await read(bode, provider, made)
    assert (shown["status"], shown["statusReason"]) == ("refused", f"refused-by-registry: {neighbour.oin}: Nor here.")
    resumed = await bode.call("PATCH", made["url"], key=provider.key, body={"status": "active"})
    assert resumed.status == 409
    moved = await bode.call("PATCH", made["url"], key=provider.key, body={"sink": SINK + "2"})
    assert (moved.status, moved.json["status"]) == (200, "refused")


async def test_a_refused_subscription_is_taken_up_by_a_later_grant_or_asks_anew(bode: World) -> None:
    domain = fresh_domain()
    registry, provider = await bode.registry(domain), await bode.provider()
    one, two = [await bode.subscribe(provider, types=[f"{domain}.{name}"]) for name in ("een", "twee")]
    for made in (one, two):
        assert (await answer(bode, registry, made, "refusals", reason="No.")).json["status"] == "refused"
    await bode.grant(registry, provider, f"{domain}.een")
    assert (await read(bode, provider, one))["status"] == "validating"
    anew = await bode.call("PATCH", two["url"], key=provider.key, body={"types": [f"{domain}.drie"]})
    assert anew.json["status"] == "requested"
    assert [each["id"] for each in await requests(bode, registry)] == [two["id"]]
    covered = await bode.call("PATCH", two["url"], key=provider.key, body={"types": [f"{domain}.een"]})
    assert covered.json["status"] == "validating"


async def test_history_has_every_change_with_who_and_what_and_no_values(bode: World) -> None:
    domain = fresh_domain()
    registry, provider = await bode.registry(domain), await bode.provider()
    made = await bode.subscribe(provider, types=[f"{domain}.iets"])
    await answer(bode, registry, made, "approvals", legalBasis="Wet x")
    async with changing(bode.engine) as connection:
        assert await activate(connection, UUID(made["id"]), sink=SINK)
    filters = [{"exact": {"subject": "999990342"}}]
    await bode.call("PATCH", made["url"], key=provider.key, body={"filters": filters, "subscriberReference": "x"})
    await bode.call("PATCH", made["url"], key=provider.key, body={"status": "paused"})
    await bode.call("POST", made["url"] + "/secret", key=provider.key, body={"overlapSeconds": 0})
    await bode.call("PATCH", made["url"], key=provider.key, body={"sink": SINK + "2"})
    await bode.call("DELETE", made["url"], key=provider.key)
    history = await bode.call("GET", made["url"] + "/history", key=provider.key)
    lines = history.json["results"]
    own, other, nobody = ("provider", provider.oin), ("registry", registry.oin), ("broker", None)
    assert [((each["role"], each["organisation"]), each["changed"], each["status"]) for each in lines] == [
        (own, ["created"], "requested"),
        (other, ["status"], "validating"),
        (nobody, ["status"], "active"),
        (own, ["filters", "subscriberReference"], "active"),
        (own, ["status"], "paused"),
        (own, ["secret"], "paused"),
        (own, ["sink"], "paused"),
        (own, ["status"], "ended"),
    ]
    assert [each["version"] for each in lines] == list(range(1, 9))
    assert [each["key"] is not None for each in lines] == [True, False, False, True, True, True, True, True]
    assert "999990342" not in history.text
    operator = await bode.operator()
    assert (await bode.call("GET", made["url"] + "/history", key=operator)).json["count"] == 8
    assert (await bode.call("GET", made["url"] + "/history", key=(await bode.provider()).key)).status == 404


async def test_nothing_changed_leaves_no_line(bode: World) -> None:
    provider = await bode.provider()
    made = await bode.subscribe(provider)
    stale = {"if-match": '"7"'}
    assert (await bode.call("PUT", made["url"], key=provider.key, body=made, headers=stale)).status == 412
    assert (await bode.call("GET", made["url"] + "/history", key=provider.key)).json["count"] == 1


async def credential(bode: World, made: Any) -> Any:
    statement = select(subscriptions.c.sink_credential).where(subscriptions.c.id == UUID(made["id"]))
    async with bode.engine.connect() as connection:
        sealed = (await connection.execute(statement)).scalar_one()
    assert sealed is None or b"geheim" not in sealed
    return None if sealed is None else json.loads(RING.open(sealed, credential_purpose(UUID(made["id"]))))


@pytest.mark.parametrize("given", [PLAIN, TOKEN])
async def test_a_credential_is_stored_sealed_and_never_shown(bode: World, given: Any) -> None:
    provider = await bode.provider()
    made = await bode.subscribe(provider, sinkCredential=given)
    assert (await credential(bode, made)).items() >= given.items()
    for call in (
        await bode.call("GET", made["url"], key=provider.key),
        await bode.call("GET", "/subscriptions", key=provider.key),
        await bode.call("GET", made["url"] + "/history", key=provider.key),
        await bode.call("PATCH", made["url"], key=provider.key, body={"subscriberReference": "x"}),
        await bode.call("GET", "/subscriptions", key=await bode.operator()),
    ):
        assert call.status == 200
        assert "geheim" not in call.text + json.dumps(made)
        assert "sinkCredential" not in call.text.replace('"changed"', "")


async def test_a_credential_stays_until_it_is_taken_away_or_the_sink_is_another(bode: World) -> None:
    provider = await bode.provider()
    made = await bode.subscribe(provider, sinkCredential=PLAIN)

    async def patch(**body: Any) -> Any:
        answered = await bode.call("PATCH", made["url"], key=provider.key, body=body)
        assert answered.status == 200, answered.text
        return await credential(bode, made)

    assert await patch(subscriberReference="x") == PLAIN
    shown = await read(bode, provider, made)
    assert (await bode.call("PUT", made["url"], key=provider.key, body=shown)).status == 200
    assert await credential(bode, made) == PLAIN
    assert (await patch(sinkCredential=TOKEN))["accessToken"] == "geheim-456"
    assert await patch(sinkCredential=None) is None
    assert await patch(sinkCredential=PLAIN) == PLAIN
    assert await patch(sink="https://elders.example/hook") is None
    assert await patch(sink=SINK, sinkCredential=PLAIN) == PLAIN


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"credentialType": "PLAIN", "identifier": "x"}, "/sinkCredential/secret"),
        ({"credentialType": "OTHER"}, "/sinkCredential"),
        ({"credentialType": "PLAIN", "identifier": "x", "secret": "a\r\nb"}, "/sinkCredential/secret"),
        ({"credentialType": "ACCESSTOKEN"}, "/sinkCredential/accessToken"),
        (
            {"credentialType": "REFRESHTOKEN", "accessToken": "x", "refreshToken": "x", "refreshTokenEndpoint": "http://x"},
            "/sinkCredential/refreshTokenEndpoint",
        ),
        (7, "/sinkCredential"),
    ],
)  # fmt: skip
async def test_a_credential_that_cannot_be_is_refused(bode: World, given: Any, name: str) -> None:
    provider = await bode.provider()
    body = {"sink": SINK, "protocol": "HTTP", "sinkCredential": given}
    refused = await bode.call("POST", "/subscriptions", key=provider.key, body=body)
    assert (refused.status, refused.json["invalidParams"][0]["name"]) == (400, name)
