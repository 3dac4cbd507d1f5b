"""Kadaster's real files, counted independently, and made-up ones for what those don't show."""

import io
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from broker.tools.bag import BagFileError, Limits, read_extract, read_mutations
from schemas.cloudevents import Draft, from_structured

FILES = Path(__file__).parents[2].parent / "shared" / "data" / "bag"
EXTRACT = FILES / "BAGGEM0088L-15112019.zip"
MUTATIONS = FILES / "DNLDLXAM02-648756-5056276-17112019-18112019.zip"
SOURCE = "urn:nld:oin:00000099000000001000:systeem:BAG"

real = pytest.mark.skipif(not EXTRACT.exists(), reason="Kadaster's files are not here")


def xml_in(data: bytes) -> Iterator[str]:
    """Every XML file, at any depth: on purpose not the way the tool goes."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            if name.endswith(".zip"):
                yield from xml_in(archive.read(name))
            else:
                yield archive.read(name).decode()


@cache
def extract() -> list[Draft]:
    return list(read_extract(EXTRACT, SOURCE))


@cache
def mutations() -> list[Draft]:
    return list(read_mutations(MUTATIONS, SOURCE))


def of(drafts: list[Draft], name: str) -> list[Any]:
    return [draft.attributes[name] for draft in drafts]


def kebab(element: str) -> str:
    return re.sub(r"(?<!^)([A-Z])", r"-\1", element).lower()


@real
def test_every_occurrence_in_the_extract_is_one_event() -> None:
    found: Counter[tuple[str, str, str, str]] = Counter()
    for xml in xml_in(EXTRACT.read_bytes()):
        for record in re.findall(r"<sl-bag-extract:bagObject>(.*?)</sl-bag-extract:bagObject>", xml, re.S):
            found[
                kebab(re.match(r"\s*<Objecten:(\w+)>", record)[1]),  # type: ignore[index]  # fails the test if absent
                re.search(r"lokaalID>(\d+)<", record)[1],  # type: ignore[index]
                re.search(r"voorkomenidentificatie>(\d+)<", record)[1],  # type: ignore[index]
                re.search(r"<Historie:tijdstipRegistratie>([^<]+)<", record)[1],  # type: ignore[index]
            ] += 1

    read = Counter(
        (
            str(draft.attributes["type"]).removeprefix("nl.bag.").removesuffix("-voorkomen"),
            draft.attributes["subject"],
            draft.data["voorkomen"]["voorkomenidentificatie"],  # type: ignore[index]  # data is Any or None
            draft.data["voorkomen"]["tijdstipRegistratie"],  # type: ignore[index]
        )
        for draft in extract()
    )

    assert read == found
    assert len(extract()) == 8153
    assert Counter(of(extract(), "bagdeel")) == {"bag": 7998, "nietbag": 155}


@real
def test_every_mutation_product_is_one_event() -> None:
    found: Counter[tuple[str, str]] = Counter()
    for xml in xml_in(MUTATIONS.read_bytes()):
        for product in re.findall(r"<product_LVC:Mutatie-product>(.*?)</product_LVC:Mutatie-product>", xml, re.S):
            what = "nieuw" if "<product_LVC:Nieuw>" in product else "gewijzigd"
            element = re.search(r"<bag_LVC:([A-Z]\w+)>", product)
            subject = re.search(r"(?s)<bag_LVC:[A-Z].*?</bag_LVC:gerelateerdeAdressen>", product)
            rest = product.replace(subject[0], "") if subject else product
            found[f"nl.bag.{kebab(element[1])}-{what}", re.search(r"identificatie>(\d+)<", rest)[1]] += 1  # type: ignore[index]

    assert Counter(zip(of(mutations(), "type"), of(mutations(), "subject"), strict=True)) == found
    assert Counter(str(type_).rpartition("-")[2] for type_ in of(mutations(), "type")) == {
        "nieuw": 118,
        "gewijzigd": 88,
    }


@real
@pytest.mark.parametrize("drafts", [extract, mutations])
def test_real_events_are_valid_unique_and_in_order_of_registration(drafts: Callable[[], list[Draft]]) -> None:
    times: dict[str, list[str]] = defaultdict(list)
    for draft in drafts():
        event = from_structured(draft.encode())
        assert event.warnings == ("id-not-uuid",)
        assert re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:.]+\+0[12]:00", event.time or "")
        times[event.subject or ""].append((event.time or "")[:-6])

    assert len(set(of(drafts(), "id"))) == len(drafts())
    assert all(series == sorted(series) for series in times.values())
    assert any(len(set(series)) > 1 for series in times.values())


@real
def test_data_has_every_attribute_references_and_geometry() -> None:
    draft = next(draft for draft in extract() if draft.attributes["subject"] == "0088010000139706")

    assert draft.data is not None
    assert draft.data["heeftAlsHoofdadres"] == "0088200000139705"
    assert draft.data["maaktDeelUitVan"] == ["0088100000137647"]
    assert draft.data["gebruiksdoel"] == ["woonfunctie"]
    assert draft.data["status"].startswith("Verblijfsobject in gebruik")
    assert draft.data["geometrie"]["punt"].startswith('<gml:Point xmlns:gml="http://www.opengis.net/gml/3.2"')
    changed = next(draft for draft in mutations() if str(draft.attributes["type"]).endswith("pand-gewijzigd"))
    assert {"origineel", "wijziging", "verwerking", "deel"} == set(changed.data or ())


@real
@pytest.mark.parametrize(("read", "path"), [(read_extract, MUTATIONS), (read_mutations, EXTRACT)])
def test_the_other_kind_of_file_is_refused_and_not_read_as_empty(read: Callable[..., Any], path: Path) -> None:
    with pytest.raises(BagFileError, match="not the kind of file"):
        list(read(path, SOURCE))


HEAD = '<s:bagStand xmlns:s="urn:s" xmlns:o="urn:o" xmlns:gml="http://www.opengis.net/gml/3.2"><s:standBestand>'


def pand(serial: int, registered: str, number: int = 1, geometry: str = "") -> str:
    return (
        f"<s:stand><s:bagObject><o:Pand><o:identificatie><o:lokaalID>9999100000{serial:06}</o:lokaalID></o:identificatie>"
        f"{geometry}<o:voorkomen><o:Voorkomen><o:voorkomenidentificatie>{number}</o:voorkomenidentificatie>"
        f"<o:tijdstipRegistratie>{registered}</o:tijdstipRegistratie><o:BeschikbaarLV>"
        f"<o:tijdstipRegistratieLV>{registered}</o:tijdstipRegistratieLV></o:BeschikbaarLV>"
        "</o:Voorkomen></o:voorkomen></o:Pand></s:bagObject></s:stand>"
    )


def stand(*records: str, prologue: str = "") -> bytes:
    body = f"{prologue}{HEAD}{''.join(records)}</s:standBestand></s:bagStand>"
    return f'<?xml version="1.0" encoding="UTF-8"?>{body}'.encode()


def packed(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def made(tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    def make(members: dict[str, bytes]) -> Path:
        path = tmp_path / "made.zip"
        path.write_bytes(packed(members))
        return path

    return make


Made = Callable[[dict[str, bytes]], Path]


def test_order_holds_over_all_parts_and_says_which_part_it_was(made: Made) -> None:
    nietbag = stand(pand(1, "2018-03-01T00:00:00.000"), pand(1, "2020-03-01T00:00:00.000", 2))
    early, late = stand(pand(1, "2019-02-01T00:00:00.000")), stand(pand(1, "2019-03-01T00:00:00.000", 2))
    path = made(
        {
            "9999PND01012020.zip": packed({"9999PND01012020_000001.xml": late}),
            "9999NietBag01012020.zip": packed({"9999NBPND01012020.zip": packed({"x.xml": nietbag})}),
            "9999Inactief01012020.zip": packed({"9999IAPND01012020.xml": early}),
            "9999InOnderzoek01012020.zip": packed({"9999IOPND01012020.xml": early}),
            "GEM-WPL-RELATIE-01012020.zip": packed({"x.xml": b"<other/>"}),
        }
    )

    drafts = list(read_extract(path, SOURCE))

    assert of(drafts, "bagdeel") == ["nietbag", "inactief", "bag", "nietbag"]
    assert of(drafts, "id") == [
        "pand-9999100000000001-1-2018-03-01T00:00:00.000-nietbag",
        "pand-9999100000000001-1-2019-02-01T00:00:00.000-inactief",
        "pand-9999100000000001-2-2019-03-01T00:00:00.000",
        "pand-9999100000000001-2-2020-03-01T00:00:00.000-nietbag",
    ]


def test_local_time_gets_the_offset_of_its_day(made: Made) -> None:
    local = ["2019-03-31T01:59:59.000", "2019-03-31T03:00:00.000", "2019-10-27T02:30:00.5", "2019-10-27T03:00:00"]

    drafts = list(read_extract(made({"a.xml": stand(*(pand(1, time, n) for n, time in enumerate(local)))}), SOURCE))

    offsets = ["+01:00", "+02:00", "+02:00", "+01:00"]
    assert of(drafts, "time") == [time + offset for time, offset in zip(local, offsets, strict=True)]


def test_occurrences_registered_at_one_moment_keep_their_number(made: Made) -> None:
    records = [pand(1, "2019-03-01T00:00:00.000", number) for number in (10, 2, 1)]

    drafts = list(read_extract(made({"a.xml": stand(*records)}), SOURCE))

    assert [str(id_).split("-")[2] for id_ in of(drafts, "id")] == ["1", "2", "10"]


def test_geometry_that_makes_an_event_too_large_is_left_out(made: Made) -> None:
    geometry = f"<o:geometrie><gml:Polygon><gml:posList>{'1.0 ' * 80_000}</gml:posList></gml:Polygon></o:geometrie>"

    [draft] = read_extract(made({"a.xml": stand(pand(1, "2019-03-01T00:00:00.000", 1, geometry))}), SOURCE)

    assert draft.data is not None
    assert draft.data["geometrieWeggelaten"] is True
    assert "geometrie" not in draft.data
    assert from_structured(draft.encode()).subject == "9999100000000001"


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'
OUTSIDE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
GOOD = pand(1, "2019-03-01T00:00:00.000")


@pytest.mark.parametrize(
    ("reason", "members"),
    [
        ("document type", {"a.xml": stand(GOOD, prologue=BOMB)}),
        ("document type", {"a.xml": stand(GOOD, prologue=OUTSIDE)}),
        ("document type", {"a.xml": stand(GOOD, prologue="<!-- " + "x" * 300_000 + " -->" + BOMB)}),
        ("not XML", {"a.xml": stand(GOOD)[:-20]}),
        ("not XML", {"a.xml": stand(GOOD.replace("</o:Pand>", "&a;</o:Pand>"))}),
        ("not XML", {"a.xml": b""}),
        ("not a readable zip", {"a.zip": b"hello"}),
        ("not the kind of file", {"a.xml": b"<other/>"}),
        ("not an object type", {"a.xml": stand(GOOD.replace("o:Pand>", "o:Persoon>"))}),
        ("malformed id", {"a.xml": stand(GOOD.replace("99991000", "99999900"))}),
        ("without tijdstipRegistratie", {"a.xml": stand(GOOD.replace("tijdstipRegistratie>", "other>"))}),
        ("not ISO 8601", {"a.xml": stand(GOOD.replace("2019-03-01T", "yesterday"))}),
        ("packed more than", {"a.zip": bytes(5_000_000)}),
        ("nested more than", {"a.zip": packed({"b.zip": packed({"c.zip": packed({"d.zip": packed({})})})})}),
        ("record of more than", {"a.xml": stand("".join(f"<x>{n * 7919}</x>" for n in range(60_000)))}),
        ("in all", {f"{n}.xml": stand(*(pand(1, "2019-03-01T00:00:00.000", m) for m in range(900))) for n in range(9)}),
        ("members", {f"{n}.txt": b"" for n in range(11)}),
    ],
)  # fmt: skip
def test_what_is_not_a_sound_file_is_refused_with_the_reason(
    reason: str, members: dict[str, bytes], made: Made
) -> None:
    limits = Limits(members=10, total_bytes=2_000_000, record_bytes=600_000)

    with pytest.raises(BagFileError, match=reason):
        list(read_extract(made(members), SOURCE, limits=limits))


def test_a_file_that_is_no_zip_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"hello")

    with pytest.raises(BagFileError, match=r"a\.zip"):
        list(read_extract(tmp_path / "a.zip", SOURCE))


def test_a_mutation_tells_before_and_after_in_order_of_processing(made: Made) -> None:
    def product(number: int, states: str) -> str:
        return (
            "<p:Mutatie-product><p:Verwerking><p:TijdstipVerwerking>2019-07-01T11:30:23.000596</p:TijdstipVerwerking>"
            f"<p:ObjectType>OPR</p:ObjectType><p:VolgnrVerwerking>{number}</p:VolgnrVerwerking></p:Verwerking>"
            f"{states}</p:Mutatie-product>"
        )

    def state(name: str, inactive: str) -> str:
        return (
            f"<p:{name}><b:OpenbareRuimte><b:identificatie>9999300000000001</b:identificatie>"
            f"<b:aanduidingRecordInactief>{inactive}</b:aanduidingRecordInactief></b:OpenbareRuimte></p:{name}>"
        )

    body = product(10, state("Origineel", "N") + state("Wijziging", "J")) + product(2, state("Nieuw", "N"))
    root = "BAG-Mutaties-Deelbestand-LVC"
    xml = f'<m:{root} xmlns:m="urn:m" xmlns:p="urn:p" xmlns:b="urn:b">{body}</m:{root}>'.encode()

    first, second = read_mutations(made({"a.zip": packed({"a.xml": xml})}), SOURCE)

    assert first.attributes["type"] == "nl.bag.openbare-ruimte-nieuw"
    assert first.attributes["id"] == "openbare-ruimte-9999300000000001-2019-07-01T11:30:23.000596-2"
    assert second.attributes["type"] == "nl.bag.openbare-ruimte-gewijzigd"
    assert (first.attributes["bagdeel"], second.attributes["bagdeel"]) == ("bag", "inactief")
    assert second.attributes["time"] == "2019-07-01T11:30:23.000596+02:00"
    assert second.data is not None
    assert [second.data[name]["aanduidingRecordInactief"] for name in ("origineel", "wijziging")] == ["N", "J"]
