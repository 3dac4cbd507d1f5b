"""Days past their retention: retired without a loss, and their numbers explained ever after (promises 2, 5)."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, time, timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from accepting import Broker, Publisher, Subscribed, broker, migrated
from broker_api import serve
from fastapi import APIRouter
from managing import administer, drop_database, sibling

from broker.api import dead_letters, reconciliation
from broker.processes.housekeeping import EXPIRING, PRUNE, RETAIN, Housekeeper
from broker.storage import accounting, event_checks, jobs, records, retention, retirement
from broker.storage.partitions import ensure_partitions
from broker.storage.records import bodies
from broker.storage.retention import Day
from broker.storage.settings import AccountingSettings, RetentionSettings
from broker.storage.tables import key_at
from subscriptions.database import DatabaseSettings, create_engine

NOW = datetime.now(UTC)
AGES = (90, 70, 61, 30, 3)
AGE = """
UPDATE {table} SET {key} = {key} - ((extract(epoch FROM make_interval(days => $1)) * 1000)::bigint << 20)
WHERE {key} >= $2
"""


@pytest.fixture(scope="module")
def template(postgres_url: str) -> Iterator[str]:
    with migrated(postgres_url) as made:
        asyncio.run(make_days(made))
        yield made


async def make_days(url: str) -> None:
    engine = create_engine(DatabaseSettings.model_validate({"url": url}))
    async with engine.begin() as connection:
        for days in AGES:
            await ensure_partitions(connection, NOW - timedelta(days=days))
    await engine.dispose()


@pytest.fixture
def url(postgres_url: str, template: str) -> Iterator[str]:
    """A database of its own, copied: days are retired in it."""
    name = f"bode_test_{uuid4().hex[:12]}"
    original = template.partition("?")[0].rpartition("/")[2]
    asyncio.run(administer(postgres_url, f"CREATE DATABASE {name} TEMPLATE {original}"))
    try:
        yield sibling(postgres_url, name)
    finally:
        asyncio.run(drop_database(postgres_url, name))


@pytest.fixture
async def bode(url: str) -> AsyncIterator[Broker]:
    async with broker(url) as made:
        router = APIRouter(prefix="/v1")
        router.include_router(reconciliation.router)
        made.world.app.include_router(router)
        yield made


async def accept(bode: Broker, publisher: Publisher, count: int, days: int, name: str = "iets") -> None:
    """Events that were accepted so many days ago."""
    acceptor = await bode.acceptor()
    newest = await bode.pool.fetchval("SELECT coalesce(max(event_key), 0) + 1 FROM event_ids")
    start = max(newest, key_at(NOW - timedelta(days=1)))
    await acceptor.accept([publisher.message(name) for _ in range(count)])
    for table, key in (("events", "key"), ("deliveries", "event_key"), ("event_ids", "event_key")):
        await bode.pool.execute(AGE.format(table=table, key=key), days, start)


async def end(bode: Broker, subscription: Subscribed, state: str, first: int, last: int) -> None:
    """End numbers as delivery does, counted; the dead with an attempt."""
    reason = None if state == "delivered" else f"why-{state}"
    await bode.pool.execute(
        "UPDATE deliveries SET state = $2::delivery_state, reason = $3, ended_at = to_timestamp((event_key >> 20)/1000)"
        " WHERE subscription = $1 AND sequence BETWEEN $4 AND $5", subscription.key, state, reason, first, last,
    )  # fmt: skip
    await bode.pool.execute(
        f"INSERT INTO delivery_totals AS t (subscription, {state}) VALUES ($1, $2)"
        f" ON CONFLICT (subscription) DO UPDATE SET {state} = t.{state} + $2", subscription.key, last - first + 1,
    )  # fmt: skip
    if state == "dead":
        await bode.pool.execute(
            "INSERT INTO attempts SELECT subscription, sequence, event_key, 1, now(), 1, 500, 'status', NULL"
            " FROM deliveries WHERE subscription = $1 AND sequence BETWEEN $2 AND $3", subscription.key, first, last,
        )  # fmt: skip


def housekeeper(bode: Broker, now: datetime = NOW, **settings: Any) -> Housekeeper:
    return Housekeeper(
        bode.pool, bode.world.engine, AccountingSettings(share=1), RetentionSettings(**settings), clock=lambda: now
    )


async def keep(bode: Broker, job: str = RETAIN, now: datetime = NOW, **settings: Any) -> None:
    """Let housekeeping go round once."""
    keeper = housekeeper(bode, now, **settings)
    keeper._jobs = {job: keeper._jobs[job]}
    async with bode.pool.acquire() as connection:
        await jobs.create(connection, [job], now)
        await connection.execute(
            "UPDATE house_jobs SET round_finished_at = NULL, due_at = $1 WHERE name = $2", now, job
        )
        while await connection.fetchval("SELECT round_finished_at IS NULL FROM house_jobs WHERE name = $1", job):
            await keeper.step()
            await connection.execute("UPDATE house_jobs SET due_at = $1 WHERE round_finished_at IS NULL", now)


async def partitions(bode: Broker) -> set[str]:
    rows = await bode.pool.fetch("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent <> 0")
    return {row[0] for row in rows}


async def nothing_is_off(bode: Broker, *subscriptions: Subscribed) -> None:
    async with bode.pool.acquire() as connection:
        bounds = await event_checks.bounds_of(connection)
        assert await event_checks.check(connection, 0, NOW, bounds=bounds) == ([], None)
        for subscription in subscriptions:
            assert await accounting.recount(connection, subscription.key) == []
            assert await accounting.check_totals(connection, subscription.key, NOW) == ([], True)
            first: int | None = 1
            while first is not None:
                found, first = await accounting.check_numbers(connection, subscription.key, first, NOW)
                assert found == []


async def marks(bode: Broker, subscription: Subscribed) -> dict[int, str]:
    rows = await bode.pool.fetch(
        "SELECT sequence, source, id FROM deliveries JOIN events ON key = event_key WHERE subscription = $1",
        subscription.key,
    )
    return {row[0]: sha256(f"{row[1]}\n{row[2]}".encode()).hexdigest() for row in rows}


def digest(known: dict[int, str], numbers: range | list[int]) -> str:
    return sha256("".join(f"{number} {known[number]}\n" for number in numbers).encode()).hexdigest()


async def reconciled(bode: Broker, subscription: Subscribed, key: str, query: str = "?from=1") -> Any:
    answer = await bode.world.call("GET", f"/subscriptions/{subscription.id}/reconciliation{query}", key=key)
    assert answer.status == 200, answer.text
    return answer.json


async def test_day_is_retired_and_every_number_of_it_is_told_afterwards_as_before(bode: Broker) -> None:
    publisher = await bode.publisher()
    _, oin, key = await bode.provider()
    await bode.grant(publisher, oin)
    subscription = await bode.subscribe(key, types=[f"{publisher.domain}.iets"])
    await accept(bode, publisher, 40, 90)
    await accept(bode, publisher, 30, 61)
    await accept(bode, publisher, 30, 30)
    for state, first, last in (
        ("delivered", 1, 9), ("cancelled", 10, 12), ("delivered", 13, 19), ("dead", 20, 21), ("delivered", 22, 38),
        ("delivered", 41, 65), ("delivered", 71, 95), ("dead", 96, 96),
    ):  # fmt: skip
        await end(bode, subscription, state, first, last)
    known = await marks(bode, subscription)
    payloads = {row["key"]: row["body"] for row in await bode.pool.fetch("SELECT key, body FROM events")}
    dead = [row["event_key"] for row in await bode.deliveries(subscription.key) if row["sequence"] in (20, 21)]

    await keep(bode)

    kept = [row["sequence"] for row in await bode.deliveries(subscription.key)]
    assert kept == [20, 21, *range(71, 101)]
    gone = {f"{table}_{NOW - timedelta(days=age):%Y%m%d}" for table in retirement.TABLES for age in (90, 61)}
    assert not gone & await partitions(bode)
    assert {f"{table}_kept" for table in retirement.TABLES} <= await partitions(bode)
    assert await bode.pool.fetchval("SELECT count(*) FROM pg_class WHERE relname LIKE '%retired'") == 0
    async with bode.pool.acquire() as connection:
        assert {row[0]: row[2] for row in await bodies(connection, dead)} == {key: payloads[key] for key in dead}
    assert await bode.pool.fetchval("SELECT count(*) FROM attempts_kept") == 2
    totals = await bode.pool.fetchrow("SELECT * FROM delivery_totals WHERE subscription = $1", subscription.key)
    assert tuple(totals) == (subscription.key, 83, 3, 3 + 2 + 5)
    await nothing_is_off(bode, subscription)
    found = await reconciled(bode, subscription, key)
    assert found["counts"] == {"delivered": 83, "pending": 4, "dead": 3, "cancelled": 10, "expired": 0}
    assert found["tombstones"] == [
        {"from": 10, "to": 12, "state": "cancelled", "reason": "why-cancelled"},
        {"from": 20, "to": 21, "state": "dead", "reason": "why-dead"},
        {"from": 39, "to": 40, "state": "cancelled", "reason": "payload-expired"},
        {"from": 66, "to": 70, "state": "cancelled", "reason": "payload-expired"},
        {"from": 96, "to": 96, "state": "dead", "reason": "why-dead"},
        {"from": 97, "to": 100, "state": "pending", "reason": None},
    ]
    proved = [(block["from"], block["to"], block["digest"]) for block in found["blocks"] if block["delivered"]]
    assert proved == [
        (first, last, digest(known, range(first, min(last, 95) + 1)))
        for first, last in ((1, 9), (13, 19), (22, 38), (41, 65), (66, 100))
        if first != 66
    ] + [(66, 100, digest(known, range(71, 96)))]
    part = await reconciled(bode, subscription, key, "?from=5&to=15")
    assert part["tombstones"] == [
        {"from": 5, "to": 9, "state": "expired", "reason": "payload-expired"},
        {"from": 10, "to": 12, "state": "cancelled", "reason": "why-cancelled"},
        {"from": 13, "to": 15, "state": "expired", "reason": "payload-expired"},
    ]


async def test_kill_between_any_two_steps_loses_nothing_and_counts_nothing_twice(bode: Broker) -> None:
    publisher = await bode.publisher()
    subscriptions = [await bode.subscribed(publisher) for _ in range(3)]
    await accept(bode, publisher, 25, 90)
    for subscription in subscriptions:
        await end(bode, subscription, "delivered", 1, 20)
        await end(bode, subscription, "dead", 21, 22)
    [day, *_] = [day for day in await retention.days(bode.pool) if day.age(NOW) >= 89]

    class Killed(Exception):
        pass

    class Mortal:
        """A connection whose process dies at its n-th statement; what was not committed is undone."""

        def __init__(self, connection: asyncpg.Connection, statements: int) -> None:
            self._connection, self._left = connection, statements

        def __getattr__(self, name: str) -> Any:
            found = getattr(self._connection, name)
            if name not in ("execute", "fetch", "fetchrow", "fetchval"):
                return found

            async def counted(*arguments: Any) -> Any:
                self._left -= 1
                if self._left < 0:
                    raise Killed
                return await found(*arguments)

            return counted

    survived, deaths = False, 0
    while not survived:
        async with bode.pool.acquire() as connection:
            mortal: Any = Mortal(connection, deaths)
            try:
                while await retention.cancel_pending(mortal, day, NOW):
                    pass
                while not await retirement.explain(mortal, day, NOW):
                    pass
                await retirement.close(mortal, day)
                await retirement.retire(mortal, day, NOW)
                survived = True
            except Killed:
                deaths += 1
            except asyncpg.UndefinedTableError:
                survived = True  # it was retired in the life before
            finally:
                await retirement.drop_taken_out(connection)
        if deaths % 5 == 0 or survived:
            await nothing_is_off(bode, *subscriptions)
    assert deaths > 20
    for subscription in subscriptions:
        assert [row["sequence"] for row in await bode.deliveries(subscription.key)] == [21, 22]


async def test_types_keep_their_events_for_as_long_as_they_say(bode: Broker) -> None:
    publisher = await bode.publisher()
    long, short, usual = (f"{publisher.domain}.{name}" for name in ("lang", "kort", "iets"))
    _, oin, key = await bode.provider()
    await bode.grant(publisher, oin)
    subscription = await bode.subscribe(key, types=[long, short, usual])
    for name, days in ((long, 80), (short, 20)):
        await bode.pool.execute(
            "INSERT INTO event_types (id, type, organisation_id, meaning, retention_days)"
            " VALUES (gen_random_uuid(), $1, $2, 'x', $3)", name, publisher.id, days,
        )  # fmt: skip
    # day 70 has a long one, day 61 has none, day 30 a short one; dead letters keep their payload
    for count, days, name in ((2, 70, "lang"), (2, 70, "iets"), (2, 61, "iets"), (3, 30, "kort"), (2, 30, "iets")):
        await accept(bode, publisher, count, days, name)
    await end(bode, subscription, "delivered", 1, 7)
    await end(bode, subscription, "dead", 8, 8)

    await keep(bode)

    rows = await bode.pool.fetch(
        "SELECT sequence, state::text, reason, body = '' AS erased FROM deliveries JOIN events ON key = event_key"
        " WHERE subscription = $1 ORDER BY sequence", subscription.key,
    )  # fmt: skip
    assert [tuple(row) for row in rows] == [
        (1, "delivered", None, False), (2, "delivered", None, False),  # long
        (3, "delivered", None, True), (4, "delivered", None, True),  # their day stays, they are erased
        (7, "delivered", None, True), (8, "dead", "why-dead", False), (9, "cancelled", "payload-expired", True),
        (10, "pending", None, False), (11, "pending", None, False),
    ]  # fmt: skip
    await nothing_is_off(bode, subscription)
    await keep(bode, now=NOW + timedelta(days=11))  # now the long ones are old enough
    assert [row["sequence"] for row in await bode.deliveries(subscription.key)] == [7, 8, 9, 10, 11]


async def test_dead_letter_that_was_sent_after_all_is_retired_in_its_turn(bode: Broker) -> None:
    publisher = await bode.publisher()
    subscription = await bode.subscribed(publisher)
    await accept(bode, publisher, 4, 90)
    await end(bode, subscription, "delivered", 1, 2)
    await end(bode, subscription, "dead", 3, 4)
    await keep(bode)
    await bode.pool.execute("UPDATE deliveries SET state = 'delivered', ended_at = $1 WHERE sequence = 3", NOW)
    await bode.pool.execute("UPDATE delivery_totals SET delivered = 3, dead = 1")
    await keep(bode)
    assert [row["sequence"] for row in await bode.deliveries(subscription.key)] == [3, 4]
    await keep(bode, now=NOW + timedelta(days=61))
    assert [row["sequence"] for row in await bode.deliveries(subscription.key)] == [4]
    assert await bode.pool.fetchval("SELECT count(*) FROM events") == 1
    await nothing_is_off(bode, subscription)


async def test_kept_dead_letters_are_retried_and_discarded_like_others(bode: Broker) -> None:
    publisher = await bode.publisher()
    subscription = await bode.subscribed(publisher)
    await accept(bode, publisher, 4, 70)
    await end(bode, subscription, "dead", 1, 3)
    await bode.pool.execute("UPDATE deliveries SET attempts = 1")
    await end(bode, subscription, "delivered", 4, 4)
    await keep(bode)
    await serve(bode, dead_letters.router)
    key = await bode.key_of(subscription)
    done = await bode.world.call(
        "POST", f"/subscriptions/{subscription.id}/dead-letters/retries", key=key, body={"numbers": [1, 2]}
    )
    assert (done.status, done.json["retried"]) == (200, 2)
    place = f"/dead-letters/dlv_{subscription.id.hex}_3"
    assert len((await bode.world.call("GET", place, key=key)).json["failedAttempts"]) == 1
    assert (await bode.world.call("POST", f"{place}/discards", key=key, body={"reason": "oud"})).status == 200
    await nothing_is_off(bode, subscription)
    await keep(bode)
    rows = await bode.deliveries(subscription.key)
    assert [(row["sequence"], row["state"]) for row in rows] == [(1, "pending"), (2, "pending"), (3, "cancelled")]
    async with bode.pool.acquire() as connection:
        found = await records.pending_after(connection, [(subscription.key, 0)], 10)
        assert [row[1] for row in found] == [1, 2]
        assert len(await bodies(connection, [row[2] for row in found])) == 2
    await end(bode, subscription, "delivered", 1, 2)
    await keep(bode, now=NOW + timedelta(days=61))
    assert await bode.deliveries(subscription.key) == []
    await nothing_is_off(bode, subscription)


async def test_day_with_more_dead_letters_than_can_be_moved_quickly_stays(
    bode: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = await bode.publisher()
    subscription = await bode.subscribed(publisher)
    await accept(bode, publisher, 6, 90)
    await accept(bode, publisher, 2, 61)
    await end(bode, subscription, "delivered", 1, 2)
    await end(bode, subscription, "dead", 3, 6)
    await end(bode, subscription, "delivered", 7, 8)
    monkeypatch.setattr(retirement, "MOST_MOVED", 3)
    await keep(bode)
    rows = await bode.pool.fetch("SELECT sequence, body = '' FROM deliveries JOIN events ON key = event_key ORDER BY 1")
    assert [tuple(row) for row in rows] == [(1, True), (2, True), (3, False), (4, False), (5, False), (6, False)]
    await nothing_is_off(bode, subscription)
    monkeypatch.setattr(retirement, "MOST_MOVED", 4)
    await keep(bode, now=NOW + timedelta(hours=2))
    assert [row["sequence"] for row in await bode.deliveries(subscription.key)] == [3, 4, 5, 6]
    await nothing_is_off(bode, subscription)


async def test_tables_in_use_are_not_waited_for(bode: Broker) -> None:
    publisher = await bode.publisher()
    subscription = await bode.subscribed(publisher)
    await accept(bode, publisher, 2, 90)
    [day, *_] = [day for day in await retention.days(bode.pool) if day.age(NOW) >= 89]
    async with bode.pool.acquire() as accepting, bode.pool.acquire() as connection:
        while await retention.cancel_pending(connection, day, NOW):
            pass
        while not await retirement.explain(connection, day, NOW):
            pass
        async with accepting.transaction():
            await accepting.fetch("SELECT FROM deliveries LIMIT 1")
            with pytest.raises(asyncpg.LockNotAvailableError):
                await retirement.retire(connection, day, NOW)
        await nothing_is_off(bode, subscription)
        async with accepting.transaction():  # as autovacuum does
            await accepting.execute(f"LOCK TABLE {Day(NOW.date()).deliveries} IN SHARE UPDATE EXCLUSIVE MODE")
            assert await retirement.retire(connection, day, NOW) == 0
    await nothing_is_off(bode, subscription)


async def test_closed_day_takes_no_event_in(bode: Broker) -> None:
    day = Day((NOW - timedelta(days=90)).date())
    async with bode.pool.acquire() as connection:
        await retirement.close(connection, day)
        await retirement.close(connection, day)
        with pytest.raises(asyncpg.CheckViolationError):
            await connection.execute(
                "INSERT INTO events (key, organisation_id, source, id, type, bytes, body)"
                " VALUES ($1, $2, 's', 'i', 't', 1, 'x')", day.first_key, UUID(int=0),
            )  # fmt: skip


async def test_ids_and_rejections_are_forgotten_by_their_window_and_nothing_is_missed(bode: Broker) -> None:
    publisher = await bode.publisher()
    subscription = await bode.subscribed(publisher)
    await accept(bode, publisher, 3, 90)
    await accept(bode, publisher, 2, 3)
    await (await bode.acceptor()).accept([publisher.message(type="nl.elders.x"), publisher.message(type="nl.elders.y")])
    await bode.pool.execute("UPDATE rejections SET rejected_at = $1 WHERE id = 1", NOW - timedelta(days=400))
    later = NOW + timedelta(days=311)
    await keep(bode, PRUNE, later, rejection_days=500)
    assert await bode.pool.fetchval("SELECT count(*) FROM event_ids") == 2
    assert await bode.pool.fetchval("SELECT count(*) FROM rejections") == 1
    await nothing_is_off(bode, subscription)


async def expiring(bode: Broker) -> list[dict[str, Any]]:
    rows = await bode.pool.fetch("SELECT data::text FROM notices WHERE type = 'nl.bode.events-expiring' ORDER BY id")
    return [json.loads(row[0]) for row in rows]


async def test_providers_are_told_once_in_a_period_what_retention_will_take(bode: Broker) -> None:
    publisher = await bode.publisher()
    waiting, received = await bode.subscribed(publisher), await bode.subscribed(publisher)
    await accept(bode, publisher, 3, days=61)
    await accept(bode, publisher, 2, days=30)
    await end(bode, received, "delivered", 1, 3)
    early = NOW - timedelta(days=7)
    await keep(bode, EXPIRING, early)
    assert await expiring(bode) == [], "a week is too early"
    soon = NOW - timedelta(days=5)
    for moment in (soon, soon + timedelta(hours=1), soon + timedelta(days=1)):
        await keep(bode, EXPIRING, moment)
    expires = datetime.combine((NOW - timedelta(days=61)).date() + timedelta(days=61), time(), UTC)
    assert await expiring(bode) == [
        {
            "subscription": str(waiting.id),
            "count": 3,
            "firstSequence": 1,
            "lastSequence": 3,
            "firstExpiresAt": expires.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
    ]
    later = NOW + timedelta(days=26)
    await keep(bode, EXPIRING, later)
    told = await expiring(bode)
    assert sorted((each["subscription"], each["count"]) for each in told[1:]) == sorted(
        [(str(waiting.id), 2), (str(received.id), 2)]
    )
    await keep(bode, EXPIRING, later + timedelta(hours=1), notice_days=0)
    assert len(await expiring(bode)) == 3


async def test_a_type_that_is_kept_for_less_is_told_of_in_its_own_time(bode: Broker) -> None:
    publisher = await bode.publisher()
    waiting = await bode.subscribed(publisher)
    await bode.pool.execute(
        "INSERT INTO event_types (id, type, organisation_id, meaning, retention_days) VALUES ($1, $2, $3, 'x', 8)",
        uuid4(), f"{publisher.domain}.iets", publisher.id,
    )  # fmt: skip
    await accept(bode, publisher, 1, days=3)
    await keep(bode, EXPIRING, NOW - timedelta(days=1))
    assert await expiring(bode) == []
    await keep(bode, EXPIRING, NOW + timedelta(days=1))
    assert [each["subscription"] for each in await expiring(bode)] == [str(waiting.id)]


async def test_what_was_not_pulled_in_time_is_cancelled_with_a_reason_and_accounted_for(bode: Broker) -> None:
    publisher = await bode.publisher()
    _, oin, key = await bode.provider()
    await bode.grant(publisher, oin)
    made = await bode.world.call(
        "POST", "/subscriptions", key=key, body={"protocol": "PULL", "types": [f"{publisher.domain}.iets"]}
    )
    identity = UUID(made.json["id"])
    internal = await bode.pool.fetchval("SELECT key FROM subscriptions WHERE id = $1", identity)
    pulled = Subscribed(identity, internal)
    await accept(bode, publisher, 3, days=61)
    await accept(bode, publisher, 1, days=3)
    await keep(bode)
    shown = await reconciled(bode, pulled, key)
    stones = [(each["from"], each["to"], each["state"], each["reason"]) for each in shown["tombstones"]]
    assert stones == [(1, 3, "cancelled", "payload-expired"), (4, 4, "pending", None)]
    await nothing_is_off(bode, pulled)
