from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from subscriptions.coverage import domains_of, overlaps, patterns_covering, within
from subscriptions.directory import Directory
from subscriptions.entries import (
    DomainChanged,
    DomainEntry,
    GrantChanged,
    GrantEntry,
    OrganisationChanged,
    OrganisationEntry,
    SubscriptionChanged,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)
BRP, BAG, GEMEENTE = uuid4(), uuid4(), uuid4()
BRP_OIN, BAG_OIN = "00000001823288444000", "00000001823288445000"


def organisation(identity: UUID, oin: str, user: str | None = None, *sources: str) -> OrganisationChanged:
    return OrganisationChanged(identity, OrganisationEntry(identity, oin, "x", user, frozenset(sources)))


def domain(name: str, owner: UUID, identity: UUID | None = None) -> DomainChanged:
    identity = identity or uuid4()
    return DomainChanged(identity, DomainEntry(identity, name, owner))


def grant(
    *types: str, registry: UUID = BAG, begin: datetime = NOW, end: datetime | None = None, age: int = 0
) -> GrantChanged:
    identity = uuid4()
    made = NOW - timedelta(days=age)
    return GrantChanged(identity, GrantEntry(identity, registry, GEMEENTE, types, begin, end, made))


def directory(*changes: OrganisationChanged | DomainChanged | GrantChanged) -> Directory:
    made = Directory()
    made.apply([domain("nl.brp", BRP), domain("nl.bag", BAG), *changes])
    return made


@pytest.mark.parametrize(
    ("pattern", "event_type", "granted"),
    [
        ("nl.bag.pand-new", "nl.bag.pand-new", True),
        ("nl.bag.pand-new", "nl.bag.pand-newer", False),
        ("nl.bag.pand-new", "nl.bag.pand-new.v1", False),
        ("nl.bag.pand-new", "nl.bag.Pand-new", False),
        ("nl.bag.*", "nl.bag.pand-new", True),
        ("nl.bag.*", "nl.bag.pand.new.v1", True),
        ("nl.bag.*", "nl.bag", False),
        ("nl.bag.*", "nl.bagage.lost", False),
        ("nl.bag.pand.*", "nl.bag.pand.new", True),
        ("nl.bag.pand.*", "nl.bag.nummer.new", False),
    ],
)
def test_a_grant_covers_its_types_and_no_more(pattern: str, event_type: str, granted: bool) -> None:
    given = grant(pattern)
    made = directory(given)
    assert made.granted(GEMEENTE, event_type, NOW) == (given.id if granted else None)
    assert made.granted(BRP, event_type, NOW) is None


def test_a_grant_counts_only_for_types_that_its_registry_owns() -> None:
    made = directory(grant("nl.brp.*", registry=BAG))
    assert made.granted(GEMEENTE, "nl.brp.moved", NOW) is None
    deeper = domain("nl.bag.pand", BRP)
    made = directory(grant("nl.bag.*"), deeper)
    assert made.granted(GEMEENTE, "nl.bag.pand.new", NOW) is None
    assert made.granted(GEMEENTE, "nl.bag.nummer.new", NOW) is not None


def test_a_grant_holds_from_its_beginning_up_to_but_not_at_its_end() -> None:
    made = directory(grant("nl.bag.*", begin=NOW, end=NOW + timedelta(hours=1), age=1))
    second = timedelta(seconds=1)
    moments = [NOW - second, NOW, NOW + timedelta(hours=1) - second, NOW + timedelta(hours=1)]
    assert [made.granted(GEMEENTE, "nl.bag.x", moment) is not None for moment in moments] == [False, True, True, False]


def test_a_grant_that_held_when_it_was_made_holds_though_the_clock_is_set_back() -> None:
    for begin in (NOW, NOW - timedelta(days=1)):
        made = directory(grant("nl.bag.*", begin=begin, end=NOW + timedelta(hours=1)))
        assert made.granted(GEMEENTE, "nl.bag.x", NOW - timedelta(days=2)) is not None
        assert made.granted(GEMEENTE, "nl.bag.x", NOW + timedelta(hours=1)) is None
        for moment in (begin - timedelta(seconds=1), begin, NOW + timedelta(hours=1)):
            assert made.granted_then(GEMEENTE, "nl.bag.x", moment) is (moment == begin), (
                "what has passed stays as it was"
            )


