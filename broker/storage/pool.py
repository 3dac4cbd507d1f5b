"""A pool of connections in which giving one back never takes long.

The driver's own pool, when a statement was cancelled, waits until the server has been told so, over a connection made
for that. Where the network swallows that connection (a link that stalls, a failover) it waits for ever, and no time
limit of ours ends it: the limit was spent on the statement. So the worker would stand still although its database is
back.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import asyncpg
from sqlalchemy.exc import SQLAlchemyError

DATABASE_TROUBLE: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    SQLAlchemyError,
    OSError,
    TimeoutError,
)
"""What a worker survives: whatever a statement raises, by the driver or through SQLAlchemy, it tries again later."""
RELEASE_SECONDS: Final = 5.0
"""After that a connection that can't be given back in order is cut."""
_CONNECT_SECONDS: Final = 5.0
_COMMAND_SECONDS: Final = 35.0
"""A little more than PostgreSQL allows a statement of ours, for when it can't say so."""


class Pool(asyncpg.Pool):  # type: ignore[misc]  # the driver has no types
    """The driver's pool, with a limit on giving back."""

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:
        """Give a connection back; one that doesn't come to rest in time is cut, and the pool makes a new one."""
        try:
            await super().release(connection, timeout=RELEASE_SECONDS if timeout is None else timeout)
        except TimeoutError:
            pass  # it was cut: whoever had it has its answer, or its own error, already


def pool_of(
    dsn: str, *, session: Mapping[str, str], size: int, reset: Callable[[asyncpg.Connection], Awaitable[None]]
) -> Pool:
    """A pool to be awaited, which then has its first connection."""
    return Pool(
        dsn,
        min_size=1,
        max_size=size,
        max_queries=50_000,
        max_inactive_connection_lifetime=300.0,
        loop=None,
        connection_class=asyncpg.Connection,
        record_class=asyncpg.Record,
        timeout=_CONNECT_SECONDS,
        command_timeout=_COMMAND_SECONDS,
        reset=reset,
        server_settings=dict(session),
    )
