"""Where on which RabbitMQ a subscription's notifications go, and who we are there; prepared once for a sink."""

from dataclasses import dataclass, field
from typing import Final, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

from broker.delivery import amqp_frames
from broker.delivery.tls import TlsIdentity
from schemas.amqp_addresses import Address, decoded
from schemas.resources.credentials import PlainCredential
from subscriptions.sinks import SinkConfig

_PORTS: Final = {"amqp": 5672, "amqps": 5671}


class Server(NamedTuple):
    """What the URL of such a sink says."""

    secure: bool
    host: str
    port: int
    virtual_host: str

    @classmethod
    def of(cls, url: str) -> "Server":
        """Take apart `amqps://host[:port][/vhost]`; without virtual host it is `/`.

        Raises:
            ValueError: when it is something else.
        """
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname or parts.username is not None or parts.query:
            raise ValueError("not an amqp(s) URL without credentials")
        return cls(
            parts.scheme == "amqps",
            parts.hostname,
            parts.port or _PORTS[parts.scheme],
            decoded(parts.path.removeprefix("/")) or "/",
        )


class Login(NamedTuple):
    """Who we are at a RabbitMQ."""

    virtual_host: str
    user: tuple[str, str] | None
    """Name and password; None: we are known by our certificate (SASL EXTERNAL)."""
    name: str
    """That our connection shows under there."""

    def __repr__(self) -> str:
        """Nothing of the password."""
        return f"Login({self.name})"


@dataclass(frozen=True, slots=True)
class AmqpTarget:
    """One subscription's target; targets that are equal can use the same connection."""

    subscription: UUID
    server: Server
    address: Address
    login: Login = field(repr=False)
    tls: TlsIdentity | None = field(repr=False)
    publish: bytes = field(repr=False)
    """The method that each message begins with."""

    @classmethod
    def of(cls, config: SinkConfig, origin: str) -> "AmqpTarget | None":
        """That of a subscription; None: it is none of RabbitMQ's, or in a queue of the broker's own.

        Raises:
            ValueError: when the configuration, which the API has checked, is not usable after all.
        """
        if config.amqp is None:
            return None
        server, address = Server.of(config.sink), Address.parse(config.amqp.address)
        credential = config.identity.credential
        return cls(
            config.id,
            server,
            address,
            Login(
                server.virtual_host,
                (credential.identifier, credential.secret) if isinstance(credential, PlainCredential) else None,
                config.amqp.link_name or f"{origin} {config.id}",
            ),
            TlsIdentity.of_sink(config.identity.tls),
            amqp_frames.publish(address.exchange, address.routing_key),
        )

    @property
    def secure(self) -> bool:
        """Whether there is TLS."""
        return self.server.secure

    @property
    def host(self) -> str:
        """A name or an address."""
        return self.server.host

    @property
    def port(self) -> int:
        """The port."""
        return self.server.port
