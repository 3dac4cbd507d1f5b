"""Real servers for the tests, started once a session, when first asked for, by the code that `bode up` uses."""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import pytest

from broker.tools.local.postgres import Postgres
from broker.tools.local.rabbitmq import NotInstalled, RabbitMQ, Registry, find_installed

REGISTRIES = tuple(Registry(name, f"nl.{name}.") for name in ("bag", "brk", "brp", "hr", "woz"))
Resource = TypeVar("Resource")


async def _enter(resource: AbstractAsyncContextManager[Resource]) -> Resource:
    return await resource.__aenter__()


async def _leave(resource: AbstractAsyncContextManager[Resource]) -> None:
    await resource.__aexit__(None, None, None)


class Running(Protocol):
    def __call__(self, resource: AbstractAsyncContextManager[Resource], /) -> AbstractContextManager[Resource]: ...


@pytest.fixture(scope="session")
def running() -> Running:
    """Enters and leaves a resource in an event loop of its own, which leaves those of the tests alone."""
    return _running


@contextmanager
def _running(resource: AbstractAsyncContextManager[Resource]) -> Iterator[Resource]:
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        entered = runner.run(_enter(resource))
        try:
            yield entered
        finally:
            runner.run(_leave(resource))


@pytest.fixture(scope="session")
def server_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="bode-test-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_url(server_folder: Path) -> Iterator[str]:
    """An empty database, whose role may create others: embedded, or on the server of BODE_DATABASE_URL."""
    given = os.environ.get("BODE_DATABASE_URL")
    if given is None:
        with _running(Postgres(server_folder / "postgres")) as server:
            yield server.url
    else:
        name = f"bode_test_{uuid4().hex}"
        asyncio.run(_execute(given, f'CREATE DATABASE "{name}"'))
        try:
            yield urlunsplit(urlsplit(given)._replace(path=f"/{name}"))
        finally:
            asyncio.run(_execute(given, f'DROP DATABASE "{name}" WITH (FORCE)'))


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def rabbitmq(server_folder: Path) -> Iterator[RabbitMQ]:
    """A private RabbitMQ with the registries of the demo as users; `rabbitmq.url("bag")`."""
    found = find_installed()
    if isinstance(found, NotInstalled):
        pytest.skip(f"no private RabbitMQ: {found.reason}")
    with _running(RabbitMQ(server_folder / "rabbitmq", REGISTRIES)) as server:
        yield server
