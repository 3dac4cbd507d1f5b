"""Replays: sent again under the same numbers, in order, behind what is new, through restarts (promises 3, 4, 5, 6)."""

import asyncio
import json
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from accepting import Broker, Publisher
from broker_api import serve
from delivering import Asked, Delivering, RawSink, answer
from engine_stage import Stage, staged
from fixtures import process_with_api
from managing import Answer
from scripted_sinks import Move, Script

from broker.api import dead_letters, replays
from broker.storage import accounting
from broker.storage.accounting import alone
from broker.storage.tables import key_at
from subscriptions.change_log import changing
from subscriptions.grants import revoke_grant
from subscriptions.life_cycle import activate

OK = answer("200 OK")

bode = process_with_api(dead_letters.router, replays.router)


async def call(bode: Delivering, method: str, path: str, body: Any = None, **more: Any) -> Answer:
    return await bode.world.call(method, path, body=body, **{"key": bode.provider_key, **more})


async def replay(bode: Delivering, identity: UUID, **body: Any) -> Any:
    made = await call(bode, "POST", f"/subscriptions/{identity}/replays", {"perSecond": 5000, **body})
    assert made.status == 201, made.text
    assert made.headers["location"] == made.json["url"]
    return made.json


async def until(bode: Delivering, url: str, wanted: Callable[[Any], bool], seconds: float = 60) -> Any:
    async with asyncio.timeout(seconds):
        while True:
            shown = (await call(bode, "GET", url)).json
            if wanted(shown):
                return shown
            await asyncio.sleep(0.05)


async def done(bode: Delivering, made: Any) -> Any:
    return await until(bode, made["url"], lambda shown: shown["state"] == "done")


async def delivered(bode: Delivering, sink: RawSink, count: int, **members: Any) -> tuple[Publisher, UUID, str]:
    """A subscription whose sink got so many, about three subjects in turn."""
    registry = await bode.own_types()
    target = f"/{uuid4().hex}"
    identity = await bode.active(registry, sink.url(target), **members)
    await bode.publish(registry, *(f"s-{number % 3}" for number in range(count)))
    await settled(bode, identity, delivered=count)
    return registry, identity, target


async def settled(bode: Delivering, identity: UUID, **wanted: int) -> None:
    """Wait until the states of a subscription are these, and nothing is off."""
    async with asyncio.timeout(60):
        while await states(bode, identity) != wanted:
            await asyncio.sleep(0.02)
    key = (await bode.row(identity))["key"]
    async with bode.pool.acquire() as connection:
        assert await accounting.recount(connection, key) == []
        async with alone(connection):
            assert (await accounting.check_totals(connection, key, datetime.now(UTC)))[0] == []


async def states(bode: Broker, identity: UUID) -> dict[str, int]:
    rows = await bode.pool.fetch(
        "SELECT d.state::text, count(*) FROM deliveries d JOIN subscriptions s ON s.key = d.subscription "
        "WHERE s.id = $1 GROUP BY 1",
        identity,
    )
    return {row[0]: row[1] for row in rows}


def sent(sink: RawSink, target: str, after: int = 0) -> list[int]:
    """The numbers that came, in order, beyond the first so many."""
    return [int(asked.one("webhook-id").rpartition("_")[2]) for asked in sink.of("POST", target)[after:]]


async def test_range_is_sent_again_in_order_under_the_same_ids_and_nothing_that_was_recorded_changes(
    bode: Delivering, sink: RawSink
) -> None:
    _, identity, target = await delivered(bode, sink, 30)
    before = await bode.pool.fetch("SELECT * FROM deliveries ORDER BY 1, 2")
    bodies = {asked.one("webhook-id"): asked.body for asked in sink.of("POST", target)}
    made = await replay(bode, identity, firstSequence=5, lastSequence=24)
    assert (made["state"], made["requested"], made["firstSequence"], made["lastSequence"]) == ("running", 20, 5, 24)
    shown = await done(bode, made)
    assert (shown["sent"], shown["failed"], shown["skipped"], shown["settledThrough"]) == (20, 0, {}, 24)
    again = sent(sink, target, 30)
    assert sorted(again) == list(range(5, 25))
    for subject in range(3):
        numbers = [number for number in again if number % 3 == subject]
        assert numbers == sorted(numbers)
    for asked in sink.of("POST", target)[30:]:
        assert asked.body == bodies[asked.one("webhook-id")]
    assert await bode.pool.fetch("SELECT * FROM deliveries ORDER BY 1, 2") == before
    listed = (await call(bode, "GET", f"/subscriptions/{identity}/replays")).json
    assert [each["id"] for each in listed["results"]] == [made["id"]]


