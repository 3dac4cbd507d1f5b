"""What tests of delivery begin with, where each has a delivery process of its own. Others make it by `fixtures`."""

from collections.abc import AsyncIterator, Iterator

import pytest
from accepting import Publisher, migrated
from delivering import Delivering, RawSink, delivering
from played_sink import FENCE

from broker.delivery.client import Client

pytest.register_assert_rewrite("engine_model", "model_events", "model_pulls", "model_disturbances")


@pytest.fixture(scope="module")
def url(postgres_url: str) -> Iterator[str]:
    """An empty database of the module's own."""
    with migrated(postgres_url) as made:
        yield made


@pytest.fixture
async def sink() -> AsyncIterator[RawSink]:
    """A sink that consents and accepts, unless it is told otherwise."""
    async with RawSink() as made:
        yield made


@pytest.fixture
async def bode(url: str) -> AsyncIterator[Delivering]:
    """A broker whose delivery process runs."""
    async with delivering(url) as made:
        yield made


@pytest.fixture
async def publisher(bode: Delivering) -> Publisher:
    """A registry with types of its own."""
    return await bode.own_types()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """An HTTP client that reaches this machine only."""
    made = Client(FENCE, total_seconds=5)
    yield made
    made.close()
