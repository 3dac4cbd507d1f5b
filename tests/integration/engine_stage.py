"""What tests of several delivery processes share: a database, a host of processes, sinks, a loop beside the test."""

import asyncio
import shutil
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

import aio_pika
from accepting import Broker, broker
from broker_api import serve
from delivering import API
from delivery_evidence import WATCH
from delivery_processes import Host
from managing import KEY, World
from scripted_sinks import ScriptedSinks

from broker.api import pulling
from broker.storage import leases
from broker.storage.leases import SHARD_LEASE
from tests.chaos.proxy import Link

T = TypeVar("T")
_API: Final = API.model_copy(update={"rate_per_second": 100_000, "burst": 1_000_000})
"""Whoever pulls may ask as often as a test likes."""


class Stage:
    """What all examples share: a database, the host of the processes, sinks, and an event loop beside the test."""

    def __init__(self, url: str, folder: Path, delivery: dict[str, Any], amqp: str | None) -> None:
        self.url = url
        self.amqp = amqp
        self.delivery = delivery
        self.host = Host(folder)
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)

    def call(self, work: Coroutine[Any, Any, T], seconds: float = 60) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

    def __enter__(self) -> "Stage":
        self._thread.start()
        self._host = self.host.__enter__()
        self.call(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.call(self._close())
        finally:
            self.host.__exit__()
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()
            self.loop.close()

    async def _open(self) -> None:
        self.sinks = await ScriptedSinks(self.host.clock).__aenter__()
        self._broker = broker(self.url)
        made = await self._broker.__aenter__()
        self.bode = Broker(World(made.world.engine, _API), made.pool, made.url)
        await serve(self.bode, pulling.router)
        if self.amqp is not None:
            self.queues = await aio_pika.connect(self.amqp)
            self.link = await Link(lambda: port_of(self.amqp)).__aenter__()
        async with self.bode.pool.acquire() as connection:
            await connection.execute(WATCH)
            await leases.create(connection, SHARD_LEASE, self.delivery["shards"])

    async def _close(self) -> None:
        if self.amqp is not None:
            await self.link.__aexit__()
            await self.queues.close()
        await self.sinks.__aexit__()
        await self._broker.__aexit__(None, None, None)

    @property
    def settings(self) -> dict[str, Any]:
        """Of the delivery processes."""
        return {
            "amqp": {"url": None if self.amqp is None else through(self.amqp, self.link.port)},
            "database": {"url": self.url},
            "secrets": {"keys": [KEY.get_secret_value()]},
            "serve": {"metrics_port": 0},
            "fence": {"allow": ["127.0.0.0/8"]},
            "delivery": self.delivery,
        }

    async def settled(self, version: int) -> None:
        """As the API waits before it answers a change."""
        span = timedelta(seconds=self.delivery["lease_seconds"])
        async with asyncio.timeout(30), self.bode.pool.acquire() as connection:
            while await leases.holders_behind(connection, SHARD_LEASE, version, span):
                await asyncio.sleep(0.005)


def port_of(url: str | None) -> int:
    """The port of a server."""
    port = urlsplit(url or "").port
    assert port is not None
    return int(port)


def through(url: str, port: int) -> str:
    """The same server by another port of this machine."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{port}"))


@contextmanager
def staged(url: str, delivery: dict[str, Any], amqp: str | None = None) -> Iterator[Stage]:
    """A stage in a folder of its own; `delivery` are the settings of its processes, which reach RabbitMQ by a link."""
    folder = Path(tempfile.mkdtemp(prefix="bode-stage-"))
    try:
        with Stage(url, folder, delivery, amqp) as made:
            yield made
    finally:
        shutil.rmtree(folder)
