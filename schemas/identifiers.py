"""Identifiers of the Dutch base registries: their form, their proof, and numbers that are safe for tests.

The functions `is_…` are pure and never raise, whatever string they get. A number that passes is well formed, which
doesn't say that it was issued. The functions `sample_…` make numbers that can't be anybody's, or say so if no range
is set aside for that; they are deterministic for a given `random.Random`.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Self

_NINE = re.compile(r"[0-9]{9}")
_OIN = re.compile(r"(000000[0-9]{2})([0-9A-Z]{9})000")
_BAG = re.compile(r"([0-9]{4})(01|02|03|10|20|30)([0-9]{10})")

TEST_GEMEENTECODE = "9999"
"""No municipality has this code; Kadaster's own files use 9999 for `not one municipality`."""


def is_bsn(text: str) -> bool:
    """Nine digits that pass the elfproef (Besluit burgerservicenummer, artikel 1; Logisch Ontwerp BSN)."""
    return _passes_elfproef(text)


def is_rsin(text: str) -> bool:
    """Nine digits that pass the elfproef: RSIN and BSN are numbers of one series (catalogus Handelsregister, RSIN)."""
    return _passes_elfproef(text)


def is_kvk(text: str) -> bool:
    """Eight digits, without a proof (catalogus Handelsregister, KvK-nummer)."""
    return re.fullmatch(r"[0-9]{8}", text) is not None


def is_vestigingsnummer(text: str) -> bool:
    """Twelve digits, without a proof (catalogus Handelsregister, vestigingsnummer)."""
    return re.fullmatch(r"[0-9]{12}", text) is not None


def is_gemeentecode(text: str) -> bool:
    """Four digits, not 0000 (Landelijke Tabel 33, BRP); 9999 is for tests."""
    return re.fullmatch(r"[0-9]{4}", text) is not None and text != "0000"


def is_oin(text: str) -> bool:
    """Twenty positions: prefix (8), number (8 or 9, may be alphanumeric), filled up with zeros (Logius, OIN-stelsel).

    The number inside isn't proved: test OINs and the numbers of foreign organisations have none to prove.
    """
    return _OIN.fullmatch(text) is not None


def is_bag_id(text: str) -> bool:
    """Whether `BagId.parse` takes it."""
    return _BAG.fullmatch(text) is not None or is_woonplaatscode(text)


def is_woonplaatscode(text: str) -> bool:
    """Four digits, not 0000: the id of a woonplaats (catalogus BAG 2018, woonplaats, identificatie)."""
    return re.fullmatch(r"[0-9]{4}", text) is not None and text != "0000"


class OinPrefix(StrEnum):
    """The prefixes that say what the number in an OIN is (Logius, OIN-stelsel). Others exist."""

    RSIN = "00000001"
    KVK = "00000003"
    TEST = "00000099"


@dataclass(frozen=True, slots=True)
class Oin:
    """An OIN in its parts; `number` is without the zeros that fill it up where the prefix tells its length."""

    prefix: str
    number: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError if `is_oin` doesn't hold, or an RSIN or KvK number inside is malformed."""
        found = _OIN.fullmatch(text)
        if found is None:
            raise ValueError("an OIN has 20 positions: prefix (8), number (8 or 9) and zeros")
        prefix, number = found[1], found[2]
        if prefix == OinPrefix.RSIN and not is_rsin(number):
            raise ValueError("the RSIN in this OIN doesn't pass the elfproef")
        if prefix == OinPrefix.KVK:
            if not (number.endswith("0") and is_kvk(number[:8])):
                raise ValueError("the KvK number in this OIN isn't eight digits")
            number = number[:8]
        return cls(prefix, number)

    @property
    def is_test(self) -> bool:
        """Whether it is set aside for tests."""
        return self.prefix == OinPrefix.TEST


class BagType(StrEnum):
    """Positions 5 and 6 of a BAG id (catalogus BAG 2018, identificatie). A woonplaats has four digits and no type."""

    VERBLIJFSOBJECT = "01"
    LIGPLAATS = "02"
    STANDPLAATS = "03"
    PAND = "10"
    NUMMERAANDUIDING = "20"
    OPENBARE_RUIMTE = "30"


@dataclass(frozen=True, slots=True)
class BagId:
    """A BAG id in its parts. A woonplaats has neither gemeente nor type: its id is a number of four digits."""

    gemeente: str | None
    type: BagType | None
    serial: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Sixteen digits: gemeente (4), object type (2), serial (10); or a woonplaats's four. Raises ValueError."""
        found = _BAG.fullmatch(text)
        if found is not None:
            return cls(found[1], BagType(found[2]), found[3])
        if is_woonplaatscode(text):
            return cls(None, None, text)
        raise ValueError("a BAG id has 16 digits with a known object type, or 4 for a woonplaats")

    def __str__(self) -> str:
        """The id as it was parsed."""
        return f"{self.gemeente or ''}{self.type or ''}{self.serial}"


def sample_bsn(random: Random) -> str:
    """A BSN of the test series: it starts with 9999 and passes the elfproef (RvIG, testpersonen)."""
    while True:
        number = f"9999{random.randrange(100_000):05}"
        if is_bsn(number):
            return number


def sample_kvk(random: Random) -> str:
    """No range is set aside for tests; KvK numbers are issued upwards and 9999…. hasn't been reached."""
    return f"9999{random.randrange(10_000):04}"


def sample_vestigingsnummer(random: Random) -> str:
    """No range is set aside for tests; issued numbers start with 0000."""
    return f"9999{random.randrange(10**8):08}"


def sample_oin(random: Random) -> str:
    """An OIN with the prefix for tests (Logius, OIN-stelsel)."""
    return f"{OinPrefix.TEST}{random.randrange(10**9):09}000"


def sample_bag_id(random: Random, type_: BagType) -> str:
    """An id of the given type in municipality 9999."""
    return f"{TEST_GEMEENTECODE}{type_}{random.randrange(10**10):010}"


def sample_woz_number(random: Random) -> str:
    """A WOZ object number, municipality (4) and serial (8), in municipality 9999 (catalogus WOZ)."""
    return f"{TEST_GEMEENTECODE}{random.randrange(10**8):08}"


def _passes_elfproef(text: str) -> bool:
    """Weights 9 8 7 6 5 4 3 2 -1; the sum is divisible by 11. Nine zeros pass the sum and are no number."""
    if _NINE.fullmatch(text) is None or text == "000000000":
        return False
    total = sum(weight * int(digit) for weight, digit in zip((9, 8, 7, 6, 5, 4, 3, 2, -1), text, strict=True))
    return total % 11 == 0
