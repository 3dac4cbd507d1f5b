"""Holds: nothing that is held leaves, everything is kept, in order; released or cancelled, whole and resumable."""

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID

import asyncpg
import pytest
import pytest_asyncio
from accepting import Publisher
from delivering import Asked, Delivering, RawSink, answer
from fixtures import IN_ONE_LOOP, one_process, own_types, raw_sink
from managing import Answer

from broker.storage import accounting, holds, records
from subscriptions.callers import Scope, create_key
from subscriptions.change_log import changing

pytestmark = IN_ONE_LOOP

bode = one_process()
publisher = own_types()
sink = raw_sink()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def operator(bode: Delivering) -> str:
    return await bode.world.operator()


class Hand:
    """The operator's, on holds; a change is in force when it returns, as `settled` sees to where the API runs."""

    def __init__(self, bode: Delivering, key: str) -> None:
        self.bode = bode
        self.key = key

    async def call(self, method: str, path: str, body: Any = None, key: str | None = None) -> Answer:
        answered = await self.bode.world.call(method, path, key=key or self.key, body=body)
        await self.bode.process.office.catch_up()
        return answered

    async def place(self, scope: str, value: object, key: str | None = None) -> Answer:
        return await self.call("POST", "/holds", {"scope": scope, "value": str(value), "reason": "Fout."}, key)

    async def placed(self, scope: str, value: object) -> str:
        made = await self.place(scope, value)
        assert made.status == 201, made.text
        return str(made.json["url"])

    async def release(self, url: str) -> None:
        released = await self.call("POST", f"{url}/release", {})
        assert (released.status, released.json["status"]) == (200, "released"), released.text

    async def cancelled(self, url: str, reason: str = "Nooit gebeurd.") -> Any:
        asked = await self.call("POST", f"{url}/cancellation", {"reason": reason})
        assert asked.status == 202, asked.text
        async with asyncio.timeout(20):
            while (shown := (await self.call("GET", url)).json)["status"] != "cancelled":
                self.bode.process._hold_canceller.ask()
                await asyncio.sleep(0.02)
        return shown


@pytest.fixture
def hand(bode: Delivering, operator: str) -> Hand:
    return Hand(bode, operator)


async def publish(bode: Delivering, publisher: Publisher, *events: tuple[str, str | None]) -> None:
    """Events of a kind and subject."""
    acceptor = await bode.acceptor()
    await acceptor.accept([publisher.message(kind, subject) for kind, subject in events])
    await bode.publish(publisher)


async def rows(bode: Delivering, identity: UUID) -> Sequence[asyncpg.Record]:
    return await bode.pool.fetch(
        "SELECT d.* FROM deliveries d JOIN subscriptions s ON s.key = d.subscription WHERE s.id = $1 ORDER BY sequence",
        identity,
    )


async def states(bode: Delivering, identity: UUID, wanted: Sequence[str]) -> None:
    """Wait until the deliveries of a subscription are in these states."""
    async with asyncio.timeout(20):
        while [row["state"] for row in await rows(bode, identity)] != list(wanted):
            await asyncio.sleep(0.02)


def numbers(asked: Sequence[Asked]) -> list[int]:
    return [int(json.loads(each.body)["subscriptionsequence"]) for each in asked]


async def looked_everywhere(bode: Delivering) -> None:
    """The engine has read all that it would read, and sent all that it would send."""
    feeder = bode.process._engine.feeder
    for _ in range(2):
        await feeder.sweep_once()
        while feeder._hungry or bode.process._engine._attempts:
            await asyncio.sleep(0.01)


async def all_add_up(bode: Delivering, identity: UUID) -> None:
    row = await bode.row(identity)
    async with bode.pool.acquire() as connection:
        findings, _ = await accounting.check_totals(connection, row["key"], datetime.now(UTC))
    assert findings == []


