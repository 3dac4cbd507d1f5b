from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fixtures import api, declared_database
from managing import World, fresh_domain

from subscriptions.callers import Scope
from subscriptions.directory import load

url = declared_database()
bode = api()


def grant(provider: str, *types: str, **members: Any) -> dict[str, Any]:
    return {"provider": provider, "types": list(types), "legalBasis": "Wet BRP, artikel 3.2"} | members


async def test_a_registry_grants_and_both_sides_and_the_operator_see_it(bode: World) -> None:
    domain = fresh_domain()
    registry, provider, stranger = await bode.registry(domain), await bode.provider(), await bode.provider()
    made = await bode.call("POST", "/grants", key=registry.key, body=grant(provider.oin, f"{domain}.*"))
    assert made.status == 201, made.text
    assert (made.json["registry"], made.json["provider"]) == (registry.oin, provider.oin)
    path = f"/grants/{made.json['id']}"
    assert made.headers["location"] == f"http://bode.example/v1{path}"
    for key in (registry.key, provider.key, await bode.operator()):
        assert (await bode.call("GET", path, key=key)).json == made.json
    assert (await bode.call("GET", path, key=stranger.key)).status == 404
    assert (await bode.call("GET", "/grants", key=stranger.key)).json["results"] == []
    assert (await bode.call("GET", "/grants", key=provider.key)).json["results"] == [made.json]


async def test_a_registry_grants_nothing_outside_its_own_domains(bode: World) -> None:
    domain = fresh_domain()
    registry, other, provider = await bode.registry(domain), await bode.registry(), await bode.provider()
    below = {"name": f"{domain}.deep", "organisation": other.oin}
    assert (await bode.call("POST", "/domains", key=await bode.operator(), body=below)).status == 201
    for pattern in ("nl.nobody.x", f"{domain}x.y", f"{domain}.deep.x", f"{domain}.deep.*"):
        answer = await bode.call("POST", "/grants", key=registry.key, body=grant(provider.oin, f"{domain}.a", pattern))
        assert (answer.status, answer.json["code"]) == (403, "forbidden"), pattern
    by_provider = await bode.call("POST", "/grants", key=provider.key, body=grant(provider.oin, f"{domain}.a"))
    assert by_provider.status == 403
    assert (await bode.call("GET", "/grants", key=provider.key)).json["count"] == 0


@pytest.mark.parametrize(
    ("members", "name"),
    [
        ({"types": []}, "/types"),
        ({"types": ["*"]}, "/types/0"),
        ({"types": ["nl.*.x"]}, "/types/0"),
        ({"types": ["nl.bag*"]}, "/types/0"),
        ({"provider": "00000099000000000000"}, "/provider"),
        ({"provider": "17"}, "/provider"),
        ({"legalBasis": ""}, "/legalBasis"),
        ({"validUntil": "2020-01-01T00:00:00Z"}, "/validUntil"),
        ({"validFrom": "2030-01-01T00:00:00Z", "validUntil": "2029-01-01T00:00:00Z"}, "/validUntil"),
        ({"validFrom": "2030-01-01T00:00:00"}, "/validFrom"),
        ({"attributes": ["subject"]}, "/attributes"),
    ],
)
async def test_a_grant_that_cannot_be_is_refused(bode: World, members: dict[str, Any], name: str) -> None:
    domain = fresh_domain()
    registry, provider = await bode.registry(domain), await bode.provider()
    body = grant(provider.oin, f"{domain}.x") | members
    answer = await bode.call("POST", "/grants", key=registry.key, body=body)
    assert (answer.status, answer.json["invalidParams"][0]["name"]) == (400, name), answer.text


