"""A delivery process inside the test, on a migrated database, and sinks on real sockets that answer by the byte."""

import asyncio
import inspect
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self
from uuid import UUID, uuid4

import asyncpg
from accepting import SESSION, Broker, Publisher
from managing import RING, World
from serving import serving

from broker.delivery.runners import Runner
from broker.delivery.settings import DeliverySettings, FenceSettings
from broker.processes.deliver import SHARD_LEASE, DeliverProcess
from broker.processes.resources import Resources
from broker.rabbitmq import AmqpSettings
from broker.settings import ServeSettings, Settings
from broker.storage import installation, leases, records
from broker.storage.acceptance import DELIVERIES_CHANNEL
from subscriptions.callers import ApiSettings
from subscriptions.consent import HandshakeSettings
from subscriptions.database import DatabaseSettings, create_engine
from subscriptions.secrets import SecretsSettings

ORIGIN = "bode.example"
PUBLIC_URL = "http://bode.example/v1"
API = ApiSettings(allow_http_sinks=True, public_url=PUBLIC_URL)
CONSENT = b"HTTP/1.1 200 OK\r\nWebHook-Allowed-Origin: bode.example\r\nContent-Length: 0\r\n\r\n"
SILENT = b"HTTP/1.1 200 OK\r\nAllow: POST\r\nContent-Length: 0\r\n\r\n"
ACCEPTED = b"HTTP/1.1 204 No Content\r\n\r\n"
_NOT_NEEDED = ("announce", "house", "housekeeping")


def answer(status: str, *headers: str, body: str = "") -> bytes:
    """The bytes of an answer."""
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"HTTP/1.1 {status}\r\n{lines}Content-Length: {len(body)}\r\n\r\n{body}".encode()


@dataclass(frozen=True)
class Asked:
    """One request as it came in."""

    method: str
    target: str
    fields: tuple[tuple[str, str], ...]
    body: bytes
    at: float
    peer: str | None = None
    """Common name of the client's certificate."""
    address: Any = None
    """The client's end of the connection."""

    def all(self, name: str) -> list[str]:
        return [value for field_name, value in self.fields if field_name == name.lower()]

    def one(self, name: str) -> str:
        [value] = self.all(name)
        return value


def _peer(writer: asyncio.StreamWriter) -> str | None:
    certificate = writer.get_extra_info("peercert") or {}
    names = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
    return names[0] if names else None


Answering = Callable[[Asked], bytes | Awaitable[bytes]]


@dataclass
class RawSink:
    """Consents and accepts, unless `answers` says otherwise for a method and target. An empty answer hangs up."""

    answers: dict[tuple[str, str], Answering] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    tls: ssl.SSLContext | None = None
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    _open: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def __aenter__(self) -> Self:
        self.port = await self._open.enter_async_context(serving(self._serve, ssl=self.tls))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    def url(self, target: str) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}{target}"

    def of(self, method: str, target: str) -> list[Asked]:
        return [asked for asked in self.asked if (asked.method, asked.target) == (method, target)]

    async def wait_for(self, method: str, target: str, count: int, seconds: float = 15) -> list[Asked]:
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(lambda: len(self.of(method, target)) >= count)
        return self.of(method, target)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = head[0].split(" ")
            fields = [line.partition(":")[::2] for line in head[1:] if line]
            named = tuple((name.lower(), value.strip()) for name, value in fields)
            length = int(dict(named).get("content-length", "0"))
            body = await reader.readexactly(length)
            now, address = asyncio.get_running_loop().time(), writer.get_extra_info("peername")
            asked = Asked(method, target, named, body, now, _peer(writer), address)
            async with self._changed:
                self.asked.append(asked)
                self._changed.notify_all()
            usual = CONSENT if method == "OPTIONS" else ACCEPTED
            given = self.answers.get((method, target), lambda _, usual=usual: usual)(asked)
            data = await given if inspect.isawaitable(given) else given
            if not data:
                return
            writer.write(data)
            await writer.drain()


