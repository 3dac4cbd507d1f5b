"""The installation that `bode bench deliver` measures: a fresh database, subscriptions, and the processes of Bode.

Events of the type `FULL` go to the fast receiver, those of `STEADY` to the one that notes times.
"""

import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import SecretStr

from broker.ingest import amqp
from broker.matching.index import cost
from broker.migrations import migrate
from broker.rabbitmq import AmqpSettings, connect
from broker.tools.bench_sink import NETWORK, Sink
from broker.tools.demo_parties import prepare
from broker.tools.identities import PROVIDERS
from broker.tools.local.children import Change, Children, Command
from broker.tools.local.postgres import Postgres
from broker.tools.local.rabbitmq import RabbitMQ
from schemas import cloudevents
from schemas.cloudevents import Event
from schemas.resources import SubscriptionBody
from subscriptions import life_cycle
from subscriptions import subscriptions as service
from subscriptions.change_log import changing
from subscriptions.database import DatabaseSettings, create_engine
from subscriptions.filter_rules import FilterRules
from subscriptions.organisations import find_organisation
from subscriptions.secrets import KeyRing, generate_encryption_key
from subscriptions.sink_urls import SinkRules

REGISTRY: Final = "bag"
FULL: Final = "nl.bag.bench-vol"
STEADY: Final = "nl.bag.bench-rustig"
_READY_SECONDS: Final = 120.0
_ENVELOPE_BYTES: Final = 380
"""About what an event of the benchmark has beside its filling."""


