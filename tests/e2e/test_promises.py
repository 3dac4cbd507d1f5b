"""Promises 6 and 8 over processes: what the API has answered holds for everything that happens afterwards."""

import asyncio

from tests.e2e.events import event
from tests.e2e.installation import Installation
from tests.e2e.receiver import Receiver


async def test_revocation_cancels_what_is_pending_and_nothing_leaves_after_its_answer(
    installation: Installation, receiver: Receiver
) -> None:
    provider = installation.about["keys"]["providers"]["pensioenfonds"]["oin"]
    _, grants, _ = await installation.call("GET", "/grants", "woz")
    [grant] = [found for found in grants["results"] if found["provider"] == provider]
    receiver.behaviours["granted"] = lambda received: 503 if received.sequence <= 5 else 204
    made = await installation.subscribe("pensioenfonds", receiver.url("granted"), types=["nl.woz.waarde"])
    source = installation.source("woz")

    async def flood() -> None:
        for number in range(30):
            await installation.publish("woz", [event(source, "nl.woz.waarde", f"{number}-{n}") for n in range(10)])

    flooding = asyncio.create_task(flood())
    await receiver.wait_for("granted", 50)
    status, _, _ = await installation.call("DELETE", f"/grants/{grant['id']}", "woz")
    assert status == 204
    await asyncio.sleep(0.2)  # attempts that were under way when it was answered
    reached = len(receiver.at("granted"))
    await flooding
    await asyncio.sleep(1.5)
    assert len(receiver.at("granted")) == reached
    health = await installation.wait_for_health("pensioenfonds", made["id"], pending=0)
    assert health["lastSequence"] < 300
    await installation.call(
        "POST", "/grants", "woz", {"provider": provider, "types": ["nl.woz.*"], "legalBasis": "test"}
    )


async def test_paused_subscription_is_numbered_and_sends_nothing_until_it_is_resumed(
    installation: Installation, receiver: Receiver
) -> None:
    made = await installation.subscribe("gemeente", receiver.url("paused"), types=["nl.woz.pauze"])
    source = installation.source("woz")
    await installation.publish("woz", [event(source, "nl.woz.pauze", "a")])
    await receiver.wait_for("paused", 1)
    await installation.call("PATCH", f"/subscriptions/{made['id']}", "gemeente", {"status": "paused"})
    await installation.publish("woz", [event(source, "nl.woz.pauze", "a") for _ in range(20)])
    await installation.wait_for_health("gemeente", made["id"], lastSequence=21, pending=20)
    assert len(receiver.at("paused")) == 1
    await installation.call("PATCH", f"/subscriptions/{made['id']}", "gemeente", {"status": "active"})
    received = await receiver.wait_for("paused", 21)
    assert [item.sequence for item in received] == list(range(1, 22))


async def test_subscription_holds_for_every_event_published_after_it_is_active(
    installation: Installation, receiver: Receiver
) -> None:
    source = installation.source("brk")
    for number in range(5):
        await installation.subscribe("gemeente", receiver.url(f"fresh-{number}"), types=[f"nl.brk.vers-{number}"])
        await installation.publish("brk", [event(source, f"nl.brk.vers-{number}", "a")])
        [received] = await receiver.wait_for(f"fresh-{number}", 1)
        assert received.sequence == 1
