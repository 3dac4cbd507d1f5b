"""Subscriptions that are pulled: no sink, no secret, no handshake, nothing sent."""

from typing import Any

from accepting import Publisher
from delivering import Delivering, RawSink
from fixtures import IN_ONE_LOOP, one_process, own_types
from managing import Party, World, fresh_domain
from prometheus_client import REGISTRY

pytestmark = IN_ONE_LOOP

SINK = "https://afnemer.example/hook"

bode = one_process()
publisher = own_types()


async def pulled(world: World, provider: Party, domain: str, **members: Any) -> Any:
    body = {"protocol": "PULL", "domain": domain} | members
    return await world.call("POST", "/subscriptions", key=provider.key, body=body)


async def test_a_pulled_one_is_active_as_soon_as_it_is_granted_and_has_neither_sink_nor_secret(
    bode: Delivering,
) -> None:
    domain = fresh_domain()
    registry, provider = await bode.world.registry(domain), await bode.world.provider()
    made = await pulled(bode.world, provider, domain)
    assert (made.status, made.json["status"]) == (201, "requested")
    assert not {"sink", "secret"} & made.json.keys()
    await bode.world.grant(registry, provider, f"{domain}.*")
    url = made.json["url"]
    assert (await bode.world.call("GET", url, key=provider.key)).json["status"] == "active"
    assert (await pulled(bode.world, provider, domain)).json["status"] == "active", (
        "what has its grant is active at once"
    )
    for body in ({"status": "paused"}, {"status": "active"}):
        changed = await bode.world.call("PATCH", url, key=provider.key, body=body)
        assert (changed.status, changed.json["status"]) == (200, body["status"])
    renamed = await bode.world.call("PATCH", url, key=provider.key, body={"subscriberReference": "balie"})
    assert (renamed.status, renamed.json["status"], renamed.json.get("sink")) == (200, "active", None)


async def test_what_a_pulled_one_cannot_have_is_refused_by_name(bode: Delivering) -> None:
    provider = await bode.world.provider()
    credential = {"credentialType": "ACCESSTOKEN", "accessToken": "geheim", "accessTokenType": "bearer"}
    refused = {
        "/sink": {"sink": SINK},
        "/protocolSettings": {"protocolSettings": {"method": "POST"}},
        "/retry": {"retry": {"delays": ["PT1S"]}},
        "/config/heartbeatSeconds": {"config": {"heartbeatSeconds": "300"}},
        "/sinkCredential": {"sinkCredential": credential},
    }
    for name, members in refused.items():
        answer = await pulled(bode.world, provider, "nl.geen", **members)
        assert answer.status == 400, name
        assert [(each["name"], each["code"]) for each in answer.json["invalidParams"]] == [(name, "not-with-pull")]
    body = {"protocol": "HTTP", "domain": "nl.geen"}
    answer = await bode.world.call("POST", "/subscriptions", key=provider.key, body=body)
    assert (answer.status, answer.json["invalidParams"][0]["name"]) == (400, "/sink")


async def test_the_protocol_of_a_subscription_stays(bode: Delivering) -> None:
    provider = await bode.world.provider()
    made = (await pulled(bode.world, provider, "nl.geen")).json
    pushed = await bode.world.subscribe(provider, sink=SINK, domain="nl.geen")
    for url, body in (
        (made["url"], {"protocol": "HTTP", "sink": SINK}),
        (pushed["url"], {"protocol": "PULL", "sink": None}),
    ):
        answer = await bode.world.call("PATCH", url, key=provider.key, body=body)
        assert (answer.status, answer.json["invalidParams"][0]["name"]) == (400, "/protocol")


async def test_a_pulled_one_has_no_secret_to_rotate_and_no_sink_to_test(bode: Delivering) -> None:
    domain = fresh_domain()
    registry, provider = await bode.world.registry(domain), await bode.world.provider()
    await bode.world.grant(registry, provider, f"{domain}.*")
    url = (await pulled(bode.world, provider, domain)).json["url"]
    for path in ("/secret", "/test-notifications"):
        assert (await bode.world.call("POST", url + path, key=provider.key)).status == 409, path
    made = await bode.world.call("GET", url, key=provider.key)
    answer = await bode.world.call("PATCH", url, key=provider.key, body={"secret": "whsec_AAAA"})
    assert (answer.status, made.status) == (400, 200)


async def test_what_waits_to_be_pulled_is_never_read_to_be_sent_and_is_not_the_oldest_pending(
    bode: Delivering, publisher: Publisher
) -> None:
    body = {"protocol": "PULL", "domain": publisher.domain}
    made = await bode.world.call("POST", "/subscriptions", key=bode.provider_key, body=body)
    key = await bode.pool.fetchval("SELECT key FROM subscriptions WHERE id = $1::text::uuid", made.json["id"])
    async with RawSink() as sink:
        pushed = await bode.active(publisher, sink.url("/pushed"))
        await bode.publish(publisher, "a", "b")
        await sink.wait_for("POST", "/pushed", 2)
        await bode.tried(pushed, "delivered")
        engine, opened = bode.process._engine, []
        usual = engine._runners.open

        async def watched(keys: list[int]) -> None:
            opened.extend(keys)
            await usual(keys)

        engine._runners.open = watched  # type: ignore[method-assign]
        try:
            await bode.pool.execute(
                "UPDATE deliveries SET state = 'delivered', ended_at = now() "
                "WHERE state = 'pending' AND subscription <> $1",
                key,
            )
            await engine.feeder.sweep_once()
            await bode.publish(publisher, "c")
            await sink.wait_for("POST", "/pushed", 3)
            await engine.feeder.sweep_once()
        finally:
            engine._runners.open = usual  # type: ignore[method-assign]
        assert key not in opened
    rows = await bode.pool.fetch("SELECT sequence, state, attempts FROM deliveries WHERE subscription = $1", key)
    assert sorted(map(tuple, rows)) == [(1, "pending", 0), (2, "pending", 0), (3, "pending", 0)]
    assert (REGISTRY.get_sample_value("bode_deliveries_oldest_pending_seconds") or 0) < 60
