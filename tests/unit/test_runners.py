"""What is in memory of a subscription is never older than its last change."""

import asyncio
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

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

    def granted(self, organisation_id: UUID, event_type: str, now: datetime) -> UUID | None:
        raise NotImplementedError

    def seal_excerpt(self, subscription_id: UUID, excerpt: bytes) -> bytes:
        raise NotImplementedError

    async def sink_is_gone(self, subscription_id: UUID) -> None:
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


async def test_only_active_subscriptions_have_runners() -> None:
    for status in Status:
        office = Office(config("https://sink.example/", status))
        office.answer.set()
        opened = runners(office)
        await opened.open([KEY])
        assert (opened.get(KEY) is not None) is (status is Status.ACTIVE)
