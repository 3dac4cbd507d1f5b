"""Test notifications: asked for over the API, sent by a delivery process to sinks on real sockets."""

import asyncio
import json
from typing import Any

import pytest
from accepting import Publisher
from delivering import Delivering, RawSink, answer
from fixtures import IN_ONE_LOOP, one_process, own_types, raw_sink
from standardwebhooks import Webhook

from subscriptions.trials import MOST_A_MINUTE

pytestmark = IN_ONE_LOOP

bode = one_process(attempt_seconds=2)
publisher = own_types()
sink = raw_sink()


async def ask(bode: Delivering, identity: Any) -> Any:
    return await bode.world.call("POST", f"/subscriptions/{identity}/test-notifications", key=bode.provider_key)


async def test_a_test_that_is_asked_for_again_is_sent_once(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    identity = await bode.active(publisher, sink.url("/once"))
    path, headers = f"/subscriptions/{identity}/test-notifications", {"idempotency-key": "test-once"}
    first, again = [await bode.world.call("POST", path, key=bode.provider_key, headers=headers) for _ in range(2)]
    assert (first.status, again.status, again.headers["idempotency-replayed"]) == (202, 202, "true")
    assert (first.json, first.headers["location"]) == (again.json, again.headers["location"])
    asked = "SELECT count(*) FROM test_notifications JOIN subscriptions ON subscriptions.id = subscription_id"
    assert await bode.pool.fetchval(f"{asked} WHERE subscriptions.id = $1", identity) == 1


async def told(bode: Delivering, url: str) -> Any:
    async with asyncio.timeout(20):
        while True:
            shown = (await bode.world.call("GET", url, key=bode.provider_key)).json
            if shown["state"] != "waiting":
                return shown
            await asyncio.sleep(0.05)


async def test_a_test_is_signed_has_no_number_and_shows_the_answer(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    sink.answers[("POST", "/hook")] = lambda _: answer("200 OK", body="dank u wel")
    made = await bode.world.call(
        "POST", "/subscriptions", key=bode.provider_key,
        body={"sink": sink.url("/hook"), "protocol": "HTTP", "types": [f"{publisher.domain}.iets"],
              "subscriberReference": "afdeling"},
    )  # fmt: skip
    identity = made.json["id"]
    await bode.wait_for(identity, status="active")
    asked = await ask(bode, identity)
    assert (asked.status, asked.json["state"]) == (202, "waiting")
    shown = await told(bode, asked.headers["location"])
    assert (shown["state"], shown["status"], shown["answer"], shown["reason"]) == ("answered", 200, "dank u wel", None)
    assert shown["milliseconds"] >= 0
    (got,) = sink.of("POST", "/hook")
    Webhook(made.json["secret"]).verify(got.body, dict(got.fields))
    event = json.loads(got.body)
    assert event["type"] == "nl.bode.test-notification"
    assert event["subscription"] == identity
    assert event["subscriberreference"] == "afdeling"
    assert event.keys().isdisjoint(("subscriptionsequence", "subject"))
    assert got.one("webhook-id") == f"test_{asked.json['id'].replace('-', '')}"
    assert (await bode.shown(identity))["health"]["lastSequence"] == 0
    stored = await bode.pool.fetchval("SELECT excerpt FROM test_notifications WHERE id = $1", asked.json["id"])
    assert b"dank" not in stored


@pytest.mark.parametrize(
    ("given", "state", "status", "reason"),
    [
        (answer("500 Internal Server Error", body="kapot"), "answered", 500, None),
        (answer("302 Found", "Location: http://127.0.0.1:1/"), "answered", 302, None),
        (b"nonsense\r\n\r\n", "failed", None, "not-http"),
    ],
)
async def test_what_a_sink_does_wrong_is_shown_and_has_no_consequence(
    bode: Delivering, publisher: Publisher, sink: RawSink, given: bytes, state: str, status: int | None, reason: Any
) -> None:
    identity = await bode.active(publisher, sink.url("/bad"))
    sink.answers[("POST", "/bad")] = lambda _: given
    asked = await ask(bode, identity)
    shown = await told(bode, asked.headers["location"])
    assert (shown["state"], shown["status"]) == (state, status)
    assert shown["reason"] is not None
    if status is None:
        assert shown["reason"] == reason
    after = await bode.shown(identity)
    assert (after["status"], after["health"]["pending"], after["health"]["lastOutcome"]) == ("active", 0, None)


async def test_a_sink_that_says_gone_to_a_test_is_not_disabled(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    identity = await bode.active(publisher, sink.url("/gone"))
    sink.answers[("POST", "/gone")] = lambda _: answer("410 Gone")
    shown = await told(bode, (await ask(bode, identity)).headers["location"])
    assert shown["status"] == 410
    assert (await bode.shown(identity))["status"] == "active"


async def test_the_fence_holds_for_tests_too(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    identity = await bode.active(publisher, sink.url("/fenced"))
    await bode.pool.execute("UPDATE subscriptions SET sink = 'http://10.0.0.1/' WHERE id = $1", identity)
    shown = await told(bode, (await ask(bode, identity)).headers["location"])
    assert (shown["state"], shown["status"], shown["reason"]) == ("failed", None, "address-not-allowed")


async def test_a_sink_that_has_not_consented_gets_no_test(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    sink.answers[("OPTIONS", "/silent")] = lambda _: answer("404 Not Found")
    identity = await bode.subscribe_to(publisher, sink.url("/silent"))
    refused = await ask(bode, identity)
    assert (refused.status, refused.json["code"]) == (409, "conflict")
    assert sink.of("POST", "/silent") == []


async def test_tests_are_limited_and_each_providers_own(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    identity = await bode.active(publisher, sink.url("/limited"))
    asked = [await ask(bode, identity) for _ in range(MOST_A_MINUTE)]
    assert [each.status for each in asked] == [202] * MOST_A_MINUTE
    refused = await ask(bode, identity)
    assert refused.status == 429
    assert int(refused.headers["retry-after"]) >= 1
    _, _, stranger = await bode.provider()
    path = f"/subscriptions/{identity}/test-notifications"
    assert (await bode.world.call("POST", path, key=stranger)).status == 404
    assert (await bode.world.call("GET", asked[0].headers["location"], key=stranger)).status == 404
    for each in asked:
        assert (await told(bode, each.headers["location"]))["state"] == "answered"
    assert len(sink.of("POST", "/limited")) == MOST_A_MINUTE


async def test_yesterdays_tests_are_forgotten(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    identity = await bode.active(publisher, sink.url("/old"))
    first = await ask(bode, identity)
    await told(bode, first.headers["location"])
    await bode.pool.execute(
        "UPDATE test_notifications SET requested_at = now() - interval '25 hours' WHERE subscription_id = $1", identity
    )
    await told(bode, (await ask(bode, identity)).headers["location"])
    assert (await bode.world.call("GET", first.headers["location"], key=bode.provider_key)).status == 404
