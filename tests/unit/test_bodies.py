"""Bodies in memory: read together, kept within their bytes."""

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import pytest

from broker.delivery.bodies import Bodies, Body, BodyWanted
from broker.storage import records
from broker.storage.sealing import seal_body
from subscriptions.secrets import KeyRing, generate_encryption_key

RING = KeyRing([generate_encryption_key()])
SIZE = 1000


class Wanted(BodyWanted):
    def __init__(self) -> None:
        self.told: list[Body | None] = []

    def opened(self, body: Body | None) -> None:
        self.told.append(body)

    def unreadable(self) -> None:
        raise AssertionError("the key is in the ring")

    def not_read(self, error: Exception) -> None:
        raise error


class Database:
    """Has the events with even keys, and tells what was asked."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.asked: list[list[int]] = []
        patch.setattr(records, "bodies", self._bodies)

    @asynccontextmanager
    async def acquire(self) -> Any:
        yield None

    async def _bodies(self, _: Any, keys: list[int]) -> list[tuple[int, str, bytes]]:
        self.asked.append(sorted(keys))
        return [(key, "nl.brp.x", seal_body(RING, key, b"x" * SIZE)) for key in keys if key % 2 == 0]


async def settle(bodies: Bodies) -> None:
    running = asyncio.create_task(bodies.run())
    for _ in range(20):
        await asyncio.sleep(0)
    running.cancel()


async def test_what_is_read_ahead_is_read_together_and_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pool: Any = Database(monkeypatch)
    bodies, wanted = Bodies(pool, RING, 100 * SIZE), Wanted()
    bodies.ask(4, wanted)
    bodies.read_ahead([2, 4, 6])
    await settle(bodies)
    assert pool.asked == [[2, 4, 6]]
    assert [body.content for body in wanted.told if body is not None] == [b"x" * SIZE]
    bodies.read_ahead([2, 4, 6])
    await settle(bodies)
    assert len(pool.asked) == 1


async def test_event_without_payload_is_told_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pool: Any = Database(monkeypatch)
    bodies, wanted = Bodies(pool, RING, 100 * SIZE), Wanted()
    bodies.ask(3, wanted)
    await settle(bodies)
    assert wanted.told == [None]


async def test_no_more_is_read_ahead_than_a_quarter_of_what_is_kept_until_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool: Any = Database(monkeypatch)
    bodies = Bodies(pool, RING, 40 * SIZE)
    for start in range(0, 400, 20):
        bodies.read_ahead(range(start, start + 20, 2))
        await settle(bodies)
    assert sum(map(len, pool.asked)) == 10
    for key in range(0, 20, 2):
        assert bodies.kept(key) is not None
    bodies.read_ahead([1000, 1002])
    await settle(bodies)
    assert pool.asked[-1] == [1000, 1002]


async def test_kept_bodies_stay_within_their_bytes_though_one_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    pool: Any = Database(monkeypatch)
    bodies = Bodies(pool, RING, 4 * SIZE)
    for _ in range(3):
        for key in (2, 4, 6):
            bodies.ask(key, Wanted())
        await settle(bodies)
    assert all(bodies.kept(key) is not None for key in (2, 4, 6))
    for key in (8, 10):
        bodies.ask(key, Wanted())
    await settle(bodies)
    assert [key for key in (2, 4, 6, 8, 10) if bodies.kept(key) is not None] == [4, 6, 8, 10]
