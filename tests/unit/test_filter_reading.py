from typing import Any

import pytest

from schemas.filters import DATA, parse
from schemas.filters.reading import not_among, read_of_type

MOVED, DIED = "nl.brp.persoon-verhuisd", "nl.brp.persoon-overleden"


@pytest.mark.parametrize(
    ("filters", "moved", "died"),
    [
        ([], set(), set()),
        ([{"exact": {"gemeente": "9999"}}], {"gemeente"}, {"gemeente"}),
        ([{"not": {"prefix": {"subject": "9"}}}], {"subject"}, {"subject"}),
        ([{"exact": {"type": MOVED}}, {"exact": {"gemeente": "9999"}}], {"gemeente"}, set()),
        ([{"any": [{"exact": {"type": DIED}}, {"exact": {"gemeente": "9999"}}]}], {"gemeente"}, set()),
        ([{"any": [{"prefix": {"type": "nl.kvk."}}, {"suffix": {"type": "-overleden"}}]}], set(), set()),
        ([{"not": {"all": [{"exact": {"type": MOVED}}, {"suffix": {"id": "x"}}]}}], {"id"}, set()),
        ([{"sql": "gemeente = '9999' AND EXISTS rechtsvorm"}], {"gemeente", "rechtsvorm"}, {"gemeente", "rechtsvorm"}),
        ([{DATA: {"/adres/postcode": {"prefix": "99"}, "/a~1b": 1}}], {"/adres/postcode", "/a~1b"}, None),
        ([{DATA: {"": {"exists": True}}}], {"/"}, None),
    ],
)
def test_what_decides_about_events_of_a_type(filters: list[Any], moved: set[str], died: set[str] | None) -> None:
    condition = parse(filters)
    assert read_of_type(condition, MOVED) == moved
    assert read_of_type(condition, DIED) == (moved if died is None else died)


def test_types_and_domain_decide_like_filters_do() -> None:
    condition = parse([{"exact": {"gemeente": "9999"}}], types=[MOVED], domain="nl.brp")
    assert read_of_type(condition, MOVED) == {"gemeente"}
    assert read_of_type(condition, DIED) == set()


@pytest.mark.parametrize(
    ("read", "allowed", "refused"),
    [
        ({"type", "source"}, set(), []),
        ({"subject", "gemeente"}, {"gemeente"}, ["subject"]),
        ({"/adres/postcode"}, {"/adres"}, []),
        ({"/adressen"}, {"/adres"}, ["/adressen"]),
        ({"/adres"}, {"/adres/postcode"}, ["/adres"]),
        ({"/"}, {"/adres"}, ["/"]),
    ],
)
def test_a_pointer_allows_what_lies_under_it(read: set[str], allowed: set[str], refused: list[str]) -> None:
    assert not_among(frozenset(read), frozenset(allowed)) == refused
