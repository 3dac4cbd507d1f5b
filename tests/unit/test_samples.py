"""Samples are valid, believable, about nobody, and the same for the same seed."""

import re
from collections import Counter
from datetime import UTC, datetime
from itertools import islice
from random import Random

import pytest

from broker.tools import bag
from broker.tools.identities import SOURCES
from broker.tools.samples import CATALOGUE, SampleType, sample, stream
from schemas.cloudevents import from_structured
from schemas.identifiers import is_bag_id, is_bsn, is_kvk, is_vestigingsnummer

NOW = datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)


def clock() -> datetime:
    return NOW


@pytest.mark.parametrize("kind", CATALOGUE, ids=lambda kind: kind.type)
def test_a_sample_of_each_type_is_valid_without_a_warning(kind: SampleType) -> None:
    draft = sample(kind.type, SOURCES[kind.registry], Random(1), clock)

    event = from_structured(draft.encode())

    assert event.warnings == ()
    assert event.attributes == draft.attributes
    assert event.attributes["gemeente"] == "9999"
    assert event.time == "2026-01-02T03:04:05.678+00:00"
    assert event.type.startswith(f"nl.{kind.registry}.")


def test_subjects_are_well_formed_and_of_the_test_series() -> None:
    forms = {"brp": is_bsn, "bag": is_bag_id}
    for kind in CATALOGUE:
        subject = str(sample(kind.type, "/a", Random(3), clock).attributes["subject"])
        assert subject.startswith(("9999", "TST99-"))
        assert forms.get(kind.registry, bool)(subject)
    assert is_kvk(str(sample("nl.hr.onderneming-ingeschreven", "/a", Random(3), clock).attributes["subject"]))
    assert is_vestigingsnummer(str(sample("nl.hr.vestiging-verhuisd", "/a", Random(3), clock).attributes["subject"]))


def test_no_sample_holds_a_citizen_number_outside_of_the_test_series() -> None:
    for draft in islice(stream(Random(5), clock), 500):
        numbers = re.findall(rb'"(\d{9})"', draft.encode())
        assert [number for number in numbers if not number.startswith(b"9999")] == []


def test_the_stream_has_every_registry_and_comes_back_to_its_subjects() -> None:
    drafts = list(islice(stream(Random(2), clock, pool=10), 1000))

    assert {draft.attributes["source"] for draft in drafts} == set(SOURCES.values())
    assert {draft.attributes["type"] for draft in drafts} == {kind.type for kind in CATALOGUE}
    assert len({draft.attributes["id"] for draft in drafts}) == 1000
    subjects = Counter(draft.attributes["subject"] for draft in drafts if draft.attributes["source"] == SOURCES["brp"])
    assert 2 <= len(subjects) <= 10


def test_the_stream_keeps_to_the_registries_that_it_is_given() -> None:
    drafts = islice(stream(Random(2), clock, {"bag": "/bag"}), 50)

    assert {str(draft.attributes["type"]).split(".")[1] for draft in drafts} == {"bag"}


def test_the_same_seed_gives_the_same_events() -> None:
    one, other, third = (list(islice(stream(Random(seed), clock), 20)) for seed in (7, 7, 8))

    assert one == other != third


def test_an_unknown_type_is_an_error() -> None:
    with pytest.raises(KeyError):
        sample("nl.brp.persoon-vermist", "/a", Random(1), clock)


def test_sample_types_are_other_types_than_those_of_the_bag_files() -> None:
    assert {kind.type for kind in CATALOGUE}.isdisjoint(bag.EVENT_TYPES)
    assert len(bag.EVENT_TYPES) == 21
