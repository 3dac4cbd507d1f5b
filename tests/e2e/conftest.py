import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from broker.tools.local.rabbitmq import NotInstalled, find_installed
from tests.e2e.installation import Installation
from tests.e2e.receiver import Receiver


@pytest.fixture(scope="session")
def installation() -> Iterator[Installation]:
    """One installation for all tests that don't end it."""
    found = find_installed()
    if isinstance(found, NotInstalled):
        pytest.skip(f"no private RabbitMQ: {found.reason}")
    folder = Path(tempfile.mkdtemp(prefix="bode-e2e-"))
    installed = Installation(folder / "data")
    try:
        installed.start()
        yield installed
        assert installed.stop() == 0
    finally:
        shutil.rmtree(folder)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as running:
        yield running
