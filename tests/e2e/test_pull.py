"""Pulling: fetching what was missed, waiting for what comes, and saying what was taken over."""

import asyncio
import json
from typing import Any

from tests.e2e.events import event
from tests.e2e.installation import Installation
from tests.e2e.receiver import Receiver


async def _pull(installation: Installation, subscription: str, query: str = "", who: str = "gemeente") -> Any:
    status, answer, _ = await installation.call("GET", f"/subscriptions/{subscription}/events{query}", who)
    assert status == 200, answer
    return answer


async def _all(installation: Installation, subscription: str, limit: int) -> list[dict[str, Any]]:
    """Everything from number 1 on, page by page."""
    events, after = [], 0
    while True:
        answer = await _pull(installation, subscription, f"?after={after}&limit={limit}")
        if answer["through"] == after:
            return events
        assert not answer["tombstones"]
        events += answer["events"]
        after = answer["through"]


async def test_provider_whose_sink_was_down_fetches_everything_and_is_not_sent_it_again(
    installation: Installation, receiver: Receiver
) -> None:
    kind = "nl.brp.opgehaald"
    receiver.behaviours["down"] = lambda _: 503
    made = await installation.subscribe("gemeente", receiver.url("down"), types=[kind], subscriberReference="balie")
    source = installation.source("brp")
    sent = [event(source, kind, f"s-{number % 3}", data={"n": number}) for number in range(25)]
    await installation.publish("brp", sent)
    await installation.wait_for_health("gemeente", made["id"], lastSequence=25)

    events = await _all(installation, made["id"], limit=7)
    assert [each["subscriptionsequence"] for each in events] == [str(number) for number in range(1, 26)]
    assert {each["id"] for each in events} == {each["id"] for each in map(_parsed, sent)}
    assert {(each["subscription"], each["subscriberreference"]) for each in events} == {(made["id"], "balie")}
    for subject in {each["subject"] for each in events}:
        in_order = [each["data"]["n"] for each in events if each["subject"] == subject]
        assert in_order == sorted(in_order)

    first = await _pull(installation, made["id"], "?after=0&limit=10")
    status, moved, _ = await installation.call(
        "PUT", f"/subscriptions/{made['id']}/cursor", "gemeente", {"cursor": first["cursor"]}
    )
    assert (status, moved["through"], moved["lastSequence"], moved["ended"]) == (200, 10, 25, 10)
    await installation.wait_for_health("gemeente", made["id"], pending=15, deliveredThrough=10)
    assert (await _pull(installation, made["id"]))["events"][0]["subscriptionsequence"] == "11", "beyond the cursor"
    for cursor in (first["cursor"], (await _pull(installation, made["id"], "?after=24"))["cursor"], first["cursor"]):
        _, moved, _ = await installation.call(
            "PUT", f"/subscriptions/{made['id']}/cursor", "gemeente", {"cursor": cursor}
        )
    assert (moved["through"], moved["ended"]) == (25, 0), "a cursor never goes back"
    health = await installation.wait_for_health("gemeente", made["id"], pending=0, deliveredThrough=25, deadLetters=0)
    assert health["lastSequence"] == 25


async def test_pull_waits_until_something_comes(installation: Installation, receiver: Receiver) -> None:
    kind = "nl.brp.afgewacht"
    made = await installation.subscribe("gemeente", receiver.url("quiet"), types=[kind])
    waiting = asyncio.create_task(_pull(installation, made["id"], "?after=0&wait=30"))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await installation.publish("brp", [event(installation.source("brp"), kind, "a")])
    answer = await waiting
    assert [each["subscriptionsequence"] for each in answer["events"]] == ["1"]
    assert (await _pull(installation, made["id"], "?after=1&wait=1"))["events"] == []


