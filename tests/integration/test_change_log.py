import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID

import asyncpg
import pytest
from fixtures import api, declared_database
from managing import World, fresh_domain, subscription
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.problems import Unavailable
from subscriptions import change_log as log
from subscriptions import life_cycle
from subscriptions.change_log import ChangeKind, changing, read_changes, record_changes
from subscriptions.directory import load, load_changes
from subscriptions.entries import GrantChanged, OrganisationChanged, ReloadNeeded, SubscriptionChanged

url = declared_database()
bode = api()


@asynccontextmanager
async def ingesting(bode: World) -> AsyncIterator[AsyncConnection]:
    """Holds the lock as a transaction that accepts events does."""
    async with bode.engine.connect() as connection, connection.begin():
        await connection.execute(text(log.TAKE_SHARED_SQL))
        yield connection


async def waiters(bode: World) -> int:
    query = text(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database = "
        "(SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    async with bode.engine.connect() as connection:
        return int((await connection.execute(query)).scalar_one())


async def until_someone_waits(bode: World, count: int = 1) -> None:
    async with asyncio.timeout(10):
        while await waiters(bode) < count:
            continue


async def test_a_change_is_answered_only_after_the_events_accepted_before_it(bode: World) -> None:
    provider = await bode.provider()
    async with ingesting(bode) as connection:
        head = await log.read_head(connection)
        answer = asyncio.create_task(bode.call("POST", "/subscriptions", key=provider.key, body=subscription()))
        await until_someone_waits(bode)
        assert not answer.done()
        assert await log.read_head(connection) == head, "what this transaction matches with can't change under it"
    assert (await answer).status == 201
    async with ingesting(bode) as connection:
        assert await log.read_head(connection) == head + 1, "the next batch sees it"


async def test_a_transaction_that_starts_while_a_change_is_made_sees_that_change(bode: World) -> None:
    provider = await bode.provider()
    version, _ = await load(bode.engine)

    async def ingest() -> int:
        async with ingesting(bode) as connection:
            return await log.read_head(connection)

    async with changing(bode.engine) as connection:
        batch = asyncio.create_task(ingest())
        await until_someone_waits(bode)
        await record_changes(connection, [(ChangeKind.ORGANISATION, provider.id)])
    assert await batch == version + 1


async def test_a_change_that_cannot_get_in_is_refused_and_leaves_nothing(
    bode: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = await bode.provider()
    monkeypatch.setattr(log, "_LOCK_TIMEOUT", "50ms")
    async with ingesting(bode):
        answer = await bode.call("POST", "/subscriptions", key=provider.key, body=subscription())
        assert (answer.status, answer.json["code"]) == (503, "unavailable")
        assert "retry-after" in answer.headers
    assert (await bode.call("GET", "/subscriptions", key=provider.key)).json["count"] == 0


async def test_versions_are_contiguous_in_commit_order(bode: World) -> None:
    providers = [await bode.provider() for _ in range(4)]
    version, _ = await load(bode.engine)
    committed: list[UUID] = []

    async def write(number: int) -> None:
        answer = await bode.call("POST", "/subscriptions", key=providers[number % 4].key, body=subscription())
        assert answer.status == 201

    async def watch() -> None:
        seen = version
        while len(committed) < 24:
            async with ingesting(bode) as connection:
                head, entries = await read_changes(connection, seen)
            assert head - seen == len(entries), "each version has one entry, and none appears below the head later"
            committed.extend(UUID(entry.entity) for entry in entries)
            seen = head

    async with asyncio.TaskGroup() as group:
        group.create_task(watch())
        for number in range(24):
            group.create_task(write(number))
    async with bode.engine.connect() as connection:
        rows = await connection.execute(
            select(log.change_log.c.version, log.change_log.c.entity).order_by(log.change_log.c.version)
        )
        logged = [(row.version, UUID(row.entity)) for row in rows]
    assert [number for number, _ in logged] == list(range(1, len(logged) + 1))
    assert [entity for _, entity in logged[-24:]] == committed


async def test_what_changed_is_read_once_as_it_is_now(bode: World) -> None:
    domain = fresh_domain()
    registry, provider = await bode.registry(domain), await bode.provider()
    version, directory = await load(bode.engine)
    grant_id = await bode.grant(registry, provider, f"{domain}.*")
    made = await bode.subscribe(provider, domain=domain)
    async with changing(bode.engine) as connection:
        await life_cycle.activate(connection, UUID(made["id"]), sink=made["sink"])
    await bode.call("PATCH", f"/subscriptions/{made['id']}", key=provider.key, body={"ordering": "none"})
    version, changes = await load_changes(bode.engine, version)
    assert [type(change) for change in changes] == [GrantChanged, SubscriptionChanged]
    directory.apply(changes)
    directory.apply(changes)
    (entry,) = [entry for entry in directory.subscriptions.values() if entry.id == UUID(made["id"])]
    assert (entry.ordering, entry.status) == ("none", "active")
    assert directory.granted(provider.id, f"{domain}.x", datetime.now(UTC)) == grant_id
    assert directory == (await load(bode.engine))[1], "following the log comes to the same as loading anew"

    await bode.call("DELETE", f"/subscriptions/{made['id']}", key=provider.key)
    await bode.call("DELETE", f"/grants/{grant_id}", key=registry.key)
    version, changes = await load_changes(bode.engine, version)
    directory.apply(changes)
    assert directory == (await load(bode.engine))[1]
    assert await load_changes(bode.engine, version) == (version, [])


async def test_a_reader_behind_what_was_pruned_is_told_to_load_again(bode: World) -> None:
    await bode.provider()
    await bode.provider()
    version, _ = await load(bode.engine)
    async with bode.engine.begin() as connection:
        assert await log.prune_changes(connection, datetime.now(UTC) + timedelta(hours=1)) >= 2
    assert await load_changes(bode.engine, version - 1) == (version, [ReloadNeeded()])
    assert await load_changes(bode.engine, version) == (version, [])
    assert await load_changes(bode.engine, version + 5) == (version, [ReloadNeeded()])
    last = await bode.provider()
    _, changes = await load_changes(bode.engine, version)
    assert [change.id for change in changes if isinstance(change, OrganisationChanged)] == [last.id]


async def test_a_change_of_everything_asks_for_a_new_directory(bode: World) -> None:
    version, directory = await load(bode.engine)
    async with changing(bode.engine) as connection:
        await record_changes(connection, [(ChangeKind.EVERYTHING, "")])
    _, changes = await load_changes(bode.engine, version)
    assert changes == [ReloadNeeded()]
    with pytest.raises(ValueError, match="new directory"):
        directory.apply(changes)


async def test_a_change_wakes_readers_after_its_commit(bode: World, url: str) -> None:
    heads: asyncio.Queue[str] = asyncio.Queue()
    listener = await asyncpg.connect(url)
    try:
        await listener.add_listener(log.CHANGES_CHANNEL, lambda *arguments: heads.put_nowait(str(arguments[3])))
        version, _ = await load(bode.engine)
        await bode.provider()
        async with asyncio.timeout(10):
            await heads.get()
        assert (await load(bode.engine))[0] > version
    finally:
        await listener.close()


async def test_a_failed_change_writes_no_entry(bode: World) -> None:
    provider = await bode.provider()
    version, _ = await load(bode.engine)

    async def fail() -> None:
        async with changing(bode.engine) as connection:
            await record_changes(connection, [(ChangeKind.ORGANISATION, provider.id)])
            raise Unavailable

    with pytest.raises(Unavailable):
        await fail()
    assert (await load(bode.engine))[0] == version