class Destination(StrEnum):
    """Where notifications go."""

    HTTP = "http"
    QUEUE = "queue"
    """Queues on the broker's RabbitMQ, one for each subscription."""
    RABBITMQ = "rabbitmq"
    """Such queues on another RabbitMQ, without TLS."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is measured: how many subscriptions match an event, at how many sinks they are, and how big it is."""

    fan_out: int
    sinks: int = 1
    payload_bytes: int = 1000
    deliveries: int = 30_000
    deliver_processes: int = 1
    ingest_processes: int = 1
    subjects: int = 1000
    batch: int = 0
    """Notifications in one request at most; 0: each is a request of its own."""
    to: Destination = Destination.HTTP

    @property
    def groups(self) -> int:
        """Groups of `fan_out` subscriptions; an event is for one of them."""
        return max(1, -(-self.sinks // self.fan_out))

    @property
    def events(self) -> int:
        """Events that make the deliveries of one run."""
        return max(1, self.deliveries // self.fan_out)


class Installation:
    """Bode on a fresh database, and a RabbitMQ that others may have used before."""

    def __init__(
        self,
        folder: Path,
        workload: Workload,
        postgres: Postgres,
        rabbit: RabbitMQ,
        remote: RabbitMQ | None = None,
    ) -> None:
        """Make it; `remote` is the RabbitMQ of a provider, where notifications go to one."""
        self.postgres = postgres
        self.rabbit = rabbit
        self._remote = remote
        self.workload = workload
        self._folder = folder
        self._key = generate_encryption_key()
        self._sources: dict[str, str] = {}
        self.provider_key = ""
        """The key of the provider whose subscriptions these are, once they are made."""
        self._made = 0

    async def prepare(self, sinks: dict[str, Sink]) -> None:
        """Migrate, and make the subscriptions for each type of event at its receiver."""
        self._folder.mkdir()
        engine = create_engine(DatabaseSettings(url=SecretStr(self.postgres.url)))
        keys = KeyRing([self._key])
        rules = SinkRules(allow_http=True, check=lambda _: None, offer_queues=True)
        filters = FilterRules(lambda condition: cost(condition).evaluated_always, most_evaluated=0)
        try:
            await migrate(engine)
            identities = await prepare(engine, self._folder)
            async with changing(engine) as connection:
                provider = await find_organisation(connection, oin=PROVIDERS["gemeente"])
                assert provider is not None
                for kind, sink in sinks.items():
                    for number in range(self.workload.groups * self.workload.fan_out):
                        said = self._subscription(kind, number, sink.url(number % self.workload.sinks))
                        body = SubscriptionBody.model_validate(said)
                        made, _ = await service.create(
                            connection, body, organisation_id=provider.id, keys=keys, sinks=rules, filters=filters
                        )
                        if body.sink is not None:
                            await life_cycle.activate(connection, made.id, sink=body.sink)
        finally:
            await engine.dispose()
        self.provider_key = identities.providers["gemeente"].key
        self._sources = {name: registry.source for name, registry in identities.registries.items()}
        rabbitmq = AmqpSettings(url=SecretStr(self.rabbit.url()))
        async with await connect(rabbitmq, "bode bench") as broker:
            await amqp.declare(broker, rabbitmq.queues)
        if self._remote is not None:
            await self._declare(self._remote)

    @asynccontextmanager
    async def processes(
        self, kind: str, phase: str, changed: Callable[[Change], None] = lambda _: None
    ) -> AsyncIterator[dict[str, int]]:
        """Run the processes of a kind, `deliver` or `ingest`, ready, until the block ends; their ids by name.

        `changed` is told of those that die, which are started again; otherwise the run fails by its time limit.
        """
        count = self.workload.deliver_processes if kind == "deliver" else self.workload.ingest_processes
        commands = [self._command(kind, f"{kind}{number}", phase) for number in range(count)]
        async with Children(commands, changed=changed) as children:
            for command in commands:
                await children.ready(command.name, _READY_SECONDS)
            yield children.pids

    @asynccontextmanager
    async def api(self, phase: str) -> AsyncIterator[str]:
        """Run the REST API until the block ends; its URL."""
        command = self._command("api", "api", phase)
        async with Children([command], changed=lambda _: None) as children:
            port = (await children.ready("api", _READY_SECONDS))["port"]
            yield f"http://127.0.0.1:{port}/v1"

    def events(self, kind: str, count: int, registry: str = REGISTRY) -> Sequence[tuple[int, Event]]:
        """New events of a type that a registry owns, each with its number, which is the end of its id."""
        data = {"vulling": "x" * max(self.workload.payload_bytes - _ENVELOPE_BYTES, 0)}
        made = []
        for number in range(self._made, self._made + count):
            attributes: dict[str, Any] = {
                "specversion": "1.0",
                "id": str(UUID(int=number)),
                "source": self._sources[registry],
                "type": kind,
                "subject": f"9999100000{number % self.workload.subjects:06}",
                "time": "2026-01-01T00:00:00Z",
                "datacontenttype": "application/json",
                "groep": str(number % self.workload.groups),
            }
            made.append((number, cloudevents.from_structured(cloudevents.to_structured(attributes, data))))
        self._made += count
        return made

    async def _declare(self, remote: RabbitMQ) -> None:
        """The queues there, as a provider would: quorum queues."""
        async with await connect(AmqpSettings(url=SecretStr(remote.url())), "bode bench") as provider:
            async with provider.channel() as channel:
                for number in range(self.workload.groups * self.workload.fan_out):
                    await channel.declare_queue(f"bench.{number}", durable=True, arguments={"x-queue-type": "quorum"})

    def _subscription(self, kind: str, number: int, url: str) -> dict[str, Any]:
        body: dict[str, Any] = {"types": [kind]}
        match self.workload.to:
            case Destination.HTTP:
                body |= {"sink": url, "protocol": "HTTP"}
            case Destination.QUEUE:
                body |= {"protocol": "AMQP"}
            case Destination.RABBITMQ:
                assert self._remote is not None
                server = urlsplit(self._remote.url())
                body |= {
                    "sink": f"amqp://{server.hostname}:{server.port}{server.path}",
                    "protocol": "AMQP",
                    "protocolSettings": {"address": f"/queues/bench.{number}"},
                    "sinkCredential": {
                        "credentialType": "PLAIN",
                        "identifier": server.username,
                        "secret": server.password,
                    },
                }
        if self.workload.batch:
            body["protocolSettings"] = {"batch": {"maxCount": self.workload.batch}}
        if self.workload.groups > 1:
            body["filters"] = [{"exact": {"groep": str(number // self.workload.fan_out)}}]
        return body

    def _command(self, process: str, name: str, phase: str) -> Command:
        environment = {
            **os.environ,
            "BODE_DATABASE_URL": self.postgres.url,
            "BODE_AMQP_URL": self.rabbit.url(),
            "BODE_SECRETS_KEYS": json.dumps([self._key.get_secret_value()]),
            "BODE_FENCE_ALLOW": json.dumps([str(NETWORK)]),
            "BODE_SERVE_PORT": "0",
            "BODE_SERVE_METRICS_PORT": "0",
            "BODE_LOG_LEVEL": "WARNING",
            "BODE_READY_FILE": str(self._folder / f"{name}.ready"),
        }
        log = self._folder / f"{phase}-{name}.log"
        return Command(name, [process], environment, log, self._folder / f"{name}.ready")
