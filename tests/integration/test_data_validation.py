import json
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

import pytest
from accepting import Broker, Publisher, broker

from broker.ingest.accept import Accepted, Rejected
from broker.storage.catalogue import MOST_FINDINGS
from schemas.resources import EventTypeBody
from subscriptions import catalogue
from subscriptions.change_log import changing

SCHEMA = {
    "type": "object",
    "required": ["gemeente"],
    "properties": {"gemeente": {"type": "string", "pattern": "^[0-9]{4}$"}, "bewoners": {"type": "object"}},
}
BSN = "999990342"


@pytest.fixture
async def bode(url: str) -> AsyncIterator[Broker]:
    async with broker(url) as made:
        yield made


async def describe(bode: Broker, publisher: Publisher, validation: str, schema: Any = SCHEMA) -> UUID:
    body = {"type": f"{publisher.domain}.iets", "meaning": "Iets.", "validation": validation, "dataSchema": schema}
    async with changing(bode.world.engine) as connection:
        row = await catalogue.describe(connection, EventTypeBody.model_validate(body), organisation_id=publisher.id)
    identity: UUID = row.id
    return identity


async def choose(bode: Broker, publisher: Publisher, identity: UUID, validation: str) -> None:
    body = {"type": f"{publisher.domain}.iets", "meaning": "Iets.", "validation": validation, "dataSchema": SCHEMA}
    async with changing(bode.world.engine) as connection:
        await catalogue.replace(
            connection, identity, EventTypeBody.model_validate(body), organisation_id=publisher.id, expected=None
        )


async def findings(bode: Broker, identity: UUID) -> Sequence[tuple[str, str, int]]:
    rows = await bode.pool.fetch(
        "SELECT pointer, keyword, times FROM data_findings WHERE event_type_id = $1 ORDER BY 1, 2", identity
    )
    return [tuple(row) for row in rows]


async def test_what_doesnt_meet_its_schema_becomes_a_rejection_with_a_place_and_no_value(bode: Broker) -> None:
    publisher = await bode.publisher()
    await describe(bode, publisher, "reject")
    acceptor = await bode.acceptor()
    good, bad, bare = (
        publisher.message(data={"gemeente": "9999"}),
        publisher.message(data={"gemeente": BSN}),
        publisher.message(),
    )
    results = await acceptor.accept([good, bad, bare])
    assert isinstance(results[0], Accepted)
    assert [(each.code, each.attribute) for each in results[1:] if isinstance(each, Rejected)] == [
        ("data-invalid", "data/gemeente"),
        ("data-invalid", "data"),
    ]
    rows = await bode.pool.fetch("SELECT * FROM rejections WHERE organisation_id = $1 ORDER BY id", publisher.id)
    assert len(rows) == 2
    assert BSN not in str([dict(row) for row in rows])
    words = {f"data does not meet '{keyword}' of its schema" for keyword in ("pattern", "data")}
    assert {row["detail"] for row in rows} == words


async def test_what_is_reported_is_accepted_and_counted_without_values(bode: Broker) -> None:
    publisher = await bode.publisher()
    identity = await describe(bode, publisher, "report")
    acceptor = await bode.acceptor()
    bad = [publisher.message(data={"gemeente": BSN}) for _ in range(3)]
    results = await acceptor.accept([*bad, publisher.message(data={"gemeente": "9999"}), publisher.message(data=[])])
    assert all(isinstance(each, Accepted) for each in results)
    await acceptor.findings.write()
    await acceptor.accept(bad)  # duplicates: they are counted once
    await acceptor.accept([publisher.message(data={"gemeente": BSN})])
    await acceptor.findings.write()
    assert await findings(bode, identity) == [("", "type", 1), ("/gemeente", "pattern", 4)]


async def test_the_report_is_bounded(bode: Broker) -> None:
    publisher = await bode.publisher()
    identity = await describe(bode, publisher, "report", {"items": {"type": "string"}})
    acceptor = await bode.acceptor()
    for size in range(MOST_FINDINGS + 20):
        await acceptor.accept([publisher.message(data=["x"] * size + [1])])
        await acceptor.findings.write()
    found = await findings(bode, identity)
    assert len(found) == MOST_FINDINGS
    await acceptor.accept([publisher.message(data=[1])])
    await acceptor.findings.write()
    assert dict((place, times) for place, _, times in await findings(bode, identity))["/0"] == 2


@pytest.mark.parametrize("before", ["off", "report", "reject"])
async def test_a_choice_is_in_force_for_the_next_event_in_every_process(bode: Broker, before: str) -> None:
    publisher = await bode.publisher()
    acceptors = [await bode.acceptor(), await bode.acceptor()]
    identity = await describe(bode, publisher, before)
    for choice, kind in (("reject", Rejected), ("off", Accepted), ("report", Accepted), ("reject", Rejected)):
        await choose(bode, publisher, identity, choice)
        for acceptor in acceptors:
            (result,) = await acceptor.accept([publisher.message(data={})])
            assert isinstance(result, kind), choice


async def test_a_withdrawn_description_is_no_longer_validated_and_its_counts_go_with_it(bode: Broker) -> None:
    publisher = await bode.publisher()
    identity = await describe(bode, publisher, "report")
    acceptor = await bode.acceptor()
    await acceptor.accept([publisher.message(data={})])
    async with changing(bode.world.engine) as connection:
        await catalogue.withdraw(connection, identity, organisation_id=publisher.id, expected=None)
    await acceptor.findings.write()
    assert await findings(bode, identity) == []
    await describe(bode, publisher, "off")
    (result,) = await acceptor.accept([publisher.message(data={})])
    assert isinstance(result, Accepted)


async def test_a_schema_is_compiled_once_for_a_change(bode: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    from schemas import data_schemas

    original = data_schemas._compile
    monkeypatch.setattr(
        data_schemas, "_compile", lambda schema: (compiled.append(json.dumps(schema)), original(schema))[1]
    )
    publisher = await bode.publisher()
    await describe(bode, publisher, "report")
    acceptor = await bode.acceptor()
    del compiled[:]
    for _ in range(5):
        await acceptor.accept([publisher.message(data={"gemeente": "9999"})])
    assert len(compiled) == 1
