"""A receiver of notifications, as a provider would build one: handshake, signature, ledger, and then the answer.

It can misbehave on demand, to show what the broker makes of that. It keeps no payloads.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import TracebackType
from typing import Any, Final, Self

import orjson
from aiohttp import web

from broker.delivery.heartbeats import HEARTBEAT_TYPE
from broker.delivery.trials import TYPE as TEST_TYPE
from broker.storage.tables import accepted_at
from broker.tools.listen_ledger import Ledger
from broker.tools.listen_reconcile import Marks

TOLERANCE: Final = timedelta(minutes=5)
"""How far a signature's timestamp may be from now (Standard Webhooks, verification)."""
_MAX_BYTES: Final = 4 << 20
"""As large as a batch can be."""
_CONTENT_TYPE: Final = "application/cloudevents+json"
_BATCH_TYPE: Final = "application/cloudevents-batch+json"
_SECRET_PREFIX: Final = "whsec_"


class Fault(StrEnum):
    """Why a request was not taken."""

    SIGNATURE = "signature is wrong"
    STALE = "timestamp is too old or too new"
    UNSIGNED = "signature headers are missing"
    NOT_UNDERSTOOD = "body is no CloudEvent with a number"
    ON_PURPOSE = "as told"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A notification that was not taken; its number is told only where the signature was right."""

    fault: Fault
    status: int
    number: int | None


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How to treat notifications. The default is as it should be."""

    fail_rate: float = 0.0
    latency: timedelta = timedelta(0)
    status: int | None = None

    def refusal(self) -> int | None:
        """The status to answer instead of taking the notification; None: take it."""
        if self.status is not None and self.status >= 300:
            return self.status
        return 500 if self.fail_rate and random.random() < self.fail_rate else None


@dataclass(frozen=True, slots=True)
class Notification:
    """What is told of a notification. `latency` is the time since acceptance, where the broker tells that."""

    number: int
    type: str
    duplicate: bool
    latency: timedelta | None
    event: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """How far the numbers of a quiet subscription go: the last one, and the one through which all have ended."""

    last: int
    complete_through: int


@dataclass(frozen=True, slots=True)
class _Numbered:
    number: int
    type: str
    event: Mapping[str, Any]


class Inbox:
    """Where the notifications of one subscription arrive."""

    def __init__(
        self,
        taken: Callable[[Notification], None],
        refused: Callable[[Refusal], None],
        beaten: Callable[[Heartbeat], None] = lambda _: None,
        tested: Callable[[], None] = lambda: None,
    ) -> None:
        self._taken = taken
        self._refused = refused
        self._beaten = beaten
        self._tested = tested
        self._secret: str | None = None
        self._marks: Marks | None = None
        self.ledger = Ledger()
        self.greeted = asyncio.Event()
        """Set by the first handshake."""

    def open(self, secret: str, ledger: Ledger, marks: Marks | None = None) -> None:
        """From now on take what is signed with this secret, and note it in this ledger, and among the marks."""
        self._secret, self.ledger, self._marks = secret, ledger, marks

    def take(self, headers: Mapping[str, str], body: bytes, behaviour: Behaviour, *, batched: bool = False) -> int:
        """Judge and note a notification, or a batch of them; the status to answer, which holds for every item."""
        if self._secret is None or self.ledger.closed:  # not yet, or no more
            return 503
        fault = verify(self._secret, headers, body, time.time())
        if fault is not None:
            return self._refuse(fault, 401)
        try:
            content = orjson.loads(body)
            items = _batch_of(content) if batched else [_item_of(content)]
        except (ValueError, TypeError, KeyError):
            return self._refuse(Fault.NOT_UNDERSTOOD, 400)
        numbered = [item for item in items if isinstance(item, _Numbered)]
        refusal = behaviour.refusal() if numbered else None
        if refusal is not None:
            for each in numbered:
                self._refuse(Fault.ON_PURPOSE, refusal, each.number)
            return refusal
        latency = _since_acceptance(headers.get("traceparent", ""), datetime.now(UTC))
        for item in items:
            if isinstance(item, _Numbered):
                self._note(item, latency)
                latency = None  # the trace of a batch is that of its first item
            elif item is None:
                self._tested()
            else:
                self._beaten(item)
        return (behaviour.status or 204) if numbered else 204

    def _note(self, item: _Numbered, latency: timedelta | None) -> None:
        if self._marks is not None:
            self._marks.put(item.number, str(item.event.get("source")), str(item.event.get("id")))
        new = self.ledger.add(item.number)
        self._taken(Notification(item.number, item.type, not new, latency, item.event))

    def _refuse(self, fault: Fault, status: int, number: int | None = None) -> int:
        self._refused(Refusal(fault, status, number))
        return status


