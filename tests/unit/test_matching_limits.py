"""Hostile and awkward filters: bounded, never wrong, and never source text."""

import random
from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import pytest

from broker.matching import partition
from broker.matching.effort import candidates
from broker.matching.index import Index, cost
from broker.matching.plan import conjunctions
from schemas.cesql import Expression
from schemas.cesql.tree import Value
from schemas.cloudevents import Event
from schemas.filters import DATA, FOLLOWS, evaluate, limits, parse


def event(**attributes: str | int | bool) -> Event:
    return Event({"specversion": "1.0", "id": "1", "source": "s", "type": "t", **attributes}, b"{}")


def test_generated_source_contains_nothing_from_users() -> None:
    index = Index(lambda subject: ())
    filters: list[dict[str, Any]] = [
        {"exact": {"zzname": "zzvalue"}},
        {"prefix": {"zzprefix": "zzvalue"}},
        {"suffix": {"zzsuffix": "zzvalue"}},
        {"sql": "LENGTH(zzlength) = 5 AND zzint > 7 AND zzlike LIKE '%zzmiddle%' AND UPPER(zzupper) LIKE 'ZZ%'"},
        {DATA: {"/zzpointer/zz'\"\n": {"ge": 5}}},
        {DATA: {"/zzequal": "zzvalue"}},
        {FOLLOWS: {"zzfollowed": "zzlist"}},
        {"not": {"exact": {"zznot": "zzvalue"}}},
    ]
    for key, each in enumerate(filters):
        index.put(key, parse([each], types=["zztype"]))
        index.put(100 + key, parse([each, {"exact": {"zzshared": "zz"}}]))
    for kind in ("zztype", "t"):
        index.match(event(type=kind))
        index.match_body(b'{"type":"%s"}' % kind.encode())
    sources = [each.source for each in index._partitions.values()]
    assert len(sources) == 2
    assert all(source.startswith("def probe(") for source in sources)
    assert not any("zz" in source.lower() for source in sources)


@pytest.mark.parametrize(
    ("pattern", "value", "matches"),
    [
        ("%a%a%a%a%a%a%a%a%a%a%a%a%a%a%a%a%a%a%a%a%b", "a" * 60_000, False),
        ("%" + "a_" * 120 + "b%", "a" * 60_000, False),
        ("%" + "_%" * 100, "a" * 60_000, True),
        ("%_a_b%", "x" * 59_996 + "1a2b", True),
    ],
)
def test_no_pattern_takes_exponential_time(pattern: str, value: str, matches: bool) -> None:
    condition = parse([{"sql": f"x LIKE '{pattern}'"}])
    index = Index()
    index.put(1, condition)
    assert evaluate(condition, event(x=value)) is matches
    assert index.match(event(x=value)) == [1] * matches


def test_no_expression_is_worked_out_twice_for_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[Expression] = Counter()
    value = Expression.value

    def counted(self: Expression, attributes: Mapping[str, str | int | bool]) -> Value | None:
        asked[self] += 1
        return value(self, attributes)

    monkeypatch.setattr(Expression, "value", counted)
    monkeypatch.setattr(Expression, "holds", lambda self, attributes: counted(self, attributes) is True)
    pairs = [{"any": [{"sql": f"x NOT LIKE '%a{'_' * (n + more)}b%'"} for more in (0, 20)]} for n in range(1, 9)]
    condition = parse([{"exact": {"g": "1"}}, *pairs])
    assert len(conjunctions(condition)[0]) == 256
    index = Index()
    index.put(1, condition)
    assert index.match(event(g="1", x="a" * 50)) == [1]
    assert index.match(event(g="2", x="a" * 50)) == []
    assert len(asked) <= 16
    assert set(asked.values()) == {1}


def test_any_inside_all_multiplies_to_a_bounded_number_of_conjunctions() -> None:
    either = [{"any": [{"exact": {f"a{n}": "1"}}, {"exact": {f"b{n}": "1"}}]} for n in range(20)]
    condition = parse(either)
    found, _ = conjunctions(condition)
    assert len(found) <= limits.MAX_DISJUNCTS
    index = Index()
    index.put(1, condition)
    assert index.match(event(**{f"{'ab'[n % 2]}{n}": "1" for n in range(20)})) == [1]
    assert index.match(event(**{f"{'ab'[n % 2]}{n}": "1" for n in range(19)})) == []


