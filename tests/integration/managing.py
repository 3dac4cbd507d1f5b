"""A management API on a database of its own, and people who call it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any
from uuid import UUID, uuid4

import asyncpg
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from broker.matching.index import cost
from schemas.identifiers import sample_oin
from schemas.resources import Health
from subscriptions import grants, organisations
from subscriptions.callers import ApiSettings, Callers, Scope, create_key
from subscriptions.change_log import changing
from subscriptions.context import Context, RouteDomain
from subscriptions.database import DatabaseSettings, create_engine, metadata
from subscriptions.proxies import ProxySettings
from subscriptions.routes import install
from subscriptions.secrets import KeyRing, generate_encryption_key
from subscriptions.tokens import OauthSettings

KEY = generate_encryption_key()
RING = KeyRing([KEY])
_RANDOM = Random()


@dataclass(frozen=True)
class Party:
    id: UUID
    oin: str
    key: str


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


async def _nobody_sends(_: int) -> None:
    """There are no delivery processes to wait for."""


@dataclass
class World:
    engine: AsyncEngine
    settings: ApiSettings
    oauth: OauthSettings | None = None
    proxy: ProxySettings | None = None
    clock: Clock = field(default_factory=Clock)
    health: dict[int, Health] = field(default_factory=dict)
    cancelled: list[tuple[Any, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.app = FastAPI(title="Bode", version="0.1.0", openapi_url="/v1/openapi.json")
        callers = Callers(self.engine, self.settings, oauth=self.oauth, proxy=self.proxy, clock=self.clock)
        context = Context(
            engine=self.engine,
            keys=RING,
            settings=self.settings,
            callers=callers,
            check_sink=lambda url: "must not be this host" if "forbidden.example" in url else None,
            count_evaluated=lambda condition: cost(condition).evaluated_always,
            health_of=self._health_of,
            cancel_ungranted=self._cancel_ungranted,
            cancel_subscription=self._cancel_subscription,
            settled=_nobody_sends,
            offer_queues=True,
        )
        install(self.app, context)

    def with_routes(self, route_domain: RouteDomain) -> Context:
        """The context of the application, making routes in this way."""
        context: Context = self.app.state.context
        return replace(context, route_domain=route_domain)

    async def _health_of(self, keys: Sequence[int]) -> Mapping[int, Health]:
        return {key: self.health[key] for key in keys if key in self.health}

    async def _cancel_ungranted(self, connection: AsyncConnection, provider_id: UUID, grant_id: UUID) -> None:
        assert connection.in_transaction()
        self.cancelled.append(("grant", provider_id, grant_id))

    async def _cancel_subscription(self, connection: AsyncConnection, key: int) -> None:
        assert connection.in_transaction()
        self.cancelled.append(("subscription", key))

    async def party(self, *scopes: Scope, domain: str | None = None) -> Party:
        """Makes an organisation with a key, and a domain that is its own."""
        async with changing(self.engine) as connection:
            row = await organisations.create_organisation(connection, oin=sample_oin(_RANDOM), name="Gemeente")
            if domain is not None:
                await organisations.create_domain(connection, organisation_id=row.id, name=domain)
            key, _ = await create_key(connection, organisation_id=row.id, scopes=scopes)
        return Party(row.id, row.oin, key)

    async def provider(self) -> Party:
        return await self.party(Scope.CONSUME)

    async def registry(self, domain: str | None = None) -> Party:
        return await self.party(Scope.MANAGE, domain=domain or fresh_domain())

    async def operator(self) -> str:
        async with self.engine.begin() as connection:
            key, _ = await create_key(connection, organisation_id=None, scopes=[Scope.OPERATE])
        return key

    async def grant(self, registry: Party, provider: Party, *types: str) -> UUID:
        async with changing(self.engine) as connection:
            row = await grants.create_grant(
                connection, registry_id=registry.id, provider_oin=provider.oin, types=types, legal_basis="test"
            )
        return row.id

    async def subscribe(self, provider: Party, **members: Any) -> Any:
        answer = await self.call("POST", "/subscriptions", key=provider.key, body=subscription(**members))
        assert answer.status == 201, answer.text
        return answer.json

    async def call(
        self,
        method: str,
        path: str,
        *,
        key: str | None = None,
        body: Any = None,
        raw: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        client: str = "192.0.2.1",
    ) -> Answer:
        """Sends one request; a path is taken from under /v1, a URL as it is."""
        path, _, query = path.removeprefix("http://bode.example/v1").partition("?")
        sent = dict(headers or {})
        if key is not None:
            sent.setdefault("authorization", f"Bearer {key}")
        if body is not None:
            raw = json.dumps(body).encode()
            sent.setdefault("content-type", "application/json")
        content = raw or b""
        sent |= {"host": "bode.example", "content-length": str(len(content))}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": "/v1" + path,
            "raw_path": b"/v1" + path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in sent.items()],
            "server": ("bode.example", 80),
            "client": (client, 1),
        }
        received: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Any) -> None:
            received.append(message)

        await self.app(scope, receive, send)
        start, *rest = received
        text = b"".join(message.get("body", b"") for message in rest).decode()
        return Answer(start["status"], {name.decode(): value.decode() for name, value in start["headers"]}, text)


def subscription(**members: Any) -> dict[str, Any]:
    """Makes the body of a valid subscription."""
    given = {"sink": "https://afnemer.example/hook", "protocol": "HTTP"} | members
    return {name: value for name, value in given.items() if value is not ...}


def fresh_domain() -> str:
    """Makes the name of a domain that nobody has."""
    return f"nl.t{uuid4().hex[:12]}"


@contextmanager
def database(postgres_url: str) -> Iterator[str]:
    """Makes a database with the declared schema, and drops it afterwards."""
    name = f"bode_test_{uuid4().hex[:12]}"
    asyncio.run(administer(postgres_url, f"CREATE DATABASE {name}"))
    url = sibling(postgres_url, name)
    try:
        asyncio.run(_create_schema(url))
        yield url
    finally:
        asyncio.run(drop_database(postgres_url, name))


@asynccontextmanager
async def world(
    url: str, *, oauth: OauthSettings | None = None, proxy: ProxySettings | None = None, **settings: Any
) -> AsyncIterator[World]:
    """Makes an API on a database."""
    engine = create_engine(DatabaseSettings.model_validate({"url": url}))
    try:
        yield World(engine, ApiSettings(**settings), oauth, proxy)
    finally:
        await engine.dispose()


def sibling(url: str, name: str) -> str:
    base, question, query = url.partition("?")
    return base.rpartition("/")[0] + "/" + name + question + query


async def drop_database(url: str, name: str) -> None:
    """Drops a database that nobody of ours uses any more; autovacuum, which we may not end, may still be at it."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await administer(url, f"DROP DATABASE {name} WITH (FORCE)")
            except asyncpg.InsufficientPrivilegeError:
                await asyncio.sleep(0.2)


async def administer(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def _create_schema(url: str) -> None:
    engine = create_engine(DatabaseSettings.model_validate({"url": url}))
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await engine.dispose()
