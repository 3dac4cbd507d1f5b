"""The demo publishes, receives and shows, and its providers hear what they asked for."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from fake_broker import FakeBroker
from rich.console import Console

from broker.tools import demo, samples
from broker.tools.demo_board import Board
from broker.tools.identities import PROVIDERS, SOURCES, Identities, Provider, Registry
from broker.tools.listen_ledger import Ledger
from broker.tools.listen_receiver import Notification
from schemas.cloudevents import from_structured
from schemas.filters import evaluate, parse


@pytest.fixture
async def broker() -> AsyncIterator[FakeBroker]:
    async with FakeBroker() as broker:
        yield broker


def identities(broker: FakeBroker) -> Identities:
    return Identities(
        broker.key,
        {name: Registry("", broker.key, source) for name, source in SOURCES.items()},
        {name: Provider(oin, broker.key) for name, oin in PROVIDERS.items()},
    )


async def run_until(folder: Path, broker: FakeBroker, rate: float, ready: asyncio.Event) -> tuple[str, list[str]]:
    """Run the demo until there is what the test waits for; what it showed, and its receivers."""
    shown, receivers = io.StringIO(), list[str]()
    running = asyncio.create_task(
        demo.run(
            identities(broker),
            api_url=broker.url,
            registry_amqp={},
            rate=rate,
            data_dir=folder,
            console=Console(file=shown, width=200),
            receiver_ready=receivers.append,
        )
    )
    waiting = asyncio.create_task(ready.wait())
    async with asyncio.timeout(30):
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    return shown.getvalue(), receivers


@pytest.mark.parametrize("name", sorted(demo.WISHES))
def test_each_provider_hears_a_part_of_the_stream(name: str) -> None:
    wish = demo.WISHES[name]
    condition = parse(list(wish.filters), types=list(wish.types) or None)
    drafts = islice(samples.stream(Random(1), lambda: datetime.now(UTC)), 500)

    heard = sum(evaluate(condition, from_structured(draft.encode())) for draft in drafts)

    assert 50 < heard < 450


async def test_providers_subscribe_under_the_receiver_and_registries_publish(
    tmp_path: Path, broker: FakeBroker
) -> None:
    enough = asyncio.Event()

    def publishing(batch: list[object]) -> tuple[int, object]:
        if len(broker.subscriptions) == 2 and len(broker.batches) >= 5:
            enough.set()
        return 202, batch

    broker.publishing = publishing
    _, [receiver] = await run_until(tmp_path, broker, 100, enough)

    assert sorted(shown["sink"] for shown in broker.subscriptions.values()) == [
        f"{receiver}/gemeente",
        f"{receiver}/pensioenfonds",
    ]
    published = [event for batch in broker.batches for event in batch]
    assert all(event["source"] == SOURCES[event["type"].split(".")[1]] for event in published)
    assert len(published) >= 5


async def test_silent_demo_receives_and_goes_on_where_it_was(tmp_path: Path, broker: FakeBroker) -> None:
    receivers = []
    for numbers, reads in (([1, 2], 1), ([3], 2)):
        received = asyncio.Event()
        broker.calls.clear()

        def taken_up(reads: int = reads) -> bool:
            """One that was found is read before it is taken up, and either kind afterwards."""
            counts = [broker.calls.count(f"GET /subscriptions/{identity}") for identity in broker.subscriptions]
            return len(counts) == 2 and min(counts) >= reads

        async def notify(
            numbers: list[int] = numbers,
            received: asyncio.Event = received,
            taken_up: Callable[[], bool] = taken_up,
        ) -> None:
            await broker.until(taken_up)
            for identity in broker.subscriptions:
                assert await broker.notify(identity, *numbers) == [204] * len(numbers)
            received.set()

        notifying = asyncio.create_task(notify())
        _, [receiver] = await run_until(tmp_path, broker, 0, received)
        await notifying
        receivers.append(receiver)

    assert broker.batches == []
    assert len(broker.subscriptions) == 2
    assert receivers[0] == receivers[1]
    kept = [path for path in files(tmp_path) if path.suffix == ".numbers"]
    assert len(kept) == 2
    for path in kept:
        with Ledger(path) as ledger:
            assert ledger.missing(3) == []


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_board_shows_types_counts_and_completeness_without_subjects() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=160)
    board = Board(console, ["nl.brp.x"])
    column = board.add("gemeente")
    column.ledger = Ledger()
    column.subscription = {"status": "active", "health": {"lastSequence": 2, "pending": 1, "deadLetters": 0}}
    event = {"subject": "999990342", "data": {"naam": "Test"}}
    board.published("nl.brp.x")
    column.taken(Notification(1, "nl.brp.x", False, timedelta(milliseconds=8), event))
    column.taken(Notification(1, "nl.brp.x", True, timedelta(milliseconds=9), event))
    column.ledger.add(1)

    assert board.line() == ("published 1 · gemeente 1: complete 1–1, not here yet: 2, 1 pending, 0 given up · 9 ms")
    console.print(board.table())
    assert "nl.brp.x" in shown.getvalue()
    assert "complete 1–1" in shown.getvalue()
    assert "999990342" not in shown.getvalue() + board.line()


@pytest.mark.parametrize(
    ("subscription", "state"),
    [
        (None, "subscribing"),
        ({"status": "requested"}, "requested"),
        ({"status": "disabled", "statusReason": "sink-gone"}, "sink-gone"),
        ({"status": "active", "health": {"lastSequence": 0}}, "nothing yet"),
    ],
)
def test_board_says_how_a_subscription_is(subscription: dict[str, object] | None, state: str) -> None:
    column = Board(Console(file=io.StringIO()), []).add("gemeente")
    column.ledger, column.subscription = Ledger(), subscription

    assert column.state == state
    column.trouble = "no answer"
    assert column.state == "no answer"


def test_wishes_are_what_the_api_takes() -> None:
    assert set(demo.WISHES) == set(PROVIDERS)
    assert json.loads(json.dumps([list(wish.filters) for wish in demo.WISHES.values()]))
