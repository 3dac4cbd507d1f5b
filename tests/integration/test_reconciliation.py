"""Reconciliation over numbers in every state, far more of them than a test could deliver."""

from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest
from fastapi import APIRouter
from managing import Party, World, database, world
from sqlalchemy import text

from broker.api import reconciliation
from broker.storage.partitions import ensure_partitions
from broker.storage.tables import key_at

SOURCE = "urn:nld:oin:00000099000000001000:systeem:BRP"
FILL = """
WITH numbers AS (
    SELECT number, CAST(:base AS bigint) + number AS key FROM generate_series(1, CAST(:last AS bigint)) AS number
), accepted AS (
    INSERT INTO events (key, organisation_id, source, id, type, bytes, body)
    SELECT key, CAST(:organisation AS uuid), CAST(:source AS text), 'e' || number, 'nl.brp.x', 0, '' FROM numbers
), numbered AS (
    INSERT INTO subscription_numbers VALUES (CAST(:key AS bigint), CAST(:last AS bigint))
)
INSERT INTO deliveries (subscription, sequence, event_key, grant_id, state, ended_at, reason)
SELECT CAST(:key AS bigint), number, key, CAST(:organisation AS uuid), states.state,
       CASE WHEN states.state <> 'pending' THEN now() END,
       CASE WHEN states.state IN ('dead', 'cancelled') THEN 'why-' || number % 2 END
FROM numbers CROSS JOIN LATERAL (SELECT CAST(({state}) AS delivery_state) AS state) AS states
"""


@pytest.fixture(scope="module")
def database_url(postgres_url: str) -> Iterator[str]:
    with database(postgres_url) as url:
        yield url


@pytest.fixture
async def people(database_url: str) -> AsyncIterator[World]:
    async with world(database_url) as made:
        router = APIRouter(prefix="/v1")
        router.include_router(reconciliation.router)
        made.app.include_router(router)
        async with made.engine.begin() as connection:
            await ensure_partitions(connection, datetime.now(UTC))
        yield made


async def numbered(people: World, last: int, state: str = "'delivered'") -> tuple[Party, str]:
    """A subscription with numbers 1 to `last`, each in the state that an SQL expression over `number` gives."""
    provider = await people.provider()
    made = await people.subscribe(provider)
    async with people.engine.begin() as connection:
        found = await connection.execute(text("SELECT key FROM subscriptions WHERE id = :id"), {"id": made["id"]})
        key = found.scalar_one()
        values = {
            "base": key_at(datetime.now(UTC)) + key * 1_000_000,
            "key": key,
            "last": last,
            "organisation": provider.id,
            "source": SOURCE,
        }
        await connection.execute(text(FILL.format(state=state)), values)
    return provider, made["id"]


async def reconcile(people: World, provider: Party, identity: str, query: str = "") -> Any:
    answer = await people.call("GET", f"/subscriptions/{identity}/reconciliation{query}", key=provider.key)
    assert answer.status == 200, answer.text
    return answer.json


def digest(numbers: list[int]) -> str:
    lines = [f"{number} {sha256(f'{SOURCE}{chr(10)}e{number}'.encode()).hexdigest()}\n" for number in numbers]
    return sha256("".join(lines).encode()).hexdigest()


async def test_every_state_is_told_and_only_the_delivered_are_under_the_digest(people: World) -> None:
    states = "CASE number WHEN 2 THEN 'dead' WHEN 3 THEN 'cancelled' WHEN 6 THEN 'pending' ELSE 'delivered' END"
    provider, identity = await numbered(people, 9, states)
    async with people.engine.begin() as connection:
        key = (await connection.execute(text("SELECT max(subscription) FROM subscription_numbers"))).scalar_one()
        gone = {"key": key}
        await connection.execute(text("DELETE FROM deliveries WHERE subscription = :key AND sequence = 1"), gone)
        await connection.execute(
            text("DELETE FROM events WHERE key = (SELECT event_key FROM deliveries WHERE subscription = :key"
                 " AND sequence = 8)"), gone
        )  # fmt: skip

    found = await reconcile(people, provider, identity)

    assert found["counts"] == {"delivered": 4, "pending": 1, "dead": 1, "cancelled": 1, "expired": 2}
    assert found["completeThrough"] == 5
    assert found["tombstones"] == [
        {"from": 1, "to": 1, "state": "expired", "reason": "payload-expired"},
        {"from": 2, "to": 2, "state": "dead", "reason": "why-0"},
        {"from": 3, "to": 3, "state": "cancelled", "reason": "why-1"},
        {"from": 6, "to": 6, "state": "pending", "reason": None},
        {"from": 8, "to": 8, "state": "expired", "reason": "payload-expired"},
    ]
    assert found["blocks"] == [{"from": 1, "to": 9, "delivered": 4, "digest": digest([4, 5, 7, 9])}]


async def test_answers_follow_one_another_over_a_long_range(people: World) -> None:
    provider, identity = await numbered(people, 101_500)

    first = await reconcile(people, provider, identity, "?from=1")
    second = await reconcile(people, provider, identity, "?" + first["next"].partition("?")[2])
    latest = await reconcile(people, provider, identity)

    assert (first["from"], first["to"], len(first["blocks"])) == (1, 100_000, 100)
    assert (second["from"], second["to"], second["next"]) == (100_001, 101_500, None)
    assert second["blocks"][1] == {
        "from": 101_001, "to": 101_500, "delivered": 500, "digest": digest([*range(101_001, 101_501)]),
    }  # fmt: skip
    assert (latest["from"], latest["to"]) == (92_001, 101_500)
    assert latest["blocks"] == [*first["blocks"][92:], *second["blocks"]]


async def test_answer_with_many_tombstones_ends_at_a_block_and_goes_on(people: World) -> None:
    provider, identity = await numbered(people, 5_000, "CASE number % 2 WHEN 0 THEN 'dead' ELSE 'delivered' END")

    query, told, ends = "?from=1&to=4500", [], []
    while query:
        found = await reconcile(people, provider, identity, query)
        told += found["tombstones"]
        ends.append(found["to"])
        assert found["counts"]["dead"] == len(found["tombstones"]) <= 1000
        query = "?" + found["next"].partition("?")[2] if found["next"] else ""

    assert ends == [2000, 4000, 4500]
    assert [(stone["from"], stone["to"]) for stone in told] == [(number, number) for number in range(2, 4501, 2)]


async def test_block_in_which_every_number_has_a_reason_of_its_own_is_answered(people: World) -> None:
    provider, identity = await numbered(people, 2_000, "'cancelled'")

    found = await reconcile(people, provider, identity, "?from=1")

    assert (found["to"], len(found["tombstones"]), found["counts"]["cancelled"]) == (1000, 1000, 1000)
    assert found["blocks"] == [{"from": 1, "to": 1000, "delivered": 0, "digest": sha256().hexdigest()}]
    assert found["next"].endswith("?from=1001")


async def test_what_is_pending_in_a_row_is_one_tombstone(people: World) -> None:
    provider, identity = await numbered(people, 20_000, "CASE WHEN number > 10 THEN 'pending' ELSE 'delivered' END")

    found = await reconcile(people, provider, identity, "?from=1&to=20000")

    assert found["tombstones"] == [{"from": 11, "to": 20_000, "state": "pending", "reason": None}]
    assert (found["completeThrough"], found["clipped"], found["next"]) == (10, False, None)
