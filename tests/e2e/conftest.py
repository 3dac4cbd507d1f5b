from collections.abc import AsyncIterator, Iterator

import pytest

from tests.e2e.installation import Installation, installed
from tests.e2e.receiver import Receiver


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """One installation for all tests that don't end it."""
    with installed() as made:
        yield made


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as running:
        yield running
