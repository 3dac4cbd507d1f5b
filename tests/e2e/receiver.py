"""A receiver on a real socket that keeps a ledger and behaves as told."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

Behaviour = Callable[["Received"], Awaitable[int] | int]


@dataclass
class Received:
    """One notification as it came."""

    path: str
    headers: dict[str, str]
    body: bytes
    attempt: int

    @property
    def event(self) -> dict[str, Any]:
        return json.loads(self.body)

    @property
    def sequence(self) -> int:
        return int(self.event["subscriptionsequence"])


@dataclass
class Receiver:
    """`ledger` holds every request; `behave` decides the status by path, 204 by default."""

    ledger: list[Received] = field(default_factory=list)
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    consents: bool = True
    handshakes: list[dict[str, str]] = field(default_factory=list)
    answer_headers: dict[str, str] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Self:
        app = web.Application(client_max_size=1 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def at(self, path: str) -> list[Received]:
        return [received for received in self.ledger if received.path == path]

    async def wait_for(self, path: str, count: int, seconds: float = 30) -> list[Received]:
        """Wait until `count` different numbers came to a path."""
        async with asyncio.timeout(seconds):
            while len({received.sequence for received in self.at(path)}) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.at(path)

    async def _handle(self, request: web.Request) -> web.Response:
        path = request.match_info["path"]
        if request.method == "OPTIONS":
            self.handshakes.append(dict(request.headers))
            headers = {"WebHook-Allowed-Origin": request.headers["WebHook-Request-Origin"]} if self.consents else {}
            return web.Response(status=200, headers=headers)
        body = await request.read()
        identity = request.headers["webhook-id"]
        attempt = 1 + sum(1 for other in self.at(path) if other.headers["webhook-id"] == identity)
        received = Received(path, {name.lower(): value for name, value in request.headers.items()}, body, attempt)
        self.ledger.append(received)
        self._changed.set()
        status = self.behaviours.get(path, lambda _: 204)(received)
        if not isinstance(status, int):
            status = await status
        return web.Response(status=status, headers=self.answer_headers)
