"""Sinks that fail for days, ask for too much patience or never answer: what becomes of them, and of the others."""

import asyncio
from typing import Any
from uuid import UUID

import pytest
from accepting import Publisher
from delivering import Asked, Delivering, RawSink, answer, delivering

from broker.storage import records
from broker.storage.records import FailingNote


async def has_failed_for_days(bode: Delivering, identity: UUID) -> None:
    """As a process finds it that takes over."""
    await bode.alter(identity, "failing_since = now() - interval '6 days'")
    bode.process._engine.changed((await bode.row(identity))["key"])


async def until_noted(bode: Delivering, identity: UUID, *, failing: bool) -> None:
    async with asyncio.timeout(15):
        while ((await bode.row(identity))["failing_since"] is not None) is not failing:
            await asyncio.sleep(0.02)


async def test_sink_that_failed_for_days_is_disabled_and_its_backlog_is_kept(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    sink.answers["POST", "/"] = lambda _: answer("500 Oops")
    identity = await bode.active(publisher, sink.url("/"))
    await has_failed_for_days(bode, identity)
    await bode.publish(publisher, "a", "a", "b")
    shown = await bode.wait_for(identity, status="disabled")
    assert shown["statusReason"] == "sink-failing: the sink has accepted nothing for 5 days"
    await bode.publish(publisher, "c")
    kept = await bode.deliveries((await bode.row(identity))["key"])
    assert [delivery["state"] for delivery in kept] == ["pending"] * 4
    tried = len(sink.of("POST", "/"))
    assert 1 <= tried <= 2, "those under way at most"

    await bode.world.call("PATCH", f"/subscriptions/{identity}", key=bode.provider_key, body={"status": "active"})
    assert (await bode.row(identity))["failing_since"] is None
    await sink.wait_for("POST", "/", tried + 1)
    assert (await bode.shown(identity))["status"] == "active", "it has just begun to fail"
    del sink.answers["POST", "/"]
    async with asyncio.timeout(20):
        while {row["state"] for row in await bode.deliveries((await bode.row(identity))["key"])} != {"delivered"}:
            await asyncio.sleep(0.05)


async def test_success_ends_the_time_of_failure(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    identity = await bode.active(publisher, sink.url("/"))
    await has_failed_for_days(bode, identity)
    await bode.publish(publisher, "a")
    await bode.tried(identity, "delivered")
    await until_noted(bode, identity, failing=False)
    assert (await bode.shown(identity))["status"] == "active"


async def test_time_of_failure_is_noted_under_the_lease_and_never_moved(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    identity = await bode.active(publisher, sink.url("/"))
    key = (await bode.row(identity))["key"]
    epoch = await bode.pool.fetchval("SELECT epoch FROM leases WHERE kind = 'shard' AND number = $1", key % 4)
    for since, under, expected in ((1e9, epoch - 1, None), (1e9, epoch, 1e9), (2e9, epoch, 1e9), (None, epoch, None)):
        async with bode.pool.acquire() as connection:
            await records.note_failing(connection, [FailingNote(key, since, under)], 4)
        noted = (await bode.row(identity))["failing_since"]
        assert (None if noted is None else noted.timestamp()) == expected


async def test_retry_after_holds_a_sink_up_to_the_end_of_the_schedule(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    sink.answers["POST", "/"] = lambda _: answer("429 Slow down", "Retry-After: 99999999")
    identity = await bode.active(publisher, sink.url("/"), retry={"delays": ["PT1S", "PT1S"]})
    await bode.publish(publisher, "a")
    assert (await bode.tried(identity, "dead"))["reason"] == "throttled-429"
    assert len(sink.of("POST", "/")) == 3


async def test_sinks_that_never_answer_take_no_place_from_one_that_does(url: str, sink: RawSink) -> None:
    never = asyncio.Event()

    async def silence(_: Asked) -> bytes:
        await never.wait()
        return b""

    silent = [f"/silent/{number}" for number in range(40)]
    async with delivering(url, at_once=16, attempt_seconds=60) as bode:
        publisher = await bode.own_types()
        for target in silent:
            sink.answers["POST", target] = silence
            await bode.subscribe_to(publisher, sink.url(target))
        alive = await bode.active(publisher, sink.url("/alive"))
        for target in silent:
            await sink.wait_for("OPTIONS", target, 1)
        await bode.publish(publisher, *"abcdefgh")
        await sink.wait_for("POST", "/alive", 8)
        assert (await bode.shown(alive))["status"] == "active"
        never.set()


async def test_thousands_that_end_at_once_end_one_after_the_other(
    bode: Delivering, publisher: Publisher, sink: RawSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = await bode.active(publisher, sink.url("/"))
    monkeypatch.setattr(bode.process.office, "granted", lambda *_: None)
    for _ in range(3):
        await bode.publish(publisher, *[None] * 400)
    async with asyncio.timeout(30):
        while {row["state"] for row in await bode.deliveries((await bode.row(identity))["key"])} != {"cancelled"}:
            await asyncio.sleep(0.1)
    assert sink.of("POST", "/") == []


async def test_sink_with_all_its_attempts_under_way_is_not_looked_at_again_and_again(
    url: str, sink: RawSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    never, looks = asyncio.Event(), 0

    async def fail_first_then_silence(asked: Asked) -> bytes:
        if len(sink.of("POST", asked.target)) == 1:
            return answer("500 Oops")
        await never.wait()
        return b""

    sink.answers["POST", "/"] = fail_first_then_silence
    async with delivering(url, concurrency=1, attempt_seconds=60) as bode:
        publisher = await bode.own_types()
        await bode.active(publisher, sink.url("/"), retry={"delays": ["PT1S"]})
        await bode.publish(publisher, "a", "b", "c")
        await sink.wait_for("POST", "/", 2)
        look = bode.process._engine._look_and_serve

        def counted(runner: Any) -> None:
            nonlocal looks
            looks += 1
            look(runner)

        monkeypatch.setattr(bode.process._engine, "_look_and_serve", counted)
        await asyncio.sleep(2)  # the first one's retry is due meanwhile, and must wait for the second
        assert looks < 300, "every millisecond would be a thousand"
        never.set()