@pytest.mark.parametrize("scope", ["subscription", "organisation", "source", "event-type"])
async def test_what_is_held_is_kept_and_goes_in_order_when_it_is_released(
    bode: Delivering, publisher: Publisher, sink: RawSink, hand: Hand, scope: str
) -> None:
    types = [f"{publisher.domain}.iets"]
    held = await bode.active(publisher, sink.url("/held"), types=types)
    oin = (await bode.shown(held))["organisation"]
    value = {"subscription": held, "organisation": oin, "source": publisher.source, "event-type": types[0]}[scope]
    await publish(bode, publisher, ("iets", "a"))
    await states(bode, held, ["delivered"])
    hold = await hand.placed(scope, value)
    await publish(bode, publisher, ("iets", "a"), ("iets", "b"), ("iets", "a"), ("iets", None))
    await looked_everywhere(bode)
    assert [row["state"] for row in await rows(bode, held)] == ["delivered", *["pending"] * 4]
    assert {row["attempts"] for row in (await rows(bode, held))[1:]} == {0}
    assert len(sink.of("POST", "/held")) == 1
    await hand.release(hold)
    await states(bode, held, ["delivered"] * 5)
    came = numbers(sink.of("POST", "/held"))
    assert sorted(came) == [1, 2, 3, 4, 5]
    assert came.index(2) < came.index(4), "one lane, in order"
    await all_add_up(bode, held)


async def test_a_held_type_holds_its_lane_and_no_other(
    bode: Delivering, publisher: Publisher, sink: RawSink, hand: Hand
) -> None:
    types = [f"{publisher.domain}.iets", f"{publisher.domain}.fout"]
    by_subject = await bode.active(publisher, sink.url("/subject"), types=types)
    whole = await bode.active(publisher, sink.url("/whole"), types=types, ordering="subscription")
    loose = await bode.active(publisher, sink.url("/loose"), types=types, ordering="none")
    hold = await hand.placed("event-type", types[1])
    await publish(bode, publisher, ("iets", "a"), ("fout", "a"), ("iets", "a"), ("iets", "b"), ("fout", None))
    await looked_everywhere(bode)
    await states(bode, by_subject, ["delivered", "pending", "pending", "delivered", "pending"])
    await states(bode, whole, ["delivered", *["pending"] * 4])
    await states(bode, loose, ["delivered", "pending", "delivered", "delivered", "pending"])
    await hand.release(hold)
    for identity, target in ((by_subject, "/subject"), (whole, "/whole"), (loose, "/loose")):
        await states(bode, identity, ["delivered"] * 5)
        assert sorted(numbers(sink.of("POST", target))) == [1, 2, 3, 4, 5]
    assert numbers(sink.of("POST", "/whole")) == [1, 2, 3, 4, 5]


