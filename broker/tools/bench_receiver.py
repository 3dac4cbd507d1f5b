"""The benchmarks' own receiver, a process of its own: answers 204 to everything and notes when each event came.

It verifies nothing. `GET /arrivals` gives what came since it was asked last: pairs of 64-bit integers, the event's
number (the last 48 bits of its id, a UUID) and the nanosecond of the machine's monotonic clock at which the last byte
of the request was there.
"""

import asyncio
import gc
import json
import os
import signal
import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import uvloop

_CONSENT: Final = b"HTTP/1.1 204 No Content\r\nWebHook-Allowed-Origin: *\r\nWebHook-Allowed-Rate: *\r\n\r\n"
_ID: Final = b'"id":"'
_UUID_LENGTH: Final = 36
_LAST_GROUP: Final = 24


class _Exchange(asyncio.Protocol):
    """One connection, requests one after the other."""

    def __init__(self, arrivals: "array[int]") -> None:
        self._arrivals = arrivals
        self._buffer = b""
        self._needed = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # a stream's, by create_server

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        while len(self._buffer) >= self._needed:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[:end]
            self._needed = end + 4 + _length(head)
            if len(self._buffer) < self._needed:
                return
            self._answer(head, self._buffer[end + 4 : self._needed])
            self._buffer = self._buffer[self._needed :]
            self._needed = 0
            if not self._buffer:
                return

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET"):
            content = self._arrivals.tobytes()
            del self._arrivals[:]
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content) + content)
            return
        self._transport.write(_CONSENT)
        now = time.monotonic_ns()
        place = body.find(_ID)
        while place >= 0:
            start = place + len(_ID)
            try:
                number = int(body[start + _LAST_GROUP : start + _UUID_LENGTH], 16)
            except ValueError:  # not one of the benchmark's events
                return
            self._arrivals.extend((number, now))
            place = body.find(_ID, start) if body.startswith(b"[") else -1  # a batch has several


def _length(head: bytes) -> int:
    lowered = head.lower()
    place = lowered.find(b"\r\ncontent-length:")
    return int(lowered[place + 17 :].split(b"\r\n", 1)[0]) if place >= 0 else 0


async def serve(addresses: Sequence[str], ready: Path) -> None:
    """Listen on one port of all the addresses until SIGTERM; `ready` then holds `pid` and `port`."""
    loop = asyncio.get_running_loop()
    arrivals: array[int] = array("q")
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    servers = [await loop.create_server(lambda: _Exchange(arrivals), addresses[0], 0, backlog=4096)]
    port: int = servers[0].sockets[0].getsockname()[1]
    for address in addresses[1:]:
        servers.append(await loop.create_server(lambda: _Exchange(arrivals), address, port, backlog=4096))
    gc.freeze()
    new = ready.with_suffix(".new")
    new.write_text(json.dumps({"pid": os.getpid(), "port": port}))
    new.replace(ready)
    await stop.wait()
    for server in servers:
        server.close()


def main() -> None:
    """Run with the ready file and the addresses as arguments."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[2:], Path(sys.argv[1])))


if __name__ == "__main__":
    main()
