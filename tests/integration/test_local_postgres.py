"""The embedded PostgreSQL: private, durable, quiet, and gone when it should be."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psutil
import pytest
from local_processes import listening, marked

from broker.tools.local.keeper import Order
from broker.tools.local.locks import FolderInUse
from broker.tools.local.postgres import Postgres
from broker.tools.local.server import Program, ServerFailed

SECRET = "999990019"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, running: Any) -> Iterator[Postgres]:
    with running(Postgres(tmp_path_factory.mktemp("postgres"), {"fsync": "off", "work_mem": "8MB"})) as server:
        yield server


async def fetch(url: str, query: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def with_user(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.hostname}:{parts.port}"))


def short_folders() -> set[Path]:
    return {*Path(tempfile.gettempdir()).glob("bode-pg-*")}


async def test_role_is_ordinary_and_may_create_databases(server: Postgres) -> None:
    assert await fetch(server.url, "SELECT NOT rolsuper AND rolcreatedb FROM pg_roles WHERE rolname = current_user")
    assert await fetch(server.socket_url, "SELECT current_database()") == "bode"


@pytest.mark.parametrize(
    ("user", "password"), [("bode", "wrong"), ("bode", ""), ("postgres", ""), ("postgres", "postgres")]
)
async def test_nobody_else_gets_in(server: Postgres, user: str, password: str) -> None:
    with pytest.raises((asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError)):
        await fetch(with_user(server.url, user, password), "SELECT 1")


@pytest.mark.parametrize(
    ("name", "value"),
    [("fsync", "on"), ("full_page_writes", "on"), ("synchronous_commit", "on"), ("data_checksums", "on"),
     ("jit", "off"), ("work_mem", "8MB"), ("password_encryption", "scram-sha-256")],
)  # fmt: skip
async def test_settings_that_keep_it_durable_cannot_be_turned_off(server: Postgres, name: str, value: str) -> None:
    assert await fetch(server.url, f"SHOW {name}") == value


async def test_listens_on_loopback_only(server: Postgres) -> None:
    assert listening(server.folder) == {("127.0.0.1", server.port)}


@pytest.mark.parametrize(
    ("query", "error"),
    [
        (f"SELECT '{SECRET}x'::int", asyncpg.InvalidTextRepresentationError),
        (f"SELECT {SECRET} FROM nowhere", asyncpg.UndefinedTableError),
        (f"WITH d AS (SELECT 1/0) SELECT '{SECRET}' FROM d WHERE 1/0 = 1", asyncpg.DivisionByZeroError),
        (f"DO $$ BEGIN RAISE unique_violation USING DETAIL = 'Key {SECRET}'; END $$", asyncpg.UniqueViolationError),
        (f"DO $$ BEGIN RAISE WARNING 'Key {SECRET}'; RAISE 'x'; END $$", asyncpg.RaiseError),
    ],
)
async def test_log_holds_no_values_of_failed_statements(
    server: Postgres, query: str, error: type[asyncpg.PostgresError]
) -> None:
    with pytest.raises(error):
        await fetch(server.url, query)
    log = server.log.read_text()
    assert "ready to accept connections" in log
    assert SECRET not in log


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs it as somebody else")
async def test_root_gives_up_its_uid_and_changes_no_mode_outside(server: Postgres) -> None:
    outside = [*server.folder.parents][:-1]
    assert any(folder.stat().st_mode & 0o777 == 0o700 for folder in outside)
    users = {process.uids().effective for process in marked(server.folder) if process.name() == "postgres"}
    assert len(users) == 1
    assert users != {0}


async def test_modes_of_parents_stay_as_they_were(tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir(mode=0o700)
    before = [(folder, folder.stat().st_mode, folder.stat().st_uid) for folder in (outer, *outer.parents)]
    async with Postgres(outer / "postgres") as server:
        assert await fetch(server.url, "SELECT 1") == 1
    assert [(folder, folder.stat().st_mode, folder.stat().st_uid) for folder, _, _ in before] == before
    assert marked(outer / "postgres") == []


async def test_second_start_on_a_folder_in_use_is_refused(server: Postgres) -> None:
    with pytest.raises(FolderInUse, match=str(os.getpid())):
        await Postgres(server.folder).__aenter__()
    assert await fetch(server.url, "SELECT 1") == 1


async def test_killed_server_is_restarted_on_its_port_with_what_was_committed(tmp_path: Path) -> None:
    changes = asyncio.Queue[tuple[str, int | None]]()
    async with Postgres(tmp_path / "postgres") as server:
        await fetch(server.url, "CREATE TABLE kept AS SELECT 42 AS value")
        url = server.url
        supervision = asyncio.create_task(server.run(lambda name, code: changes.put_nowait((name, code))))
        postmaster = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(postmaster, signal.SIGKILL)
        async with asyncio.timeout(20):
            assert await changes.get() == ("postgresql", 128 + signal.SIGKILL)
            assert await changes.get() == ("postgresql", None)
        assert await fetch(url, "SELECT value FROM kept") == 42
        supervision.cancel()
        await asyncio.wait([supervision])


async def test_deep_folder_gets_a_short_one_for_its_socket_and_removes_it(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    before = short_folders()
    async with Postgres(deep) as server:
        assert await fetch(server.socket_url, "SELECT 1") == 1
        (short,) = short_folders() - before
        assert (deep / "data" / "postmaster.pid").read_text().splitlines()[4] == str(short)
    assert short not in short_folders()


async def test_first_start_that_was_cut_short_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "data.new" / "base").mkdir(parents=True)
    (tmp_path / "data.new" / "PG_VERSION").write_text("16\n")
    async with Postgres(tmp_path) as server:
        assert await fetch(server.url, "SELECT 1") == 1
    assert not (tmp_path / "data.new").exists()


async def test_cluster_of_another_major_version_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(ServerFailed, match="made by PostgreSQL 9"):
        await Postgres(tmp_path).__aenter__()


async def test_stale_pid_file_of_a_reused_process_id_is_ignored(tmp_path: Path) -> None:
    async with Postgres(tmp_path) as server:
        data = server.folder / "data"
    (data / "postmaster.pid").write_text(f"{os.getpid()}\n{data}\n1\n5432\n/nowhere\n127.0.0.1\n")
    async with Postgres(tmp_path) as server:
        assert await fetch(server.url, "SELECT 1") == 1
    assert psutil.pid_exists(os.getpid())


async def test_whatever_a_program_left_behind_ends_with_it(tmp_path: Path) -> None:
    order = Order(["/bin/sh", "-c", "setsid sleep 300 & echo $!; exit 3"], [(signal.SIGTERM, 1.0)], [])
    program = await Program.start(order, folder=tmp_path, log=tmp_path / "log")
    async with asyncio.timeout(10):
        assert await program.ended() == 3
    await program.stop()
    assert not psutil.pid_exists(int((tmp_path / "log").read_text()))