async def test_a_revocation_cancels_what_is_pending_and_ends_the_grant(bode: World) -> None:
    domain = fresh_domain()
    registry, provider = await bode.registry(domain), await bode.provider()
    grant_id = await bode.grant(registry, provider, f"{domain}.*")
    path, now = f"/grants/{grant_id}", datetime.now(UTC)
    assert (await load(bode.engine))[1].granted(provider.id, f"{domain}.x", now) == grant_id
    for key in (provider.key, (await bode.registry()).key):
        assert (await bode.call("DELETE", path, key=key)).status in (403, 404)
    assert bode.cancelled == []
    assert (await bode.call("DELETE", path, key=registry.key)).status == 204
    assert bode.cancelled == [("grant", provider.id, grant_id)]
    assert (await load(bode.engine))[1].granted(provider.id, f"{domain}.x", now) is None
    assert [(await bode.call(method, path, key=registry.key)).status for method in ("GET", "DELETE")] == [404, 404]
    revoked = (await bode.call("GET", "/grants?status=revoked", key=provider.key)).json["results"]
    assert [found["id"] for found in revoked] == [str(grant_id)]
    assert (await bode.call("GET", "/grants?status=standing", key=provider.key)).json["count"] == 0


async def test_a_revocation_that_cannot_cancel_does_not_happen(bode: World, monkeypatch: pytest.MonkeyPatch) -> None:
    domain = fresh_domain()
    registry, provider = await bode.registry(domain), await bode.provider()
    grant_id = await bode.grant(registry, provider, f"{domain}.*")

    async def broken(*_: object) -> None:
        raise RuntimeError

    object.__setattr__(bode.app.state.context, "cancel_ungranted", broken)
    assert (await bode.call("DELETE", f"/grants/{grant_id}", key=registry.key)).status == 500
    assert (await bode.call("GET", f"/grants/{grant_id}", key=registry.key)).json["revokedAt"] is None


COVERED = [
    ({"types": ["{d}.moved"]}, True),
    ({"types": ["{d}.adres.new"]}, True),
    ({"types": ["{d}.died"]}, False),
    ({"types": ["{d}.died", "{d}.moved"]}, True),
    ({"domain": "{d}"}, True),
    ({"domain": "{d}.adres.deep"}, True),
    ({"domain": "{d}.persoon"}, False),
    ({"domain": "nl"}, True),
    ({"domain": "{d}.adres", "types": ["{d}.moved"]}, False),
    ({}, True),
    ({"source": "urn:nld:oin:{r}:systeem:x"}, True),
    ({"source": "urn:nld:oin:{r}"}, True),
    ({"source": "urn:nld:oin:{r}9:systeem:x"}, False),
    ({"source": "urn:nld:oin:00000001823288444000:systeem:x"}, False),
]


@pytest.mark.parametrize(("asked", "covered"), COVERED)
async def test_a_subscription_waits_for_a_grant_unless_one_overlaps(
    bode: World, asked: dict[str, Any], covered: bool
) -> None:
    domain = fresh_domain()
    registry, provider = await bode.registry(domain), await bode.provider()
    await bode.grant(registry, provider, f"{domain}.moved", f"{domain}.adres.*")

    def fill(value: Any) -> Any:
        if isinstance(value, list):
            return [fill(element) for element in value]
        return value.format(d=domain, r=registry.oin)

    made = await bode.subscribe(provider, **{name: fill(value) for name, value in asked.items()})
    assert made["status"] == ("validating" if covered else "requested")


async def test_neither_a_revoked_nor_a_run_out_grant_overlaps_but_one_to_come_does(bode: World) -> None:
    domain = fresh_domain()
    registry, provider = await bode.registry(domain), await bode.provider()
    grant_id = await bode.grant(registry, provider, f"{domain}.*")
    await bode.call("DELETE", f"/grants/{grant_id}", key=registry.key)
    made = await bode.subscribe(provider, domain=domain)
    assert made["status"] == "requested"
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    later = await bode.call("POST", "/grants", key=registry.key, body=grant(provider.oin, domain, validFrom=tomorrow))
    assert later.status == 201
    assert (await bode.call("GET", f"/subscriptions/{made['id']}", key=provider.key)).json["status"] == "validating"
    _, directory = await load(bode.engine)
    assert directory.granted(provider.id, domain, datetime.now(UTC)) is None
    assert directory.granted(provider.id, domain, datetime.now(UTC) + timedelta(days=2)) is not None


async def test_a_key_that_publishes_only_sees_no_grants(bode: World) -> None:
    publisher = await bode.party(Scope.PUBLISH)
    assert (await bode.call("GET", "/grants", key=publisher.key)).status == 403