def test_the_oldest_of_several_grants_is_the_one_that_counts() -> None:
    younger, older = grant("nl.bag.*", age=1), grant("nl.bag.x", age=2)
    made = directory(younger, older)
    assert made.granted(GEMEENTE, "nl.bag.x", NOW) == older.id
    made.apply([GrantChanged(older.id, None)])
    assert made.granted(GEMEENTE, "nl.bag.x", NOW) == younger.id
    made.apply([GrantChanged(younger.id, None)])
    assert made.granted(GEMEENTE, "nl.bag.x", NOW) is None


def test_an_answer_is_not_remembered_past_a_change() -> None:
    made = directory()
    assert made.granted(GEMEENTE, "nl.bag.x", NOW) is None
    made.apply([grant("nl.bag.*")])
    assert made.granted(GEMEENTE, "nl.bag.x", NOW) is not None
    made.apply([domain("nl.bag.x", BRP)])
    assert made.granted(GEMEENTE, "nl.bag.x", NOW) is None


def test_an_organisation_speaks_for_sources_with_its_oin_and_for_those_listed() -> None:
    made = directory(organisation(BRP, BRP_OIN, "brp", "urn:nld:kvk:1:x"), organisation(BAG, BAG_OIN))
    for source in (f"urn:nld:oin:{BRP_OIN}:systeem:BRP", f"urn:nld:oin:{BRP_OIN}", "urn:nld:kvk:1:x"):
        assert made.may_speak_for(BRP, source)
        assert not made.may_speak_for(BAG, source)
    for source in (f"urn:nld:oin:{BRP_OIN}9:x", "urn:nld:kvk:1:x:y", "urn:nld:oin:", "", f"URN:nld:oin:{BRP_OIN}:x"):
        assert not made.may_speak_for(BRP, source)
    found = made.organisation_of_user("brp")
    assert found is not None
    assert found.id == BRP


def test_an_organisation_that_changes_leaves_nothing_behind() -> None:
    made = directory(organisation(BRP, BRP_OIN, "brp", "urn:a"))
    made.apply([organisation(BRP, BRP_OIN, "other", "urn:b")])
    assert made.organisation_of_user("brp") is None
    assert made.organisation_of_source("urn:a") is None
    assert made.may_speak_for(BRP, "urn:b")


def test_ending_what_was_never_there_does_no_harm() -> None:
    made = directory()
    made.apply([SubscriptionChanged(17, None), GrantChanged(uuid4(), None)])
    assert (made.subscriptions, made.grants) == ({}, {})


def test_domains_cover_by_labels() -> None:
    assert domains_of("nl.bag.pand") == ["nl.bag.pand", "nl.bag", "nl"]
    assert patterns_covering("nl.bag.pand") == {"nl.bag.pand", "nl.bag.*", "nl.*"}
    assert [within(name, "nl.bag") for name in ("nl.bag", "nl.bag.x", "nl.bagage", "nl")] == [True, True, False, False]


@pytest.mark.parametrize(
    ("types", "asked", "expected"),
    [
        (["nl.bag.*"], None, True),
        (["nl.bag.*"], "nl.bag", True),
        (["nl.bag.*"], "nl.bag.pand.deep", True),
        (["nl.bag.pand"], "nl.bag.pand.deep", False),
        (["nl.bag.pand"], "nl", True),
        (["nl.bag.*"], "nl.bagage", False),
    ],
)
def test_a_domain_overlaps_with_patterns_in_it_and_around_it(
    types: list[str], asked: str | None, expected: bool
) -> None:
    assert overlaps(types, types=(), domain=asked) is expected


def test_who_has_no_user_of_rabbitmq_is_known_by_its_oin_as_the_api_publishes_for_it() -> None:
    made = directory(organisation(BRP, BRP_OIN), organisation(BAG, BAG_OIN, "bag"))
    for user, owner in ((BRP_OIN, BRP), ("bag", BAG), (BAG_OIN, BAG)):
        found = made.organisation_of_user(user)
        assert found is not None
        assert found.id == owner
    assert made.organisation_of_user("nobody") is None
