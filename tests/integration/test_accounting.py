"""Loss accounting finds what a test does behind Bode's back, by the command and by the metric (promise 2)."""

import asyncio
import json
import os
import sys
from base64 import b64encode
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from accepting import Broker, Subscribed, broker
from prometheus_client import REGISTRY

from broker.processes.housekeeping import EVENTS, NUMBERS, TOTALS, Housekeeper
from broker.storage import accounting, jobs
from broker.storage.drift import KINDS
from broker.storage.settings import AccountingSettings, RetentionSettings
from broker.tools import operate

ENDED = """
UPDATE deliveries SET state = 'delivered', ended_at = now() WHERE subscription = $1 AND sequence <= $2
"""
TOTAL = "INSERT INTO delivery_totals (subscription, delivered) VALUES ($1, $2)"


@pytest.fixture
async def bode(url: str) -> AsyncIterator[Broker]:
    async with broker(url) as made:
        yield made


class Clock:
    """Jumps ahead at each look, so that every job is due."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(hours=1)
        return self.now


def housekeeper(bode: Broker) -> Housekeeper:
    return Housekeeper(bode.pool, bode.world.engine, AccountingSettings(), RetentionSettings(), clock=Clock())


async def whole_rounds(bode: Broker, rounds: int = 1) -> dict[str, float]:
    """Let housekeeping go round, and read the metric as an alert does."""
    keeper = housekeeper(bode)
    async with bode.pool.acquire() as connection:
        await jobs.create(connection, [TOTALS, NUMBERS, EVENTS], datetime.now(UTC))
        for _ in range(rounds):
            await connection.execute("UPDATE house_jobs SET round_finished_at = NULL")
            while await connection.fetchval(
                "SELECT count(*) FROM house_jobs WHERE name = ANY($1) AND round_finished_at IS NULL",
                [TOTALS, NUMBERS, EVENTS],
            ):
                await keeper.step()
    await keeper.tell()
    return drift()


def drift() -> dict[str, float]:
    values = {kind: REGISTRY.get_sample_value("bode_drift", {"kind": kind}) or 0 for kind in KINDS}
    return {kind: value for kind, value in values.items() if value}


async def named(bode: Broker, *, subscription: Subscribed | None = None, repair: bool = False) -> set[tuple[Any, ...]]:
    """What `bode reconcile` names: kind, subscription, number and event."""
    async with bode.pool.acquire() as connection:
        findings = await operate.reconcile(
            connection, None if subscription is None else subscription.id, repair=repair, progress=lambda _: None
        )
        return {tuple(row.values())[:4] for row in await operate.named(connection, findings)}


async def command(bode: Broker, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
    """`bode reconcile --json` as an operator runs it."""
    keys = json.dumps([b64encode(bytes(32)).decode()])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "broker.cli", "reconcile", "--json", *arguments,
        env={**os.environ, "BODE_DATABASE_URL": bode.url, "BODE_SECRETS_KEYS": keys},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, json.loads(out)


async def history(bode: Broker, accepted: int, ended: int) -> Subscribed:
    """A subscription whose first deliveries have ended, and are counted."""
    publisher = await bode.publisher()
    subscription = await bode.subscribed(publisher)
    acceptor = await bode.acceptor()
    for start in range(0, accepted, 500):
        await acceptor.accept([publisher.message() for _ in range(min(500, accepted - start))])
    await bode.pool.execute(ENDED, subscription.key, ended)
    await bode.pool.execute(TOTAL, subscription.key, ended)
    return subscription


async def key_of(bode: Broker, subscription: Subscribed, number: int) -> int:
    statement = "SELECT event_key FROM deliveries WHERE subscription = $1 AND sequence = $2"
    found: int = await bode.pool.fetchval(statement, subscription.key, number)
    return found


async def test_what_happens_behind_its_back_is_found_by_metric_and_command_and_goes_when_it_is_well(
    bode: Broker,
) -> None:
    subscription = await history(bode, 2_300, 2_100)
    name = str(subscription.id)
    assert await whole_rounds(bode) == {}
    assert await named(bode) == set()
    account = await bode.pool.fetchrow("SELECT * FROM accounts WHERE subscription = $1", subscription.key)
    assert (account["through"], account["delivered"]) == (2_000, 2_000)

    # a row of a closed block, which no total shows, and one of the last block
    rows = await bode.pool.fetch(
        "DELETE FROM deliveries WHERE subscription = $1 AND sequence IN (500, 2200) RETURNING *", subscription.key
    )
    # an event that no longer exists, another that deduplication has forgotten
    eventless = await key_of(bode, subscription, 700)
    event = await bode.pool.fetchrow("DELETE FROM events WHERE key = $1 RETURNING *", eventless)
    unknown = await key_of(bode, subscription, 800)
    identity = await bode.pool.fetchrow("DELETE FROM event_ids WHERE event_key = $1 RETURNING *", unknown)
    # a payload that is still to be sent
    emptied = await key_of(bode, subscription, 2_150)
    body = await bode.pool.fetchval("SELECT body FROM events WHERE key = $1", emptied)
    await bode.pool.execute("UPDATE events SET body = '' WHERE key = $1", emptied)
    # a state, a total, an attempt of nothing
    cancelled = "UPDATE deliveries SET state = 'cancelled', reason = 'x' WHERE subscription = $1 AND sequence = 1200"
    await bode.pool.execute(cancelled, subscription.key)
    await bode.pool.execute("UPDATE delivery_totals SET dead = 1 WHERE subscription = $1", subscription.key)
    attempt = "INSERT INTO attempts VALUES ($1, 900, 5, 1, now(), 1, NULL, 'x', NULL)"
    await bode.pool.execute(attempt, subscription.key)

    assert await whole_rounds(bode) == {
        "row-missing": 2, "event-missing": 1, "id-missing": 1, "payload-missing": 1, "state-changed": 2,
        "total-wrong": 1, "attempt-dangling": 1,
    }  # fmt: skip
    assert await named(bode) == {
        ("row-missing", name, 500, None), ("row-missing", name, 2_200, None), ("total-wrong", name, None, None),
        ("state-changed", name, 1_001, None), ("state-changed", name, 1, None), ("attempt-dangling", name, 900, None),
        ("event-missing", None, None, eventless), ("id-missing", None, None, unknown),
        ("payload-missing", None, None, emptied),
    }  # fmt: skip
    told = await named(bode, subscription=subscription)
    assert {("event-missing", name, 700, eventless), ("payload-missing", name, 2_150, emptied)} < told

    # put right, it is no longer told
    await bode.pool.executemany(
        "INSERT INTO deliveries VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11)", [tuple(row.values()) for row in rows]
    )
    await bode.pool.execute("INSERT INTO events VALUES ($1,$2,$3,$4,$5,$6,$7,$8)", *event.values())
    await bode.pool.execute("INSERT INTO event_ids VALUES ($1, $2)", *identity.values())
    await bode.pool.execute("UPDATE events SET body = $2 WHERE key = $1", emptied, body)
    await bode.pool.execute(
        "UPDATE deliveries SET state = 'delivered' WHERE subscription = $1 AND sequence = 1200", subscription.key
    )
    await bode.pool.execute("DELETE FROM attempts WHERE event_key = 5")
    assert await whole_rounds(bode) == {"total-wrong": 1}
    assert await named(bode, repair=True) == set()
    assert await whole_rounds(bode) == {}


async def test_command_ends_with_one_when_something_is_off_and_repairs_a_total(bode: Broker) -> None:
    subscription = await history(bode, 12, 10)
    await bode.pool.execute("UPDATE delivery_totals SET dead = 1 WHERE subscription = $1", subscription.key)
    code, [found] = await command(bode, "--subscription", str(subscription.id))
    assert (code, found["kind"], found["subscription"]) == (1, "total-wrong", str(subscription.id))
    assert await command(bode, "--subscription", str(subscription.id), "--repair") == (0, [])


@pytest.mark.parametrize("state", ["delivered", "dead", "cancelled"])
async def test_total_that_was_changed_is_found_at_the_next_comparison_of_totals(state: str, bode: Broker) -> None:
    subscription = await history(bode, 12, 10)
    async with bode.pool.acquire() as connection:
        assert await accounting.check_totals(connection, subscription.key, datetime.now(UTC)) == ([], True)
        await connection.execute(
            f"UPDATE delivery_totals SET {state} = {state} + 1 WHERE subscription = $1", subscription.key
        )
        [finding], _ = await accounting.check_totals(connection, subscription.key, datetime.now(UTC))
    assert finding.kind == "total-wrong"
    assert finding.detail.startswith(state)


async def test_counting_goes_on_where_it_stopped_and_never_counts_closed_blocks_again(bode: Broker) -> None:
    subscription = await history(bode, 4_500, 3_000)
    counted: list[list[int]] = []

    class Watching:
        def __init__(self, connection: asyncpg.Connection) -> None:
            self._connection = connection

        def __getattr__(self, name: str) -> Any:
            return getattr(self._connection, name)

        async def fetch(self, statement: str, *values: Any) -> Any:
            if statement == accounting._COUNT:
                counted.append(values[1])
            return await self._connection.fetch(statement, *values)

    async with bode.pool.acquire() as connection:
        watching: Any = Watching(connection)
        assert await accounting.check_totals(watching, subscription.key, datetime.now(UTC)) == ([], True)
        await bode.pool.execute(
            "UPDATE deliveries SET state = 'dead', ended_at = now(), reason = 'x' WHERE subscription = $1"
            " AND sequence IN (3500, 4400)", subscription.key,
        )  # fmt: skip
        await bode.pool.execute("UPDATE delivery_totals SET dead = 2 WHERE subscription = $1", subscription.key)
        assert await accounting.check_totals(watching, subscription.key, datetime.now(UTC)) == ([], True)
    assert counted == [[0, 1, 2, 3, 4], [3, 4]]


async def test_numbers_without_a_row_beyond_the_last_and_twice_are_named(bode: Broker) -> None:
    subscription = await history(bode, 5, 5)
    copied = """
    INSERT INTO deliveries (subscription, sequence, event_key, grant_id, state, ended_at)
    SELECT subscription, $2, event_key + $3, grant_id, state, ended_at FROM deliveries
    WHERE subscription = $1 AND sequence = 3
    """
    await bode.pool.execute(copied, subscription.key, 3, 1)
    await bode.pool.execute(copied, subscription.key, 9, 2)
    async with bode.pool.acquire() as connection:
        found, _ = await accounting.check_totals(connection, subscription.key, datetime.now(UTC))
    assert {(f.kind, f.number) for f in found} == {("row-extra", 3), ("row-extra", 9), ("total-wrong", 0)}


async def test_a_step_is_done_by_one_process_only_and_again_when_it_died(bode: Broker) -> None:
    now = datetime.now(UTC)
    async with bode.pool.acquire() as one, bode.pool.acquire() as other:
        await jobs.create(one, ["x"], now)
        claims = await asyncio.gather(jobs.claim(one, ["x"], now), jobs.claim(other, ["x"], now))
        assert [claim is None for claim in claims].count(False) == 1
        assert await jobs.claim(one, ["x"], now) is None
        again = await jobs.claim(one, ["x"], now + jobs.CLAIMED_FOR)
        assert again is not None
        await jobs.go_on(one, "x", {"at": 7}, now)
        resumed = await jobs.claim(other, ["x"], now)
        assert resumed is not None
        assert resumed.cursor == {"at": 7}


async def test_accounts_are_kept_by_one_at_a_time(bode: Broker) -> None:
    async with bode.pool.acquire() as one, bode.pool.acquire() as other:
        async with accounting.alone(one) as ours, accounting.alone(other) as theirs:
            assert (ours, theirs) == (True, False)
        async with accounting.alone(other) as theirs:
            assert theirs
