"""Outcomes as they are recorded: only once, only by the owner, and the sums agree (promise 2)."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from accepting import Broker, Subscribed, broker
from sqlalchemy import text

from broker.ingest.accept import Accepted
from broker.storage import leases, people, records
from broker.storage.records import OutcomeRow
from subscriptions.change_log import changing

SHARDS = 4
EPOCH = 7
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture
async def bode(url: str) -> AsyncIterator[Broker]:
    async with broker(url) as made:
        async with made.pool.acquire() as connection:
            await leases.create(connection, "shard", SHARDS)
            await connection.execute("UPDATE leases SET owner = $1, epoch = $2", uuid4(), EPOCH)
        yield made


@pytest.fixture
async def delivering(bode: Broker) -> AsyncIterator[asyncpg.Connection]:
    """A connection with the settings of a delivery process."""
    connection = await asyncpg.connect(bode.url, server_settings=records.connection_settings("test"))
    yield connection
    await connection.close()


async def matched(bode: Broker, count: int, *, subjects: int = 3) -> Subscribed:
    """A subscription with so many pending deliveries."""
    publisher = await bode.publisher()
    subscription = await bode.subscribed(publisher)
    results = await (await bode.acceptor()).accept(
        [publisher.message(subject=str(number % subjects)) for number in range(count)]
    )
    assert all(isinstance(result, Accepted) for result in results)
    return subscription


def outcome(delivery: asyncpg.Record, state: str, *, epoch: int = EPOCH, **changes: Any) -> OutcomeRow:
    pending = state == "pending"
    fields = {
        "subscription": delivery["subscription"],
        "sequence": delivery["sequence"],
        "event_key": delivery["event_key"],
        "state": state,
        "attempts": delivery["attempts"] + 1,
        "next_attempt_at": NOW + timedelta(seconds=5) if pending else None,
        "ended_at": None if pending else NOW,
        "status": 204 if state == "delivered" else 500,
        "reason": None if state == "delivered" else "status-500",
        "epoch": epoch,
    }
    return OutcomeRow(**(fields | changes))


async def totals(bode: Broker, subscription: Subscribed) -> tuple[int, int, int]:
    row = await bode.pool.fetchrow("SELECT * FROM delivery_totals WHERE subscription = $1", subscription.key)
    return (0, 0, 0) if row is None else (row["delivered"], row["dead"], row["cancelled"])


async def states(bode: Broker, subscription: Subscribed) -> list[str]:
    return [delivery["state"] for delivery in await bode.deliveries(subscription.key)]


async def health(bode: Broker, subscription: Subscribed) -> Any:
    async with bode.world.engine.connect() as connection:
        [row] = await people.read_health(connection, [subscription.key])
    return row


async def test_outcomes_of_a_batch_are_recorded_and_counted(bode: Broker, delivering: asyncpg.Connection) -> None:
    subscription = await matched(bode, 4)
    first, second, third, fourth = await bode.deliveries(subscription.key)
    outcomes = [
        outcome(first, "delivered"), outcome(second, "dead"), outcome(third, "pending"),
        outcome(fourth, "cancelled", reason="grant-ended"),
    ]  # fmt: skip
    failed = (second["subscription"], 2, second["event_key"], 1, NOW, 12, 500, "status", None)
    assert await records.record(delivering, outcomes, [failed], SHARDS) == 4
    assert await states(bode, subscription) == ["delivered", "dead", "pending", "cancelled"]
    assert await totals(bode, subscription) == (1, 1, 1)
    retried = (await bode.deliveries(subscription.key))[2]
    assert (retried["attempts"], retried["next_attempt_at"]) == (1, NOW + timedelta(seconds=5))
    attempts = await bode.pool.fetch("SELECT * FROM attempts WHERE subscription = $1", subscription.key)
    assert [(row["sequence"], row["attempt"], row["status"]) for row in attempts] == [(2, 1, 500)]


@pytest.mark.parametrize("epoch", [EPOCH - 1, EPOCH + 1, -1])
@pytest.mark.parametrize("state", ["delivered", "dead", "pending", "cancelled"])
async def test_outcome_under_another_epoch_changes_nothing(
    state: str, epoch: int, bode: Broker, delivering: asyncpg.Connection
) -> None:
    subscription = await matched(bode, 1)
    before = await bode.deliveries(subscription.key)
    assert await records.record(delivering, [outcome(before[0], state, epoch=epoch)], [], SHARDS) == 0
    assert await bode.deliveries(subscription.key) == before
    assert await totals(bode, subscription) == (0, 0, 0)


@pytest.mark.parametrize("end", ["delivered", "dead", "cancelled"])
@pytest.mark.parametrize("late", ["delivered", "dead", "pending", "cancelled"])
async def test_late_outcome_does_not_overwrite_an_end(
    end: str, late: str, bode: Broker, delivering: asyncpg.Connection
) -> None:
    subscription = await matched(bode, 1)
    [delivery] = await bode.deliveries(subscription.key)
    assert await records.record(delivering, [outcome(delivery, end)], [], SHARDS) == 1
    ended, counted = await bode.deliveries(subscription.key), await totals(bode, subscription)
    assert await records.record(delivering, [outcome(delivery, late, attempts=9)], [], SHARDS) == 0
    assert await bode.deliveries(subscription.key) == ended
    assert await totals(bode, subscription) == counted


async def test_matched_is_delivered_pending_dead_and_cancelled(bode: Broker, delivering: asyncpg.Connection) -> None:
    subscriptions = [await matched(bode, count) for count in (5, 17, 40)]
    keys = [subscription.key for subscription in subscriptions]
    everywhere = list(range(SHARDS))
    before_matched, before_ended = await records.totals(delivering, everywhere, SHARDS)
    random = Random(1)
    for _ in range(6):
        pending = [row for row in await bode.deliveries(*keys) if row["state"] == "pending"]
        chosen = random.sample(pending, len(pending) // 2)
        drawn = ["delivered", "dead", "pending", "cancelled"]
        outcomes = [
            outcome(row, random.choice(drawn), epoch=random.choice([EPOCH, EPOCH, EPOCH - 1])) for row in chosen
        ]
        await records.record(delivering, outcomes, [], SHARDS)
        rows = await bode.deliveries(*keys)
        for subscription in subscriptions:
            own = [row["state"] for row in rows if row["subscription"] == subscription.key]
            counted = await totals(bode, subscription)
            assert counted == (own.count("delivered"), own.count("dead"), own.count("cancelled"))
            assert (await health(bode, subscription)).pending == own.count("pending")
        now_matched, now_ended = await records.totals(delivering, everywhere, SHARDS)
        assert now_matched == before_matched
        assert now_ended - before_ended == sum(row["state"] != "pending" for row in rows)
    assert len([row for row in rows if row["state"] == "pending"]) < 20


async def test_totals_of_shards_add_up(bode: Broker, delivering: asyncpg.Connection) -> None:
    for count in (1, 2, 3, 4, 5):
        await matched(bode, count)
    whole = await records.totals(delivering, list(range(SHARDS)), SHARDS)
    parts = [await records.totals(delivering, [shard], SHARDS) for shard in range(SHARDS)]
    assert whole == (sum(part[0] for part in parts), sum(part[1] for part in parts))
    assert await records.totals(delivering, [], SHARDS) == (0, 0)


async def test_health_tells_how_far_a_subscription_is(bode: Broker, delivering: asyncpg.Connection) -> None:
    subscription = await matched(bode, 5)
    rows = await bode.deliveries(subscription.key)

    async def told() -> tuple[Any, ...]:
        row = await health(bode, subscription)
        return (row.last_sequence, row.first_pending, row.pending, row.dead_letters, row.last_outcome)

    assert await told() == (5, 1, 5, 0, None)
    await records.record(delivering, [outcome(rows[1], "delivered")], [], SHARDS)
    assert await told() == (5, 1, 4, 0, None)
    assert (await health(bode, subscription)).oldest == rows[0]["event_key"]
    await records.record(delivering, [outcome(rows[0], "dead")], [], SHARDS)
    assert await told() == (5, 3, 3, 1, "delivered")
    await records.record(delivering, [outcome(rows[2], "pending")], [], SHARDS)
    assert await told() == (5, 3, 3, 1, "status-500")
    await records.record(delivering, [outcome(row, "delivered") for row in rows[2:]], [], SHARDS)
    assert await told() == (5, None, 0, 1, "delivered")


async def test_ended_subscription_cancels_what_is_pending_and_outcomes_come_too_late(
    bode: Broker, delivering: asyncpg.Connection
) -> None:
    subscription = await matched(bode, 4)
    rows = await bode.deliveries(subscription.key)
    await records.record(delivering, [outcome(rows[0], "delivered")], [], SHARDS)
    async with changing(bode.world.engine) as connection:
        await people.cancel_subscription(connection, subscription.key)
    assert await records.record(delivering, [outcome(row, "delivered") for row in rows], [], SHARDS) == 0
    assert await states(bode, subscription) == ["delivered", "cancelled", "cancelled", "cancelled"]
    assert await totals(bode, subscription) == (1, 0, 3)
    reasons = {row["reason"] for row in (await bode.deliveries(subscription.key))[1:]}
    assert reasons == {"subscription-ended"}


async def test_cancellation_that_deadlocks_with_outcomes_begins_again(
    bode: Broker, delivering: asyncpg.Connection
) -> None:
    subscription = await matched(bode, 2)
    mark = "UPDATE deliveries SET attempts = attempts + 1 WHERE subscription = $1 AND sequence = $2"
    waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND pid = $1)"
    async with changing(bode.world.engine) as connection:
        backend = (await connection.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        async with delivering.transaction():
            await delivering.execute(mark, subscription.key, 2)
            cancelling = asyncio.create_task(people.cancel_subscription(connection, subscription.key))
            async with asyncio.timeout(20):
                while not await bode.pool.fetchval(waits, backend):
                    await asyncio.sleep(0.01)
            await delivering.execute(mark, subscription.key, 1)  # waits for one that waits for us
        await cancelling
    assert await states(bode, subscription) == ["cancelled", "cancelled"]
    assert await totals(bode, subscription) == (0, 0, 2)


async def test_revocation_cancels_what_no_other_grant_covers(bode: Broker) -> None:
    publisher = await bode.publisher()
    provider, oin, key = await bode.provider()
    first = await bode.grant(publisher, oin)
    subscription = await bode.subscribe(key, types=[f"{publisher.domain}.iets"])
    acceptor = await bode.acceptor()
    await acceptor.accept([publisher.message(), publisher.message()])
    second = await bode.grant(publisher, oin)

    async def revoke(grant: UUID) -> None:
        async with bode.world.engine.begin() as connection:
            await people.cancel_ungranted(connection, provider, grant)

    await revoke(first)
    assert await states(bode, subscription) == ["pending", "pending"]
    assert {row["grant_id"] for row in await bode.deliveries(subscription.key)} == {second}
    await bode.pool.execute("UPDATE grants SET revoked_at = now() WHERE id = $1", first)
    await revoke(second)
    assert await states(bode, subscription) == ["cancelled", "cancelled"]
    assert await totals(bode, subscription) == (0, 0, 2)


def sequences(rows: Sequence[records.PendingRow]) -> list[tuple[int, int]]:
    return [(row[0], row[1]) for row in rows]


async def test_pending_is_read_beyond_each_cursor_in_order(bode: Broker, delivering: asyncpg.Connection) -> None:
    one, two = await matched(bode, 6), await matched(bode, 3)
    rows = await bode.deliveries(one.key)
    await records.record(delivering, [outcome(rows[3], "delivered"), outcome(rows[4], "pending")], [], SHARDS)
    found = await records.pending_after(delivering, [(one.key, 2), (two.key, 0)], 3)
    assert sequences(found) == [(one.key, 3), (one.key, 5), (one.key, 6), (two.key, 1), (two.key, 2), (two.key, 3)]
    assert [row[5] for row in found if row[0] == one.key] == [0.0, (NOW + timedelta(seconds=5)).timestamp(), 0.0]
    assert [row[4] for row in found if row[0] == one.key] == [0, 1, 0]


async def test_lane_is_read_between_its_last_number_and_the_cursor(
    bode: Broker, delivering: asyncpg.Connection
) -> None:
    subscription = await matched(bode, 12, subjects=2)
    rows = await bode.deliveries(subscription.key)
    lane = rows[0]["lane"]
    found = await records.pending_of_lanes(delivering, [(subscription.key, lane, 1, 9)], 3)
    assert sequences(found) == [(subscription.key, number) for number in (3, 5, 7)]
    found = await records.pending_of_lanes(
        delivering, [(subscription.key, lane, 7, 9), (subscription.key, lane, 9, 9)], 3
    )
    assert sequences(found) == [(subscription.key, 9)]


async def test_heads_name_every_subscription_with_something_pending(
    bode: Broker, delivering: asyncpg.Connection
) -> None:
    subscriptions = [await matched(bode, 2) for _ in range(5)]
    firsts = {subscription.key: (await bode.deliveries(subscription.key)) for subscription in subscriptions}
    done = subscriptions[2].key
    await records.record(delivering, [outcome(row, "delivered") for row in firsts[done]], [], SHARDS)
    found, after = list[tuple[int, int]](), subscriptions[0].key - 1
    while page := await records.pending_heads(delivering, after, 2, range(SHARDS), SHARDS):
        found += page
        after = page[-1][0]
    assert found == [(key, rows[0]["event_key"]) for key, rows in firsts.items() if key != done]


async def test_looking_for_heads_passes_over_what_is_pulled_or_anothers(
    bode: Broker, delivering: asyncpg.Connection
) -> None:
    """Each probe costs a look into every partition, and what is pulled may be pending for weeks."""
    of, publisher = 1000, await bode.publisher()
    keys = [(await bode.subscribed(publisher)).key for _ in range(12)]
    for number in range(3):
        await (await bode.acceptor()).accept([publisher.message(subject=str(number))])
    pulled, ours, sent = keys[1:6], [keys[0] % of, keys[-1] % of], [keys[0], keys[-1]]
    pull = "UPDATE subscriptions SET protocol = 'PULL', sink = NULL, secret = NULL WHERE key = ANY($1::bigint[])"
    await bode.pool.execute(pull, pulled)
    one = (
        "SELECT 1 FROM deliveries WHERE state = 'pending' AND subscription >= $1"
        " ORDER BY subscription, sequence LIMIT 1"
    )
    scans = "SELECT sum(idx_scan)::bigint FROM pg_stat_xact_user_tables WHERE relname LIKE 'deliveries%'"
    async with delivering.transaction():
        before = await delivering.fetchval(scans) or 0
        await delivering.fetch(one, keys[0])
        probe = await delivering.fetchval(scans) - before
        assert probe > 0
        found = await records.pending_heads(delivering, keys[0] - 1, 100, [*ours, *(key % of for key in pulled)], of)
        assert [key for key, _ in found if key not in pulled] == sent
        assert await delivering.fetchval(scans) - before - probe <= len(sent) * probe


async def test_recording_reads_what_it_records_whatever_the_statistics_say(bode: Broker) -> None:
    """Statistics say that nothing is pending: a plan that believes them holds each outcome against all that is."""
    subscription = await matched(bode, 400)
    deliveries = await bode.deliveries(subscription.key)
    await bode.pool.execute("UPDATE deliveries SET state = 'delivered', ended_at = now()")
    await bode.pool.execute("ANALYZE deliveries")
    await bode.pool.execute("UPDATE deliveries SET state = 'pending', ended_at = NULL")
    read = (
        "SELECT sum(coalesce(idx_tup_fetch, 0) + seq_tup_read)::bigint FROM pg_stat_xact_user_tables"
        " WHERE relname LIKE 'deliveries%'"
    )
    settings = records.connection_settings("test")
    for few, ends in ((deliveries[:20], []), ([], deliveries[20:40])):
        connection = await asyncpg.connect(bode.url, server_settings=settings)
        try:
            async with connection.transaction():
                delivered = [(row["subscription"], row["sequence"], row["event_key"], 1, 204, 0.0) for row in ends]
                counted = await records.record(
                    connection, [outcome(row, "delivered") for row in few], [], SHARDS,
                    delivered=delivered, epochs=dict.fromkeys(range(SHARDS), EPOCH),
                )  # fmt: skip
                assert counted == 20
                assert await connection.fetchval(read) <= 20 * 2
        finally:
            await connection.close()
