"""Publishing over HTTP, and what is told of what was published."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fake_broker import FakeBroker
from rich.console import Console

from broker.ingest import amqp, publishing
from broker.tools import publish_doors
from broker.tools.publish import CannotPublish, Format, Tally, publish, read, registry_of, send
from broker.tools.publish_doors import DoorClosed, HttpDoor, Outgoing
from broker.tools.running import Access
from schemas.cloudevents import from_structured


@pytest.fixture
async def broker() -> AsyncIterator[FakeBroker]:
    async with FakeBroker() as broker:
        yield broker


def event(number: int, **members: Any) -> bytes:
    return json.dumps({"id": str(number), "type": "nl.brp.x", "subject": "999990342"} | members).encode()


def write(folder: Path, *lines: bytes) -> Path:
    path = folder / "events.ndjson"
    path.write_bytes(b"\n".join(lines))
    return path


async def published(broker: FakeBroker, folder: Path, **options: Any) -> str:
    said = io.StringIO()
    given = {"api_url": broker.url, "key": broker.key} | options
    await publish(data_dir=folder, console=Console(file=said), **given)
    return said.getvalue()


def ids(broker: FakeBroker) -> list[str]:
    return [event["id"] for batch in broker.batches for event in batch]


async def test_file_is_published_in_order_and_counted(tmp_path: Path, broker: FakeBroker) -> None:
    file = write(tmp_path, *(event(number) for number in range(1000)), b"", b"  ")

    assert await published(broker, tmp_path, file=file) == "✔ 1000 confirmed\n"

    assert ids(broker) == [str(number) for number in range(1000)]
    assert max(map(len, broker.batches)) <= 200


async def test_count_takes_the_first_of_a_file(tmp_path: Path, broker: FakeBroker) -> None:
    file = write(tmp_path, *(event(number) for number in range(10)))

    assert await published(broker, tmp_path, file=file, count=3) == "✔ 3 confirmed\n"

    assert ids(broker) == ["0", "1", "2"]


async def test_large_events_go_in_small_batches(tmp_path: Path, broker: FakeBroker) -> None:
    file = write(tmp_path, *(event(number, data="x" * 200_000) for number in range(6)))

    await published(broker, tmp_path, file=file)

    assert max(map(len, broker.batches)) == 2
    assert ids(broker) == [str(number) for number in range(6)]


async def test_samples_are_valid_events_of_their_registry(tmp_path: Path, broker: FakeBroker) -> None:
    await published(broker, tmp_path, sample="nl.woz.waarde-herzien", count=3, source="urn:nld:oin:1:systeem:WOZ")

    sent = [from_structured(json.dumps(event).encode()) for batch in broker.batches for event in batch]
    assert [(event.type, event.source) for event in sent] == [
        ("nl.woz.waarde-herzien", "urn:nld:oin:1:systeem:WOZ")
    ] * 3


async def test_registry_follows_from_the_type(tmp_path: Path, broker: FakeBroker) -> None:
    keys = {name: {"key": broker.key, "source": f"urn:{name}", "amqp": None} for name in ("brp", "woz")}
    (tmp_path / "bode.json").write_text(json.dumps({"api": broker.url, "keys": {"registries": keys}}))

    await published(broker, tmp_path, sample="nl.woz.waarde-herzien", api_url=None, key=None)

    assert [event["source"] for batch in broker.batches for event in batch] == ["urn:woz"]


async def test_what_is_refused_is_named_and_the_rest_is_published(tmp_path: Path, broker: FakeBroker) -> None:
    def publishing(batch: list[Any]) -> tuple[int, Any]:
        bad = [event["id"] for event in batch if int(event["id"]) % 50 == 7]
        return (400, {"detail": f"bad {bad[0]}"}) if bad else (202, batch)

    broker.publishing = publishing
    file = write(tmp_path, *(event(number) for number in range(200)))

    with pytest.raises(CannotPublish) as error:
        await published(broker, tmp_path, file=file)

    assert str(error.value).splitlines() == [
        "196 confirmed, 4 not published:",
        "  event 8: bad 7 (400)",
        "  event 58: bad 57 (400)",
        "  event 108: bad 107 (400)",
        "  event 158: bad 157 (400)",
    ]


async def test_batch_is_published_again_when_the_api_asks_for_patience(tmp_path: Path, broker: FakeBroker) -> None:
    answers = [(429, {"detail": "slower"}), (503, {"detail": "not now"})]
    broker.publishing = lambda batch: answers.pop() if answers else (200, batch)

    assert await published(broker, tmp_path, file=write(tmp_path, event(1))) == "✔ 1 confirmed\n"

    assert ids(broker) == ["1", "1", "1"]


async def test_door_gives_up_when_nothing_succeeds_for_too_long(broker: FakeBroker) -> None:
    broker.publishing = lambda batch: (503, {"detail": "not now"})
    tally = Tally()
    door = HttpDoor(Access(broker.url, broker.key), tally, patience=timedelta(0))

    with pytest.raises(DoorClosed, match=r"gave up after 0 s: not now \(503\)"):
        await send([event(1)], lambda _: door, tally, rate=None)

    assert (tally.taken, tally.safe) == (1, 0)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([b"no"], "0 confirmed, 1 not published:\n  event 1: is not JSON"),
        ([event(1), b"[1]"], "1 confirmed, 1 not published:\n  event 2: is not a JSON object"),
        (
            [event(1, type="")],
            "0 confirmed, 1 not published:\n  event 1: has no type, so there is no routing key for it",
        ),
    ],
)
async def test_line_that_is_no_event_is_named(
    tmp_path: Path, broker: FakeBroker, lines: list[bytes], message: str
) -> None:
    with pytest.raises(CannotPublish) as error:
        await published(broker, tmp_path, file=write(tmp_path, *lines))

    assert str(error.value) == message


async def test_only_the_first_faults_are_named(tmp_path: Path, broker: FakeBroker) -> None:
    with pytest.raises(CannotPublish) as error:
        await published(broker, tmp_path, file=write(tmp_path, *[b"no"] * 25))

    assert len(str(error.value).splitlines()) == 12
    assert str(error.value).endswith("and 15 more")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": "nl.brp.niets"}, "there is no sample of nl.brp.niets"),
        ({}, "give a FILE or --sample"),
        ({"file": Path("/nowhere")}, "No such file"),
        ({"file": Path(__file__), "format": Format.BAG_EXTRACT}, "not a readable zip"),
        (
            {"sample": "nl.brp.kind-geboren", "key": "bode_wrong"},
            r"the API refuses: Send a valid key\. \(401\) \(0 conf",
        ),
        ({"sample": "nl.brp.kind-geboren", "key": None}, r"no bode\.json"),
    ],
)
async def test_what_cannot_be_published_is_told_in_a_sentence(
    tmp_path: Path, broker: FakeBroker, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CannotPublish, match=message):
        await published(broker, tmp_path, **options)


async def test_rate_is_kept(broker: FakeBroker) -> None:
    tally = Tally()
    loop = asyncio.get_running_loop()
    door = HttpDoor(Access(broker.url, broker.key), tally)
    started = loop.time()

    await send([event(number) for number in range(11)], lambda _: door, tally, rate=50)

    assert loop.time() - started >= 0.2
    assert tally.safe == 11


def test_subject_and_type_are_found_whatever_else_the_event_holds() -> None:
    assert read(3, event(1, specversion=7)) == Outgoing(3, "nl.brp.x", "999990342", event(1, specversion=7))
    assert read(1, event(1, subject=5)) == Outgoing(1, "nl.brp.x", None, event(1, subject=5))
    assert "999990342" not in repr(read(1, event(1)))
    assert (registry_of("nl.brp.persoon.verhuisd"), registry_of("vreemd")) == ("brp", "vreemd")


def test_publishing_and_taking_in_agree_on_the_interface() -> None:
    assert publish_doors.EXCHANGE == amqp.EXCHANGE
    assert publish_doors.SUBJECT_HEADER == amqp.SUBJECT_HEADER
    assert publish_doors.CONTENT_TYPE == publishing.CONTENT_TYPE
