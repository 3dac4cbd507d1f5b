"""Acceptance on real PostgreSQL: one commit for events, numbers and deliveries, whatever else is going on."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from uuid import uuid4

import asyncpg
import pytest
from accepting import Broker, Publisher, broker
from managing import RING

from broker.ingest.accept import Accepted, Duplicate, Message, Rejected
from broker.storage import acceptance, people
from broker.storage.sealing import open_body
from schemas import cloudevents
from schemas.cloudevents import Event, InvalidEvent
from subscriptions import grants
from subscriptions.change_log import changing

DAY = timedelta(days=1)


@pytest.fixture
async def bode(url: str) -> AsyncIterator[Broker]:
    async with broker(url) as made:
        yield made


async def rejections_of(bode: Broker, publisher: Publisher) -> list[asyncpg.Record]:
    return await bode.pool.fetch("SELECT * FROM rejections WHERE organisation_id = $1 ORDER BY id", publisher.id)


async def test_accepted_event_is_kept_sealed_with_a_numbered_delivery_for_each_match(bode: Broker) -> None:
    publisher = await bode.publisher()
    matching, other = await bode.subscribed(publisher), await bode.subscribed(await bode.publisher())
    acceptor = await bode.acceptor()
    message = publisher.message(subject="999990342", data={"x": 1})
    [accepted] = await acceptor.accept([message])
    assert isinstance(accepted, Accepted)
    assert accepted.subscriptions == (matching.key,)
    [delivery] = await bode.deliveries(matching.key, other.key)
    assert (delivery["subscription"], delivery["sequence"], delivery["state"]) == (matching.key, 1, "pending")
    assert delivery["event_key"] == accepted.event_key
    row = await bode.pool.fetchrow("SELECT * FROM events WHERE key = $1", accepted.event_key)
    assert isinstance(message.content, Event)
    assert open_body(RING, accepted.event_key, row["body"]) == message.content.body
    assert b"999990342" not in row["body"]
    assert row["organisation_id"] == publisher.id


async def test_duplicate_is_known_inside_a_batch_across_batches_and_processes(bode: Broker) -> None:
    publisher = await bode.publisher()
    subscription = await bode.subscribed(publisher)
    first, second = await bode.acceptor(), await bode.acceptor()
    one, two, three = (publisher.message() for _ in range(3))
    again = publisher.message(id=one.content.id, data="another body")
    results = await first.accept([one, two, one, again])
    assert [type(result) for result in results] == [Accepted, Accepted, Duplicate, Duplicate]
    results = await second.accept([again, two, three, one])
    assert [type(result) for result in results] == [Duplicate, Duplicate, Accepted, Duplicate]
    assert [delivery["sequence"] for delivery in await bode.deliveries(subscription.key)] == [1, 2, 3]


async def test_same_id_of_another_source_is_another_event(bode: Broker) -> None:
    publisher = await bode.publisher()
    acceptor = await bode.acceptor()
    messages = [publisher.message(id="1", source=publisher.source + suffix) for suffix in ("", "-b", "-c")]
    assert all(isinstance(result, Accepted) for result in await acceptor.accept(messages))


async def test_concurrent_acceptors_number_contiguously_and_lose_nothing(bode: Broker) -> None:
    publisher = await bode.publisher()
    subscriptions = [await bode.subscribed(publisher) for _ in range(6)]
    acceptors = [await bode.acceptor() for _ in range(4)]
    messages = [publisher.message(subject=str(number % 7)) for number in range(200)]

    async def accept(turn: int) -> list[int]:
        """Everything, in batches of another size and from another end for each, so that they meet everywhere."""
        mine = messages if turn % 2 else messages[::-1]
        size = 5 + 3 * turn
        keys = []
        for start in range(0, len(mine), size):
            results = await acceptors[turn].accept(mine[start : start + size])
            assert not any(isinstance(result, Rejected) for result in results)
            keys += [result.event_key for result in results if isinstance(result, Accepted)]
        return keys

    accepted = [key for keys in await asyncio.gather(*(accept(turn) for turn in range(4))) for key in keys]
    assert len(accepted) == len(set(accepted)) == len(messages), "each event is accepted by exactly one"
    deliveries = await bode.deliveries(*(subscription.key for subscription in subscriptions))
    numbers = defaultdict[int, list[int]](list)
    events = defaultdict[int, set[int]](set)
    for delivery in deliveries:
        numbers[delivery["subscription"]].append(delivery["sequence"])
        events[delivery["subscription"]].add(delivery["event_key"])
    assert len(numbers) == len(subscriptions)
    assert all(found == list(range(1, len(messages) + 1)) for found in numbers.values())
    assert all(found == set(accepted) for found in events.values())


async def test_numbers_follow_the_order_of_the_queue(bode: Broker) -> None:
    publisher = await bode.publisher()
    subscription = await bode.subscribed(publisher)
    acceptor = await bode.acceptor()
    keys = []
    for _ in range(3):
        results = await acceptor.accept([publisher.message() for _ in range(20)])
        keys += [result.event_key for result in results if isinstance(result, Accepted)]
    assert [delivery["event_key"] for delivery in await bode.deliveries(subscription.key)] == keys


async def test_ordering_decides_the_lane(bode: Broker) -> None:
    publisher = await bode.publisher()
    by_subject = await bode.subscribed(publisher)
    by_subscription = await bode.subscribed(publisher, ordering="subscription")
    unordered = await bode.subscribed(publisher, ordering="none")
    other_source = publisher.source + "-b"
    messages = [
        publisher.message(subject="a"), publisher.message(subject="b"), publisher.message(subject="a"),
        publisher.message(subject="a", source=other_source), publisher.message(),
    ]  # fmt: skip
    await (await bode.acceptor()).accept(messages)
    lanes = defaultdict[int, list[int | None]](list)
    for delivery in await bode.deliveries(by_subject.key, by_subscription.key, unordered.key):
        lanes[delivery["subscription"]].append(delivery["lane"])
    first, second, third, elsewhere, without = lanes[by_subject.key]
    assert first == third
    assert len({first, second, elsewhere}) == 3
    assert without is None
    assert len(set(lanes[by_subscription.key])) == 1
    assert None not in lanes[by_subscription.key]
    assert set(lanes[unordered.key]) == {None}


async def test_only_a_grant_that_is_valid_now_lets_an_event_through(bode: Broker) -> None:
    publisher = await bode.publisher()
    now = datetime.now(UTC)
    validities = {
        "always": {},
        "in force": {"valid_from": now - DAY, "valid_until": now + DAY},
        "expired": {"valid_from": now - 2 * DAY, "valid_until": now - DAY},
        "not yet": {"valid_from": now + DAY},
        "revoked": {},
    }
    keys = {}
    for name, validity in validities.items():
        _, oin, key = await bode.provider()
        standing = await bode.grant(publisher, oin)
        keys[name] = (await bode.subscribe(key, types=[f"{publisher.domain}.iets"])).key
        if name != "always":
            if validity:
                await bode.grant(publisher, oin, **validity)
            async with changing(bode.world.engine) as connection:
                await grants.revoke_grant(
                    connection, standing, registry_id=publisher.id, cancel_ungranted=people.cancel_ungranted
                )
    [accepted] = await (await bode.acceptor()).accept([publisher.message()])
    assert isinstance(accepted, Accepted)
    assert set(accepted.subscriptions) == {keys["always"], keys["in force"]}


async def test_change_that_was_answered_holds_for_the_next_batch_of_every_process(bode: Broker) -> None:
    publisher = await bode.publisher()
    acceptors = [await bode.acceptor() for _ in range(3)]
    for acceptor in acceptors:
        await acceptor.accept([publisher.message()])
    _, oin, key = await bode.provider()
    grant = await bode.grant(publisher, oin)
    subscription = await bode.subscribe(key, types=[f"{publisher.domain}.iets"])
    for acceptor in acceptors:
        [result] = await acceptor.accept([publisher.message()])
        assert isinstance(result, Accepted)
        assert result.subscriptions == (subscription.key,)
    async with changing(bode.world.engine) as connection:
        await grants.revoke_grant(connection, grant, registry_id=publisher.id, cancel_ungranted=people.cancel_ungranted)
    for acceptor in acceptors:
        [result] = await acceptor.accept([publisher.message()])
        assert isinstance(result, Accepted)
        assert result.subscriptions == ()


async def test_change_waits_for_a_slow_acceptance_and_holds_for_the_one_behind_it(
    bode: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = await bode.publisher()
    slow, quick = await bode.acceptor(), await bode.acceptor()
    _, oin, key = await bode.provider()
    grant = await bode.grant(publisher, oin)
    subscription = await bode.subscribe(key, types=[f"{publisher.domain}.iets"])
    claimed, go_on = asyncio.Event(), asyncio.Event()
    claim_ids = acceptance.claim_ids

    async def slowly(*arguments: object) -> set[int]:
        if not claimed.is_set():
            claimed.set()
            await go_on.wait()
        return await claim_ids(*arguments)

    monkeypatch.setattr(acceptance, "claim_ids", slowly)
    accepting = asyncio.create_task(slow.accept([publisher.message()]))
    await claimed.wait()

    async def revoke() -> None:
        async with changing(bode.world.engine) as connection:
            await grants.revoke_grant(
                connection, grant, registry_id=publisher.id, cancel_ungranted=people.cancel_ungranted
            )

    revoking = asyncio.create_task(revoke())
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    async with asyncio.timeout(5):
        while not await bode.pool.fetchval(waiting):
            pass
    behind = asyncio.create_task(quick.accept([publisher.message()]))
    go_on.set()
    [[before], _, [after]] = await asyncio.gather(accepting, revoking, behind)
    assert isinstance(before, Accepted)
    assert isinstance(after, Accepted)
    assert before.subscriptions == (subscription.key,)
    assert after.subscriptions == ()
    [delivery] = await bode.deliveries(subscription.key)
    assert (delivery["state"], delivery["reason"]) == ("cancelled", "grant-ended")


@pytest.mark.parametrize("step", ["claim_ids", "take_numbers", "reject"])
async def test_failure_at_any_step_leaves_nothing(step: str, bode: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = await bode.publisher()
    subscription = await bode.subscribed(publisher)
    acceptor = await bode.acceptor()
    batch = [publisher.message(), publisher.message(specversion="0.3"), publisher.message()]
    original = getattr(acceptance, step)

    async def fail(*arguments: object) -> None:
        await original(*arguments)
        raise ConnectionResetError("the server went away")

    counts = "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM event_ids), (SELECT count(*) FROM rejections)"
    before = await bode.pool.fetchrow(counts)
    with monkeypatch.context() as patch:
        patch.setattr(acceptance, step, fail)
        with pytest.raises(ConnectionResetError):
            await acceptor.accept(batch)
    assert await bode.pool.fetchrow(counts) == before
    assert not await bode.deliveries(subscription.key)
    results = await acceptor.accept(batch)
    assert [type(result) for result in results] == [Accepted, Rejected, Accepted]
    assert [delivery["sequence"] for delivery in await bode.deliveries(subscription.key)] == [1, 2]


async def test_rejection_is_kept_once_for_each_message_with_its_times(bode: Broker) -> None:
    publisher = await bode.publisher()
    acceptor = await bode.acceptor()
    wrong, other = publisher.message(specversion="0.3"), publisher.message(time="yesterday")
    results = await acceptor.accept([wrong, publisher.message(), wrong, other])
    assert [type(result) for result in results] == [Rejected, Accepted, Rejected, Rejected]
    await acceptor.accept([wrong])
    first, second = await rejections_of(bode, publisher)
    kept = {row["code"]: row["times"] for row in (first, second)}
    assert kept == {"specversion-unsupported": 3, "time-invalid": 1}
    assert {row["attribute"] for row in (first, second)} == {"specversion", "time"}


async def test_rejections_of_concurrent_acceptors_meet_without_harm(bode: Broker) -> None:
    publisher = await bode.publisher()
    messages = [publisher.message(specversion=str(number)) for number in range(30)]
    acceptors = [await bode.acceptor() for _ in range(4)]
    orders = [messages, messages[::-1], messages[15:] + messages[:15], messages[::2] + messages[1::2]]
    await asyncio.gather(*(acceptor.accept(order) for acceptor, order in zip(acceptors, orders, strict=True)))
    rows = await rejections_of(bode, publisher)
    assert [row["times"] for row in rows] == [4] * 30


async def test_who_may_not_publish_is_told_why(bode: Broker) -> None:
    publisher, other = await bode.publisher(), await bode.publisher()
    event = publisher.message(subject="a").content
    cases = {
        "publisher-unknown": [Message(None, event, b"1"), Message("nobody", event, b"2")],
        "source-not-yours": [publisher.message(source=other.source), publisher.message(source="urn:else")],
        "type-not-yours": [publisher.message(type=f"{other.domain}.iets"), publisher.message(type="nl.nobody.iets")],
        "routing-key-mismatch": [Message(publisher.user, event, b"3", routing_key=f"{publisher.domain}.anders")],
        "subject-header-mismatch": [Message(publisher.user, event, b"4", subject_header="b")],
    }
    acceptor = await bode.acceptor()
    for code, messages in cases.items():
        for result in await acceptor.accept(messages):
            assert isinstance(result, Rejected)
            assert result.code == code
    assert {row["code"] for row in await rejections_of(bode, publisher)} == set(cases) - {"publisher-unknown"}
    assert not await rejections_of(bode, other), "what another wrote about us isn't ours to read"


@pytest.mark.parametrize(
    "body",
    [
        b'{"specversion":"1.0","id":"\\u0000","source":"a","type":"nl.a"}',
        b'{"specversion":"1.0","id":"\\ud800","source":"a","type":"nl.a"}',
        b'{"\\u0000":"x"}',
        b'{"\\ud800":"x"}',
        b'{"specversion":"1.0","id":"1","source":"urn:\\u0000","type":"nl.a"}',
        b"\xff\xfe",
        b"",
        b"\x00",
    ],
)
async def test_no_message_is_poison(body: bytes, bode: Broker) -> None:
    publisher = await bode.publisher()
    with pytest.raises(InvalidEvent) as invalid:
        cloudevents.from_structured(body)
    [result] = await (await bode.acceptor()).accept([Message(publisher.user, invalid.value, body)])
    assert isinstance(result, Rejected)


@pytest.mark.parametrize("user", ["\x00", "\ud800", "a" * 300])
async def test_no_publisher_name_is_poison(user: str, bode: Broker) -> None:
    content = (await bode.publisher()).message().content
    [result] = await (await bode.acceptor()).accept([Message(user, content, uuid4().bytes)])
    assert isinstance(result, Rejected)
    assert result.code == "publisher-unknown"


async def test_event_that_cannot_be_stored_is_rejected_and_the_rest_of_its_batch_is_accepted(bode: Broker) -> None:
    publisher = await bode.publisher()
    good, bad, last = publisher.message(), publisher.message(), publisher.message()
    assert isinstance(bad.content, Event)
    unforeseen = replace(bad.content, attributes={**bad.content.attributes, "id": "a\0b"})  # past every check of ours
    results = await (await bode.acceptor()).accept([good, replace(bad, content=unforeseen), last])
    assert [type(result) for result in results] == [Accepted, Rejected, Accepted]
    assert [row["code"] for row in await rejections_of(bode, publisher)] == ["not-storable"]


async def test_long_id_and_source_are_no_trouble(bode: Broker) -> None:
    publisher = await bode.publisher()
    await bode.subscribed(publisher)
    message = publisher.message(id="x" * 100_000, source=publisher.source + ":" + "y" * 50_000, subject="z" * 50_000)
    [result] = await (await bode.acceptor()).accept([message])
    assert isinstance(result, Accepted)


async def test_clock_of_the_process_decides_on_no_grant(bode: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was set back by hours once matched nothing: no grant had begun yet."""

    class Yesterday(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Yesterday":
            return cls.fromtimestamp(datetime.now(tz).timestamp() - 86_400, tz)

    publisher = await bode.publisher()
    subscription = await bode.subscribed(publisher)
    monkeypatch.setattr("broker.ingest.accept.datetime", Yesterday)
    [accepted] = await (await bode.acceptor()).accept([publisher.message()])
    assert accepted.subscriptions == (subscription.key,)


async def test_what_is_acknowledged_as_known_waits_for_the_commit_that_made_it_known(bode: Broker) -> None:
    publisher = await bode.publisher()
    message = publisher.message()
    acceptor = await bode.acceptor()
    await acceptor.accept([message])
    before = await bode.pool.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
    assert await acceptor.accept([message]) == [Duplicate()]
    flushed = await bode.pool.fetchval("SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn")
    assert flushed > before, "a commit that writes nothing waits for nothing"
