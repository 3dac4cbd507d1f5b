"""A connection that listens: wake-ups from other processes. After every (re)connection the listener reads anew."""

import asyncio
from collections.abc import Callable, Mapping

import asyncpg

from broker.storage.pool import DATABASE_TROUBLE
from broker.telemetry import WORKER_ERRORS, log

_PING_SECONDS = 5.0


class Listener:
    """Calls back for notifications on some channels; `run` is its worker.

    `connected` is called each time that the connection stands, because notifications may have been missed before.
    """

    def __init__(
        self,
        dsn: str,
        channels: Mapping[str, Callable[[str], None]],
        connected: Callable[[], None],
        application_name: str,
    ) -> None:
        self._dsn = dsn
        self._channels = channels
        self._connected = connected
        self._application_name = application_name

    async def run(self) -> None:
        """Listen until cancelled, reconnecting."""
        pause = 0.1
        while True:
            try:
                connection = await asyncpg.connect(
                    self._dsn, timeout=5, server_settings={"application_name": self._application_name}
                )
                try:
                    pause = 0.1
                    await self._listen(connection)
                finally:
                    connection.terminate()
            except DATABASE_TROUBLE as error:
                WORKER_ERRORS.labels("listener").inc()
                log().warning("listener-lost", error=type(error).__name__)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)

    async def _listen(self, connection: asyncpg.Connection) -> None:
        for channel in self._channels:
            await connection.add_listener(channel, self._received)
        self._connected()
        while True:
            await asyncio.sleep(_PING_SECONDS)
            async with asyncio.timeout(_PING_SECONDS):
                await connection.execute("SELECT 1")

    def _received(self, _connection: object, _pid: int, channel: str, payload: object) -> None:
        self._channels[channel](str(payload))
