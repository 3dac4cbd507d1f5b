"""One sink at a time, from RabbitMQ to the socket."""

import asyncio
import json
import time

from standardwebhooks.webhooks import Webhook

from tests.e2e.events import event
from tests.e2e.installation import Installation
from tests.e2e.receiver import Received, Receiver


async def test_notification_is_signed_numbered_and_carries_the_event(
    installation: Installation, receiver: Receiver
) -> None:
    made = await installation.subscribe(
        "gemeente", receiver.url("one"), types=["nl.brp.een"], subscriberReference="afdeling"
    )
    sent = event(installation.source("brp"), "nl.brp.een", "999990342", unknownextension="kept", data={"x": 1.0})
    await installation.publish("brp", [sent])
    [received] = await receiver.wait_for("one", 1)
    assert received.headers["content-type"].startswith("application/cloudevents+json")
    assert received.headers["content-length"] == str(len(received.body))
    assert received.headers["webhook-request-origin"]
    assert received.headers["traceparent"].startswith("00-")
    assert received.event["subscription"] == made["id"]
    assert received.event["subscriptionsequence"] == "1"
    assert received.event["subscriberreference"] == "afdeling"
    assert received.event["unknownextension"] == "kept"
    assert b'"data":{"x":1.0}' in received.body.replace(b" ", b"")
    Webhook(made["secret"]).verify(received.body, received.headers)


async def test_sink_that_fails_twice_gets_it_on_the_third_attempt(
    installation: Installation, receiver: Receiver
) -> None:
    receiver.behaviours["twice"] = lambda received: 500 if received.attempt < 3 else 204
    made = await installation.subscribe("gemeente", receiver.url("twice"), types=["nl.brp.twee"])
    started = time.monotonic()
    await installation.publish("brp", [event(installation.source("brp"), "nl.brp.twee", "a")])
    health = await installation.wait_for_health("gemeente", made["id"], deliveredThrough=1)
    assert [received.attempt for received in receiver.at("twice")] == [1, 2, 3]
    assert len({received.headers["webhook-id"] for received in receiver.at("twice")}) == 1
    assert time.monotonic() - started < 10
    assert health["pending"] == 0
    assert health["lastOutcome"] == "delivered"


async def test_gone_sink_disables_its_subscription_and_keeps_the_delivery(
    installation: Installation, receiver: Receiver
) -> None:
    receiver.behaviours["gone"] = lambda received: 410 if len(receiver.at("gone")) == 1 else 204
    made = await installation.subscribe("gemeente", receiver.url("gone"), types=["nl.brp.weg"])
    await installation.publish("brp", [event(installation.source("brp"), "nl.brp.weg", "a")])
    shown = await installation.wait_for_status("gemeente", made["id"], "disabled")
    assert shown["statusReason"].startswith("sink-gone")
    assert shown["health"]["pending"] == 1
    await installation.publish("brp", [event(installation.source("brp"), "nl.brp.weg", "b")])
    await installation.wait_for_health("gemeente", made["id"], lastSequence=2, pending=2)
    await installation.call("PATCH", f"/subscriptions/{made['id']}", "gemeente", {"status": "active"})
    await receiver.wait_for("gone", 2)
    await installation.wait_for_health("gemeente", made["id"], deliveredThrough=2)


async def test_silent_sink_delays_no_other_on_the_same_host(installation: Installation, receiver: Receiver) -> None:
    async def never(_: Received) -> int:
        await asyncio.sleep(3600)
        return 204

    receiver.behaviours["silent"] = never
    await installation.subscribe("gemeente", receiver.url("silent"), types=["nl.brp.stil"])
    await installation.subscribe("pensioenfonds", receiver.url("brisk"), types=["nl.brp.stil"])
    source = installation.source("brp")
    started = time.monotonic()
    await installation.publish("brp", [event(source, "nl.brp.stil", str(number)) for number in range(200)])
    await receiver.wait_for("brisk", 200, seconds=9)
    assert time.monotonic() - started < 9
    assert receiver.at("silent")


async def test_lane_keeps_its_order_and_holds_no_other_while_it_retries(
    installation: Installation, receiver: Receiver
) -> None:
    others = [f"other-{number}" for number in range(20)]

    def fail_the_first_until_the_others_came(received: Received) -> int:
        came = {item.event["subject"] for item in receiver.at("lanes")}
        behind = [item.event["id"] for item in receiver.at("lanes") if item.event["subject"] == "slow"]
        return 503 if [received.event["id"]] == behind[:1] and not came.issuperset(others) else 204

    receiver.behaviours["lanes"] = fail_the_first_until_the_others_came
    await installation.subscribe("gemeente", receiver.url("lanes"), types=["nl.brp.rij"])
    source = installation.source("brp")
    slow = [event(source, "nl.brp.rij", "slow") for _ in range(3)]
    between = [event(source, "nl.brp.rij", subject) for subject in others]
    await installation.publish("brp", [slow[0], *between, *slow[1:]])
    received = await receiver.wait_for("lanes", len(slow) + len(others))
    of_lane = [item for item in received if item.event["subject"] == "slow"]
    assert of_lane[0].attempt == 1
    assert list(dict.fromkeys(item.event["id"] for item in of_lane)) == [json.loads(each)["id"] for each in slow]
    assert list(dict.fromkeys(item.sequence for item in of_lane)) == sorted({item.sequence for item in of_lane})


async def test_duplicates_are_accepted_once(installation: Installation, receiver: Receiver) -> None:
    await installation.subscribe("gemeente", receiver.url("twin"), types=["nl.brp.dubbel"])
    twin = event(installation.source("brp"), "nl.brp.dubbel", "a")
    last = event(installation.source("brp"), "nl.brp.dubbel", "a")
    await installation.publish("brp", [twin, twin, twin])
    await installation.publish("brp", [twin, last])
    received = await receiver.wait_for("twin", 2)
    assert [item.sequence for item in received] == [1, 2]


async def test_sink_without_consent_never_receives_anything(installation: Installation, receiver: Receiver) -> None:
    receiver.consents = False
    _, made, _ = await installation.call(
        "POST",
        "/subscriptions",
        "gemeente",
        {"sink": receiver.url("shy"), "protocol": "HTTP", "types": ["nl.brp.schuw"]},
    )
    async with asyncio.timeout(10):
        while len(receiver.handshakes) < 2:
            await asyncio.sleep(0.05)
    await installation.publish("brp", [event(installation.source("brp"), "nl.brp.schuw", "a")])
    _, shown, _ = await installation.call("GET", f"/subscriptions/{made['id']}", "gemeente")
    assert shown["status"] == "validating"
    assert "WebHook-Allowed-Origin" in shown["statusReason"]
    assert not receiver.at("shy")
