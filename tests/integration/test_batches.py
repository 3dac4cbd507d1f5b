"""Batches: several notifications in one request, on real sockets and PostgreSQL."""

import asyncio
import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from accepting import Publisher
from delivering import ACCEPTED, Asked, Delivering, RawSink, answer
from managing import RING
from standardwebhooks.webhooks import Webhook

from broker.delivery.batches import batch_id
from broker.delivery.lanes import LANE_WINDOW, RunQueue
from broker.tools.listen_ledger import Ledger
from broker.tools.listen_receiver import Inbox, Notification, Receiver, Refusal
from subscriptions import grants, signing_keys
from subscriptions.change_log import changing

LONG = 60_000


def batch(count: int = 100, *, size: int = 1 << 20, linger: int = LONG, **others: Any) -> dict[str, Any]:
    """Settings of a subscription; by default a batch that isn't full waits for ever."""
    settings = {"batch": {"maxCount": count, "maxBytes": size, "lingerMilliseconds": linger}}
    return {"protocolSettings": settings | others}


def numbers(asked: Asked) -> list[int]:
    return [int(item["subscriptionsequence"]) for item in json.loads(asked.body)]


async def publish(bode: Delivering, publisher: Publisher, events: list[tuple[str | None, dict[str, Any]]]) -> None:
    """Accept these in one commit, as subject and further members, and tell the process."""
    acceptor = await bode.acceptor()
    await acceptor.accept([publisher.message(subject=subject, **members) for subject, members in events])
    await bode.publish(publisher)


async def all_ended(bode: Delivering, identity: UUID, count: int) -> list[Any]:
    """Wait until so many deliveries of a subscription have ended; all rows in order of number."""
    key = (await bode.row(identity))["key"]
    async with asyncio.timeout(40):
        while True:
            rows = list(await bode.deliveries(key))
            if sum(row["state"] != "pending" for row in rows) == count:
                return rows
            await asyncio.sleep(0.05)


def refuses(bad: str, status: str = "400 Bad Request") -> Callable[[Asked], bytes]:
    """Refuses whatever holds this event, and doesn't say why."""
    return lambda asked: answer(status) if bad.encode() in asked.body else ACCEPTED


