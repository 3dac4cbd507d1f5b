"""What is in memory of a subscription is never older than its last change."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import uvloop

from broker.delivery.lanes import Delivery
from broker.delivery.recorder import Recorder
from broker.delivery.runners import Runners
from broker.delivery.settings import DeliverySettings
from subscriptions.secrets import signing_secret
from subscriptions.sinks import SinkConfig
from subscriptions.tables import Status

KEY = 7


def config(sink: str, status: Status = Status.ACTIVE) -> SinkConfig:
    return SinkConfig(KEY, uuid4(), uuid4(), sink, status, (signing_secret(),), (), None, None, None, {}, None)


class Office:
    """Answers when it is told to, with what it was when it was asked."""

    def __init__(self, sink: SinkConfig) -> None:
        self.sink = sink
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def load_sinks(self, keys: list[int]) -> list[SinkConfig]:
        found = [self.sink] if self.sink.key in keys else []
        self.asked.set()
        await self.answer.wait()
        return found

    holds_events = False

    def sends(self, key: int) -> bool:
        return self.sink.key == key and self.sink.status is Status.ACTIVE

    def pulled(self, key: int) -> bool:
        raise NotImplementedError

    def kept_back(self, key: int) -> bool:
        raise NotImplementedError

    def held_events(self, described: Mapping[int, tuple[str, str]]) -> dict[int, bool]:
        raise NotImplementedError

    def granted(self, organisation_id: UUID, event_type: str, now: datetime) -> UUID | None:
        raise NotImplementedError

    def seal_excerpt(self, subscription_id: UUID, excerpt: bytes) -> bytes:
        raise NotImplementedError

    async def disable(self, subscription_id: UUID, reason: str) -> None:
        raise NotImplementedError


def runners(office: Office) -> Runners:
    pool: Any = None
    return Runners(DeliverySettings(), office, Recorder(pool, 64, 0))


async def test_subscription_that_changes_while_it_is_read_is_read_again() -> None:
    office = Office(config("https://old.example/"))
    opened = runners(office)
    opening = asyncio.create_task(opened.open([KEY]))
    await office.asked.wait()
    office.sink = config("https://new.example/")
    opened.drop(KEY)
    office.answer.set()
    await opening
    assert opened.get(KEY) is None
    await opened.open([KEY])
    runner = opened.get(KEY)
    assert runner is not None
    assert runner.sink.target.host == "new.example"


async def test_everything_that_is_being_read_is_named_when_all_is_dropped() -> None:
    office = Office(config("https://old.example/"))
    opened = runners(office)
    opening = asyncio.create_task(opened.open([KEY]))
    await office.asked.wait()
    assert opened.drop_all() == [KEY]
    office.answer.set()
    await opening
    assert opened.get(KEY) is None


async def test_subscription_whose_shard_goes_while_it_is_read_has_no_runner() -> None:
    """Else what was read stays in memory and is sent again when the shard comes back."""
    for gone in (True, False):
        office = Office(config("https://sink.example/"))
        made = runners(office)
        opening = asyncio.create_task(made.open([KEY]))
        await office.asked.wait()
        made.drop_shards({made.shard_of(KEY) + (not gone)})
        office.answer.set()
        await opening
        assert (made.get(KEY) is None) is gone


async def test_only_active_subscriptions_have_runners() -> None:
    for status in Status:
        office = Office(config("https://sink.example/", status))
        office.answer.set()
        opened = runners(office)
        await opened.open([KEY])
        assert (opened.get(KEY) is not None) is (status is Status.ACTIVE)


async def opened(office: Office) -> Runners:
    office.answer.set()
    made = runners(office)
    await made.open([KEY])
    return made


async def test_runner_that_rows_are_being_read_for_is_not_idle() -> None:
    made = await opened(Office(config("https://sink.example/")))
    runner = made.get(KEY)
    assert runner is not None
    runner.queue.more = False
    with made.feeding([KEY]):
        made.drop_idle(but={})
        assert made.get(KEY) is runner, "the rows that are being read would be forgotten until the next sweep"
    made.drop_idle(but={})
    assert made.get(KEY) is None


async def test_runner_whose_lane_was_never_opened_again_is_read_anew() -> None:
    made = await opened(Office(config("https://sink.example/")))
    runner = made.get(KEY)
    assert runner is not None
    runner.queue.offer([Delivery(KEY, 1, 1, 5)], 0.0)
    assert made.drop_stuck() == []
    assert runner.queue.take(0.0) is not None
    runner.in_flight = 1
    assert made.drop_stuck() == [], "it is under way"
    runner.in_flight = 0
    with made.feeding([KEY]):
        assert made.drop_stuck() == []
    assert made.drop_stuck() == [runner]
    assert made.get(KEY) is None


def test_timer_that_is_due_at_once_is_replaced_like_any_other() -> None:
    """uvloop gives a handle for it that isn't a timer."""

    async def replace_it() -> None:
        made = await opened(Office(config("https://sink.example/")))
        runner = made.get(KEY)
        assert runner is not None
        loop, looked = asyncio.get_running_loop(), asyncio.Event()
        runner.look_after(10, lambda _: None)
        assert runner.timer is not None
        runner.timer.cancel()
        runner.timer = loop.call_later(0, lambda: None)
        assert not hasattr(runner.timer, "when")
        runner.look_after(0.001, lambda _: looked.set())
        await asyncio.wait_for(looked.wait(), 10)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(replace_it())


async def test_attempts_of_a_dropped_runner_are_waited_for() -> None:
    made = await opened(Office(config("https://sink.example/")))
    runner = made.get(KEY)
    assert runner is not None
    runner.in_flight = 2
    made.drop(KEY)
    assert made.unsettled(KEY)
    await made.left({made.shard_of(KEY) + 1})
    leaving = asyncio.create_task(made.left({made.shard_of(KEY)}))
    for _ in range(2):
        await asyncio.sleep(0)
        assert not leaving.done()
        made.ended(runner)
    await leaving
    assert not made.unsettled(KEY)


async def test_subscription_about_to_be_disabled_gets_no_runner() -> None:
    made = await opened(Office(config("https://sink.example/")))
    made.bar(KEY)
    assert made.get(KEY) is None
    assert made.unsettled(KEY)
    made.unbar(KEY)
    assert not made.unsettled(KEY)


async def test_time_of_failure_outlives_the_process_and_ends_with_a_resumption() -> None:
    failing = replace(config("https://sink.example/"), failing_since=datetime(2026, 11, 20, tzinfo=UTC))
    office = Office(failing)
    made = await opened(office)
    runner = made.get(KEY)
    assert runner is not None
    assert runner.pace.failing_since == datetime(2026, 11, 20, tzinfo=UTC).timestamp()
    for since, status in ((failing.failing_since, Status.ACTIVE), (None, Status.ACTIVE)):
        made.drop(KEY)
        office.sink = replace(failing, failing_since=since, status=status)
        await made.open([KEY])
    again = made.get(KEY)
    assert again is not None
    assert (again.pace.failing_since, again.pace.noted) == (None, False)


async def test_pace_of_a_failing_sink_is_kept_though_nothing_waits_for_it() -> None:
    made = await opened(Office(config("https://sink.example/")))
    runner = made.get(KEY)
    assert runner is not None
    runner.pace.failed(1000.0, None, 0)
    runner.queue.more = False
    made.drop_idle(but={})
    assert made.get(KEY) is None
    await made.open([KEY])
    again = made.get(KEY)
    assert again is not None
    assert again.pace is runner.pace