async def test_what_a_grant_no_longer_covers_is_a_tombstone(installation: Installation, receiver: Receiver) -> None:
    kind = "nl.woz.ingetrokken"
    made = await installation.subscribe("pensioenfonds", receiver.url("ended"), types=[kind])
    await installation.publish("woz", [event(installation.source("woz"), kind, str(number)) for number in range(3)])
    await receiver.wait_for("ended", 3)
    assert len((await _pull(installation, made["id"], who="pensioenfonds"))["events"]) == 3
    _, grants, _ = await installation.call("GET", "/grants?status=standing", "woz")
    provider = made["organisation"]
    (standing,) = [each for each in grants["results"] if each["provider"] == provider]
    status, _, _ = await installation.call("DELETE", f"/grants/{standing['id']}", "woz")
    assert status == 204
    try:
        answer = await _pull(installation, made["id"], who="pensioenfonds")
        assert answer["events"] == []
        assert answer["tombstones"] == [{"from": 1, "to": 3, "state": "cancelled", "reason": "grant-ended"}]
    finally:
        again = {name: standing[name] for name in ("provider", "types", "legalBasis")}
        status, _, _ = await installation.call("POST", "/grants", "woz", again)
        assert status == 201


async def test_cursors_and_places_that_are_none_are_refused(installation: Installation, receiver: Receiver) -> None:
    mine = await installation.subscribe("gemeente", receiver.url("mine"), types=["nl.brp.geen"])
    other = await installation.subscribe("gemeente", receiver.url("other"), types=["nl.brp.geen"])
    theirs = (await _pull(installation, other["id"]))["cursor"]
    path = f"/subscriptions/{mine['id']}"
    for cursor in (theirs, "nonsense", "AAAA", ""):
        status, problem, _ = await installation.call("PUT", f"{path}/cursor", "gemeente", {"cursor": cursor})
        assert status == 400
        assert problem["invalidParams"][0]["name"] == "/cursor"
    for query in ("after=1", "after=-1", "after=x", "limit=0", "limit=1001", "wait=31", "wait=-1"):
        status, problem, _ = await installation.call("GET", f"{path}/events?{query}", "gemeente")
        assert status == 400, query
        assert problem["invalidParams"][0]["name"] == query.partition("=")[0]
    for who in ("pensioenfonds", "operator", "brp"):
        status, _, _ = await installation.call("GET", f"{path}/events", who)
        assert status in (403, 404), who
    _, cursor, _ = await installation.call("GET", f"{path}/cursor", "gemeente")
    assert cursor == {"subscription": mine["id"], "through": 0, "lastSequence": 0}


def _parsed(raw: bytes) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(raw)
    return parsed


async def test_a_subscription_that_is_pulled_has_everything_until_it_is_acknowledged(
    installation: Installation,
) -> None:
    kind = "nl.brp.gehaald"
    status, made, _ = await installation.call(
        "POST", "/subscriptions", "gemeente", {"protocol": "PULL", "types": [kind], "subscriberReference": "balie"}
    )
    assert (status, made["status"], made.get("sink"), made.get("secret")) == (201, "active", None, None)
    waiting = asyncio.create_task(_pull(installation, made["id"], "?wait=30"))
    sent = [event(installation.source("brp"), kind, f"s-{number % 2}") for number in range(7)]
    await installation.publish("brp", sent)
    assert (await waiting)["events"][0]["subscriptionsequence"] == "1"
    await installation.wait_for_health("gemeente", made["id"], lastSequence=7, pending=7, deliveredThrough=0)

    events = await _all(installation, made["id"], limit=3)
    assert [each["subscriptionsequence"] for each in events] == [str(number) for number in range(1, 8)]
    assert {each["id"] for each in events} == {_parsed(each)["id"] for each in sent}
    assert {each["subscriberreference"] for each in events} == {"balie"}

    part = await _pull(installation, made["id"], "?limit=3")
    await installation.call("PUT", f"/subscriptions/{made['id']}/cursor", "gemeente", {"cursor": part["cursor"]})
    await installation.wait_for_health("gemeente", made["id"], pending=4, deliveredThrough=3)
    rest = await _pull(installation, made["id"])
    assert (rest["completeThrough"], rest["through"]) == (3, 7)
    await installation.call("PUT", f"/subscriptions/{made['id']}/cursor", "gemeente", {"cursor": rest["cursor"]})
    health = await installation.wait_for_health("gemeente", made["id"], pending=0, deliveredThrough=7)
    assert (health["deadLetters"], health["lastOutcome"]) == (0, "delivered")
    _, account, _ = await installation.call(
        "GET", f"/subscriptions/{made['id']}/reconciliation?from=1&to=7", "gemeente"
    )
    assert account["completeThrough"] == 7