@dataclass
class Delivering(Broker):
    """A broker whose delivery process runs."""

    process: DeliverProcess
    provider_key: str = ""
    _registry: Publisher | None = None

    async def own_types(self) -> Publisher:
        """The registry, with types that nobody else in these tests has; the provider is granted all of them."""
        if self._registry is None:
            self._registry = await self.publisher()
            _, oin, self.provider_key = await self.provider()
            await self.grant(self._registry, oin)
        return replace(self._registry, domain=f"{self._registry.domain}.t{uuid4().hex[:8]}")

    async def subscribe_to(self, publisher: Publisher, sink: str, **members: Any) -> UUID:
        body = {"sink": sink, "protocol": "HTTP", "types": [f"{publisher.domain}.iets"]} | members
        made = await self.world.call("POST", "/subscriptions", key=self.provider_key, body=body)
        assert made.status == 201, made.text
        self.process._handshaker.ask()
        return UUID(made.json["id"])

    async def active(self, publisher: Publisher, sink: str, **members: Any) -> UUID:
        identity = await self.subscribe_to(publisher, sink, **members)
        await self.wait_for(identity, status="active")
        return identity

    async def shown(self, identity: UUID) -> Any:
        return (await self.world.call("GET", f"/subscriptions/{identity}", key=self.provider_key)).json

    async def wait_for(self, identity: UUID, seconds: float = 15, **members: Any) -> Any:
        """Wait until a subscription shows these members."""
        columns = {"status": "status", "statusReason": "status_reason", "allowedRate": "allowed_rate"}
        async with asyncio.timeout(seconds):
            while True:
                row = await self.row(identity)  # read itself, because asking the API costs ten times as much
                if all(row[columns[name]] == value for name, value in members.items()):
                    return await self.shown(identity)
                await asyncio.sleep(0.01)

    async def row(self, identity: UUID) -> asyncpg.Record:
        return await self.pool.fetchrow("SELECT * FROM subscriptions WHERE id = $1", identity)

    async def alter(self, identity: UUID, values: str) -> None:
        """Set columns behind everyone's back, as time would."""
        await self.pool.execute(f"UPDATE subscriptions SET {values} WHERE id = $1", identity)
        self.process._handshaker.ask()

    async def publish(self, publisher: Publisher, *subjects: str | None) -> None:
        acceptor = await self.acceptor()
        await acceptor.accept([publisher.message(subject=subject) for subject in subjects])
        keys = await self.pool.fetch("SELECT DISTINCT subscription FROM deliveries WHERE state = 'pending'")
        told = ",".join(str(row[0]) for row in keys)
        await self.pool.execute("SELECT pg_notify($1, $2)", DELIVERIES_CHANNEL, told)

    async def delivered(self, identity: UUID, count: int, seconds: float = 40) -> list[int]:
        """Wait until so many are delivered, and nothing else is there; gives how many attempts each took."""
        statement = (
            "SELECT d.state::text, d.attempts FROM deliveries d JOIN subscriptions s ON s.key = d.subscription "
            "WHERE s.id = $1 ORDER BY d.sequence"
        )
        async with asyncio.timeout(seconds):
            while True:
                rows = await self.pool.fetch(statement, identity)
                if [row["state"] for row in rows] == ["delivered"] * count:
                    return [row["attempts"] for row in rows]
                await asyncio.sleep(0.05)

    async def tried(self, identity: UUID, state: str = "", seconds: float = 20) -> asyncpg.Record:
        """Wait until the delivery of a subscription was tried, and is in this state if one is given."""
        statement = (
            "SELECT d.* FROM deliveries d JOIN subscriptions s ON s.key = d.subscription WHERE s.id = $1 "
            "AND (d.state <> 'pending' OR d.attempts > 0) AND $2 IN ('', d.state::text)"
        )
        async with asyncio.timeout(seconds):
            while (row := await self.pool.fetchrow(statement, identity, state)) is None:
                await asyncio.sleep(0.02)
        return row


@asynccontextmanager
async def delivering(
    url: str, *, handshake: HandshakeSettings | None = None, amqp: str | None = None, **delivery: Any
) -> AsyncIterator[Delivering]:
    """Runs a delivery process; `delivery` are its settings, `amqp` is the URL of a RabbitMQ."""
    settings = Settings(
        amqp=AmqpSettings.model_validate({"url": amqp}),
        database=DatabaseSettings.model_validate({"url": url}),
        secrets=SecretsSettings(),
        api=API,
        serve=ServeSettings(metrics_port=0),
        handshake=handshake or HandshakeSettings(),
        delivery=DeliverySettings(origin=ORIGIN, shards=4, sweep_seconds=1, grace_seconds=0, **delivery),
        fence=FenceSettings.model_validate({"allow": ["127.0.0.0/8"]}),
    )
    owner = uuid4()
    name = leases.application_name(owner)
    session = {"application_name": name, **records.connection_settings(name)}
    engine = create_engine(settings.database, application_name=name)
    async with (
        asyncpg.create_pool(url, min_size=1, max_size=6, server_settings=session) as pool,
        asyncpg.create_pool(url, min_size=1, max_size=4, server_settings=SESSION) as accepting,
    ):
        resources = Resources(
            settings, url, "bode test", engine, pool, RING, await installation.fingerprints(pool, RING)
        )
        async with pool.acquire() as connection:
            await leases.create(connection, SHARD_LEASE, settings.delivery.shards)
        process = DeliverProcess(resources, owner, settings.delivery.shards)
        await process.office.load()
        stuck = _watch_for_stuck(process)
        workers = {name: run for name, run in process.workers().items() if name not in _NOT_NEEDED}
        tasks = [asyncio.ensure_future(run()) for run in workers.values()]
        try:
            yield Delivering(World(engine, API), accepting, url, process)
        finally:
            await process.drain()
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            process.close()
            await engine.dispose()
        assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended
        assert not stuck, "the sweep found what stood still, which nothing ever should"


def _watch_for_stuck(process: DeliverProcess) -> list[Runner]:
    """What the sweep finds to stand still from now on, which it mends."""
    runners, found = process._engine._runners, list[Runner]()
    drop_stuck = runners.drop_stuck

    def dropping() -> list[Runner]:
        dropped = drop_stuck()
        found.extend(dropped)
        return dropped

    runners.drop_stuck = dropping  # type: ignore[method-assign]
    return found
