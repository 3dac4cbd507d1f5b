"""Routes of domains: their events go to their registry's own queues, from before the domain is there.

A route is made first and the domain after it, so no event of a domain can have been accepted by another way: order
within a subject rests on one queue. A name is claimed in the database for one registry before it is routed, so no event
takes two ways. What was left half done (a route without its domain, a domain without its route) is put right by
`bode ingest`, at its start and regularly.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Final
from uuid import UUID

from aio_pika.abc import AbstractConnection
from sqlalchemy.ext.asyncio import AsyncEngine

from broker.ingest import amqp
from broker.ingest.amqp import RegistryRoute
from broker.rabbitmq import BROKER_TROUBLE, AmqpSettings, connected
from broker.storage import routes
from broker.storage.pool import DATABASE_TROUBLE
from broker.storage.routes import Owned
from broker.telemetry import WORKER_ERRORS, log
from schemas.problems import Conflict, Unavailable

_AWAY: Final = "RabbitMQ can't be reached; nothing was changed. Try again."
_LIMIT_SECONDS: Final = 15.0
_REPAIR_SECONDS: Final = 15.0
_ABANDONED: Final = timedelta(minutes=5)
"""Longer than making a domain can take."""


class Router:
    """Makes and repairs routes. `queues` is the number of shared queues."""

    def __init__(self, engine: AsyncEngine, settings: AmqpSettings, queues: int) -> None:
        self._engine = engine
        self._settings = settings
        self._queues = queues

    async def reach(self) -> None:
        """Raise Unavailable when RabbitMQ can't be reached."""
        try:
            async with connected(self._settings, "bode routes"):
                pass
        except BROKER_TROUBLE as error:
            raise Unavailable(_AWAY) from error

    @asynccontextmanager
    async def routed(self, organisation_id: UUID, oin: str, domain: str) -> AsyncIterator[None]:
        """Make the domain inside the block: its route stands before, and goes again when the block fails.

        Raises:
            Conflict: another registry is making the same domain.
            Unavailable: RabbitMQ can't be reached; nothing was done.
        """
        async with self._engine.begin() as connection:
            if not await routes.claim(connection, domain, organisation_id):
                raise Conflict("There is a domain with this name already.")
        try:
            async with asyncio.timeout(_LIMIT_SECONDS):
                async with connected(self._settings, "bode routes") as rabbit:
                    await self._declare(rabbit, [Owned(domain, organisation_id, oin, True)])
        except BROKER_TROUBLE as error:
            raise Unavailable(_AWAY) from error
        try:
            yield
        except Exception:
            await self._take_back(oin, domain)
            raise

    async def declare(self) -> None:
        """Declare the whole topology, with the routes of all domains.

        Raises:
            BROKER_TROUBLE, DATABASE_TROUBLE: when it isn't complete.
        """
        async with connected(self._settings, "bode topology") as rabbit:
            async with self._engine.begin() as connection:
                await routes.keep_shared(connection, self._shared)
                known = await routes.read_domains(connection)
            missing = await self._claim_missing(rabbit, known)
            # all at once: new queues need a while to settle, and these share it
            await self._declare(rabbit, [*(domain for domain in known if domain.routed), *missing])
            async with self._engine.begin() as connection:
                await routes.open_queues(connection, self._shared)

    async def run(self) -> None:
        """Put right what was left half done, until cancelled."""
        while True:
            await asyncio.sleep(_REPAIR_SECONDS)
            try:
                async with asyncio.timeout(2 * _LIMIT_SECONDS):
                    await self.repair()
            except (*BROKER_TROUBLE, *DATABASE_TROUBLE) as error:
                WORKER_ERRORS.labels("routes").inc()
                log().warning("routes-not-repaired", error=type(error).__name__)

    async def repair(self, abandoned: timedelta = _ABANDONED) -> None:
        """Give domains the route that they lack, and take away what has no domain.

        Raises:
            BROKER_TROUBLE, DATABASE_TROUBLE: when it isn't complete.
        """
        async with self._engine.connect() as connection:
            known = await routes.read_domains(connection)
            stray = await routes.read_abandoned(connection, abandoned)
        if stray or not all(domain.routed for domain in known):
            async with connected(self._settings, "bode routes") as rabbit:
                for name, oin in stray:
                    await amqp.unroute(rabbit, oin, name)
                    async with self._engine.begin() as connection:
                        await routes.forget(connection, name)
                if missing := await self._claim_missing(rabbit, known):
                    await self._declare(rabbit, missing)

    async def _claim_missing(self, rabbit: AbstractConnection, known: Sequence[Owned]) -> list[Owned]:
        """The domains that were made without RabbitMQ, once no event of theirs waits in the old way."""
        missing = [domain for domain in known if not domain.routed]
        if not missing:
            return []
        waiting = sum([await amqp.count_waiting(rabbit, name) for name in self._shared])
        if waiting:
            log().warning("routes-wait-for-empty-queues", domains=len(missing), messages=waiting)
            return []
        async with self._engine.begin() as connection:
            return [each for each in missing if await routes.claim(connection, each.name, each.organisation_id)]

    async def _declare(self, rabbit: AbstractConnection, owned: Sequence[Owned]) -> None:
        """Declare the topology with these domains, and let processes take the queues."""
        registries: dict[UUID, list[Owned]] = defaultdict(list)
        for domain in owned:
            registries[domain.organisation_id].append(domain)
        declared = []
        async with self._engine.begin() as connection:
            for organisation_id, domains in registries.items():
                oin = domains[0].oin
                wanted = [amqp.registry_queue_name(oin, n) for n in range(self._settings.registry_queues)]
                queues = await routes.keep_queues(connection, organisation_id, wanted)
                declared.append(RegistryRoute(oin, queues, [domain.name for domain in domains]))
        await amqp.declare(rabbit, self._queues, declared)
        if declared:
            async with self._engine.begin() as connection:
                await routes.open_queues(connection, [name for registry in declared for name in registry.queues])

    async def _take_back(self, oin: str, domain: str) -> None:
        try:
            async with self._engine.begin() as connection:
                if not await routes.forget(connection, domain):
                    return
            async with asyncio.timeout(_LIMIT_SECONDS):
                async with connected(self._settings, "bode routes") as rabbit:
                    await amqp.unroute(rabbit, oin, domain)
        except (*BROKER_TROUBLE, *DATABASE_TROUBLE) as error:
            log().warning("routes-not-repaired", error=type(error).__name__)

    @property
    def _shared(self) -> list[str]:
        return [amqp.queue_name(number) for number in range(self._queues)]