def test_lists_of_values_multiply_to_a_bounded_number_of_conjunctions() -> None:
    listed = [{"any": [{"exact": {name: str(n)}} for n in range(200)]} for name in ("x", "y", "z")]
    condition = parse(listed)
    assert len(conjunctions(condition)[0]) <= limits.MAX_DISJUNCTS
    index = Index()
    index.put(1, condition)
    assert index.match(event(x="199", y=7, z="0")) == [1]
    assert index.match(event(x="200", y="7", z="0")) == []


def test_342_municipalities_are_342_look_ups_of_one_table() -> None:
    condition = parse([{"any": [{"exact": {"gemeente": f"{n:04d}"}} for n in range(342)]}], types=["t", "u"])
    found, shared = conjunctions(condition)
    assert len(found) == 684
    assert not shared
    assert cost(condition).evaluated_always == 0


@pytest.mark.parametrize(
    ("filters", "always"),
    [
        ([], 0),
        ([{"exact": {"x": "1"}}], 0),
        ([{"not": {"exact": {"x": "1"}}}], 1),
        ([{"not": {"exact": {"x": "1"}}}, {"exact": {"y": "1"}}], 0),
        ([{"sql": "x LIKE '%abc%'"}], 0),
        ([{"sql": "x LIKE '%a_c%'"}], 1),
        ([{"sql": "LENGTH(x) = 5"}], 0),
        ([{"sql": "x = y"}], 1),
        ([{"any": [{"exact": {"x": "1"}}, {"not": {"exact": {"y": "1"}}}]}], 1),
        ([{DATA: {"/a": {"gt": 5}}}], 0),
    ],
)
def test_what_no_table_helps_with_is_counted(filters: list[Any], always: int) -> None:
    condition = parse(filters)
    assert cost(condition).evaluated_always == always
    index = Index()
    index.put(1, condition)
    assert index.scanned == always
    index.put(1, parse([]))
    assert index.scanned == 0


def test_contradictions_never_match_and_say_so() -> None:
    index = Index()
    index.put(1, parse([{"exact": {"x": "1"}}, {"exact": {"x": "2"}}]))
    index.put(2, parse([{"not": {"sql": "EXISTS id"}}]))
    assert index.match(event(x="1")) == []
    assert "contradict" in index.explain(1, event(x="1")).lines[0]


def test_a_hot_key_is_left_and_joined_in_any_order() -> None:
    rng = random.Random(3)
    index = Index()
    condition = parse([{"exact": {"x": "1"}}], types=["t"])
    keys = set(range(5_000))
    for key in keys:
        index.put(key, condition)
    for key in rng.sample(sorted(keys), 4_990):
        index.discard(key)
        keys.discard(key)
        if len(keys) % 500 < 12:
            assert sorted(index.match(event(x="1"))) == sorted(keys)
    for key in range(9_000, 9_100):
        index.put(key, condition)
        keys.add(key)
    assert sorted(index.match(event(x="1"))) == sorted(keys)


def test_the_number_of_tables_is_bounded_whatever_people_combine() -> None:
    index = Index()
    names = [f"a{n}" for n in range(14)]
    shapes = [shape for size in (2, 3) for shape in combinations(names, size)]
    conditions = {}
    for key, shape in enumerate(shapes * 2):
        conditions[key] = parse([{"exact": {name: str(key % 3) for name in shape}}])
        index.put(key, conditions[key])
    given = event(**{name: "1" for name in names})
    assert sorted(index.match(given)) == [key for key, each in conditions.items() if evaluate(each, given)]
    tables = list(index._rest._tables)
    assert len(tables) <= partition.MOST_EXACT


