"""Both official Kadaster files over RabbitMQ to two providers: each receives exactly what the XML says, in order."""

import asyncio
import io
import re
import zipfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from standardwebhooks.webhooks import Webhook

from broker.tools.bag import read_extract, read_mutations
from tests.e2e.installation import Installation
from tests.e2e.receiver import Received, Receiver

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "bag"
EXTRACT = DATA / "BAGGEM0088L-15112019.zip"
MUTATIONS = DATA / "DNLDLXAM02-648756-5056276-17112019-18112019.zip"

PRODUCTS = "{http://www.kadaster.nl/schemas/bag-verstrekkingen/extract-producten-lvc/v20090901}"
OBJECTS = "{http://www.kadaster.nl/schemas/imbag/lvc/v20090901}"

pytestmark = [
    pytest.mark.skipif(not DATA.exists(), reason="the Kadaster files are not here (../shared/data/bag)"),
    pytest.mark.timeout(400),
]


def xml_members(archive: bytes) -> list[bytes]:
    """Every XML file in nested zips, read the simple way."""
    found = []
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        for name in opened.namelist():
            content = opened.read(name)
            if name.endswith(".zip"):
                found += xml_members(content)
            elif name.endswith(".xml") and "RELATIE" not in name and "Leveringsdocument" not in name:
                found.append(content)
    return found


def counted_in_the_xml() -> tuple[Counter[str], Counter[str]]:
    """How often each verblijfsobject occurs, and each pand of municipality 0088, in both files."""
    homes: Counter[str] = Counter()
    buildings: Counter[str] = Counter()
    for content in xml_members(EXTRACT.read_bytes()):
        for kind, counter in ((b"Verblijfsobject", homes), (b"Pand", buildings)):
            for record in re.findall(rb"<Objecten:%s>.*?</Objecten:%s>" % (kind, kind), content, re.S):
                found = re.search(rb"lokaalID>(\d{16})<", record)
                assert found
                counter[found[1].decode()] += 1
    for content in xml_members(MUTATIONS.read_bytes()):
        for product in ElementTree.fromstring(content).iter(f"{PRODUCTS}Mutatie-product"):
            after = product.find(f"{PRODUCTS}Nieuw")
            if after is None:
                after = product.find(f"{PRODUCTS}Wijziging")
            assert after is not None
            [thing] = list(after)
            identity = thing.findtext(f"{OBJECTS}identificatie", "")
            if thing.tag == f"{OBJECTS}Verblijfsobject":
                homes[identity] += 1
            elif thing.tag == f"{OBJECTS}Pand":
                buildings[identity] += 1
    return homes, Counter({key: n for key, n in buildings.items() if key.startswith("0088")})


def check(ledger: list[Received], expected: Counter[str], secret: str) -> int:
    """Exactly the expected objects, contiguous, in registration order for each, signed; the number of duplicates."""
    firsts: dict[int, Received] = {}
    webhook = Webhook(secret)
    for received in ledger:
        webhook.verify(received.body, received.headers)
        firsts.setdefault(received.sequence, received)
    events = [received.event for received in firsts.values()]
    assert sorted(firsts) == list(range(1, len(firsts) + 1))
    assert Counter(event["subject"] for event in events) == expected
    assert len({event["id"] for event in events}) == len(events)
    last: dict[str, str] = {}
    for event in events:  # in order of first arrival
        subject, time = event["subject"], event["time"]
        assert last.get(subject, "") <= time, "registration order of an object was broken"
        last[subject] = time
    return len(ledger) - len(firsts)


async def subscribe_both(
    installation: Installation, receiver: Receiver, run: str
) -> tuple[dict[str, str], dict[str, str]]:
    homes = await installation.subscribe(
        "gemeente", receiver.url(f"homes-{run}"), filters=[{"prefix": {"type": "nl.bag.verblijfsobject-"}}]
    )
    buildings = await installation.subscribe(
        "pensioenfonds",
        receiver.url(f"buildings-{run}"),
        filters=[{"all": [{"prefix": {"type": "nl.bag.pand-"}}, {"prefix": {"subject": "0088"}}]}],
    )
    return homes, buildings


def drafts(installation: Installation) -> list[bytes]:
    source = installation.source("bag")
    extract = [draft.encode() for draft in read_extract(EXTRACT, source)]
    mutations = [draft.encode() for draft in read_mutations(MUTATIONS, source)]
    assert (len(extract), len(mutations)) == (8153, 206)
    return extract + mutations


async def test_every_occurrence_and_mutation_arrives_once_and_in_order_through_kills(
    installation: Installation, receiver: Receiver
) -> None:
    homes_expected, buildings_expected = counted_in_the_xml()
    homes, buildings = await subscribe_both(installation, receiver, "killed")
    total = sum(homes_expected.values()) + sum(buildings_expected.values())
    publishing = asyncio.create_task(installation.publish("bag", drafts(installation)))
    for quarter in (1, 2, 3):
        async with asyncio.timeout(90):
            while len(receiver.ledger) < total * quarter // 4:
                await asyncio.sleep(0.01)
        before = installation.about["processes"]
        for name in ("ingest", "deliver", "api"):
            installation.kill(name)
        async with asyncio.timeout(60):
            while any(installation.about["processes"].get(name) in (None, pid) for name, pid in before.items()):
                await asyncio.sleep(0.05)
    await publishing
    homes_ledger = await receiver.wait_for("homes-killed", sum(homes_expected.values()), seconds=120)
    buildings_ledger = await receiver.wait_for("buildings-killed", sum(buildings_expected.values()), seconds=120)
    duplicates = check(homes_ledger, homes_expected, homes["secret"])
    duplicates += check(buildings_ledger, buildings_expected, buildings["secret"])
    print(f"{total} notifications, {duplicates} duplicates recognised, three kills of every process")
    await installation.wait_for_health("gemeente", homes["id"], pending=0)
    for provider, made in (("gemeente", homes), ("pensioenfonds", buildings)):
        await installation.call("DELETE", f"/subscriptions/{made['id']}", provider)
