"""The index gives every matching subscription once, and follows every change at once."""

import pytest

from broker.matching.index import Index, cost
from schemas.cloudevents import Event
from schemas.filters import parse


def event(**attributes: str) -> Event:
    return Event({"specversion": "1.0", "id": "1", "source": "s", "type": "t", **attributes}, b"{}")


def test_subscriptions_are_found_by_type_and_by_other_conditions() -> None:
    index = Index()
    index.put(1, parse([{"exact": {"type": "t"}}]))
    index.put(2, parse([{"prefix": {"source": "s"}}]))
    index.put(3, parse(None, types=["t", "u"]))
    index.put(4, parse([{"exact": {"type": "u"}}]))
    assert sorted(index.match(event())) == [1, 2, 3]
    assert sorted(index.match(event(type="u"))) == [2, 3, 4]


def test_a_change_replaces_and_a_discard_removes() -> None:
    index = Index()
    index.put(1, parse([{"exact": {"type": "t"}}]))
    index.put(1, parse([{"exact": {"type": "u"}}]))
    assert index.match(event()) == []
    assert index.match(event(type="u")) == [1]
    index.discard(1)
    index.discard(1)
    assert index.match(event(type="u")) == []


def test_an_explanation_says_what_matched_and_what_did_not() -> None:
    index = Index()
    index.put(1, parse([{"exact": {"type": "t", "subject": "9"}}]))
    assert index.explain(1, event(subject="9")).matched
    assert not index.explain(1, event()).matched
    with pytest.raises(KeyError):
        index.explain(2, event())


def test_cost_and_explanation_tell_what_is_evaluated_for_every_event_of_its_type() -> None:
    looked_up, always = {"exact": {"subject": "9"}}, {"sql": "subject = reden"}
    condition = parse([{"any": [looked_up, always]}], types=["t"])
    found = cost(condition)
    assert (found.conjunctions, found.evaluated_always, found.any_type) == (2, 1, False)
    assert cost(parse([always])).any_type
    index = Index()
    index.put(1, condition)
    told = {each.evaluated_always: each.holds for each in index.explain(1, event(subject="9")).alternatives}
    assert told == {False: True, True: False}