async def test_full_batch_is_one_signed_request_with_an_item_for_each_notification(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    async with bode.world.engine.begin() as connection:
        await signing_keys.ensure(connection, RING)
    made = await bode.world.call(
        "POST", "/subscriptions", key=bode.provider_key,
        body={"sink": sink.url("/"), "protocol": "HTTP", "types": [f"{publisher.domain}.iets"],
              "subscriberReference": "afdeling", **batch(5, signatures=["v1", "v1a"])},
    )  # fmt: skip
    assert made.status == 201, made.text
    identity = made.json["id"]
    await bode.wait_for(identity, status="active")
    await publish(bode, publisher, [("a", {}), ("b", {}), ("a", {}), (None, {"data": {"é": "ë"}}), ("a", {})])
    (asked,) = await sink.wait_for("POST", "/", 1)
    assert asked.one("content-type") == "application/cloudevents-batch+json; charset=utf-8"
    items = json.loads(asked.body)
    assert [item["subscriptionsequence"] for item in items] == ["1", "2", "3", "4", "5"]
    assert all(item["subscription"] == identity for item in items)
    assert all(item["subscriberreference"] == "afdeling" for item in items)
    assert items[3]["data"] == {"é": "ë"}
    assert asked.one("webhook-id") == batch_id(UUID(identity), [1, 2, 3, 4, 5])
    Webhook(made.json["secret"]).verify(asked.body, dict(asked.fields))
    assert sorted(each.split(",")[0] for each in asked.one("webhook-signature").split()) == ["v1", "v1a"]
    rows = await all_ended(bode, identity, 5)
    assert {(row["state"], row["attempts"], row["status"]) for row in rows} == {("delivered", 1, 204)}


async def test_batch_waits_until_it_is_full_and_no_longer(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    await bode.active(publisher, sink.url("/"), **batch(4))
    await bode.publish(publisher, "a", "b")
    await bode.publish(publisher, "c")
    await bode.publish(publisher, "d")
    (asked,) = await sink.wait_for("POST", "/", 1)
    assert numbers(asked) == [1, 2, 3, 4]


async def test_batch_that_never_fills_goes_when_it_has_waited(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    await bode.active(publisher, sink.url("/"), **batch(100, linger=50))
    await bode.publish(publisher, "a", "b")
    assert numbers((await sink.wait_for("POST", "/", 1))[0]) == [1, 2]


@pytest.mark.parametrize("ordering", ["subject", "subscription", "none"])
async def test_backlog_goes_in_full_batches_in_order_and_waits_for_nothing(
    bode: Delivering, publisher: Publisher, sink: RawSink, ordering: str
) -> None:
    identity = await bode.active(publisher, sink.url("/"), ordering=ordering, **batch(50, linger=200))
    await publish(bode, publisher, [(f"s{number % 7}", {}) for number in range(400)])
    await all_ended(bode, identity, 400)
    asked = sink.of("POST", "/")
    came = [number for each in asked for number in numbers(each)]
    assert sorted(came) == list(range(1, 401))
    assert all(len(numbers(each)) <= 50 for each in asked)
    assert len(asked) <= 24
    by_lane = defaultdict[object, list[int]](list)
    for number in came:
        by_lane[{"subject": number % 7, "subscription": 0, "none": number}[ordering]].append(number)
    assert all(lane == sorted(lane) for lane in by_lane.values())


async def test_bytes_bound_a_batch_and_what_is_larger_goes_alone(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    identity = await bode.active(publisher, sink.url("/"), **batch(100, size=8192))
    sizes = [1000] * 10 + [20_000] + [3000] * 5
    await publish(bode, publisher, [(f"s{n % 3}", {"data": "x" * size}) for n, size in enumerate(sizes)] * 10)
    rows = await all_ended(bode, identity, 160)
    assert {row["attempts"] for row in rows} == {1}
    for asked in sink.of("POST", "/"):
        assert len(asked.body) <= 8192 or len(numbers(asked)) == 1
    assert max(len(numbers(asked)) for asked in sink.of("POST", "/")) > 3


@pytest.mark.parametrize("status", ["400 Bad Request", "413 Content Too Large", "422 Unprocessable Content"])
async def test_one_bad_item_among_a_hundred_is_found_and_costs_the_others_nothing(
    bode: Delivering, publisher: Publisher, sink: RawSink, status: str
) -> None:
    identity = await bode.active(publisher, sink.url("/"), **batch(linger=500))
    sink.answers["POST", "/"] = refuses("the-bad-one", status)
    events: list[tuple[str | None, dict[str, Any]]] = [(f"s{number % 10}", {}) for number in range(100)]
    events[36] = ("s6", {"id": "the-bad-one"})
    await publish(bode, publisher, events)
    rows = await all_ended(bode, identity, 100)
    bad = rows.pop(36)
    assert (bad["state"], bad["attempts"], bad["reason"]) == ("dead", 2, f"status-{status[:3]}")
    assert {(row["state"], row["attempts"]) for row in rows} == {("delivered", 1)}
    asked = sink.of("POST", "/")
    assert numbers(asked[0]) == list(range(1, 101))
    assert len(asked) <= 24
    alone = [each.at for each in asked if numbers(each) == [37]]
    assert len(alone) == 2
    behind = min(each.at for each in asked if 47 in numbers(each) and 37 not in numbers(each))
    assert behind >= alone[1], "its lane waits for it, and then goes on"
    accepted = [number for each in asked if b"the-bad-one" not in each.body for number in numbers(each)]
    assert sorted(accepted) == sorted(set(range(1, 101)) - {37}), "once each"
    for lane in range(10):
        of_lane = [number for number in accepted if number % 10 == lane]
        assert of_lane == sorted(of_lane)


async def test_failure_of_the_sink_is_one_failure_and_an_attempt_of_each_item(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    identity = await bode.active(publisher, sink.url("/"), **batch(20, linger=50))
    sink.answers["POST", "/"] = lambda _: answer("500 Oops", body="kapot")
    key = (await bode.row(identity))["key"]
    await publish(bode, publisher, [(f"s{number % 4}", {}) for number in range(20)])
    async with asyncio.timeout(20):
        failed = await bode.deliveries(key)
        while {row["attempts"] for row in failed} != {1}:
            await asyncio.sleep(0.02)
            failed = await bode.deliveries(key)
    assert {(row["state"], row["reason"]) for row in failed} == {("pending", "status-500")}
    assert len({row["next_attempt_at"] for row in failed}) == 1, "the same wait"
    pace = bode.process._engine._runners.pace_of(key)
    assert pace is not None
    assert pace.failures == 1
    told = await bode.pool.fetch("SELECT sequence, attempt, status, excerpt FROM attempts WHERE subscription = $1", key)
    assert sorted((row["sequence"], row["attempt"], row["status"]) for row in told) == [
        (number, 1, 500) for number in range(1, 21)
    ]
    assert all(row["excerpt"] for row in told)
    del sink.answers["POST", "/"]
    rows = await all_ended(bode, identity, 20)
    assert {(row["state"], row["attempts"]) for row in rows} == {("delivered", 2)}
    came = [number for asked in sink.of("POST", "/")[1:] for number in numbers(asked)]
    assert sorted(came) == list(range(1, 21))
    assert all(lane == sorted(lane) for lane in ([n for n in came if n % 4 == which] for which in range(4)))


async def test_gone_sink_disables_the_subscription_and_keeps_the_whole_batch(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    identity = await bode.active(publisher, sink.url("/"), **batch(3))
    sink.answers["POST", "/"] = lambda _: answer("410 Gone")
    await bode.publish(publisher, "a", "a", "b")
    await bode.wait_for(identity, status="disabled")
    rows = await bode.deliveries((await bode.row(identity))["key"])
    assert [row["state"] for row in rows] == ["pending"] * 3
    assert len(sink.of("POST", "/")) == 1


async def test_what_is_revoked_while_a_batch_waits_is_left_out(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    other = await bode.publisher()
    kinds = [f"{publisher.domain}.iets", f"{other.domain}.iets"]
    identity = await bode.active(publisher, sink.url("/"), types=kinds, **batch(5))
    provider = (await bode.row(identity))["organisation_id"]
    oin = await bode.pool.fetchval("SELECT oin FROM organisations WHERE id = $1", provider)
    async with changing(bode.world.engine) as connection:
        row = await grants.create_grant(
            connection, registry_id=other.id, provider_oin=oin, types=[f"{other.domain}.*"], legal_basis="test"
        )
    await bode.process.office.catch_up()
    await bode.publish(publisher, "a", "b")
    await bode.publish(other, "a", "b")
    key = (await bode.row(identity))["key"]
    runner = None
    async with asyncio.timeout(10):
        while runner is None or runner.queue.buffered < 4:
            runner = bode.process._engine._runners.get(key)
            await asyncio.sleep(0.02)
    async with changing(bode.world.engine) as connection:
        await grants.revoke_grant(connection, row.id, registry_id=other.id, cancel_ungranted=_leave_it)
    await bode.process.office.catch_up()
    await bode.publish(publisher, "c")
    (asked,) = await sink.wait_for("POST", "/", 1)
    assert numbers(asked) == [1, 2, 5]
    rows = await all_ended(bode, identity, 5)
    assert [(row["state"], row["reason"]) for row in rows] == [
        ("delivered", None), ("delivered", None), ("cancelled", "grant-ended"), ("cancelled", "grant-ended"),
        ("delivered", None),
    ]  # fmt: skip


async def _leave_it(*_: object) -> None:
    """So that it is the look before sending which finds it, and not the one that revokes."""


async def test_test_notification_is_a_batch_of_one(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    identity = await bode.active(publisher, sink.url("/"), **batch())
    made = await bode.world.call("POST", f"/subscriptions/{identity}/test-notifications", key=bode.provider_key)
    assert made.status == 202
    bode.process._trials.ask()
    (asked,) = await sink.wait_for("POST", "/", 1)
    assert [item["type"] for item in json.loads(asked.body)] == ["nl.bode.test-notification"]


async def test_what_is_sent_in_batches_our_own_receiver_takes(bode: Delivering, publisher: Publisher) -> None:
    taken: list[Notification] = []
    refused: list[Refusal] = []
    inbox = Inbox(taken.append, refused.append)
    async with Receiver() as receiver:
        await receiver.listen(0)
        receiver.add("/", inbox)
        made = await bode.world.call(
            "POST", "/subscriptions", key=bode.provider_key,
            body={"sink": f"{receiver.url}/", "protocol": "HTTP", "types": [f"{publisher.domain}.iets"], **batch(5)},
        )  # fmt: skip
        inbox.open(made.json["secret"], Ledger())
        identity = UUID(made.json["id"])
        await bode.wait_for(identity, status="active")
        await bode.publish(publisher, "a", "b", "a", None, "a")
        await all_ended(bode, identity, 5)
        await bode.world.call("POST", f"/subscriptions/{identity}/test-notifications", key=bode.provider_key)
        bode.process._trials.ask()
        tests = f"SELECT status FROM test_notifications WHERE subscription_id = '{identity}' AND status IS NOT NULL"
        async with asyncio.timeout(20):
            while (answered := await bode.pool.fetchval(tests)) is None:
                await asyncio.sleep(0.02)
    assert [each.number for each in taken] == [1, 2, 3, 4, 5]
    assert (refused, inbox.ledger.complete_through, answered) == ([], 5, 204)


async def test_settings_of_a_batch_are_bounded_merged_and_taken_away(bode: Delivering, publisher: Publisher) -> None:
    identity = await bode.subscribe_to(publisher, "http://127.0.0.1:1/", **batch(10))
    path = f"/subscriptions/{identity}"

    async def patch(settings: Any) -> Any:
        return await bode.world.call(
            "PATCH", path, key=bode.provider_key, body={"protocolSettings": {"batch": settings}}
        )

    for name, value in (("maxCount", 1), ("maxCount", 1001), ("maxBytes", 100), ("maxBytes", 1 << 23),
                        ("lingerMilliseconds", -1), ("lingerMilliseconds", 60_001), ("count", 5)):  # fmt: skip
        refused = await patch({name: value})
        assert refused.status == 400
        assert refused.json["invalidParams"][0]["name"] == f"/protocolSettings/batch/{name}"
    merged = await patch({"maxCount": 20})
    assert merged.json["protocolSettings"]["batch"] == {
        "maxCount": 20, "maxBytes": 1 << 20, "lingerMilliseconds": LONG,
    }  # fmt: skip
    assert "batch" not in ((await patch(None)).json.get("protocolSettings") or {})


async def test_many_lanes_that_failed_together_come_back_without_their_backlogs_in_memory(
    bode: Delivering, publisher: Publisher, sink: RawSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    lanes, each = 40, 60
    most, offer_lane = 0, RunQueue.offer_lane

    def offered(queue: RunQueue, *given: Any, **named: Any) -> None:
        nonlocal most
        offer_lane(queue, *given, **named)
        most = max(most, queue.buffered)

    monkeypatch.setattr(RunQueue, "offer_lane", offered)
    identity = await bode.active(publisher, sink.url("/"), retry={"delays": ["PT1S"] * 9}, **batch(each, linger=0))
    key = (await bode.row(identity))["key"]

    def fails_at_first(_: Asked) -> bytes:
        runner = bode.process._engine._runners.get(key)
        assert runner is not None
        return ACCEPTED if runner.queue.cursor == lanes * each else answer("500 Internal Server Error")

    sink.answers["POST", "/"] = fails_at_first
    await publish(bode, publisher, [(f"s{number % lanes}", {}) for number in range(lanes * each)])
    rows = await all_ended(bode, identity, lanes * each)
    assert {row["state"] for row in rows} == {"delivered"}
    assert 0 < most <= 128 + lanes * (LANE_WINDOW + 1)