async def test_lists_and_times_name_the_same_numbers(bode: Delivering, sink: RawSink) -> None:
    registry, identity, target = await delivered(bode, sink, 6)
    ids = [json.loads(asked.body)["id"] for asked in sink.of("POST", target)]
    numbers = sent(sink, target)
    one, other = ids[numbers.index(2)], ids[numbers.index(5)]
    came = 6
    for body, wanted in (
        ({"numbers": [6, 1, 4, 4]}, [1, 4, 6]),
        ({"eventIds": [other, one, "unknown"]}, [2, 5]),
        ({"acceptedFrom": (datetime.now(UTC) - timedelta(hours=1)).isoformat()}, [1, 2, 3, 4, 5, 6]),
        ({"firstSequence": 4}, [4, 5, 6]),
        ({"lastSequence": 2}, [1, 2]),
        ({"firstSequence": 6, "lastSequence": 1000}, [6]),
    ):
        shown = await done(bode, await replay(bode, identity, **body))
        assert (shown["requested"], shown["sent"]) == (len(wanted), len(wanted)), body
        assert sorted(sent(sink, target, came)) == wanted, body
        came += len(wanted)
    await asyncio.sleep(0)
    key = await bode.pool.fetchval("SELECT event_key FROM deliveries JOIN subscriptions s ON s.key = subscription "
                                   "WHERE s.id = $1 ORDER BY sequence LIMIT 1", identity)  # fmt: skip
    assert key < key_at(datetime.now(UTC) + timedelta(hours=1))
    assert registry


async def test_dead_letters_become_delivered_and_pending_cancelled_and_gone_numbers_are_skipped(
    bode: Delivering, sink: RawSink
) -> None:
    _, identity, target = await delivered(bode, sink, 8)
    key = (await bode.row(identity))["key"]
    await bode.pool.execute(
        "UPDATE deliveries SET state = 'dead', reason = 'status-400', attempts = 2 "
        "WHERE subscription = $1 AND sequence IN (2, 3)", key,
    )  # fmt: skip
    await bode.pool.execute(
        "UPDATE deliveries SET state = 'cancelled', reason = 'discarded: met de hand' "
        "WHERE subscription = $1 AND sequence = 4", key,
    )  # fmt: skip
    await bode.pool.execute(
        "UPDATE deliveries SET state = 'pending', ended_at = NULL, next_attempt_at = now() + interval '1 hour' "
        "WHERE subscription = $1 AND sequence = 5", key,
    )  # fmt: skip
    await bode.pool.execute(
        "UPDATE delivery_totals SET delivered = delivered - 4, dead = 2, cancelled = 1 WHERE subscription = $1", key
    )
    await bode.pool.execute(
        "UPDATE events SET body = '' WHERE key = (SELECT event_key FROM deliveries WHERE subscription = $1 "
        "AND sequence = 6)", key,
    )  # fmt: skip
    bode.process._bodies._kept.clear()
    bode.process._bodies._ahead.clear()
    shown = await done(bode, await replay(bode, identity, firstSequence=1))
    assert (shown["sent"], shown["failed"]) == (5, 0)
    assert shown["skipped"] == {"discarded": 1, "pending": 1, "payload-expired": 1}
    assert sorted(sent(sink, target, 8)) == [1, 2, 3, 7, 8]
    await settled(bode, identity, delivered=6, cancelled=1, pending=1)


