"""Fixtures that a module makes for itself, with settings of its own: `bode = one_process(attempt_seconds=2)`.

What most tests of delivery begin with, a process for each test, is in `conftest.py`.
"""

import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio
from accepting import Publisher
from broker_api import serve
from delivering import Delivering, RawSink, delivering
from fastapi import APIRouter
from managing import World, database, world

IN_ONE_LOOP = pytest.mark.asyncio(loop_scope="module")
"""For modules whose tests share one process: `pytestmark = IN_ONE_LOOP`."""


def one_process(**settings: Any) -> Any:
    """A broker whose delivery process runs, for all tests of the module."""

    @pytest_asyncio.fixture(scope="module", loop_scope="module")
    async def bode(url: str) -> AsyncIterator[Delivering]:
        async with delivering(url, **settings) as running:
            yield running

    return bode


def own_types() -> Any:
    """A registry with types that no other test of the module has."""

    @pytest_asyncio.fixture(loop_scope="module")
    async def publisher(bode: Delivering) -> Publisher:
        return await bode.own_types()

    return publisher


def raw_sink(tls: Callable[[], ssl.SSLContext | None] = lambda: None) -> Any:
    """A sink that consents and accepts, unless it is told otherwise; in the loop of the module."""

    @pytest_asyncio.fixture(loop_scope="module")
    async def sink() -> AsyncIterator[RawSink]:
        async with RawSink(tls=tls()) as running:
            yield running

    return sink


def process_with_api(*routers: APIRouter) -> Any:
    """A broker whose delivery process runs, for each test; its API has these routes too."""

    @pytest.fixture
    async def bode(url: str) -> AsyncIterator[Delivering]:
        async with delivering(url) as running:
            await serve(running, *routers)
            yield running

    return bode


def declared_database() -> Any:
    """A database of the module's own, with the declared schema."""

    @pytest.fixture(scope="module")
    def url(postgres_url: str) -> Iterator[str]:
        with database(postgres_url) as made:
            yield made

    return url


def api(**settings: Any) -> Any:
    """A management API with these settings, on the module's database."""

    @pytest.fixture
    async def bode(url: str) -> AsyncIterator[World]:
        async with world(url, **settings) as made:
            yield made

    return bode
