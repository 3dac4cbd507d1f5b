"""Receivers that keep a ledger of every request, verify its signature, and misbehave when told.

They live in a thread with a loop of its own, so that nothing that the harness does to the others slows them down.
"""

import asyncio
import base64
import contextlib
import hmac
import json
import threading
import time
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import sha256
from typing import Any, Self

_HANG_SECONDS = 30.0


class Mood(StrEnum):
    WELL = "well"
    HANGS = "hangs"
    FAILS = "fails"
    THROTTLES = "throttles"
    BREAKS_OFF = "breaks-off"
    """Closes in the middle of its answer."""
    REFUSES = "refuses"
    """Closes before it has read anything."""
    SLOW = "slow"


@dataclass(slots=True)
class Arrival:
    """One request as it came, and how it was answered."""

    path: str
    sequence: int
    event_id: str
    sender: str
    """The delivery process and its incarnation, from `WebHook-Request-Origin`."""
    at: float
    """By the monotonic clock, as every time here."""
    genuine: bool
    body: dict[str, Any]
    status: int | None = None
    """What it was answered; None: nothing, or not wholly."""
    answered_at: float | None = None


@dataclass
class Receivers:
    """All sinks on one port, told apart by path."""

    refused: dict[str, int] = field(default_factory=dict)
    """Path and the number that `data.n` is divisible by when the event is refused for good (400)."""
    flaky: set[str] = field(default_factory=set)
    """Paths that fail each fifth event at its first attempt."""
    secrets: dict[str, str] = field(default_factory=dict)
    moods: dict[str, Mood] = field(default_factory=dict)
    ledger: list[Arrival] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> Self:
        started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        if not started.wait(10):
            raise TimeoutError("the receivers don't listen")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(started))
        self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        self._seen: dict[tuple[str, int], int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, backlog=1000)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._converse(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, target, _ = head[0].split(" ")
                headers = {name.lower(): value.strip() for name, _, value in (h.partition(":") for h in head[1:] if h)}
                if method == "OPTIONS":
                    origin = headers["webhook-request-origin"]
                    consent = f"HTTP/1.1 200 OK\r\nWebHook-Allowed-Origin: {origin}\r\nContent-Length: 0\r\n\r\n"
                    writer.write(consent.encode())
                    continue
                path = target.lstrip("/")
                if self.moods.get(path) is Mood.REFUSES:
                    return
                body = await reader.readexactly(int(headers["content-length"]))
                if not await self._answer(path, self._note(path, headers, body), writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    def _note(self, path: str, headers: dict[str, str], body: bytes) -> list[Arrival]:
        """What one request brought: several notifications where it is a batch."""
        content = json.loads(body)
        genuine, now = self.is_genuine(path, headers, body), time.monotonic()
        arrivals = [
            Arrival(
                path,
                int(event["subscriptionsequence"]),
                event["id"],
                headers["webhook-request-origin"],
                now,
                genuine,
                event,
            )
            for event in (content if isinstance(content, list) else [content])
        ]
        self.ledger += arrivals
        return arrivals

    def is_genuine(self, path: str, headers: dict[str, str], body: bytes) -> bool:
        key = base64.b64decode(self.secrets[path].removeprefix("whsec_"))
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.digest(key, signed, sha256)).decode()
        given = [each.partition(",")[2] for each in headers["webhook-signature"].split() if each.startswith("v1,")]
        return any(hmac.compare_digest(expected, signature) for signature in given)

    async def _answer(self, path: str, arrivals: list[Arrival], writer: asyncio.StreamWriter) -> bool:
        """Answer; whether the connection goes on."""
        mood = self.moods.get(path, Mood.WELL)
        extra = ""
        match mood:
            case Mood.HANGS:
                until = time.monotonic() + _HANG_SECONDS
                while self.moods.get(path) is Mood.HANGS and time.monotonic() < until:
                    await asyncio.sleep(0.1)
                return False
            case Mood.BREAKS_OFF:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Le")
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
                return False
            case Mood.FAILS:
                status = 500
            case Mood.THROTTLES:
                status, extra = 503, "Retry-After: 1\r\n"
            case _:
                if mood is Mood.SLOW:
                    await asyncio.sleep(0.4)
                status = self._usual_status(arrivals[0])  # whoever wants batches refuses nothing
        now = time.monotonic()
        for arrival in arrivals:
            arrival.status, arrival.answered_at = status, now
        writer.write(f"HTTP/1.1 {status} X\r\n{extra}Content-Length: 0\r\n\r\n".encode())
        await writer.drain()
        return True

    def _usual_status(self, arrival: Arrival) -> int:
        divisor = self.refused.get(arrival.path)
        number = arrival.body["data"]["n"]
        if divisor is not None and number % divisor == 0:
            return 400
        seen = self._seen[arrival.path, arrival.sequence] = self._seen.get((arrival.path, arrival.sequence), 0) + 1
        return 500 if arrival.path in self.flaky and number % 5 == 0 and seen == 1 else 204
