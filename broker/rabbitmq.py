"""The broker's RabbitMQ as its processes reach it: where it is, connections to it, and how their loss is told."""

import asyncio
import ssl
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final

import aio_pika
import aiormq
from aio_pika.abc import AbstractConnection
from aiormq.abc import SSLCerts
from aiormq.connection import DEFAULT_PORTS, SSLContextProvider
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from yarl import URL

BROKER_TROUBLE: Final = (
    aio_pika.exceptions.AMQPError,
    aiormq.exceptions.AMQPError,
    aiormq.exceptions.ChannelInvalidStateError,  # a RuntimeError: the channel was closed before we used it
    OSError,
    TimeoutError,
)
"""What RabbitMQ does to those who hold a connection: they connect again."""
_LOST: Final = ("closed", "closed channel", "not opened", "not ready")
"""How the texts of the AMQP libraries' bare RuntimeErrors end when the connection is gone."""


class AmqpSettings(BaseModel):
    """Where RabbitMQ is, and how the events are partitioned over queues."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: SecretStr | None = Field(default=None, description="amqp(s) URL of the broker's user; none: HTTP door only.")
    queues: int = Field(
        default=4, ge=1, le=64, description="Ingest queues at first start; the number is kept from then on."
    )
    registry_queues: int = Field(
        default=1,
        ge=1,
        le=16,
        description="Ingest queues of one registry, from its first domain on; then kept. With more than one a restart "
        "of RabbitMQ may lead a subject to another queue, past what waits in the former.",
    )
    prefetch: int = Field(default=1000, ge=1, le=10000, description="Messages that a queue's consumer holds at most.")
    connect_seconds: float = Field(default=10, gt=0, le=120, description="Limit for one connection attempt.")
    heartbeat_seconds: int = Field(default=15, ge=2, le=600, description="AMQP heartbeat.")
    publish_seconds: float = Field(default=10, gt=0, le=120, description="Limit for one publisher confirm.")


@dataclass(frozen=True, slots=True)
class Place:
    """Where RabbitMQ is, taken apart as aiormq does it, for those who connect without it."""

    host: str
    port: int
    virtual_host: str
    user: tuple[str, str] | None = field(repr=False)
    """Name and password; None: known by our certificate (SASL EXTERNAL)."""
    context: ssl.SSLContext | None

    @classmethod
    async def of(cls, settings: AmqpSettings) -> "Place":
        """That of an installation.

        Raises:
            ValueError: there is no such URL.
            OSError: its certificates can't be read, or used (an SSLError is one).
        """
        if settings.url is None:
            raise ValueError("no AMQP URL is set")
        url = URL(settings.url.get_secret_value())
        if url.scheme not in DEFAULT_PORTS or url.host is None:
            raise ValueError("no AMQP URL")
        query = url.query
        context = None
        if url.scheme == "amqps":
            certificates = SSLCerts(
                cert=query.get("certfile"),
                key=query.get("keyfile"),
                capath=query.get("capath"),
                cafile=query.get("cafile"),
                cadata=b64decode(query["cadata"]) if query.get("cadata") else None,
                verify=query.get("no_verify_ssl", "0") == "0",
            )
            loop = asyncio.get_running_loop()
            context = await SSLContextProvider(ssl_context=None, ssl_certs=certificates, loop=loop).get_context()
        external = query.get("auth", "").upper() == "EXTERNAL"
        return cls(
            url.host,
            url.port or DEFAULT_PORTS[url.scheme],
            url.path.removeprefix("/").replace("%2F", "/") or "/",
            None if external else (url.user or "guest", url.password or "guest"),
            context,
        )


async def connect(settings: AmqpSettings, name: str) -> AbstractConnection:
    """Open a connection that shows under `name` in RabbitMQ's management.

    Raises:
        OSError, aio_pika.exceptions.AMQPError, TimeoutError: when RabbitMQ can't be reached or refuses.
    """
    if settings.url is None:
        raise ValueError("no AMQP URL is set")
    with hang_ups():
        return await aio_pika.connect(
            settings.url.get_secret_value(),
            timeout=settings.connect_seconds,
            heartbeat=settings.heartbeat_seconds,
            client_properties={"connection_name": name},
        )


@contextmanager
def hang_ups() -> Iterator[None]:
    """Raise ConnectionError for the odd ways in which aiormq tells that a connection was closed under our hands."""
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise ConnectionError("RabbitMQ hung up") from None  # not we: it cancels what waits on the connection
    except (StopAsyncIteration, aiormq.exceptions.ChannelInvalidStateError) as error:
        raise ConnectionError("RabbitMQ hung up") from error
    except RuntimeError as error:  # what is begun on a connection that was closed a moment ago
        if not str(error).endswith(_LOST):
            raise
        raise ConnectionError("RabbitMQ hung up") from error
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise ConnectionError("RabbitMQ hung up") from error  # what waited on the connection gets a bare Exception


@asynccontextmanager
async def connected(settings: AmqpSettings, name: str) -> AsyncIterator[AbstractConnection]:
    """A connection for the block. However it is lost within, that is one of aio_pika's errors or an OSError."""
    connection = await connect(settings, name)
    with hang_ups():
        async with connection:
            yield connection
