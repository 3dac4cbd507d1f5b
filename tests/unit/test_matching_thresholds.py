"""Ranges looked up among sorted thresholds are those that a comparison one by one finds."""

import random
from typing import Any

import pytest

from broker.matching.accessors import accessor
from broker.matching.plan import Span
from broker.matching.thresholds import Thresholds

MEASURE = accessor("number", ("a",))
HUGE = 10**400


def span(low: tuple[int | float, int] | None, high: tuple[int | float, int] | None) -> Span:
    return Span(MEASURE, low, high, ())


def holds(given: Span, value: int | float) -> bool:
    point = (value, 0)
    return (given.low is None or given.low <= point) and (given.high is None or point <= given.high)


def value(rng: random.Random) -> int | float:
    return rng.choice(
        [
            rng.randrange(-20, 20),
            rng.random(),
            rng.uniform(-1e300, 1e300),
            1.7e308,
            float("inf"),
            -float("inf"),
            HUGE,
            HUGE + rng.randrange(3),
            -HUGE,
            2**53 + rng.randrange(4),
            float(2**53),
            rng.randrange(10**18, 10**18 + 5),
            1e-320,
            0.1 + rng.randrange(3) * 1e-17,
        ]
    )


@pytest.mark.parametrize("seed", range(20))
def test_the_same_as_comparing_one_by_one_after_any_changes(seed: int) -> None:
    rng = random.Random(seed)
    thresholds = Thresholds()
    spans: dict[int, Span] = {}
    for number in range(300):
        low, high = value(rng), value(rng)
        if rng.random() < 0.8:
            low, high = min(low, high), max(low, high)
        sides: list[Any] = [(low, rng.choice([0, 1])), (high, rng.choice([0, -1]))]
        if rng.random() < 0.3:
            sides[rng.randrange(2)] = None
        spans[number] = span(*sides)
        thresholds.add(spans[number], number)
        if rng.random() < 0.3:
            gone = rng.choice(list(spans))
            thresholds.remove(spans.pop(gone), gone)
        asked = value(rng)
        found = sorted(thresholds.match(asked))
        assert found == [number for number, each in sorted(spans.items()) if holds(each, asked)], asked
    for number, each in spans.items():
        thresholds.remove(each, number)
    assert not thresholds


def test_narrow_ranges_far_below_are_not_looked_at() -> None:
    thresholds = Thresholds()
    for number in range(2_000):
        thresholds.add(span((number * 10, 0), (number * 10 + 15, 0)), number)
    thresholds.add(span((0, 0), (1_000_000, 0)), 9_999)
    assert sorted(thresholds.match(19_005)) == [1899, 1900, 9_999]
    assert sum(map(len, thresholds.near(19_005))) < 20