async def test_sink_that_expects_batches_gets_each_as_a_batch_of_one(bode: Delivering, sink: RawSink) -> None:
    registry = await bode.own_types()
    target = f"/{uuid4().hex}"
    settings = {"batch": {"maxCount": 10, "lingerMilliseconds": 20}}
    identity = await bode.active(registry, sink.url(target), protocolSettings=settings)
    await bode.publish(registry, *(f"s-{number}" for number in range(5)))
    await settled(bode, identity, delivered=5)
    came = len(sink.of("POST", target))
    shown = await done(bode, await replay(bode, identity, firstSequence=2))
    assert (shown["sent"], shown["failed"]) == (4, 0)
    again = sink.of("POST", target)[came:]
    assert sorted(json.loads(asked.body)[0]["subscriptionsequence"] for asked in again) == ["2", "3", "4", "5"]
    assert all(len(json.loads(asked.body)) == 1 for asked in again)
    assert all(asked.one("content-type").startswith("application/cloudevents-batch+json") for asked in again)
    assert all(asked.one("webhook-id").startswith(f"bat_{identity.hex}_") for asked in again)


async def test_fresh_events_go_before_a_replay_and_the_rate_is_kept(bode: Delivering, sink: RawSink) -> None:
    registry, identity, target = await delivered(bode, sink, 40)
    fresh = asyncio.Event()

    async def once_it_is_there(asked: Asked) -> bytes:
        if asked.one("webhook-id").endswith("_41"):
            fresh.set()
        await fresh.wait()
        return OK

    sink.answers["POST", target] = once_it_is_there  # so that what is replayed can't be done before it comes
    started = asyncio.get_running_loop().time()
    made = await replay(bode, identity, firstSequence=1, perSecond=20)
    await sink.wait_for("POST", target, 42)
    await bode.publish(registry, "nieuw")
    await sink.wait_for("POST", target, 44)
    assert 41 in sent(sink, target)[:44], "it didn't wait for the replay, of which each subject has one under way"
    await done(bode, made)
    took = asyncio.get_running_loop().time() - started
    assert took > 1.5, "40 at 20 a second, but for a burst"
    assert len(sent(sink, target)) == 81