async def test_a_pull_ends_before_what_is_held_and_says_so(installation: Installation, receiver: Receiver) -> None:
    fine, wrong = "nl.brp.vrij", "nl.brp.vastgehouden"
    _, made, _ = await installation.call(
        "POST", "/subscriptions", "gemeente", {"protocol": "PULL", "types": [fine, wrong]}
    )
    source = installation.source("brp")
    await installation.publish("brp", [event(source, kind, "a") for kind in (fine, fine, wrong, fine)])
    await installation.wait_for_health("gemeente", made["id"], lastSequence=4)
    holds = []
    for scope, value in (("event-type", wrong), ("subscription", made["id"])):
        status, hold, _ = await installation.call(
            "POST", "/holds", "operator", {"scope": scope, "value": value, "reason": "Fout."}
        )
        assert status == 201
        holds.append(hold)

    async def release(hold: dict[str, Any]) -> None:
        status, _, _ = await installation.call("POST", f"/holds/{hold['id']}/release", "operator", {})
        assert status == 200

    try:
        answer = await _pull(installation, made["id"])
        assert (answer["events"], answer["through"], answer["held"]["scope"]) == ([], 0, "subscription")
    finally:
        await release(holds[1])
    try:
        answer = await _pull(installation, made["id"])
        assert [each["subscriptionsequence"] for each in answer["events"]] == ["1", "2"]
        assert (answer["through"], answer["lastSequence"], answer["held"]["scope"]) == (2, 4, "event-type")
        await installation.call("PUT", f"/subscriptions/{made['id']}/cursor", "gemeente", {"cursor": answer["cursor"]})
        waiting = asyncio.create_task(_pull(installation, made["id"], "?wait=30"))
        answer = await _pull(installation, made["id"], "?wait=1")
        assert (answer["events"], answer["tombstones"], answer["through"]) == ([], [], 2)
        assert (answer["completeThrough"], answer["held"]["scope"]) == (2, "event-type")
    finally:
        await release(holds[0])
    assert [each["subscriptionsequence"] for each in (await waiting)["events"]] == ["3", "4"]
    assert (await _pull(installation, made["id"], "?after=2"))["held"] is None


async def test_a_pull_waits_for_a_delay_and_shows_what_was_corrected_meanwhile(installation: Installation) -> None:
    slow, quick, back = "nl.brp.overleden-bedacht", "nl.brp.overleden-snel", "nl.brp.overleden-ingetrokken"
    for kind, delay in ((slow, 3600), (quick, 1)):
        status, problem, _ = await installation.call(
            "POST", "/event-types", "brp", {"type": kind, "meaning": "Overleden.", "delaySeconds": delay}
        )
        assert status == 201, problem
    _, made, _ = await installation.call(
        "POST", "/subscriptions", "gemeente", {"protocol": "PULL", "types": [slow, quick, back]}
    )
    source = installation.source("brp")
    wrong = event(source, slow, "a")
    await installation.publish("brp", [wrong, event(source, back, "b")])
    await installation.wait_for_health("gemeente", made["id"], lastSequence=2)
    answer = await _pull(installation, made["id"], "?after=0")
    assert (answer["events"], answer["tombstones"], answer["through"]) == ([], [], 0)
    assert answer["delayedUntil"] is not None

    taken_back = event(source, back, "a", corrects=_parsed(wrong)["id"], correction="withdraw")
    await installation.publish("brp", [taken_back])
    await installation.wait_for_health("gemeente", made["id"], lastSequence=3, pending=1)
    answer = await _pull(installation, made["id"], "?after=0")
    assert [each["subscriptionsequence"] for each in answer["events"]] == ["2"]
    assert [(each["from"], each["state"]) for each in answer["tombstones"]] == [(1, "cancelled"), (3, "cancelled")]
    assert answer["tombstones"][0]["reason"] == f"withdrawn: by {_parsed(taken_back)['id']}"
    assert (answer["through"], answer["delayedUntil"]) == (3, None)

    await installation.publish("brp", [event(source, quick, "c")])
    await installation.wait_for_health("gemeente", made["id"], lastSequence=4)
    answer = await _pull(installation, made["id"], "?after=3&wait=30")
    assert [each["subscriptionsequence"] for each in answer["events"]] == ["4"], "when its time has come"