class Receiver:
    """An HTTP server on this machine with an inbox for each path."""

    def __init__(self, *, host: str = "127.0.0.1", behaviour: Behaviour | None = None) -> None:
        self._host = host
        self._behaviour = behaviour or Behaviour()
        self._inboxes: dict[str, Inbox] = {}
        self._runner = web.ServerRunner(web.Server(self._handle), handle_signals=False, shutdown_timeout=2.0)
        self.port = 0

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._runner.cleanup()

    async def listen(self, port: int) -> None:
        """Accept requests on a port; 0 takes a free one.

        Raises:
            OSError: the port is taken.
        """
        site = web.TCPSite(self._runner, self._host, port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def listen_preferably(self, port: int) -> None:
        """Accept requests on a port, or on a free one where that is taken."""
        try:
            await self.listen(port)
        except OSError:
            await self.listen(0)

    @property
    def url(self) -> str:
        """The URL that paths are under."""
        return f"http://{self._host}:{self.port}"

    def add(self, path: str, inbox: Inbox) -> None:
        """Give an inbox a path, such as `/gemeente`."""
        self._inboxes[path] = inbox

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        inbox = self._inboxes.get(request.path)
        if inbox is None:
            return web.Response(status=404)
        if request.method == "OPTIONS":
            origin = request.headers.get("WebHook-Request-Origin")
            if origin is None:
                return web.Response(status=400)
            inbox.greeted.set()
            return web.Response(
                headers={"Allow": "POST", "WebHook-Allowed-Origin": origin, "WebHook-Allowed-Rate": "*"}
            )
        if request.method != "POST":
            return web.Response(status=405, headers={"Allow": "OPTIONS, POST"})
        if request.content_type not in (_CONTENT_TYPE, _BATCH_TYPE):
            return web.Response(status=415)
        body = await _read(request)
        if body is None:
            return web.Response(status=413)
        batched = request.content_type == _BATCH_TYPE
        status = inbox.take(request.headers, body, self._behaviour, batched=batched)
        if self._behaviour.latency:
            await asyncio.sleep(self._behaviour.latency.total_seconds())
        return web.Response(status=status)


def verify(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> Fault | None:
    """Check a Standard Webhooks signature (`v1`) over the exact bytes; None: it is right."""
    identity, timestamp = headers.get("webhook-id"), headers.get("webhook-timestamp")
    given = headers.get("webhook-signature")
    if identity is None or timestamp is None or given is None:
        return Fault.UNSIGNED
    if not (timestamp.isascii() and timestamp.isdigit()) or abs(now - int(timestamp[:20])) > TOLERANCE.total_seconds():
        return Fault.STALE
    key = base64.b64decode(secret.removeprefix(_SECRET_PREFIX))
    expected = hmac.new(key, f"{identity}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    for signature in given.split():
        version, _, encoded = signature.partition(",")
        try:
            if version == "v1" and hmac.compare_digest(base64.b64decode(encoded, validate=True), expected):
                return None
        except (binascii.Error, ValueError):
            continue
    return Fault.SIGNATURE


def _item_of(event: Any) -> _Numbered | Heartbeat | None:
    """What an event is; None: a test notification, which has no number and says nothing.

    Raises:
        ValueError, TypeError, KeyError: it is none of these.
    """
    kind = str(event["type"])
    if "subscriptionsequence" not in event:
        if kind == TEST_TYPE:
            return None
        if kind == HEARTBEAT_TYPE:
            return Heartbeat(int(event["data"]["lastSequence"]), int(event["data"]["completeThrough"]))
    number = int(event["subscriptionsequence"])
    if number < 1:
        raise ValueError("numbers run from 1")
    return _Numbered(number, kind, event)


def _batch_of(content: Any) -> list[_Numbered | Heartbeat | None]:
    """The items of a batch; one that is nonsense makes the whole of it nonsense."""
    if not isinstance(content, list) or not content:
        raise ValueError("a batch is an array with something in it")
    return [_item_of(event) for event in content]


async def _read(request: web.BaseRequest) -> bytes | None:
    """The body, or None where it is too large."""
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > _MAX_BYTES:
            return None
    return bytes(body)


def _since_acceptance(traceparent: str, now: datetime) -> timedelta | None:
    """The time since acceptance: the broker makes the trace id of the event's key, which holds that moment."""
    try:
        key = int(traceparent.split("-")[1], 16)
        latency = now - accepted_at(key)
    except (IndexError, ValueError, OverflowError):
        return None
    return latency if timedelta(seconds=-1) < latency < timedelta(days=400) else None
