"""A provider's own RabbitMQ: with TLS, users that may publish there, and one that may not."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aio_pika
from authorities import Authority, Issued

from broker.tools.local.definitions import VHOST, _permission, _user
from broker.tools.local.server import free_port
from tests.chaos.rabbitmq import ChaosRabbitMQ

USER, PASSWORD = "bode-sender", "geheim!"
STRANGER: Final = "bode-stranger"
CERTIFIED: Final = "bode-certified"
"""The user whom a client certificate of this common name makes known (SASL EXTERNAL)."""
EXCHANGE: Final = "veranderingen"
_PLUGINS: Final = "[rabbitmq_consistent_hash_exchange,rabbitmq_auth_mechanism_ssl].\n"


class ProviderRabbitMQ(ChaosRabbitMQ):
    """The server, with certificates of `authority` and clients of `clients`."""

    def __init__(self, folder: Path, authority: Authority, clients: Authority) -> None:
        super().__init__(folder, ())
        self._authority = authority
        self._clients = clients
        self.secure_port = free_port()

    @property
    def sink(self) -> str:
        return f"amqps://127.0.0.1:{self.secure_port}/{VHOST}"

    @property
    def plain_sink(self) -> str:
        return f"amqp://127.0.0.1:{self.port}/{VHOST}"

    async def prepare(self) -> None:
        await super().prepare()
        self.use_certificate(self._authority.server())
        self._write("clients.pem", self._clients.root.pem)
        self._write("enabled_plugins", _PLUGINS)
        content: dict[str, Any] = json.loads((self.folder / "definitions.json").read_text())
        content["users"] += [_user(USER, PASSWORD), _user(STRANGER, PASSWORD), _user(CERTIFIED, "unused")]
        content["permissions"] += [
            _permission(name, write=rf"^(amq\.default|{EXCHANGE})$") for name in (USER, CERTIFIED)
        ]
        content["permissions"] += [_permission(STRANGER, write="^niets$")]
        self._write("definitions.json", json.dumps(content))

    def use_certificate(self, issued: Issued) -> None:
        """From the next start on."""
        self._write("server.pem", issued.chain)
        self._write("server.key", issued.key_pem)

    def _configuration(self) -> str:
        settings = {
            "listeners.ssl.1": f"127.0.0.1:{self.secure_port}",
            "ssl_options.cacertfile": str(self.folder / "clients.pem"),
            "ssl_options.certfile": str(self.folder / "server.pem"),
            "ssl_options.keyfile": str(self.folder / "server.key"),
            "ssl_options.verify": "verify_peer",
            "ssl_options.fail_if_no_peer_cert": "false",
            "auth_mechanisms.1": "PLAIN",
            "auth_mechanisms.2": "EXTERNAL",
            "ssl_cert_login_from": "common_name",
        }
        return super()._configuration() + "".join(f"{key} = {value}\n" for key, value in settings.items())

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
        """As its administrator."""
        connection = await aio_pika.connect(self.url())
        async with connection, connection.channel() as made:
            yield made

    async def declare(self, name: str, **arguments: Any) -> str:
        """A durable queue; its address."""
        async with self.channel() as at:
            await at.declare_queue(name, durable=True, arguments=arguments or None)
        return f"/queues/{quote(name, safe='')}"

    async def connections(self) -> int:
        """How many there are of our users'."""
        said = await self.evaluate(
            "length([P || P <- rabbit_networking:connections(), "
            f'[{{user, <<"{USER}">>}}] =:= rabbit_networking:connection_info(P, [user])])'
        )
        return int(said)
