"""A ledger knows what arrived, what is missing and what came twice, also after a kill."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.tools.listen_ledger import Ledger, Range, say


def ledger_of(*numbers: int) -> Ledger:
    ledger = Ledger()
    for number in numbers:
        ledger.add(number)
    return ledger


@pytest.mark.parametrize(
    ("numbers", "complete_through", "missing"),
    [
        ((), 0, []),
        ((1,), 1, []),
        ((1, 2, 3), 3, []),
        ((3, 1, 2), 3, []),
        ((2,), 0, [(1, 1)]),
        ((1, 5, 3), 1, [(2, 2), (4, 4)]),
        ((1, 2, 9), 2, [(3, 8)]),
    ],
)
def test_gaps_are_told(numbers: tuple[int, ...], complete_through: int, missing: list[Range]) -> None:
    ledger = ledger_of(*numbers)

    assert ledger.complete_through == complete_through
    assert ledger.missing() == missing


def test_what_the_broker_numbered_beyond_the_highest_is_missing_too() -> None:
    assert ledger_of(1, 2, 5).missing(8) == [(3, 4), (6, 8)]
    assert ledger_of(1, 2, 5).missing(4) == [(3, 4)]
    assert ledger_of(1, 2).missing(2) == []


def test_number_that_came_before_is_a_duplicate() -> None:
    ledger = Ledger()

    assert [ledger.add(number) for number in (1, 2, 1, 2, 3)] == [True, True, False, False, True]
    assert ledger.duplicates == 2


@given(st.lists(st.integers(1, 40)))
def test_ledger_agrees_with_a_set(numbers: list[int]) -> None:
    known: set[int] = set()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "numbers"
        ledger = Ledger(path)
        for number in numbers:
            assert ledger.add(number) is (number not in known)
            known.add(number)
        ledger.close()
        reopened = Ledger(path)
        for each in (ledger, reopened):
            missing = {number for first, last in each.missing(40) for number in range(first, last + 1)}
            assert missing == set(range(1, 41)) - known
            assert each.highest == max(known, default=0)
            assert [number in each for number in range(42)] == [number in known for number in range(42)]
        reopened.close()


def test_number_is_in_the_file_as_soon_as_it_is_added(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    with Ledger(path) as first:
        first.add(1)
        first.add(2)
        with Ledger(path) as second:  # the first was killed, as far as the second can tell
            assert second.missing(3) == [(3, 3)]


def test_line_that_was_cut_off_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_text("1-3\n5\n1")

    with Ledger(path) as ledger:
        assert ledger.missing(12) == [(4, 4), (6, 12)]


def test_file_holds_numbers_only_for_its_owner_and_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    with Ledger(path) as ledger:
        for number in range(1, 1000):
            ledger.add(number)
    Ledger(path).close()

    assert path.read_text() == "1-999\n"
    assert path.stat().st_mode & 0o077 == 0


def test_closed_ledger_takes_nothing() -> None:
    ledger = ledger_of(1)
    ledger.close()

    with pytest.raises(ValueError, match="closed"):
        ledger.add(2)


def test_ranges_are_said_as_people_write_them() -> None:
    assert say([(3, 3), (5, 7)]) == "3, 5–7"
    assert say([(number * 10, number * 10 + 1) for number in range(1, 11)]).endswith("80–81 and 4 more")
