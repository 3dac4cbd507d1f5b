"""Identifiers: form, proof, parts, and samples that are nobody's."""

from collections.abc import Callable
from random import Random

import pytest

from schemas import identifiers
from schemas.identifiers import BagId, BagType, Oin

CASES: list[tuple[Callable[[str], bool], list[str], list[str]]] = [
    (
        identifiers.is_bsn,
        ["999990342", "999993653", "111222333"],
        ["999990343", "000000000", "99999034", "9999903420", "99999034a", "٩٩٩٩٩٠٣٤٢", "", "999990342\n"],
    ),
    (identifiers.is_rsin, ["823288444"], ["823288445", "82328844"]),
    (identifiers.is_kvk, ["09220932", "99990000"], ["9220932", "092209321", "0922093a", "09220932\n"]),
    (identifiers.is_vestigingsnummer, ["000012345678"], ["12345678", "0000123456789", "00001234567x"]),
    (identifiers.is_gemeentecode, ["0088", "9999"], ["0000", "88", "00888", "008a"]),
    (identifiers.is_woonplaatscode, ["2428"], ["0000", "242", "24288"]),
    (
        identifiers.is_oin,
        ["00000001823288444000", "00000003092209320000", "00000099000000001000", "00000004AB12345CD000"],
        ["0000000182328844400", "00000001823288444001", "10000001823288444000", "00000004ab12345cd000", ""],
    ),
    (
        identifiers.is_bag_id,
        ["0088010000138362", "0088100000136745", "0088300000136730", "2428"],
        ["0088040000138362", "008801000013836", "00880100001383621", "0000", "NL.IMBAG.Pand.0088100000136745"],
    ),
]


@pytest.mark.parametrize(("check", "good", "bad"), CASES, ids=lambda case: getattr(case, "__name__", None))
def test_form_and_proof_are_checked(check: Callable[[str], bool], good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not check(text)] == []
    assert [text for text in bad if check(text)] == []


def test_changing_one_digit_of_a_bsn_never_passes() -> None:
    bsn = "999990342"
    changed = [bsn[:i] + d + bsn[i + 1 :] for i in range(9) for d in "0123456789" if d != bsn[i]]

    assert [text for text in changed if identifiers.is_bsn(text)] == []


def test_an_oin_comes_apart() -> None:
    assert Oin.parse("00000001823288444000") == Oin("00000001", "823288444")
    assert Oin.parse("00000003092209320000") == Oin("00000003", "09220932")
    assert Oin.parse("00000099123456789000").is_test
    assert not Oin.parse("00000001823288444000").is_test


@pytest.mark.parametrize("text", ["", "00000001823288445000", "00000003092209321000", "0000000309220932A000"])
def test_an_oin_with_a_malformed_number_does_not_come_apart(text: str) -> None:
    with pytest.raises(ValueError, match="OIN"):
        Oin.parse(text)


def test_a_bag_id_comes_apart_and_together() -> None:
    parsed = BagId.parse("0088010000138362")

    assert parsed == BagId("0088", BagType.VERBLIJFSOBJECT, "0000138362")
    assert str(parsed) == "0088010000138362"
    assert BagId.parse("2428") == BagId(None, None, "2428")
    with pytest.raises(ValueError, match="16 digits"):
        BagId.parse("0088990000138362")


def test_samples_are_well_formed_and_belong_to_nobody() -> None:
    random = Random(1)
    for _ in range(200):
        bsn = identifiers.sample_bsn(random)
        assert identifiers.is_bsn(bsn)
        assert bsn.startswith("9999")
        assert identifiers.is_kvk(identifiers.sample_kvk(random))
        assert identifiers.is_vestigingsnummer(identifiers.sample_vestigingsnummer(random))
        assert Oin.parse(identifiers.sample_oin(random)).is_test
        assert identifiers.sample_woz_number(random).startswith("9999")
        for type_ in BagType:
            bag_id = BagId.parse(identifiers.sample_bag_id(random, type_))
            assert (bag_id.gemeente, bag_id.type) == ("9999", type_)


def test_samples_are_the_same_for_the_same_seed() -> None:
    assert [identifiers.sample_bsn(Random(7)) for _ in range(2)] == [identifiers.sample_bsn(Random(7))] * 2
