"""The index agrees with the naive evaluation on every pair of a random filter and a random event."""

import random
from typing import Any

import matching_cases as cases
import pytest

from broker.matching import guards, pairs, partition, trie
from broker.matching.index import Index
from schemas.cloudevents import Event
from schemas.filters import Condition, evaluate, parse


def expected(conditions: dict[int, Condition], event: Event) -> list[int]:
    return sorted(key for key, condition in conditions.items() if evaluate(condition, event, cases.holds))


def check(index: Index, conditions: dict[int, Condition], event: Event) -> None:
    wanted = expected(conditions, event)
    found = sorted(index.match(event))
    assert found == wanted, (set(found) ^ set(wanted), event, [conditions[key] for key in set(found) ^ set(wanted)])
    assert sorted(index.match_body(event.body)) == wanted, event


def subscription(rng: random.Random) -> dict[str, Any]:
    members: dict[str, Any] = {"filters": cases.filters(rng)}
    if rng.random() < 0.3:
        members["types"] = rng.sample(cases.TYPES, rng.randint(1, 3))
    if rng.random() < 0.2:
        members["domain"] = rng.choice(["nl", "nl.brp", "nl.kvk"])
    if rng.random() < 0.1:
        members["source"] = rng.choice(["a", "ab"])
    return members


def compare(seed: int, subscriptions: int, events: int) -> None:
    rng = random.Random(seed)
    index = Index(cases.lists_of)
    conditions = {}
    for key in range(subscriptions):
        conditions[key] = parse(**subscription(rng))
        index.put(key, conditions[key])
    for _ in range(events):
        check(index, conditions, cases.event(rng))


def change(seed: int, subscriptions: int, steps: int) -> None:
    rng = random.Random(seed)
    index = Index(cases.lists_of)
    conditions: dict[int, Condition] = {}
    for _ in range(steps):
        for _ in range(rng.randint(1, 6)):
            key = rng.randrange(subscriptions)
            if rng.random() < 0.4:
                index.discard(key)
                conditions.pop(key, None)
            else:
                conditions[key] = parse(**subscription(rng))
                index.put(key, conditions[key])
        check(index, conditions, cases.event(rng))
    for key in list(conditions):
        index.discard(key)
    assert index.scanned == 0
    assert index.match(cases.event(rng)) == []


@pytest.mark.parametrize("seed", range(6))
def test_index_and_naive_evaluation_agree(seed: int) -> None:
    compare(seed, subscriptions=50, events=70)


@pytest.mark.parametrize("seed", range(3))
def test_they_agree_after_any_sequence_of_changes(seed: int) -> None:
    change(seed, subscriptions=60, steps=60)


@pytest.mark.parametrize("seed", range(3))
def test_they_agree_when_most_combinations_stand_behind_others(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "FIRST_EXACT", 2)
    monkeypatch.setattr(pairs, "MOST_PAIRED", 5)
    monkeypatch.setattr(partition, "FREQUENT", 6)
    monkeypatch.setattr(partition, "RARE", 12)
    monkeypatch.setattr(trie, "ROOM", 2)
    monkeypatch.setattr(guards, "_SMALL", 0)
    change(100 + seed, subscriptions=60, steps=50)


@pytest.mark.parametrize("seed", range(2))
def test_an_explanation_says_the_same(seed: int) -> None:
    rng = random.Random(seed)
    index = Index(cases.lists_of)
    conditions = [parse(**subscription(rng)) for _ in range(60)]
    for key, condition in enumerate(conditions):
        index.put(key, condition)
    for _ in range(4):
        event = cases.event(rng)
        for key, condition in enumerate(conditions):
            explanation = index.explain(key, event)
            assert explanation.matched == evaluate(condition, event, cases.holds), (condition, event, explanation)
            assert explanation.lines


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_they_agree_on_a_million_pairs() -> None:
    for seed in range(1000, 1190):
        compare(seed, subscriptions=80, events=50)
        change(seed, subscriptions=80, steps=50)