async def test_what_the_sink_refuses_is_tried_again_then_fails_and_stays_as_it_was(
    bode: Delivering, sink: RawSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    from broker.delivery.retries import Schedule

    monkeypatch.setattr("broker.delivery.settling.REPLAY_SCHEDULE", Schedule.of_seconds((0.02, 0.02)))
    _, identity, target = await delivered(bode, sink, 4)
    tries: dict[str, int] = {}

    def refuse(asked: Any) -> bytes:
        id = asked.one("webhook-id")
        tries[id] = tries.get(id, 0) + 1
        if id.endswith("_2"):
            return answer("500 Oops")
        return answer("503 Later") if id.endswith("_3") and tries[id] == 1 else OK

    sink.answers["POST", target] = refuse
    shown = await done(bode, await replay(bode, identity, firstSequence=1))
    assert (shown["sent"], shown["failed"], shown["settledThrough"]) == (3, 1, 4)
    assert shown["lastFailure"] in ("status-500", "throttled-503")
    assert tries == {f"dlv_{identity.hex}_{n}": count for n, count in ((1, 1), (2, 3), (3, 2), (4, 1))}
    await settled(bode, identity, delivered=4)
    assert await bode.pool.fetchval(
        "SELECT count(*) FROM attempts a JOIN subscriptions s ON s.key = a.subscription WHERE s.id = $1", identity
    ) == 0  # fmt: skip


async def test_replay_is_cancelled_and_another_may_start(bode: Delivering, sink: RawSink) -> None:
    _, identity, target = await delivered(bode, sink, 30)
    made = await replay(bode, identity, firstSequence=1, perSecond=5)
    place = f"/subscriptions/{identity}/replays"
    refused = await call(bode, "POST", place, {"firstSequence": 1})
    assert refused.status == 409
    await until(bode, made["url"], lambda shown: shown["sent"] >= 2)
    assert (await call(bode, "DELETE", made["url"])).status == 204
    shown = (await call(bode, "GET", made["url"])).json
    assert (shown["state"], shown["reason"]) == ("cancelled", "requested")
    assert (await call(bode, "DELETE", made["url"])).status == 409
    async with asyncio.timeout(30):
        while (await bode.row(identity))["key"] in bode.process._replays._runs:
            await asyncio.sleep(0.02)
    shown = (await call(bode, "GET", made["url"])).json
    came = len(sent(sink, target))
    assert 2 <= shown["sent"] <= came - 30 < 30
    other = await done(bode, await replay(bode, identity, numbers=[30]))
    assert other["sent"] == 1
    assert len(sent(sink, target)) - came <= 2


async def test_revoked_grant_stops_a_replay_at_once(bode: Delivering, sink: RawSink) -> None:
    registry, identity, target = await delivered(bode, sink, 30)
    made = await replay(bode, identity, firstSequence=1, perSecond=10)
    await until(bode, made["url"], lambda shown: shown["sent"] >= 1)
    grant, oin = await bode.pool.fetchrow(
        "SELECT g.id, o.oin FROM grants g JOIN organisations o ON o.id = g.provider_id JOIN subscriptions s "
        "ON s.organisation_id = o.id WHERE s.id = $1 AND g.revoked_at IS NULL", identity,
    )  # fmt: skip

    async def nothing(*_: Any) -> None:
        """Nothing is pending."""

    async with changing(bode.world.engine) as connection:
        await revoke_grant(connection, grant, registry_id=registry.id, cancel_ungranted=nothing)
    bode.process.office.ask()
    try:
        shown = await done(bode, made)
        assert shown["sent"] + shown["skipped"]["grant-ended"] == 30
        assert len(sent(sink, target)) == 30 + shown["sent"]
    finally:
        await bode.grant(Publisher(registry.id, "", "", registry.domain.rpartition(".")[0]), oin)
    await settled(bode, identity, delivered=30)


async def test_paused_subscription_keeps_its_replay_waiting_and_an_ended_one_ends_it(
    bode: Delivering, sink: RawSink
) -> None:
    _, identity, _ = await delivered(bode, sink, 20)
    made = await replay(bode, identity, firstSequence=1, perSecond=10)
    await until(bode, made["url"], lambda shown: shown["sent"] >= 1)

    async def set_status(status: str) -> None:
        changed = await bode.world.call(
            "PATCH", f"/subscriptions/{identity}", key=bode.provider_key, raw=json.dumps({"status": status}).encode(),
            headers={"content-type": "application/merge-patch+json"},
        )  # fmt: skip
        assert changed.status == 200, changed.text

    await set_status("paused")
    assert (await call(bode, "POST", f"/subscriptions/{identity}/replays", {"numbers": [1]})).status == 409
    await set_status("active")
    await until(bode, made["url"], lambda shown: shown["sent"] >= 4)
    await call(bode, "DELETE", f"/subscriptions/{identity}")
    shown = await until(bode, made["url"], lambda shown: shown["state"] != "running")
    assert (shown["state"], shown["reason"]) == ("cancelled", "subscription-ended")


async def test_what_can_not_be_replayed_is_refused_with_the_reason(bode: Delivering, sink: RawSink) -> None:
    _, identity, _ = await delivered(bode, sink, 3)
    _, _, stranger = await bode.provider()
    place = f"/subscriptions/{identity}/replays"
    long_ago = (datetime.now(UTC) - timedelta(days=300)).isoformat()
    longer_ago = (datetime.now(UTC) - timedelta(days=301)).isoformat()
    for body, field in (
        ({}, ""),
        ({"firstSequence": 1, "numbers": [1]}, ""),
        ({"firstSequence": 4}, "/firstSequence"),
        ({"firstSequence": 3, "lastSequence": 2}, "/lastSequence"),
        ({"numbers": [4]}, "/numbers"),
        ({"numbers": [0]}, "/numbers/0"),
        ({"eventIds": ["unknown"]}, "/eventIds"),
        ({"acceptedFrom": longer_ago, "acceptedUntil": long_ago}, "/acceptedFrom"),
        ({"acceptedFrom": long_ago, "acceptedUntil": longer_ago}, "/acceptedUntil"),
        ({"acceptedUntil": long_ago}, "/acceptedUntil"),
        ({"firstSequence": 1, "perSecond": 0}, "/perSecond"),
        ({"firstSequence": "een"}, "/firstSequence"),
    ):
        refused = await call(bode, "POST", place, body)
        assert refused.status == 400, (body, refused.text)
        assert refused.json["invalidParams"][0]["name"] == field, (body, refused.text)
    for method, path, body in (
        ("POST", place, {"firstSequence": 1}), ("GET", place, None), ("GET", f"{place}/{uuid4()}", None),
        ("DELETE", f"{place}/{uuid4()}", None),
    ):  # fmt: skip
        assert (await call(bode, method, path, body, key=stranger)).status == 404, (method, path)
    made = await replay(bode, identity, firstSequence=1)
    assert (await call(bode, "GET", made["url"], key=stranger)).status == 404
    assert (await call(bode, "DELETE", made["url"], key=stranger)).status == 404
    assert (await call(bode, "GET", made["url"], key=await bode.world.operator())).status == 200
    await done(bode, made)
    key = (await bode.row(identity))["key"]
    await bode.pool.execute(
        "UPDATE events SET body = '' WHERE key IN (SELECT event_key FROM deliveries WHERE subscription = $1)", key
    )
    for body, field in (({"firstSequence": 1}, "/firstSequence"), ({"numbers": [2]}, "/numbers")):
        refused = await call(bode, "POST", place, body)
        assert (refused.status, refused.json["invalidParams"][0]["code"]) == (400, "expired")
        assert refused.json["invalidParams"][0]["name"] == field


@pytest.fixture
def stage(url: str) -> Iterator[Stage]:
    with staged(url, {"shards": 4, "concurrency": 4, "lease_seconds": 2, "grace_seconds": 5}) as made:
        yield made


def test_killed_process_is_followed_by_another_that_goes_on_and_nothing_is_left_out(stage: Stage) -> None:
    """Several processes die in the middle of a replay, one in good order; each number comes, and few come twice."""
    count = 240

    async def prepare() -> tuple[UUID, str, Script]:
        await serve(stage.bode, replays.router)
        registry = await stage.bode.publisher()
        _, oin, key = await stage.bode.provider()
        await stage.bode.grant(registry, oin)
        name = uuid4().hex
        script = stage.sinks.scripts[name] = Script(deque(), Move.ACCEPT, 0)
        sink = stage.sinks.url(name)
        made = await stage.bode.world.call(
            "POST", "/subscriptions", key=key,
            body={"sink": sink, "protocol": "HTTP", "types": [f"{registry.domain}.iets"]},
        )  # fmt: skip
        identity = UUID(made.json["id"])
        async with changing(stage.bode.world.engine) as connection:
            assert await activate(connection, identity, sink=sink)
        acceptor = await stage.bode.acceptor()
        await acceptor.accept([registry.message(subject=f"s-{number % 7}") for number in range(count)])
        return identity, key, script

    async def ask(method: str, path: str, body: Any = None) -> Any:
        answered = await stage.bode.world.call(method, path, key=key, body=body)
        assert answered.status in (200, 201), answered.text
        return answered.json

    def wait(wanted: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not wanted():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    identity, key, script = stage.call(prepare())
    process = stage.host.start(stage.settings, 1)
    wait(lambda: stage.call(states(stage.bode, identity)) == {"delivered": count})
    script.arrivals.clear()
    made = stage.call(ask("POST", f"/subscriptions/{identity}/replays", {"firstSequence": 1, "perSecond": 60}))
    for seed, how in enumerate((signal.SIGKILL, signal.SIGTERM, signal.SIGKILL), 2):
        came = len(script.arrivals)
        wait(lambda came=came: len(script.arrivals) >= came + 30)  # type: ignore[misc]
        following = stage.host.start(stage.settings, seed)
        process.signal(how)
        stage.host.ended(process)
        process = following
    wait(lambda: stage.call(ask("GET", made["url"]))["state"] == "done")
    process.signal(signal.SIGTERM)
    assert stage.host.ended(process) == 0
    shown = stage.call(ask("GET", made["url"]))
    assert (shown["sent"], shown["failed"], shown["skipped"]) == (count, 0, {})
    numbers = [arrival.sequence for arrival in script.arrivals]
    assert set(numbers) == set(range(1, count + 1)), "nothing is left out"
    assert len(numbers) - count < 200, "again came at most what was under way, or not written yet"
    assert stage.call(states(stage.bode, identity)) == {"delivered": count}
