"""Leases: a fair share for each holder, one owner at a time, and a successor whose epoch is higher."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from uuid import uuid4

import asyncpg
import pytest

from broker.leasing import Leasing
from broker.storage import leases

COUNT = 8
SPAN = timedelta(seconds=30)


@pytest.fixture
async def database(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    await connection.execute("TRUNCATE leases, lease_holders")
    await leases.create(connection, "shard", COUNT)
    yield connection
    await connection.close()


class Holder:
    """A process as the leases see it."""

    def __init__(self, url: str, span: timedelta = SPAN, kind: str = "shard") -> None:
        self._url = url
        self.owner = uuid4()
        self.told: list[tuple[str, list[int]]] = []
        self.held_while_releasing: list[bool] = []
        self.span = span
        self.kind = kind
        self.caught_up: list[bool] = []

    async def __aenter__(self) -> "Holder":
        self.pool = await asyncpg.create_pool(
            self._url, min_size=1, max_size=2,
            server_settings={"application_name": leases.application_name(self.owner)},
        )  # fmt: skip
        self.leasing = Leasing(
            self.pool, self.kind, self.owner, count=COUNT, span=self.span,
            gained=self._gained, released=self._released, catch_up=self._catch_up,
        )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        self.pool.terminate()

    async def _gained(self, numbers: Iterable[int]) -> None:
        self.told.append(("gained", sorted(numbers)))

    async def _released(self, numbers: Iterable[int]) -> None:
        numbers = sorted(numbers)
        self.told.append(("released", numbers))
        self.held_while_releasing += [self.leasing.holds(number) for number in numbers]

    async def _catch_up(self) -> None:
        self.caught_up.append(self.leasing.holds(0))

    async def turn(self) -> None:
        await self.leasing.turn()

    @property
    def numbers(self) -> set[int]:
        return set(self.leasing.epochs)

    @property
    def working_on(self) -> set[int]:
        """What it was told to work on."""
        found = set[int]()
        for what, numbers in self.told:
            found = found | set(numbers) if what == "gained" else found - set(numbers)
        return found


@asynccontextmanager
async def holders(url: str, count: int) -> AsyncIterator[list[Holder]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Holder(url)) for _ in range(count)]


async def settle(*group: Holder) -> None:
    for _ in range(5):
        for holder in group:
            await holder.turn()


def assert_shared(group: list[Holder]) -> None:
    everything = [number for holder in group for number in holder.numbers]
    assert sorted(everything) == list(range(COUNT)), "each lease has exactly one holder"
    share = -(-COUNT // len(group))
    assert all(len(holder.numbers) <= share for holder in group)
    assert all(holder.working_on == holder.numbers for holder in group)


async def test_one_holder_takes_all_and_shares_with_those_who_join(url: str, database: asyncpg.Connection) -> None:
    async with holders(url, 3) as group:
        for count in (1, 2, 3):
            await settle(*group[:count])
            assert_shared(group[:count])
        assert not any(held for holder in group for held in holder.held_while_releasing)


async def test_who_leaves_leaves_its_share_to_the_others_at_once(url: str, database: asyncpg.Connection) -> None:
    async with holders(url, 3) as group:
        await settle(*group)
        await group[0].leasing.leave()
        assert group[0].numbers == set()
        await settle(*group[1:])
        assert_shared(group[1:])


async def test_killed_holder_is_succeeded_at_once_though_its_lease_has_not_expired(
    url: str, database: asyncpg.Connection
) -> None:
    async with holders(url, 2) as (killed, other):
        await settle(killed, other)
        before = dict(killed.leasing.epochs)
        killed.pool.terminate()
        gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = $1"
        async with asyncio.timeout(5):
            while not await database.fetchval(gone, leases.application_name(killed.owner)):
                pass
        await other.turn()
        assert other.numbers == set(range(COUNT))
        assert all(other.leasing.epoch(number) > epoch for number, epoch in before.items())


async def test_stopped_holder_keeps_its_lease_until_it_expires_and_then_loses_its_connections(
    url: str, database: asyncpg.Connection
) -> None:
    async with holders(url, 2) as (stopped, other):
        await stopped.turn()
        before = dict(stopped.leasing.epochs)
        await database.execute("UPDATE lease_holders SET seen_at = now() - interval '1 minute'")
        await other.turn()
        assert other.numbers == set(), "it has not expired yet"
        await database.execute("UPDATE leases SET expires_at = now() - interval '1 second'")
        async with stopped.pool.acquire() as connection:
            backend = connection.get_server_pid()
        await other.turn()
        assert other.numbers == set(range(COUNT))
        assert all(other.leasing.epoch(number) == epoch + 1 for number, epoch in before.items())
        async with asyncio.timeout(5):
            while await database.fetchval("SELECT count(*) FROM pg_stat_activity WHERE pid = $1", backend):
                pass


async def test_holder_that_comes_back_finds_its_leases_lost_and_stops_work_on_them(
    url: str, database: asyncpg.Connection
) -> None:
    async with holders(url, 2) as (stopped, other):
        await stopped.turn()
        await database.execute("UPDATE leases SET expires_at = now() - interval '1 second'")
        await other.turn()
        taken = other.numbers
        assert taken
        for _ in range(8):  # its first statements fail on the connections that were ended
            try:
                await stopped.turn()
                break
            except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
                continue
        assert not stopped.numbers & taken
        await settle(stopped, other)
        assert_shared([stopped, other])


async def test_lease_whose_taking_was_not_answered_is_worked_on(url: str, database: asyncpg.Connection) -> None:
    async with Holder(url) as holder:
        await holder.turn()
        async with holder.pool.acquire() as connection:
            await leases.give_back(connection, "shard", holder.owner, [3])
        await holder.turn()
        await database.execute("UPDATE leases SET epoch = epoch + 1 WHERE number = 3")  # taken, and nobody was told
        await holder.turn()
        assert holder.numbers == holder.working_on == set(range(COUNT))
        assert holder.leasing.epoch(3) == await database.fetchval("SELECT epoch FROM leases WHERE number = 3")


async def test_two_who_take_at_once_get_different_leases(url: str, database: asyncpg.Connection) -> None:
    async with holders(url, 4) as group:
        for _ in range(4):
            await asyncio.gather(*(holder.turn() for holder in group))
        assert_shared(group)


async def test_lease_is_surely_ours_only_for_its_span(url: str, database: asyncpg.Connection) -> None:
    async with Holder(url, span=timedelta(seconds=1)) as holder:
        assert not holder.leasing.holds(0)
        assert holder.leasing.epoch(0) == -1
        started = time.monotonic()
        await holder.turn()
        assert holder.leasing.holds(0)
        async with asyncio.timeout(5):
            while holder.leasing.holds(0):
                await asyncio.sleep(0)
        assert time.monotonic() - started >= 1
        assert holder.leasing.epoch(0) > 0, "an outcome of an attempt under way may still count"
        await holder.turn()
        assert holder.leasing.holds(0)


async def test_holder_without_a_connection_is_unsure_at_once_until_it_has_applied_what_was_changed(
    url: str, database: asyncpg.Connection
) -> None:
    async with Holder(url) as cut:
        await cut.turn()
        assert cut.leasing.holds(0)
        assert cut.caught_up == [False], "before it was sure the first time"
        await cut.turn()
        assert cut.caught_up == [False]
        await database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1",
            leases.application_name(cut.owner),
        )
        async with asyncio.timeout(5):
            while cut.leasing.holds(0):
                await asyncio.sleep(0)
        assert cut.leasing.epoch(0) > 0, "an outcome of an attempt under way may still count"
        for _ in range(4):
            try:
                await cut.turn()
                break
            except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
                continue
        assert cut.leasing.holds(0)
        assert cut.caught_up == [False, False]


async def test_leases_of_another_kind_are_none_of_our_business(url: str, database: asyncpg.Connection) -> None:
    await leases.create(database, "queue", COUNT)
    async with Holder(url) as shards, Holder(url, kind="queue") as queues:
        await settle(shards, queues)
        assert len(shards.numbers) == len(queues.numbers) == COUNT


async def test_who_lags_behind_the_change_log_is_counted(url: str, database: asyncpg.Connection) -> None:
    async with holders(url, 2) as (one, other):
        await leases.announce(database, "shard", one.owner, 5)
        await leases.announce(database, "shard", other.owner, 7)
        behind = [await leases.holders_behind(database, "shard", version, SPAN) for version in (5, 6, 7, 8)]
        assert behind == [0, 1, 1, 2]
        assert await leases.holders_behind(database, "queue", 8, SPAN) == 0
