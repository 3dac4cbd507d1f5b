"""Delays of event types: what waits can be corrected or withdrawn in time, and PostgreSQL decides what is in time."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
import pytest_asyncio
from accepting import Publisher
from delivering import Asked, Delivering, RawSink
from fixtures import IN_ONE_LOOP, one_process, raw_sink
from managing import Answer

from broker.ingest.accept import Accepted, Rejected
from broker.ingest.wake import payloads
from broker.storage import corrections
from broker.storage.acceptance import DELIVERIES_CHANNEL
from subscriptions.callers import Scope, create_key
from subscriptions.change_log import changing

pytestmark = IN_ONE_LOOP

bode = one_process()
sink = raw_sink()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def registry_key(bode: Delivering) -> str:
    publisher = await bode.own_types()
    async with changing(bode.world.engine) as connection:
        key, _ = await create_key(connection, organisation_id=publisher.id, scopes=[Scope.MANAGE])
    return key


async def describe(bode: Delivering, key: str, kind: str, delay: int | None, **members: Any) -> Answer:
    body = {"type": kind, "meaning": "Overleden."} | ({} if delay is None else {"delaySeconds": delay}) | members
    return await bode.world.call("POST", "/event-types", key=key, body=body)


@pytest_asyncio.fixture(loop_scope="module")
async def publisher(bode: Delivering, registry_key: str) -> Publisher:
    """With the type `dood`, whose events wait for an hour, and `kort`, whose wait for a second."""
    made = await bode.own_types()
    for name, delay in (("dood", 3600), ("kort", 1)):
        assert (await describe(bode, registry_key, f"{made.domain}.{name}", delay)).status == 201
    return made


async def accept(bode: Delivering, publisher: Publisher, *events: tuple[str, dict[str, Any]]) -> list[Any]:
    """Accept events of a kind, and wake as ingest does."""
    acceptor = await bode.acceptor()
    results = await acceptor.accept([publisher.message(kind, **members) for kind, members in events])
    touched = {key for result in results if isinstance(result, Accepted) for key in result.subscriptions}
    for payload in payloads(touched):
        await bode.pool.execute("SELECT pg_notify($1, $2)", DELIVERIES_CHANNEL, payload)
    return results


async def rows(bode: Delivering, identity: UUID) -> Sequence[asyncpg.Record]:
    return await bode.pool.fetch(
        "SELECT d.* FROM deliveries d JOIN subscriptions s ON s.key = d.subscription WHERE s.id = $1 ORDER BY sequence",
        identity,
    )


async def states(bode: Delivering, identity: UUID, *wanted: str) -> Sequence[asyncpg.Record]:
    async with asyncio.timeout(20):
        while True:
            found = await rows(bode, identity)
            if [row["state"] for row in found] == list(wanted):
                return found
            await asyncio.sleep(0.02)


async def time_comes(bode: Delivering, identity: UUID) -> None:
    """As if the hour had passed."""
    key = (await bode.row(identity))["key"]
    await bode.pool.execute(
        "UPDATE deliveries SET next_attempt_at = clock_timestamp() WHERE subscription = $1 AND state = 'pending'", key
    )
    bode.process._engine.changed(key)


async def adds_up(bode: Delivering, identity: UUID) -> None:
    found = await bode.pool.fetchrow(
        "SELECT last_sequence, coalesce(t.delivered, 0) AS delivered, coalesce(t.cancelled, 0) AS cancelled "
        "FROM subscription_numbers n JOIN subscriptions s ON s.key = n.subscription "
        "LEFT JOIN delivery_totals t USING (subscription) WHERE s.id = $1",
        identity,
    )
    states = [row["state"] for row in await rows(bode, identity)]
    assert tuple(found) == (len(states), states.count("delivered"), states.count("cancelled"))


def came(asked: Sequence[Asked]) -> list[str]:
    return [json.loads(each.body)["id"] for each in asked]


async def subscribe(bode: Delivering, publisher: Publisher, url: str, *names: str, **members: Any) -> UUID:
    return await bode.active(publisher, url, types=[f"{publisher.domain}.{name}" for name in names], **members)


async def test_what_has_a_delay_waits_and_holds_its_lane_and_no_other(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    identity = await subscribe(bode, publisher, sink.url("/delay"), "dood", "iets")
    await accept(
        bode, publisher, ("dood", {"subject": "a"}), ("iets", {"subject": "a"}), ("iets", {"subject": "b", "id": "b"})
    )
    await states(bode, identity, "pending", "pending", "delivered")
    waiting = (await rows(bode, identity))[0]
    assert waiting["next_attempt_at"] is not None
    assert came(sink.of("POST", "/delay")) == ["b"]
    await time_comes(bode, identity)
    await states(bode, identity, "delivered", "delivered", "delivered")
    numbers = [json.loads(each.body)["subscriptionsequence"] for each in sink.of("POST", "/delay")]
    assert numbers == ["3", "1", "2"]


async def test_a_short_delay_passes_by_itself(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    identity = await subscribe(bode, publisher, sink.url("/short"), "kort")
    await accept(bode, publisher, ("kort", {"subject": "a"}), ("kort", {}), ("kort", {"subject": "a"}))
    assert {row["state"] for row in await rows(bode, identity)} == {"pending"}
    found = await states(bode, identity, "delivered", "delivered", "delivered")
    assert [row["next_attempt_at"] for row in found] == [None] * 3


async def test_a_replacement_in_time_cancels_what_waits_and_goes_in_its_place(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    both = await subscribe(bode, publisher, sink.url("/both"), "dood", "iets")
    other = await subscribe(bode, publisher, sink.url("/not-the-first"), "iets")
    wrong, right = str(uuid4()), str(uuid4())
    await accept(bode, publisher, ("dood", {"subject": "a", "id": wrong}))
    await accept(bode, publisher, ("iets", {"subject": "a", "id": right, "corrects": wrong, "correction": "replace"}))
    found = await states(bode, both, "cancelled", "delivered")
    assert found[0]["reason"] == f"corrected: by {right}"
    await states(bode, other, "delivered")
    assert came(sink.of("POST", "/both")) == [right], "and it needn't wait for what it replaced"
    for identity in (both, other):
        await adds_up(bode, identity)


async def test_a_withdrawal_in_time_is_told_to_nobody_who_was_told_nothing(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    waiting = await subscribe(bode, publisher, sink.url("/waiting"), "dood", "ingetrokken")
    told = await subscribe(bode, publisher, sink.url("/told"), "dood", "ingetrokken")
    wrong, taken_back = str(uuid4()), str(uuid4())
    await accept(bode, publisher, ("dood", {"subject": "a", "id": wrong}))
    await time_comes(bode, told)
    await states(bode, told, "delivered")
    withdrawal = {"subject": "a", "id": taken_back, "corrects": wrong, "correction": "withdraw"}
    await accept(bode, publisher, ("ingetrokken", withdrawal))
    found = await states(bode, waiting, "cancelled", "cancelled")
    assert [row["reason"] for row in found] == [
        f"withdrawn: by {taken_back}",
        f"withdrawal: {wrong} was not delivered",
    ]
    await states(bode, told, "delivered", "delivered")
    assert came(sink.of("POST", "/told")) == [wrong, taken_back], "too late there, so it is an event like any other"
    assert not sink.of("POST", "/waiting")
    for identity in (waiting, told):
        await adds_up(bode, identity)


async def test_event_and_correction_in_one_batch(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    identity = await subscribe(bode, publisher, sink.url("/batch"), "dood")
    wrong = str(uuid4())
    await accept(
        bode,
        publisher,
        ("dood", {"subject": "a", "id": wrong}),
        ("dood", {"subject": "a", "corrects": wrong}),
        ("dood", {"subject": "b", "corrects": "nooit-gepubliceerd", "correction": "withdraw"}),
    )
    await states(bode, identity, "cancelled", "pending", "pending")
    await adds_up(bode, identity)


async def test_a_correction_of_another_source_corrects_nothing(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    identity = await subscribe(bode, publisher, sink.url("/foreign"), "dood")
    wrong = str(uuid4())
    await accept(bode, publisher, ("dood", {"id": wrong}))
    foreign = await bode.publisher()
    acceptor = await bode.acceptor()
    [result] = await acceptor.accept([foreign.message("iets", corrects=wrong, correction="withdraw")])
    assert isinstance(result, Accepted)
    assert [row["state"] for row in await rows(bode, identity)] == ["pending"]


@pytest.mark.parametrize(
    ("members", "attribute"),
    [
        ({"correction": "replace"}, "corrects"),
        ({"id": "zelf", "corrects": "zelf"}, "corrects"),
        ({"corrects": 7}, "corrects"),
        ({"corrects": "x", "correction": "withdrawn"}, "correction"),
        ({"corrects": "x", "correction": True}, "correction"),
    ],
)
async def test_corrections_that_say_nothing_are_rejected(
    bode: Delivering, publisher: Publisher, members: dict[str, Any], attribute: str
) -> None:
    [result] = await accept(bode, publisher, ("iets", members))
    assert isinstance(result, Rejected)
    assert (result.code, result.attribute) == ("correction-invalid", attribute)


@pytest.mark.parametrize("first", ["correction", "engine"])
async def test_between_engine_and_correction_postgres_decides_and_never_both(
    bode: Delivering, publisher: Publisher, sink: RawSink, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is stopped at the moment at which it takes the delivery, and doesn't hear of the correction."""
    identity = await subscribe(bode, publisher, sink.url(f"/race-{first}"), "dood")
    wrong = str(uuid4())
    await accept(bode, publisher, ("dood", {"subject": "a", "id": wrong}))
    usual, taking, go_on = corrections.take, asyncio.Event(), asyncio.Event()

    async def stopped(connection: asyncpg.Connection, wanted: Any) -> Any:
        if first == "engine":
            found = await usual(connection, wanted)
        taking.set()
        await go_on.wait()
        return found if first == "engine" else await usual(connection, wanted)

    monkeypatch.setattr(corrections, "take", stopped)
    # in the engine's memory its time has come; in the database an instant is left, as clocks may differ
    key = (await bode.row(identity))["key"]
    async with asyncio.timeout(20):
        while (runner := bode.process._engine._runners.get(key)) is None or not runner.queue.timed:
            await asyncio.sleep(0.01)
    for delivery in runner.queue._timed:
        delivery.due = 1.0
    if first == "engine":
        await bode.pool.execute(
            "UPDATE deliveries SET next_attempt_at = clock_timestamp() WHERE subscription = $1", runner.key
        )
    bode.process._engine._look(runner)
    async with asyncio.timeout(10):
        await taking.wait()
    acceptor = await bode.acceptor()  # nobody is woken
    await acceptor.accept([publisher.message("dood", subject="a", corrects=wrong, correction="withdraw")])
    go_on.set()
    if first == "engine":
        await states(bode, identity, "delivered", "pending")
        assert came(sink.of("POST", "/race-engine")) == [wrong]
    else:
        found = await states(bode, identity, "cancelled", "cancelled")
        assert {row["attempts"] for row in found} == {0}
        await bode.process._engine.feeder.sweep_once()
        assert not sink.of("POST", "/race-correction")
    await adds_up(bode, identity)


