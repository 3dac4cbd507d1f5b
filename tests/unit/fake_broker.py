"""The network peer of a listener and of a publisher: as much of the API as they use, and a sender of notifications."""

import asyncio
import base64
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import aiohttp
from aiohttp import web
from standardwebhooks.webhooks import Webhook

Answer = tuple[int, Any]


@dataclass
class FakeBroker:
    key: str = "bode_test"
    subscriptions: dict[str, dict[str, Any]] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    batches: list[list[Any]] = field(default_factory=list)
    publishing: Callable[[list[Any]], Answer] = lambda batch: (202, batch)
    granted: bool = True
    _called: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession()
        self._runner = web.ServerRunner(web.Server(self._handle), handle_signals=False, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a call makes the condition true."""
        async with asyncio.timeout(20):
            while not condition():
                self._called.clear()
                await self._called.wait()

    async def notify(self, identity: str, *numbers: int, matched: bool = True) -> list[int]:
        """Send notifications, correctly signed; the statuses. In one batch, where the subscription asks for that."""
        shown, statuses, items = self.subscriptions[identity], [], []
        for number in numbers:
            if matched:
                shown["health"]["lastSequence"] = max(number, shown["health"]["lastSequence"])
            event = {"specversion": "1.0", "type": "nl.brp.x", "subject": "999990342"}
            items.append(event | {"subscription": identity, "subscriptionsequence": str(number)})
        batched = (shown.get("protocolSettings") or {}).get("batch") is not None
        form = "application/cloudevents-batch+json" if batched else "application/cloudevents+json"
        for content in [items] if batched else items:
            body = json.dumps(content).encode()
            moment, delivery = datetime.now(UTC), "dlv_1"
            headers = {
                "content-type": f"{form}; charset=utf-8",
                "webhook-id": delivery,
                "webhook-timestamp": str(int(moment.timestamp())),
                "webhook-signature": Webhook(self.secrets[identity]).sign(delivery, moment, body.decode()),
            }
            async with self._session.post(shown["sink"], data=body, headers=headers) as response:
                statuses.append(response.status)
        return statuses

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path.removeprefix("/v1")
        self.calls.append(f"{request.method} {path}")
        body = await request.read()
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            status, content = 401, {"detail": "Send a valid key."}
        else:
            status, content = await self._answer(request.method, path, json.loads(body) if body else None)
        self._called.set()
        headers = {"Retry-After": "0"} if status == 429 else {}
        if content is None:
            return web.Response(status=status, headers=headers)
        return web.json_response(content, status=status, headers=headers)

    async def _answer(self, method: str, path: str, body: Any) -> Answer:
        if path == "/events":
            self.batches.append(body)
            return self.publishing(body)
        if (method, path) == ("POST", "/subscriptions"):
            identity, secret = str(uuid4()), "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
            health = {"lastSequence": 0, "pending": 0, "deadLetters": 0}
            self.subscriptions[identity] = {"id": identity, "health": health, "status": "requested", **body}
            self.secrets[identity] = secret
            return 201, self.subscriptions[identity] | {"secret": secret}
        shown = self.subscriptions.get(path.rpartition("/")[2])
        if shown is None:
            return 404, {"detail": "There is no such resource."}
        if method == "DELETE":
            del self.subscriptions[shown["id"]]
            return 204, None
        if method == "PATCH":
            if body.get("sink", shown["sink"]) != shown["sink"]:
                shown["status"] = "validating"
            shown.update(body)
            for name in [name for name, value in shown.items() if value is None]:
                del shown[name]
        elif self.granted and shown["status"] in ("requested", "validating"):
            await self._shake_hands(shown)
        return 200, shown

    async def _shake_hands(self, shown: dict[str, Any]) -> None:
        async with self._session.options(shown["sink"], headers={"WebHook-Request-Origin": "bode"}) as response:
            consents = response.headers.get("WebHook-Allowed-Origin") == "bode"
        shown["status"] = "active" if consents else "refused"
