"""Acceptance on a migrated database of its own: registries that publish, providers that are granted and subscribed."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from managing import RING, World, administer, drop_database, fresh_domain, sibling

from broker.ingest.accept import Acceptor, Message
from broker.ingest.view import View
from broker.migrations import migrate
from broker.storage import acceptance, installation
from schemas import cloudevents
from schemas.cloudevents import Event, InvalidEvent
from schemas.identifiers import sample_oin
from subscriptions import grants, organisations
from subscriptions.callers import ApiSettings, Scope, create_key
from subscriptions.change_log import changing
from subscriptions.database import DatabaseSettings, create_engine
from subscriptions.life_cycle import activate

SESSION = acceptance.connection_settings(timedelta(seconds=30), timedelta(seconds=60))  # a crowded machine may pause us
_RANDOM = Random()


@contextmanager
def migrated(postgres_url: str) -> Iterator[str]:
    """A database with the migrated schema."""
    name = f"bode_test_{uuid4().hex[:12]}"
    asyncio.run(administer(postgres_url, f"CREATE DATABASE {name}"))
    url = sibling(postgres_url, name)
    try:
        asyncio.run(_migrate(url))
        yield url
    finally:
        asyncio.run(drop_database(postgres_url, name))


async def _migrate(url: str) -> None:
    engine = create_engine(DatabaseSettings.model_validate({"url": url}))
    await migrate(engine)
    await engine.dispose()


@dataclass(frozen=True)
class Publisher:
    """A registry with a domain of its own."""

    id: UUID
    user: str
    source: str
    domain: str

    def message(self, name: str = "iets", subject: str | None = None, **members: Any) -> Message:
        """A message with a valid event, unless `members` make it invalid."""
        attributes = {"specversion": "1.0", "id": str(uuid4()), "source": self.source, "type": f"{self.domain}.{name}"}
        body = json.dumps(attributes | ({} if subject is None else {"subject": subject}) | members).encode()
        content: Event | InvalidEvent
        try:
            content = cloudevents.from_structured(body)
        except InvalidEvent as error:
            content = error
        return Message(self.user, content, body)


@dataclass(frozen=True)
class Subscribed:
    id: UUID
    key: int


@dataclass
class Broker:
    world: World
    pool: asyncpg.Pool
    url: str

    async def acceptor(self) -> Acceptor:
        """An acceptor with a view of its own, as each process has."""
        fingerprints = await installation.fingerprints(self.pool, RING)
        return Acceptor(self.pool, View(self.world.engine), RING, fingerprints)

    async def publisher(self) -> Publisher:
        oin, user, domain = sample_oin(_RANDOM), f"user-{uuid4().hex[:8]}", fresh_domain()
        async with changing(self.world.engine) as connection:
            row = await organisations.create_organisation(connection, oin=oin, name="Registratie", amqp_user=user)
            await organisations.create_domain(connection, organisation_id=row.id, name=domain)
        return Publisher(row.id, user, f"urn:nld:oin:{oin}:systeem:test", domain)

    async def provider(self) -> tuple[UUID, str, str]:
        """Id, OIN and key."""
        async with changing(self.world.engine) as connection:
            row = await organisations.create_organisation(connection, oin=sample_oin(_RANDOM), name="Afnemer")
            key, _ = await create_key(connection, organisation_id=row.id, scopes=[Scope.CONSUME])
        return row.id, row.oin, key

    async def grant(self, publisher: Publisher, oin: str, **validity: Any) -> UUID:
        async with changing(self.world.engine) as connection:
            row = await grants.create_grant(
                connection, registry_id=publisher.id, provider_oin=oin, types=[f"{publisher.domain}.*"],
                legal_basis="test", **validity,
            )  # fmt: skip
        return row.id

    async def subscribe(self, key: str, **members: Any) -> Subscribed:
        """An active subscription."""
        answer = await self.world.call(
            "POST", "/subscriptions", key=key,
            body={"sink": "https://afnemer.example/hook", "protocol": "HTTP"} | members,
        )  # fmt: skip
        assert answer.status == 201, answer.text
        identity = UUID(answer.json["id"])
        async with changing(self.world.engine) as connection:
            assert await activate(connection, identity, sink="https://afnemer.example/hook")
        return Subscribed(identity, await self.pool.fetchval("SELECT key FROM subscriptions WHERE id = $1", identity))

    async def subscribed(self, publisher: Publisher, **members: Any) -> Subscribed:
        """A subscription of a new provider that is granted everything of a publisher."""
        _, oin, key = await self.provider()
        await self.grant(publisher, oin)
        return await self.subscribe(key, types=[f"{publisher.domain}.iets"], **members)

    async def key_of(self, subscribed: Subscribed) -> str:
        """A key of a subscription's provider."""
        owner = await self.pool.fetchval("SELECT organisation_id FROM subscriptions WHERE id = $1", subscribed.id)
        async with changing(self.world.engine) as connection:
            key, _ = await create_key(connection, organisation_id=owner, scopes=[Scope.CONSUME])
        return key

    async def deliveries(self, *keys: int) -> Sequence[asyncpg.Record]:
        return await self.pool.fetch(
            "SELECT * FROM deliveries WHERE subscription = ANY($1::bigint[]) ORDER BY subscription, sequence", keys
        )


@asynccontextmanager
async def broker(url: str) -> AsyncIterator[Broker]:
    engine = create_engine(DatabaseSettings.model_validate({"url": url}))
    pool = await asyncpg.create_pool(url, min_size=1, max_size=8, server_settings=SESSION)
    try:
        yield Broker(World(engine, ApiSettings()), pool, url)
    finally:
        await pool.close()
        await engine.dispose()
