"""Heartbeats of quiet subscriptions: what they say, when they come, and that they are no deliveries."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from accepting import Publisher
from delivering import Asked, Delivering, RawSink, answer
from standardwebhooks.webhooks import Webhook

from broker.storage import heartbeats
from broker.storage.heartbeats import Beat

SHARDS = 4
ALL = [0, 1, 2, 3]


async def with_heartbeat(bode: Delivering, publisher: Publisher, target: str, seconds: int = 86400) -> UUID:
    return await bode.active(publisher, target, config={"heartbeatSeconds": str(seconds)})


async def due(bode: Delivering, identity: UUID) -> None:
    """As after the interval; whether it is sent depends on how quiet it was."""
    async with asyncio.timeout(20):  # its first time must have been decided
        while (await bode.row(identity))["heartbeat_at"] is None:
            await asyncio.sleep(0.02)
    await bode.alter(identity, "heartbeat_at = now() - interval '1 second'")


async def all_ended_long_ago(bode: Delivering, identity: UUID, count: int) -> None:
    key = (await bode.row(identity))["key"]
    async with asyncio.timeout(20):
        while {row["state"] for row in await bode.deliveries(key)} != {"delivered"}:
            await asyncio.sleep(0.02)
    await bode.pool.execute(
        "UPDATE deliveries SET ended_at = ended_at - interval '2 days' WHERE subscription = $1", key
    )
    assert len(await bode.deliveries(key)) == count


def beats(asked: list[Asked]) -> list[dict[str, Any]]:
    events = [json.loads(request.body) for request in asked]
    return [event for event in events if event["type"] == "nl.bode.heartbeat"]


async def wait_for_beats(sink: RawSink, target: str, count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(20):
        while len(found := beats(sink.of("POST", target))) < count:
            await asyncio.sleep(0.02)
    return found


async def test_heartbeat_says_how_far_the_numbers_go_is_signed_and_counts_as_no_delivery(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    body = {"sink": sink.url("/"), "protocol": "HTTP", "types": [f"{publisher.domain}.iets"],
            "config": {"heartbeatSeconds": "86400"}, "subscriberReference": "ons kenmerk"}  # fmt: skip
    made = (await bode.world.call("POST", "/subscriptions", key=bode.provider_key, body=body)).json
    identity = UUID(made["id"])
    bode.process._handshaker.ask()
    await bode.wait_for(identity, status="active")
    await bode.publish(publisher, "a", "b", "c")
    await all_ended_long_ago(bode, identity, 3)
    key = (await bode.row(identity))["key"]
    await bode.pool.execute(
        "UPDATE deliveries SET state = 'pending', ended_at = NULL, next_attempt_at = now() + interval '1 hour'"
        " WHERE subscription = $1 AND sequence = 2", key,
    )  # fmt: skip
    await due(bode, identity)
    [beat] = await wait_for_beats(sink, "/", 1)
    assert beat["data"] == {"lastSequence": 3, "completeThrough": 1}
    assert (beat["subscription"], beat["subscriberreference"]) == (made["id"], "ons kenmerk")
    assert beat["source"] == f"urn:uuid:{made['id']}"
    assert not {"subject", "subscriptionsequence"} & beat.keys()
    request = sink.of("POST", "/")[-1]
    assert request.one("content-type").startswith("application/cloudevents+json")
    Webhook(made["secret"]).verify(request.body, dict(request.fields))
    assert len(await bode.deliveries(key)) == 3
    assert await bode.pool.fetchval("SELECT count(*) FROM attempts WHERE subscription = $1", key) == 0


async def test_who_never_matched_anything_hears_that_too(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    identity = await with_heartbeat(bode, publisher, sink.url("/"))
    await due(bode, identity)
    [beat] = await wait_for_beats(sink, "/", 1)
    assert beat["data"] == {"lastSequence": 0, "completeThrough": 0}


async def test_subscription_that_has_just_had_its_last_number_is_not_quiet(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    identity = await with_heartbeat(bode, publisher, sink.url("/"), 1000)
    other = await with_heartbeat(bode, publisher, sink.url("/other"), 1000)
    await bode.publish(publisher, "a")
    await all_ended_long_ago(bode, other, 1)
    await bode.tried(identity, "delivered")
    ended = (await bode.deliveries((await bode.row(identity))["key"]))[0]["ended_at"]
    await due(bode, identity)
    await due(bode, other)
    await wait_for_beats(sink, "/other", 1)
    async with asyncio.timeout(20):
        while (at := (await bode.row(identity))["heartbeat_at"]) < datetime.now(UTC):
            await asyncio.sleep(0.02)
    assert (at - ended).total_seconds() == pytest.approx(1000)
    assert beats(sink.of("POST", "/")) == []


async def test_heartbeat_is_claimed_once_and_the_next_is_an_interval_away(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    identity = await bode.active(publisher, sink.url("/"))
    key = (await bode.row(identity))["key"]
    await bode.pool.execute("UPDATE leases SET owner = NULL")  # nobody of ours looks
    bode.process._leasing._epochs.clear()
    await bode.alter(identity, "heartbeat_seconds = 1000, heartbeat_at = now() - interval '3 days'")
    async with bode.pool.acquire() as one, bode.pool.acquire() as two:
        claims = await asyncio.gather(*(heartbeats.claim(each, SHARDS, ALL, 10) for each in (one, two)))
    assert sorted(([beat for beat in found] for found, _ in claims), key=len) == [[], [Beat(key, 0, 0)]]
    away = (await bode.row(identity))["heartbeat_at"] - datetime.now(UTC)
    assert 850 < away.total_seconds() < 1150, "one for all that were missed"
    async with bode.pool.acquire() as connection:
        for state in ("paused", "disabled"):
            await bode.alter(identity, f"heartbeat_at = now() - interval '1 day', status = '{state}'")
            assert await heartbeats.claim(connection, SHARDS, ALL, 10) == ([], False)
        await bode.alter(identity, "status = 'active'")
        others = [shard for shard in ALL if shard != key % SHARDS]
        assert await heartbeats.claim(connection, SHARDS, others, 10) == ([], False)
        assert await heartbeats.claim(connection, SHARDS, [key % SHARDS], 1) == ([Beat(key, 0, 0)], True)


async def test_gone_sink_is_disabled_and_one_that_asks_for_patience_gets_it(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    sink.answers["POST", "/gone"] = lambda _: answer("410 Gone")
    sink.answers["POST", "/busy"] = lambda _: answer("503 Busy", "Retry-After: 5000")
    gone, busy = [await with_heartbeat(bode, publisher, sink.url(target), 10) for target in ("/gone", "/busy")]
    for identity in (gone, busy):
        await due(bode, identity)
    shown = await bode.wait_for(gone, status="disabled")
    assert shown["statusReason"] == "sink-gone: the sink answered 410"
    async with asyncio.timeout(20):
        while ((await bode.row(busy))["heartbeat_at"] - datetime.now(UTC)).total_seconds() < 4000:
            await asyncio.sleep(0.02)
    assert (await bode.row(busy))["status"] == "active"


@pytest.mark.parametrize("seconds", ["9", "86401", "-10", "1.5", "", "ten", "١٠", "9" * 400])
async def test_interval_is_a_whole_number_within_bounds(
    seconds: str, bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    body = {"sink": sink.url("/"), "protocol": "HTTP", "config": {"heartbeatSeconds": seconds}}
    refused = await bode.world.call("POST", "/subscriptions", key=bode.provider_key, body=body)
    assert refused.status == 400
    assert "heartbeatSeconds must be a whole number from 10 to 86400" in refused.text


async def test_heartbeats_are_asked_for_and_declined_by_a_patch(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    identity = await bode.active(publisher, sink.url("/"))
    for seconds in ("60", None):
        body = {"config": {"heartbeatSeconds": seconds}}
        await bode.world.call("PATCH", f"/subscriptions/{identity}", key=bode.provider_key, body=body)
        row = await bode.row(identity)
        assert row["heartbeat_seconds"] == (None if seconds is None else int(seconds))
