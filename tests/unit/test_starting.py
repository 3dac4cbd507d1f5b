"""A process that starts while its database goes away waits for it; what doesn't pass is raised."""

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from broker.processes import starting
from broker.processes.starting import reached


class _Refused(Exception):
    sqlstate = "57P03"


class _NoTable(Exception):
    sqlstate = "42P01"


PASSING = [
    asyncpg.CannotConnectNowError("starting up"),
    asyncpg.AdminShutdownError("terminating"),
    asyncpg.ConnectionDoesNotExistError("closed in the middle of operation"),
    asyncpg.TooManyConnectionsError("no more"),
    asyncpg.InterfaceError("connection is closed"),
    asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"),
    ConnectionRefusedError(),
    TimeoutError(),
    PoolTimeout(),
    DBAPIError("SELECT 1", {}, _Refused()),
    DBAPIError("SELECT 1", {}, Exception(), connection_invalidated=True),
]
STAYING = [
    asyncpg.UndefinedTableError("no such table"),
    asyncpg.InvalidPasswordError("wrong"),
    ProgrammingError("SELECT 1", {}, _NoTable()),
    ValueError("a defect"),
]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starting, "_FIRST_SECONDS", 0.0)


async def test_a_step_is_done_again_until_the_database_is_there() -> None:
    errors: list[Exception] = list(PASSING)

    async def step() -> str:
        if errors:
            raise errors.pop()
        return "there"

    assert await reached(step) == "there"
    assert not errors


@pytest.mark.parametrize("error", STAYING, ids=lambda error: type(error).__name__)
async def test_what_does_not_pass_is_raised_at_once(error: Exception) -> None:
    tries = 0

    async def step() -> None:
        nonlocal tries
        tries += 1
        raise error

    with pytest.raises(type(error)):
        await reached(step)
    assert tries == 1
