"""Expiry is seen before it bites: of certificates, secrets and tokens that sinks are shown."""

import asyncio
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

import asyncpg

from broker.storage import sink_expiries
from broker.storage.pool import DATABASE_TROUBLE
from broker.storage.sink_expiries import SOON, Expiring
from broker.telemetry import EXPIRING, EXPIRY_SECONDS, WORKER_ERRORS, log

KINDS: Final = (
    "access-token",
    "client-secret",
    "client-certificate",
    "trusted-certificate",
    "broker-certificate",
    "broker-trust",
)
_LOOK_SECONDS: Final = 300.0
_TROUBLE_SECONDS: Final = 5.0


class Expiry:
    """Looks every five minutes; `run` is its worker."""

    def __init__(self, pool: asyncpg.Pool, own: Callable[[], Mapping[str, datetime]]) -> None:
        """`own` tells when the broker's own certificates expire, by kind."""
        self._pool = pool
        self._own = own

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look()
            except DATABASE_TROUBLE as error:
                WORKER_ERRORS.labels("expiry").inc()
                log().warning("expiry-not-read", error=type(error).__name__)
                await asyncio.sleep(_TROUBLE_SECONDS)
            else:
                await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> None:
        """Read what expires, show it, and tell whom it concerns."""
        async with self._pool.acquire() as connection:
            found = {each.kind: each for each in await sink_expiries.count(connection)}
            told = await sink_expiries.tell(connection)
        found |= self._of_the_broker()
        for kind in KINDS:
            one = found.get(kind) or Expiring(kind, None, 0, 0)
            EXPIRY_SECONDS.labels(kind).set(math.inf if one.seconds is None else one.seconds)
            EXPIRING.labels(kind, "soon").set(one.soon)
            EXPIRING.labels(kind, "expired").set(one.expired)
        for subscription in told:
            log().warning("credential-expiring", subscription=subscription)

    def _of_the_broker(self) -> dict[str, Expiring]:
        now = datetime.now(UTC)
        found = {}
        for kind, moment in self._own().items():
            left = moment - now
            ended = left.total_seconds() <= 0
            found[kind] = Expiring(
                kind, None if ended else left.total_seconds(), int(not ended and left <= SOON), int(ended)
            )
        return found