async def test_many_held_ones_in_front_starve_nobody_and_are_not_read_again_and_again(
    bode: Delivering, publisher: Publisher, sink: RawSink, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = [f"{publisher.domain}.iets", f"{publisher.domain}.fout"]
    identity = await bode.active(publisher, sink.url("/many"), types=types)
    hold = await hand.placed("event-type", types[1])
    window = bode.process._delivery.window
    count = 3 * window
    await publish(bode, publisher, *[("fout", f"s{number}") for number in range(count)], ("iets", "vrij"))
    await looked_everywhere(bode)
    await sink.wait_for("POST", "/many", 1)
    assert numbers(sink.of("POST", "/many")) == [count + 1]
    reads: list[int] = []
    usual = records.pending_after

    async def counted(connection: Any, cursors: Any, limit: int) -> Any:
        found = await usual(connection, cursors, limit)
        reads.append(len(found))
        return found

    monkeypatch.setattr(records, "pending_after", counted)
    await looked_everywhere(bode)
    assert reads, "it was looked for"
    assert sum(reads) == 0, "what was passed over is not read again while it is held"
    await hand.release(hold)
    await states(bode, identity, ["delivered"] * (count + 1))


async def test_holds_that_overlap_add_up_and_the_same_one_twice_is_refused_with_its_id(
    bode: Delivering, publisher: Publisher, sink: RawSink, hand: Hand
) -> None:
    held = await bode.active(publisher, sink.url("/twice"))
    first = await hand.placed("event-type", f"{publisher.domain}.iets")
    again = await hand.place("event-type", f"{publisher.domain}.iets")
    assert again.status == 409
    assert first.rpartition("/")[2] in again.json["detail"]
    second = await hand.placed("subscription", held)
    await publish(bode, publisher, ("iets", "a"))
    await hand.release(first)
    await looked_everywhere(bode)
    await states(bode, held, ["pending"])
    assert not sink.of("POST", "/twice")
    await hand.release(second)
    await states(bode, held, ["delivered"])
    assert (await hand.call("POST", f"{first}/release", {})).status == 409, "it has ended"
    assert (await hand.call("POST", f"{first}/cancellation", {"reason": "Te laat."})).status == 409
    assert (await hand.place("event-type", f"{publisher.domain}.iets")).status == 201, "what has ended can be held anew"


@pytest.mark.parametrize("scope", ["subscription", "organisation", "source", "event-type"])
async def test_cancelling_ends_what_was_kept_with_the_reason_and_leaves_what_came_later(
    bode: Delivering, publisher: Publisher, sink: RawSink, hand: Hand, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holds, "_OF_ANY", holds._OF_ANY.replace("LIMIT 1000", "LIMIT 3"))
    monkeypatch.setattr(holds, "_OF_ONE", holds._OF_ONE.replace("LIMIT 1000", "LIMIT 3"))
    monkeypatch.setattr(holds, "PORTION", 3)
    types = [f"{publisher.domain}.iets"]
    held = await bode.active(publisher, sink.url("/cancelled"), types=types)
    other = await bode.active(publisher, sink.url("/other"), types=[f"{publisher.domain}.anders"])
    oin = (await bode.shown(held))["organisation"]
    value = {"subscription": held, "organisation": oin, "source": publisher.source, "event-type": types[0]}[scope]
    hold = await hand.placed(scope, value)
    await publish(bode, publisher, *[("iets", f"s{number % 3}") for number in range(10)])
    shown = await hand.cancelled(hold)
    assert shown["cancelled"] == 10
    assert {row["reason"] for row in await rows(bode, held)} == {"hold-cancelled: Nooit gebeurd."}
    await publish(bode, publisher, ("iets", "s1"), ("anders", "s1"))
    await states(bode, held, [*["cancelled"] * 10, "delivered"])
    await states(bode, other, ["delivered"])
    assert numbers(sink.of("POST", "/cancelled")) == [11]
    await all_add_up(bode, held)


async def test_a_cancellation_that_was_cut_off_goes_on_where_it_was(
    bode: Delivering, publisher: Publisher, sink: RawSink, hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holds, "_OF_ONE", holds._OF_ONE.replace("LIMIT 1000", "LIMIT 3"))
    monkeypatch.setattr(holds, "PORTION", 3)
    held = await bode.active(publisher, sink.url("/cut"))
    hold = await hand.placed("subscription", held)
    await publish(bode, publisher, *[("iets", f"s{number}") for number in range(7)])
    usual, done = holds.cancel_portion, 0

    async def dies(connection: asyncpg.Connection) -> Any:
        nonlocal done
        if done == 2:
            raise ConnectionResetError
        done += 1
        return await usual(connection)

    monkeypatch.setattr(holds, "cancel_portion", dies)
    await hand.call("POST", f"{hold}/cancellation", {"reason": "Fout."})
    bode.process._hold_canceller.ask()
    async with asyncio.timeout(20):
        while (await hand.call("GET", hold)).json["cancelled"] < 6:
            await asyncio.sleep(0.02)
    await publish(bode, publisher, ("iets", "later"))
    await looked_everywhere(bode)
    assert not sink.of("POST", "/cut"), "while it is being cancelled, it holds"
    monkeypatch.setattr(holds, "cancel_portion", usual)
    await states(bode, held, [*["cancelled"] * 7, "delivered"])
    await all_add_up(bode, held)


async def test_what_is_on_its_way_into_memory_when_a_hold_is_placed_does_not_go(
    bode: Delivering, publisher: Publisher, sink: RawSink, hand: Hand
) -> None:
    wait, asked = asyncio.Event(), asyncio.Event()

    async def slowly(_: Asked) -> bytes:
        asked.set()
        await wait.wait()
        return answer("204 No Content")

    sink.answers[("POST", "/flight")] = slowly
    held = await bode.active(publisher, sink.url("/flight"))
    await publish(bode, publisher, *[("iets", "a")] * 3)
    await asked.wait()
    hold = await hand.placed("source", publisher.source)
    wait.set()
    await states(bode, held, ["delivered", "pending", "pending"])
    await looked_everywhere(bode)
    assert numbers(sink.of("POST", "/flight")) == [1], "what was in flight ended, what was in memory did not go"
    await hand.release(hold)
    await states(bode, held, ["delivered"] * 3)


async def test_a_hold_burns_no_attempts_and_no_time_of_a_failing_sink(
    bode: Delivering, publisher: Publisher, sink: RawSink, hand: Hand
) -> None:
    held = await bode.active(publisher, sink.url("/failing"))
    hold = await hand.placed("subscription", held)
    await bode.alter(held, "failing_since = now() - interval '30 days'")
    await publish(bode, publisher, ("iets", "a"))
    sink.answers[("POST", "/failing")] = lambda _: answer("500 Nee")
    await hand.release(hold)
    row = await bode.tried(held)
    assert (row["state"], row["attempts"]) == ("pending", 1)
    assert (await bode.row(held))["status"] == "active", "thirty days of a hold are not thirty days of failing"
    sink.answers.clear()
    await states(bode, held, ["delivered"])


async def test_tests_of_what_is_held_are_refused(
    bode: Delivering, publisher: Publisher, sink: RawSink, hand: Hand
) -> None:
    held = await bode.active(publisher, sink.url("/test"))
    hold = await hand.placed("subscription", held)
    path = f"/subscriptions/{held}/test-notifications"
    assert (await bode.world.call("POST", path, key=bode.provider_key)).status == 409
    await hand.release(hold)
    assert (await bode.world.call("POST", path, key=bode.provider_key)).status == 202


async def test_a_registry_holds_its_own_and_sees_and_ends_no_others(
    bode: Delivering, publisher: Publisher, hand: Hand
) -> None:
    async with changing(bode.world.engine) as connection:
        own, _ = await create_key(connection, organisation_id=publisher.id, scopes=[Scope.MANAGE])
    stranger = (await bode.world.registry()).key
    kind = f"{publisher.domain}.eigen"
    for scope, value in (("source", publisher.source), ("event-type", kind)):
        assert (await hand.place(scope, value, stranger)).status == 403, scope
    identity = "00000000-0000-4000-8000-000000000000"
    for scope, value in (("organisation", "00000001001299992000"), ("subscription", identity)):
        assert (await hand.place(scope, value, own)).status == 403, scope
        unknown = await hand.place(scope, value)
        assert (unknown.status, unknown.json["invalidParams"][0]["name"]) == (400, "/value"), scope
    mine = await hand.place("event-type", kind, own)
    assert (mine.status, mine.json["placedBy"] is not None) == (201, True)
    url = mine.json["url"]
    assert (await hand.call("GET", url, key=stranger)).status == 404
    for path in ("release", "cancellation"):
        assert (await hand.call("POST", f"{url}/{path}", {"reason": "x"}, stranger)).status == 404
    theirs = await hand.placed("source", publisher.source)
    listed = (await hand.call("GET", "/holds?status=active", key=own)).json["results"]
    assert {each["url"] for each in listed} >= {url, theirs}, "the operator's on its source too"
    assert (await hand.call("POST", f"{theirs}/release", {}, own)).status == 403
    await hand.release(url)
    await hand.release(theirs)
    shown = (await hand.call("GET", url, key=own)).json
    assert (shown["placedBy"], shown["endedBy"]) == (mine.json["placedBy"], None), "the operator ended it"
    for body in ({"scope": "alles", "value": "x", "reason": "x"}, {"scope": "source", "value": "", "reason": "x"}, {}):
        assert (await hand.call("POST", "/holds", body)).status == 400
    many_bytes = "".join(chr(letter) for letter in Random(1).choices(range(0x4E00, 0x9FA5), k=2048))
    assert (await hand.place("source", many_bytes)).status == 400, "no index could hold it"
