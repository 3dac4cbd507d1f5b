"""Follow lists from PostgreSQL to deliveries: each process holds them, and no hit counts that PostgreSQL denies."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from accepting import Broker, Publisher, broker
from managing import RING
from sqlalchemy import text

from broker.ingest import following as following_module
from broker.ingest.accept import Accepted, Acceptor
from broker.ingest.following import Following
from broker.ingest.view import View
from broker.storage import follow_files, installation
from broker.storage.acceptance import UnknownFollowList
from broker.storage.fingerprints import Fingerprints
from broker.telemetry import FOLLOW_HITS
from schemas.filters import FOLLOWS, FollowListsMissing
from schemas.problems import Conflict, InvalidInput, NotFound
from subscriptions import change_log, follow_lists, life_cycle
from subscriptions.change_log import ChangeKind, changing


@pytest.fixture
async def bode(url: str) -> AsyncIterator[Broker]:
    async with broker(url) as made:
        yield made


class Colliding(Fingerprints):
    """Subjects with the same last character share their fingerprint, and nothing else."""

    def subject(self, subject: str) -> bytes:
        return subject[-1:].encode() * 8 + super().subject(subject)[8:]


@dataclass
class Process:
    """What one accepting process holds."""

    following: Following
    acceptor: Acceptor
    publisher: Publisher

    async def accept(self, *subjects: str) -> list[bool]:
        """Whether an event about each subject was delivered."""
        results = await self.acceptor.accept([self.publisher.message(subject=subject) for subject in subjects])
        assert all(isinstance(result, Accepted) for result in results)
        return [isinstance(result, Accepted) and bool(result.subscriptions) for result in results]


@dataclass
class Provider:
    """An organisation with one list, and a subscription to what happens to the subjects on it."""

    bode: Broker
    id: UUID
    key: str
    list_id: UUID
    publisher: Publisher
    fingerprints: Fingerprints
    subscription: UUID | None = None

    async def add(self, *subjects: str) -> int:
        async with changing(self.bode.world.engine) as connection:
            return await follow_lists.add_subjects(
                connection, self.list_id, subjects, organisation_id=self.id, digest_of=self.fingerprints.subject
            )

    async def remove(self, *subjects: str) -> int:
        async with changing(self.bode.world.engine) as connection:
            return await follow_lists.remove_subjects(
                connection, self.list_id, subjects, organisation_id=self.id, digest_of=self.fingerprints.subject
            )

    async def size(self) -> tuple[int, int]:
        """As counted, and as it is."""
        async with self.bode.world.engine.connect() as connection:
            row = await follow_lists.get_list(connection, self.list_id, organisation_id=self.id)
        rows = await self.bode.pool.fetchval("SELECT count(*) FROM followed_subjects WHERE list_id = $1", self.list_id)
        return row.size, rows

    def process(self, folder: Path | None = None, merge_at: int = following_module.MERGE_AT) -> Process:
        engine = self.bode.world.engine
        following = Following(engine, self.fingerprints, folder, merge_at=merge_at)
        acceptor = Acceptor(self.bode.pool, View(engine, following), RING, self.fingerprints)
        return Process(following, acceptor, self.publisher)


async def following_provider(
    bode: Broker, *subjects: str, fingerprints: Fingerprints | None = None, subscribe: bool = True
) -> Provider:
    publisher = await bode.publisher()
    identity, oin, key = await bode.provider()
    await bode.grant(publisher, oin)
    async with changing(bode.world.engine) as connection:
        row = await follow_lists.create_list(connection, organisation_id=identity, name="pensioenen")
    fingerprints = fingerprints or await installation.fingerprints(bode.pool, RING)
    provider = Provider(bode, identity, key, row.id, publisher, fingerprints)
    if subjects:
        await provider.add(*subjects)
    if subscribe:
        made = await bode.subscribe(key, types=[f"{publisher.domain}.iets"], filters=[follows(row.id)])
        provider.subscription = made.id
    return provider


def follows(list_id: UUID | str) -> dict[str, object]:
    return {FOLLOWS: {"subject": str(list_id)}}


def subject(number: int) -> str:
    return f"9999{number:05d}"


async def test_only_who_is_followed_is_delivered_and_a_change_holds_for_the_very_next_acceptance(bode: Broker) -> None:
    provider = await following_provider(bode, subject(1), subject(2))
    process = provider.process()
    assert await process.accept(subject(1), subject(2), subject(3)) == [True, True, False]
    await provider.add(subject(3))
    assert await process.accept(subject(3)) == [True]
    await provider.remove(subject(1))
    assert await process.accept(subject(1), subject(2), subject(3)) == [False, True, True]
    numbers = [row["sequence"] for row in await bode.deliveries(await key_of(provider))]
    assert numbers == [1, 2, 3, 4, 5], "what isn't delivered takes no number"


async def key_of(provider: Provider) -> int:
    return int(await provider.bode.pool.fetchval("SELECT key FROM subscriptions WHERE id = $1", provider.subscription))


async def test_two_processes_see_each_change_at_once(bode: Broker) -> None:
    provider = await following_provider(bode)
    processes = [provider.process(), provider.process()]
    for number in range(6):
        assert [await process.accept(subject(number)) for process in processes] == [[False], [False]]
        await provider.add(subject(number))
        assert await asyncio.gather(*(process.accept(subject(number)) for process in processes)) == [[True], [True]]


async def test_changes_made_while_events_are_accepted_are_applied_once(bode: Broker) -> None:
    provider = await following_provider(bode)
    process = provider.process()

    async def change() -> None:
        for number in range(8):
            await provider.add(subject(number), subject(number + 1))
            await provider.remove(subject(number))

    changes = asyncio.create_task(change())
    while not changes.done():
        await asyncio.gather(*(process.accept(subject(n), subject(n + 1)) for n in (1, 4, 7)))
    await changes
    assert await process.accept(*map(subject, range(10))) == [number == 8 for number in range(10)]


async def test_wrong_hit_of_a_fingerprint_is_no_delivery(bode: Broker) -> None:
    key = Colliding(b"a key of the test")
    provider = await following_provider(bode, "anna-1", fingerprints=key)
    process = provider.process()
    refused = _refused()
    assert await process.accept("anna-1", "bert-1", "anna-2") == [True, False, False]
    assert _refused() == refused + 1, "the fingerprint of the second did hit"
    await provider.add("bert-1")
    await provider.remove("anna-1")
    assert await process.accept("anna-1", "bert-1") == [False, True]


def _refused() -> float:
    return FOLLOW_HITS.labels("refused")._value.get()


async def test_wrong_hit_leaves_what_matches_for_another_reason(bode: Broker) -> None:
    key = Colliding(b"a key of the test")
    provider = await following_provider(bode, "anna-1", fingerprints=key, subscribe=False)
    either = {"any": [follows(provider.list_id), {"exact": {"subject": "bert-1"}}]}
    await bode.subscribe(provider.key, types=[f"{provider.publisher.domain}.iets"], filters=[either])
    assert await provider.process().accept("anna-1", "bert-1", "carl-1") == [True, True, False]


BAD_LISTS = [
    ("another organisation's", lambda own, other: str(other)),
    ("none at all", lambda own, other: str(uuid4())),
    ("not an id", lambda own, other: "pensioenen"),
    ("its own in capitals, which matching wouldn't find", lambda own, other: str(own).upper()),
    ("its own without hyphens", lambda own, other: own.hex),
]


@pytest.mark.parametrize("named", [case[1] for case in BAD_LISTS], ids=[case[0] for case in BAD_LISTS])
async def test_a_filter_names_only_lists_of_its_own_organisation(bode: Broker, named) -> None:  # type: ignore[no-untyped-def]
    own, other = await following_provider(bode), await following_provider(bode)
    wrong = named(own.list_id, other.list_id)
    body = {"sink": "https://afnemer.example/hook", "protocol": "HTTP"}
    filters = [follows(own.list_id), {"any": [{"exact": {"a": "b"}}, {FOLLOWS: {"subject": wrong}}]}]
    for method, path in (("POST", "/subscriptions"), ("PUT", f"/subscriptions/{own.subscription}")):
        answer = await bode.world.call(method, path, key=own.key, body=body | {"filters": filters})
        assert answer.status == 400
        [problem] = answer.json["invalidParams"]
        assert (problem["name"], problem["code"]) == (f"/filters/1/any/1/{FOLLOWS}/subject", "follow-list")


async def test_another_organisations_list_never_matches_even_where_a_filter_names_it(bode: Broker) -> None:
    own, other = await following_provider(bode, subject(1)), await following_provider(bode, subject(1))
    process = own.process()
    assert await process.accept(subject(1)) == [True]
    async with changing(bode.world.engine) as connection:
        statement = "UPDATE subscriptions SET filters = replace(filters::text, :own, :other)::jsonb WHERE id = :id"
        names = {"own": str(own.list_id), "other": str(other.list_id), "id": own.subscription}
        await connection.execute(text(statement), names)
        await change_log.record_changes(connection, [(ChangeKind.SUBSCRIPTION, own.subscription)])
    refused = _refused()
    assert await process.accept(subject(1)) == [False]
    assert _refused() == refused + 1


async def test_list_that_is_not_there_or_cannot_be_read_is_an_error_and_nothing_is_accepted(bode: Broker) -> None:
    provider = await following_provider(bode, subject(1))
    process = provider.process()
    assert await process.accept(subject(1)) == [True]
    await bode.pool.execute("ALTER TABLE followed_subjects RENAME TO elsewhere")
    try:
        with pytest.raises(asyncpg.UndefinedTableError):
            await process.accept(subject(1))
    finally:
        await bode.pool.execute("ALTER TABLE elsewhere RENAME TO followed_subjects")
    await bode.pool.execute("DELETE FROM subscription_follow_lists WHERE list_id = $1", provider.list_id)
    await bode.pool.execute("DELETE FROM followed_subjects WHERE list_id = $1", provider.list_id)
    await bode.pool.execute("DELETE FROM follow_lists WHERE id = $1", provider.list_id)
    with pytest.raises(UnknownFollowList):
        await process.accept(subject(1))
    assert len(await bode.deliveries(await key_of(provider))) == 1
    assert await bode.pool.fetchval("SELECT count(*) FROM events WHERE source = $1", provider.publisher.source) == 1


async def test_process_without_follow_lists_says_so_instead_of_not_matching(bode: Broker) -> None:
    provider = await following_provider(bode, subject(1))
    acceptor = await bode.acceptor()
    with pytest.raises(FollowListsMissing):
        await acceptor.accept([provider.publisher.message(subject=subject(1))])
    with pytest.raises(FollowListsMissing):
        Following(bode.world.engine, provider.fingerprints, None).lists_of(subject(1))


async def test_adding_and_removing_are_idempotent_and_counted(bode: Broker) -> None:
    provider = await following_provider(bode, subscribe=False)
    assert await provider.add(subject(1), subject(2), subject(1)) == 2
    head = await head_of(bode)
    assert await provider.add(subject(1), subject(2)) == 0
    assert await provider.remove(subject(3)) == 0
    assert await head_of(bode) == head, "nothing happened, so there is nothing to tell"
    assert await provider.add(subject(2), subject(3)) == 1
    assert await provider.size() == (3, 3)
    assert await provider.remove(subject(1), subject(3), subject(4)) == 2
    assert await provider.size() == (1, 1)


async def head_of(bode: Broker) -> int:
    async with bode.world.engine.connect() as connection:
        return await change_log.read_head(connection)


async def test_input_out_of_bounds_and_others_lists_are_refused_whole(bode: Broker) -> None:
    own, other = await following_provider(bode, subscribe=False), await following_provider(bode, subscribe=False)
    for subjects in (["x", ""], ["x", "y" * 4097], [subject(n) for n in range(follow_lists.MOST_AT_ONCE + 1)]):
        with pytest.raises(InvalidInput):
            await own.add(*subjects)
    own.id = other.id
    for act in (own.add, own.remove):
        with pytest.raises(NotFound):
            await act(subject(1))
    assert await bode.pool.fetchval("SELECT count(*) FROM followed_subjects WHERE list_id = $1", own.list_id) == 0


async def test_no_subject_and_no_plain_hash_is_stored(bode: Broker) -> None:
    provider = await following_provider(bode, "999990019")
    stored = await bode.pool.fetchrow("SELECT * FROM followed_subjects WHERE list_id = $1", provider.list_id)
    change = await bode.pool.fetchrow("SELECT * FROM follow_changes WHERE list_id = $1", provider.list_id)
    assert stored["digest"] == provider.fingerprints.subject("999990019")
    assert change["fingerprints"] == stored["digest"][:8]
    assert Fingerprints(b"another key").subject("999990019") != stored["digest"]


async def test_list_in_use_stays_and_a_deleted_one_goes_in_portions(
    bode: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = await following_provider(bode, *map(subject, range(7)))
    process = provider.process()
    assert await process.accept(subject(1)) == [True]

    async def delete() -> None:
        async with changing(bode.world.engine) as connection:
            await follow_lists.delete_list(connection, provider.list_id, organisation_id=provider.id)

    with pytest.raises(Conflict):
        await delete()
    async with changing(bode.world.engine) as connection:

        async def cancel(_connection: object, _key: int) -> None: ...

        assert provider.subscription is not None
        await life_cycle.end(connection, provider.subscription, organisation_id=provider.id, cancel=cancel)
    await delete()
    with pytest.raises(NotFound):
        await provider.add(subject(1))
    monkeypatch.setattr(follow_lists, "MOST_AT_ONCE", 3)
    left = []
    while await bode.pool.fetchval("SELECT count(*) FROM follow_lists WHERE id = $1", provider.list_id):
        await process.following.remove_deleted()
        left.append(
            await bode.pool.fetchval("SELECT count(*) FROM followed_subjects WHERE list_id = $1", provider.list_id)
        )
    assert left == [4, 1, 0]
    await process.following.tidy()
    for number in range(7):
        assert str(provider.list_id) not in process.following.lists_of(subject(number))


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> int:
        raise AssertionError("the lists were read from PostgreSQL")

    monkeypatch.setattr(following_module, "copy_fingerprints", refuse)


async def started(provider: Provider, folder: Path) -> Process:
    """A process that has left a file, after which something changed."""
    process = provider.process(folder)
    await process.following.load()
    assert len(follow_files.versions(folder)) == 1
    await provider.remove(subject(1))
    await provider.add(subject(2))
    return process


async def test_restart_reads_the_file_and_what_came_after_it(
    bode: Broker, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    provider = await following_provider(bode, subject(0), subject(1))
    await started(provider, tmp_path)
    request.getfixturevalue("no_reading")
    assert await provider.process(tmp_path).accept(*map(subject, range(4))) == [True, False, True, False]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_cut, _empty, Path.unlink])
async def test_damaged_file_is_made_anew(bode: Broker, tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    provider = await following_provider(bode, subject(0), subject(1))
    await started(provider, tmp_path)
    damage(follow_files.versions(tmp_path)[0][1])
    assert await provider.process(tmp_path).accept(*map(subject, range(4))) == [True, False, True, False]


async def test_file_of_another_history_or_key_is_not_used(bode: Broker, tmp_path: Path) -> None:
    other = await following_provider(bode, subject(5), fingerprints=Fingerprints(b"another key"))
    provider = await following_provider(bode, subject(0), subject(1))
    await started(provider, tmp_path)
    [(version, path)] = follow_files.versions(tmp_path)
    content = path.read_bytes()
    assert await other.process(tmp_path).accept(subject(5)) == [True]
    for older in follow_files.versions(tmp_path):
        older[1].unlink()
    path.write_bytes(content)
    await bode.pool.execute("UPDATE change_log SET changed_at = now() WHERE version = $1", version)
    await bode.pool.execute("DELETE FROM follow_changes WHERE list_id = $1 AND step = 1", provider.list_id)
    process = provider.process(tmp_path)
    assert await process.accept(*map(subject, range(4))) == [True, False, True, False], "not what the file led to"


async def test_file_from_before_what_was_pruned_is_not_used(bode: Broker, tmp_path: Path) -> None:
    provider = await following_provider(bode, subject(0), subject(1))
    process = await started(provider, tmp_path)
    await bode.pool.execute("DELETE FROM change_log WHERE version <= (SELECT version - 1 FROM change_log_head)")
    assert await bode.pool.fetchval("SELECT count(*) FROM follow_changes WHERE step = -1") == 0
    for each in (process, provider.process(tmp_path)):
        assert await each.accept(*map(subject, range(4))) == [True, False, True, False]


async def test_bulk_load_that_says_so_is_read_anew(bode: Broker) -> None:
    provider = await following_provider(bode, subject(0))
    process = provider.process()
    assert await process.accept(subject(0), subject(1)) == [True, False]
    async with changing(bode.world.engine) as connection:
        row = {"list": provider.list_id, "digest": provider.fingerprints.subject(subject(1))}
        await connection.execute(text("INSERT INTO followed_subjects VALUES (:list, :digest)"), row)
        await change_log.record_changes(connection, [(ChangeKind.EVERYTHING, "")])
    assert await process.accept(subject(0), subject(1)) == [True, True]


async def test_many_changes_are_merged_into_a_new_file_that_other_processes_take_over(
    bode: Broker, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = await following_provider(bode, *map(subject, range(50)))
    first, second = provider.process(tmp_path, merge_at=30), provider.process(tmp_path, merge_at=30)
    for process in (first, second):
        await process.following.load()
    request.getfixturevalue("no_reading")
    await provider.add(*map(subject, range(50, 80)))
    await provider.remove(*map(subject, range(0, 10)))
    wanted = [10 <= number < 80 for number in range(90)]
    assert await first.accept(*map(subject, range(90))) == wanted
    await first.following.tidy()
    [(version, _)] = follow_files.versions(tmp_path)
    assert version == first.following.version
    assert first.following._lists.changed == 0
    monkeypatch.setattr(follow_files, "write_version", None)
    await second.following.tidy()
    assert second.following._lists.base.sequence == version
    for process in (first, second):
        assert await process.accept(*map(subject, range(90))) == wanted


async def test_changes_that_come_while_arrays_are_merged_are_kept(
    bode: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = await following_provider(bode, *map(subject, range(20)))
    process = provider.process(tmp_path, merge_at=10)
    await process.following.load()
    await provider.add(*map(subject, range(20, 40)))
    merged = Following._merged

    async def meanwhile(following: Following):  # type: ignore[no-untyped-def]
        base = await merged(following)
        await provider.add(subject(40))
        assert await process.accept(subject(40)) == [True]
        await provider.remove(subject(0))
        return base

    monkeypatch.setattr(Following, "_merged", meanwhile)
    await process.following.tidy()
    assert await process.accept(*map(subject, range(42))) == [1 <= number <= 40 for number in range(42)]
