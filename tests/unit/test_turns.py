"""Turns: every registry that has a batch gets its turn, and whoever is alone has everything."""

import asyncio
from collections.abc import Hashable
from contextlib import suppress

import pytest

from broker.ingest.turns import Turns


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def settled() -> None:
    """Let every task come to where it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


class Work:
    """Batches that begin when their turn comes, and end when told."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.begun: list[Hashable] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._ends: dict[Hashable, list[asyncio.Event]] = {}

    async def wants(self, party: Hashable) -> asyncio.Task[None]:
        end = asyncio.Event()

        async def batch() -> None:
            async with self.turns.turn(party):
                self.begun.append(party)
                self._ends.setdefault(party, []).append(end)
                await end.wait()

        task = asyncio.create_task(batch())
        self.tasks.append(task)
        await settled()
        return task

    async def end(self, party: Hashable) -> None:
        self._ends[party].pop(0).set()
        await settled()


async def test_each_registry_gets_a_turn_before_any_gets_another() -> None:
    work = Work(Turns(1))
    for party in "aaabbc":
        await work.wants(party)
    for party in "abcab":
        await work.end(party)
    assert work.begun == list("abcaba")


async def test_registry_has_one_batch_under_way_while_another_is_about() -> None:
    work = Work(Turns(4))
    await work.wants("rare")
    await work.end("rare")
    for _ in range(4):
        await work.wants("bulk")
    assert work.begun == ["rare", "bulk"]
    await work.wants("rare")
    assert work.begun == ["rare", "bulk", "rare"], "a slot was free for it"


async def test_registry_that_is_alone_has_all_slots_again() -> None:
    clock = Clock()
    turns = Turns(3, clock)
    work = Work(turns)
    await work.wants("rare")
    await work.end("rare")
    for _ in range(5):
        await work.wants("bulk")
    assert turns.crowded("bulk")
    clock.now += 1.5
    assert not turns.crowded("bulk")
    await work.end("bulk")
    assert work.begun == ["rare", *["bulk"] * 4], "one had ended, three are under way"


async def test_slots_are_never_more_than_there_are() -> None:
    work = Work(Turns(2))
    for party in "abcd":
        await work.wants(party)
    assert work.begun == ["a", "b"]


@pytest.mark.parametrize("begun", [False, True])
async def test_batch_that_is_cancelled_leaves_its_slot_to_others(begun: bool) -> None:
    work = Work(Turns(1))
    if not begun:
        await work.wants("first")
    cancelled = await work.wants("cancelled")
    await work.wants("next")
    cancelled.cancel()
    with suppress(asyncio.CancelledError):
        await cancelled
    if not begun:
        await work.end("first")
    await settled()
    assert work.begun[-1] == "next"


async def test_batch_that_is_cancelled_in_the_moment_of_its_turn_leaves_the_slot_to_others() -> None:
    work = Work(Turns(1))
    await work.wants("first")
    cancelled = await work.wants("cancelled")
    await work.wants("next")
    work._ends["first"].pop(0).set()
    await asyncio.sleep(0)  # "first" has given its slot to "cancelled", which has not run since
    cancelled.cancel()
    await settled()
    assert work.begun == ["first", "next"]
