"""What a listener tells, in the words that people see."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from broker.tools.client import Unreachable
from broker.tools.listen_ledger import Ledger
from broker.tools.listen_receiver import Fault, Notification, Refusal
from broker.tools.listen_report import Health, Reporter, completeness, duration


def health(last: int, pending: int = 0, dead: int = 0) -> dict[str, Any]:
    return {"lastSequence": last, "pending": pending, "deadLetters": dead}


def ledger_of(numbers: Sequence[int]) -> Ledger:
    ledger = Ledger()
    for number in numbers:
        ledger.add(number)
    return ledger


@pytest.mark.parametrize(
    ("numbers", "known", "text"),
    [
        ([], None, None),
        ([], health(0), None),
        ([1], health(1), "complete 1–1, nothing missing"),
        ([1, 2, 3, 4], health(4), "complete 1–4, nothing missing"),
        ([1, 2], None, "complete 1–2, no gaps"),
        ([1, 2, 2, 1], health(2), "complete 1–2, nothing missing, 2 duplicates recognised"),
        ([1, 1], health(1), "complete 1–1, nothing missing, 1 duplicate recognised"),
        ([1, 2, 5], health(5, 2), "complete 1–2, not here yet: 3–4, 2 pending, 0 given up"),
        ([1, 2], health(5, 2, 1), "complete 1–2, not here yet: 3–5, 2 pending, 1 given up"),
        ([], health(2, 2), "not here yet: 1–2, 2 pending, 0 given up"),
        ([3], None, "not here yet: 1–2"),
        ([1, 2, 3], health(2), "complete 1–3, nothing missing"),
    ],
)
def test_completeness_in_words(numbers: list[int], known: Health | None, text: str | None) -> None:
    assert completeness(ledger_of(numbers), known) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0081, "8 ms"), (-0.001, "0 ms"), (1.24, "1.2 s"), (119, "119.0 s"), (600, "10 min")],
)
def test_durations_as_people_read_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def notification(number: int, *, duplicate: bool = False) -> Notification:
    event = {"type": "nl.brp.x", "subject": "999990342", "data": {"naam": "Test"}}
    return Notification(number, "nl.brp.x", duplicate, timedelta(milliseconds=8), event)


def test_each_notification_is_told_without_its_subject_or_data() -> None:
    lines: list[str] = []
    reporter = Reporter(lines.append)

    reporter.taken(notification(1))
    reporter.taken(notification(1, duplicate=True))
    reporter.refused(Refusal(Fault.SIGNATURE, 401, None))
    reporter.refused(Refusal(Fault.ON_PURPOSE, 500, 2))

    assert lines == [
        "#1  nl.brp.x  ✔ signature  8 ms",
        "#1  nl.brp.x  ✔ signature  8 ms  duplicate, recognised",
        "#?  ✖ answered 401: signature is wrong",
        "#2  · answered 500: as told",
    ]


def test_data_is_told_when_it_was_asked_for() -> None:
    lines: list[str] = []

    Reporter(lines.append, show_data=True).taken(notification(1))

    assert "999990342" in lines[1]


async def test_reporter_tells_completeness_once_it_is_quiet_and_again_after_news() -> None:
    lines: asyncio.Queue[str] = asyncio.Queue()
    ledger = Ledger()
    reporter = Reporter(lines.put_nowait)
    last = 2

    async def ask() -> Health:
        return health(last, last - ledger.highest)

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        running = group.create_task(reporter.run(ledger, ask))
        ledger.add(1)
        reporter.taken(notification(1))
        assert await lines.get() == "#1  nl.brp.x  ✔ signature  8 ms"
        assert await lines.get() == "complete 1–1, not here yet: 2, 1 pending, 0 given up"
        ledger.add(2)
        reporter.taken(notification(2))
        assert (await lines.get()).startswith("#2")
        assert await lines.get() == "complete 1–2, nothing missing"
        running.cancel()


async def test_reporter_goes_on_without_the_api() -> None:
    lines: asyncio.Queue[str] = asyncio.Queue()
    ledger = ledger_of([1])

    async def ask() -> Health:
        raise Unreachable("away")

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        running = group.create_task(Reporter(lines.put_nowait).run(ledger, ask))
        assert await lines.get() == "complete 1–1, no gaps"
        running.cancel()


def test_heartbeat_tells_of_the_tail_without_the_api() -> None:
    ledger = ledger_of([1, 2])

    assert completeness(ledger, None, 2) == "complete 1–2, nothing missing"
    assert completeness(ledger, None, 4) == "complete 1–2, not here yet: 3–4"
    assert completeness(ledger, health(3, 1), 4) == "complete 1–2, not here yet: 3–4, 1 pending, 0 given up"
    assert completeness(ledger, None, 1) == "complete 1–2, no gaps"