def test_a_combination_that_becomes_frequent_gets_a_table_of_its_own() -> None:
    index = Index()
    for key, shape in enumerate(combinations([f"a{n}" for n in range(9)], 2)):
        index.put(key, parse([{"exact": {name: "1" for name in shape}}]))
    frequent = {1_000 + n: parse([{"exact": {"b": str(n % 7), "c": "1", "d": "2"}}]) for n in range(200)}
    for key, condition in frequent.items():
        index.put(key, condition)
    plain = [form for form in index._rest._tables if form.mode == "plain" and len(form.signature) == 3]
    assert len(plain) == 1
    given = event(b="3", c="1", d="2")
    assert sorted(index.match(given)) == [key for key in frequent if (key - 1_000) % 7 == 3]
    for key in frequent:
        index.discard(key)
    assert index.match(given) == []


def test_an_alternative_written_twice_in_another_order_stands_once() -> None:
    either = [{"all": [{"exact": {"x": "1"}}, {"exact": {"y": "2"}}]}, {"all": [{"exact": {"y": "2", "x": "1"}}]}]
    assert len(conjunctions(parse([{"any": either}]))[0]) == 1


def test_a_combination_that_has_become_rare_beside_many_others_gives_up_its_table() -> None:
    index = Index()
    names = [f"a{n}" for n in range(10)]
    conditions = {
        key: parse([{"exact": {name: str(key % 2) for name in shape}}])
        for key, shape in enumerate(shape for size in (2, 3, 4) for shape in combinations(names, size))
    }
    for key, condition in conditions.items():
        index.put(key, condition)
    given = event(**{name: "1" for name in names})
    assert sorted(index.match(given)) == [key for key in conditions if key % 2]
    assert not index._rest._tables
    for key in conditions:
        index.discard(key)
    assert index.match(given) == []
    assert not index._rest._directory.pairs or not any(index._rest._directory.pairs.values())
    assert index._rest._trie.root.bare()


def test_many_combinations_of_few_values_cost_what_agrees_with_the_event() -> None:
    index = Index()
    names = [f"a{n}" for n in range(12)]
    shapes = list(combinations(names, 4))
    for key in range(4 * len(shapes)):
        index.put(key, parse([{"exact": {name: str((key + at) % 3) for at, name in enumerate(shapes[key % 495])}}]))
    given = {name: "0" for name in names}
    assert index.match(event(**given)) == []
    assert 0 < candidates(index, [event(**given)]) < 200


def test_true_and_one_are_different_keys() -> None:
    index = Index()
    index.put(1, parse([{DATA: {"/a": True}}]))
    index.put(2, parse([{DATA: {"/a": 1}}]))
    index.put(3, parse([{DATA: {"/a": "1"}}]))
    index.put(4, parse([{DATA: {"/a": None}}]))
    for text, expected in ((b"true", [1]), (b"1.0", [2]), (b'"1"', [3]), (b"null", [4]), (b"[1]", [])):
        assert index.match(Event(event().attributes, b'{"type":"t","data":{"a":%s}}' % text)) == expected


def test_not_in_sql_is_not_the_dialect_not() -> None:
    index = Index()
    index.put(1, parse([{"not": {"exact": {"x": "v"}}}]))
    index.put(2, parse([{"sql": "NOT (x = 'v')"}]))
    index.put(3, parse([{"not": {"sql": "x = 'v'"}}]))
    assert sorted(index.match(event())) == [1, 3]
    assert sorted(index.match(event(x="w"))) == [1, 2, 3]
    assert index.match(event(x="v")) == []


def test_a_shared_guard_is_evaluated_once_for_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    holds = Expression.holds

    def counted(self: Expression, attributes: Mapping[str, str | int | bool]) -> bool:
        asked.append(self.text)
        return holds(self, attributes)

    monkeypatch.setattr(Expression, "holds", counted)
    index = Index()
    for number in range(40):
        prefix = "abcdefgh"[: number % 8 + 1]
        index.put(number, parse([{"sql": "x LIKE '_b%'"}, {"prefix": {"x": prefix}}]))
    assert sorted(index.match(event(x="abcdefgh"))) == list(range(40))
    assert len(asked) == 1
