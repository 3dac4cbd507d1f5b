"""Sinks on real sockets that do as they are told, arrival by arrival, and write down what came when."""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

from serving import serving


class Move(StrEnum):
    """What a sink does with one notification."""

    ACCEPT = "accept"
    SLOW = "slow"
    FAIL = "fail"
    REFUSE = "refuse"
    """400: final after one retry."""
    REDIRECT = "redirect"
    THROTTLE = "throttle"
    """429 with Retry-After."""
    AWAY = "away"
    """503 with Retry-After."""
    GONE = "gone"
    HANG = "hang"
    DRIP = "drip"
    DROP = "drop"
    CUT = "cut"
    GARBAGE = "garbage"
    ENDLESS = "endless"


SUCCESSES: Final = frozenset({Move.ACCEPT, Move.SLOW})
UNANSWERED: Final = frozenset({Move.HANG, Move.DRIP, Move.DROP, Move.CUT})
THROTTLES: Final = frozenset({Move.THROTTLE, Move.AWAY})
_SLOW_SECONDS: Final = 0.08
_CONSENT: Final = b"HTTP/1.1 200 OK\r\nWebHook-Allowed-Origin: *\r\nContent-Length: 0\r\n\r\n"
_BYTES: Final = {
    Move.ACCEPT: b"HTTP/1.1 204 No Content\r\n\r\n",
    Move.SLOW: b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    Move.FAIL: b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
    Move.REFUSE: b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    Move.REDIRECT: b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n",
    Move.GONE: b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n",
    Move.CUT: b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nno end to",
    Move.GARBAGE: b"SSH-2.0-OpenSSH_9.6\r\n",
    Move.ENDLESS: b"HTTP/1.1 200 OK\r\n" + b"X-Filler: more and more\r\n" * 3000,
}
_HANGS_UP: Final = frozenset({Move.CUT, Move.GARBAGE, Move.ENDLESS})


@dataclass(slots=True)
class Arrival:
    """A notification as a sink saw it, alone in a request or in a batch.

    Times are real seconds since 1970, and those of the test's clock.
    """

    subscription: str
    sequence: int
    process: str
    event: str
    move: Move
    retry_after: int
    begun: float
    begun_by_clock: float
    request: int = 0
    """In which it came."""
    company: int = 1
    """Notifications in that request."""
    ended: float = 0.0
    """When it was answered, or given up by the other side."""
    ended_by_clock: float = 0.0

    @property
    def accepted(self) -> bool:
        return self.move in SUCCESSES

    @property
    def asked(self) -> bool:
        """A batch that was refused says something of the batch, and nothing yet of this one."""
        return self.move is Move.REFUSE and self.company > 1

    def __str__(self) -> str:
        return f"#{self.sequence} ({self.move} by {self.process} at {self.begun:.3f}–{self.ended:.3f})"


@dataclass
class Script:
    """What the sink of one subscription does next: the moves in turn, then the last one for ever."""

    moves: deque[Move]
    last: Move
    retry_after: int
    batch: bool = False
    arrivals: list[Arrival] = field(default_factory=list)

    def next(self) -> Move:
        return self.moves.popleft() if self.moves else self.last


@dataclass
class ScriptedSinks:
    """All sinks, at one port; the target of a sink is the id of its subscription's script."""

    clock: Callable[[], float]
    scripts: dict[str, Script] = field(default_factory=dict)
    requests: int = 0
    strays: list[str] = field(default_factory=list)
    """Requests that no sink of ours was asked for."""
    _open: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def __aenter__(self) -> Self:
        self.port = await self._open.enter_async_context(serving(self._serve, backlog=1024))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await self._answer(reader, writer):
            pass

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; whether the connection may stay."""
        head, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = head.split(" ")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(fields["content-length"]))
        script = self.scripts.get(target.removeprefix("/"))
        if script is not None and method == "OPTIONS":  # it is asked again after it was gone
            writer.write(_CONSENT)
            return True
        if script is None or method != "POST":
            self.strays.append(head)
            writer.write(_BYTES[Move.FAIL])
            return True
        content = json.loads(body)
        events = content if script.batch else [content]
        kind, subscription, sequence, *_ = fields["webhook-id"].split("_")
        assert (kind, events[0]["subscriptionsequence"]) == ("bat" if script.batch else "dlv", sequence)
        move = script.next()
        self.requests += 1
        arrivals = [
            Arrival(
                subscription, int(event["subscriptionsequence"]), fields["webhook-request-origin"], event["id"], move,
                script.retry_after, time.time(), self.clock(), self.requests, len(events),
            )
            for event in events
        ]  # fmt: skip
        script.arrivals.extend(arrivals)
        try:
            return await self._do(arrivals, reader, writer)
        finally:
            if not arrivals[0].ended:
                _end(arrivals, self.clock)

    async def _do(self, arrivals: list[Arrival], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        move = arrivals[0].move
        if move is Move.SLOW:
            await asyncio.sleep(_SLOW_SECONDS)
        elif move is Move.HANG:
            await reader.read(1)  # until the other side gives up
            return False
        elif move is Move.DRIP:
            writer.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while not reader.at_eof():
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.05)
            return False
        elif move is Move.DROP:
            return False
        if move in THROTTLES:
            status = "429 Too Many Requests" if move is Move.THROTTLE else "503 Service Unavailable"
            data = f"HTTP/1.1 {status}\r\nRetry-After: {arrivals[0].retry_after}\r\nContent-Length: 0\r\n\r\n".encode()
        else:
            data = _BYTES[move]
        _end(arrivals, self.clock)
        writer.write(data)
        await writer.drain()
        return move not in _HANGS_UP


def _end(arrivals: list[Arrival], clock: Callable[[], float]) -> None:
    for arrival in arrivals:
        arrival.ended, arrival.ended_by_clock = time.time(), clock()
