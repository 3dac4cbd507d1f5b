"""Follow lists: found by fingerprint, changed in a delta, merged into the next version; hits verified before use."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from broker.matching.follows import Base, Fingerprints, FollowLists, NotFollowLists, build
from broker.matching.index import Index
from broker.storage import follow_files
from schemas.cloudevents import Event
from schemas.filters import FOLLOWS, FollowListsMissing, parse

KEY = Fingerprints(b"a key of the test")


def whole(parts: Iterable[bytes | memoryview]) -> bytes:
    return b"".join(parts)


def based(entries: Iterable[tuple[str, str]]) -> FollowLists:
    return FollowLists(KEY, Base(whole(build(entries, KEY, 7))))


def subject(number: int) -> str:
    return f"9999{number:05d}"


def test_every_subject_is_found_and_no_other() -> None:
    rng = random.Random(1)
    entries = {(f"list-{rng.randrange(40)}", subject(rng.randrange(20_000))) for _ in range(30_000)}
    lists = based(entries)
    expected: dict[str, set[str]] = {}
    for name, followed in entries:
        expected.setdefault(followed, set()).add(name)
    for number in range(30_000):
        assert set(lists.lists_of(subject(number))) == expected.get(subject(number), set())


def test_another_key_finds_nothing() -> None:
    base = Base(whole(build([("l", subject(n)) for n in range(1000)], KEY, 0)))
    other = FollowLists(Fingerprints(b"another key"), base)
    assert not any(other.lists_of(subject(n)) for n in range(1000))


def test_a_hundred_thousand_take_at_most_fourteen_bytes_each() -> None:
    base = Base(whole(build((("list", subject(n)) for n in range(100_000)), KEY, 0)))
    assert base.size / base.count < 14


@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_changes_and_merges_gives_what_a_dictionary_gives(seed: int) -> None:
    rng = random.Random(seed)
    truth = {(f"l{rng.randrange(5)}", subject(rng.randrange(60))) for _ in range(100)}
    lists = based(truth)
    for step in range(300):
        entry = (f"l{rng.randrange(7)}", subject(rng.randrange(80)))
        if entry in truth:
            truth.remove(entry)
            lists.remove(*entry)
        else:
            truth.add(entry)
            lists.add(*entry)
        if step % 60 == 30:
            frozen = lists.snapshot()
            base = Base(whole(frozen.merged(step)))
            assert base.sequence == step
            late = ("late", subject(step))
            truth.add(late)
            lists.add(*late)
            lists = lists.rebased(KEY, base, frozen.delta())
            assert lists.changed == 1
        if step % 20 == 0:
            for number in range(80):
                found = {(name, subject(number)) for name in lists.lists_of(subject(number))}
                assert found == {entry for entry in truth if entry[1] == subject(number)}


def test_a_change_undone_while_merging_is_undone_after_it() -> None:
    lists = based([("l", "1")])
    lists.remove("l", "1")
    lists.add("m", "2")
    frozen = lists.snapshot()
    lists.add("l", "1")
    lists.remove("m", "2")
    assert lists.changed == 0
    lists = lists.rebased(KEY, Base(whole(frozen.merged(1))), frozen.delta())
    assert (lists.lists_of("1"), lists.lists_of("2")) == (("l",), ())


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"x" + b[1:], lambda b: b""])
def test_a_damaged_file_is_refused(damage: Callable[[bytes], bytes]) -> None:
    content = whole(build([("l", "1")], KEY, 0))
    with pytest.raises(NotFollowLists):
        Base(damage(content))


def test_files_are_versioned_and_read_in_place(tmp_path: Path) -> None:
    for version in (1, 2):
        follow_files.write_version(tmp_path, version, build([(f"l{version}", "1")], KEY, version))
    (tmp_path / "follows-00000000000000000001.new").write_bytes(b"left by a killed process")
    (number, path) = follow_files.versions(tmp_path)[-1]
    first = FollowLists(KEY, Base(follow_files.map_version(path)))
    assert (number, first.lists_of("1")) == (2, ("l2",))
    assert follow_files.remove_older(tmp_path, 2) == 2
    assert [version for version, _ in follow_files.versions(tmp_path)] == [2]
    assert path.stat().st_mode & 0o077 == 0


def test_a_version_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def parts() -> Iterable[bytes]:
        yield b"half"
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        follow_files.write_version(tmp_path, 1, parts())
    assert list(tmp_path.iterdir()) == []


def event(**attributes: str) -> Event:
    return Event({"specversion": "1.0", "id": "1", "source": "s", "type": "t", **attributes}, b"{}")


def test_hits_are_told_for_verification_and_only_verified_ones_count() -> None:
    lists = based([("l1", "9"), ("l2", "9")])
    index = Index(lists.lists_of)
    index.put(1, parse([{FOLLOWS: {"subject": "l1"}}], types=["t"]))
    index.put(2, parse([{"any": [{FOLLOWS: {"subject": "l2"}}, {"exact": {"source": "s"}}]}]))
    index.put(3, parse([{"exact": {"source": "s"}}]))
    index.put(4, parse([{FOLLOWS: {"partner": "l1"}}]))
    matched = index.match(event(subject="9"))
    assert sorted(matched) == [1, 2, 3]
    assert index.hits(event(subject="9"), matched) == {("l1", "9"), ("l2", "9")}
    assert index.hits(event(subject="9"), [3]) == set()
    assert sorted(index.confirmed(event(subject="9"), matched, {("l1", "9")})) == [1, 2, 3]
    assert sorted(index.confirmed(event(subject="9"), matched, {("l1", "8")})) == [2, 3]


def test_an_index_without_follow_lists_says_so_instead_of_not_matching() -> None:
    index = Index()
    index.put(1, parse([{FOLLOWS: {"subject": "l"}}]))
    with pytest.raises(FollowListsMissing):
        index.match(event(subject="9"))