async def test_a_clock_that_is_ahead_when_it_asks_puts_nothing_off(
    bode: Delivering, publisher: Publisher, sink: RawSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL's clock was set back by two hours, and the process doesn't know yet when it asks for a delivery."""
    identity = await subscribe(bode, publisher, sink.url("/ahead"), "dood")
    await accept(bode, publisher, ("dood", {"subject": "a"}))
    engine, answers = bode.process._engine, list[corrections.Taken]()
    feeder, usual, clock = engine.feeder, corrections.take, engine.feeder._clock

    async def take(connection: asyncpg.Connection, wanted: Any) -> Any:
        found = await usual(connection, wanted)
        answers.extend(found.values())
        monkeypatch.setattr(feeder, "_clock", clock if len(answers) > 1 else lambda: clock() + 7200)
        return found

    monkeypatch.setattr(corrections, "take", take)
    key = (await bode.row(identity))["key"]
    async with asyncio.timeout(20):
        while (runner := engine._runners.get(key)) is None or not runner.queue.timed:
            await asyncio.sleep(0.01)
    await bode.pool.execute(
        "UPDATE deliveries SET next_attempt_at = clock_timestamp() + interval '2 s' WHERE subscription = $1", key
    )
    for delivery in runner.queue._timed:
        delivery.due = 1.0
    engine._look(runner)
    await states(bode, identity, "delivered")
    assert [answer.taken for answer in answers[:1]] == [False]
    assert answers[0].early > 0


async def test_a_delay_has_bounds_and_is_shown(bode: Delivering, registry_key: str) -> None:
    domain = (await bode.own_types()).domain
    for delay, members in ((0, {}), (604_801, {}), (-1, {}), (86_400, {"retentionDays": 1})):
        answer = await describe(bode, registry_key, f"{domain}.x", delay, **members)
        assert answer.status == 400, delay
        assert answer.json["invalidParams"][0]["name"] == "/delaySeconds"
    made = await describe(bode, registry_key, f"{domain}.x", 86_399, retentionDays=1)
    assert (made.status, made.json["delaySeconds"]) == (201, 86_399)
    body = {"type": f"{domain}.x", "meaning": "Iets."}
    changed = await bode.world.call("PUT", made.json["url"], key=registry_key, body=body)
    assert (changed.status, changed.json["delaySeconds"]) == (200, None)
