"""TCP links between our processes and their servers, which can be cut, slowed, and left half open.

Each process has a link of its own to each server, so that a fault can hit one process or all of them. A link that is
stalled tells neither side anything: not what the other sent, and not that it is gone. That is what half open means.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Self, cast

_BUFFERED_BYTES = 1 << 20

Address = Callable[[], int]
"""The port on the loopback address that a link leads to now."""


class State(StrEnum):
    OPEN = "open"
    CUT = "cut"
    """Connections are reset, new ones too."""
    STALLED = "stalled"
    """Nothing arrives on either side, and nobody is told."""
    DEAF = "deaf"
    """What clients send arrives, and what servers answer doesn't; the connections are reset in the end."""


class Link:
    """One way from one process to one server. `async with` listens."""

    def __init__(self, target: Address) -> None:
        self.state = State.OPEN
        self.delay = 0.0
        self.port = 0
        self.connections = 0
        """Ever made."""
        self._target = target
        self._sides: set[_Side] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Client(self), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.reset()

    def become(self, state: State) -> None:
        """Enter a state. What was held back goes on, unless the connections are reset by it."""
        former, self.state = self.state, state
        if state is State.CUT or former is State.DEAF:
            self.reset()
        elif state is State.OPEN:
            for side in list(self._sides):
                side.go_on()

    def reset(self) -> None:
        """Reset every connection."""
        for side in list(self._sides):
            side.abort()

    def received(self) -> Iterator[int]:
        """Bytes that each client of a standing connection was given."""
        return (side.written for side in self._sides if isinstance(side, _Client))

    async def _connect(self, client: "_Client") -> None:
        try:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(5):
                await loop.create_connection(lambda: _Upstream(self, client), "127.0.0.1", self._target())
        except (OSError, TimeoutError):
            client.abort()

    def accepted(self, client: "_Client") -> None:
        self.connections += 1
        if self.state is State.CUT:
            client.abort()
            return
        task = asyncio.create_task(self._connect(client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Side(asyncio.Protocol):
    """One end of a connection through a link; `peer` is the other."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.peer: _Side | None = None
        self.transport: asyncio.Transport | None = None
        self.written = 0
        self.lost = False
        self._outbox: deque[tuple[float, bytes | None]] = deque()  # for the peer; None: our end
        self._held = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by name
        self.link._sides.add(self)

    def data_received(self, data: bytes) -> None:
        if self.link.state is State.DEAF and isinstance(self, _Upstream):
            return
        self._put(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._put(None)

    def pause_writing(self) -> None:
        self._peer_reads(False)

    def resume_writing(self) -> None:
        self._peer_reads(True)

    def _peer_reads(self, reads: bool) -> None:
        if self.peer is not None and self.peer.transport is not None and not self.peer.lost:
            with contextlib.suppress(RuntimeError):
                self.peer.transport.resume_reading() if reads else self.peer.transport.pause_reading()

    def _put(self, data: bytes | None) -> None:
        due = asyncio.get_running_loop().time() + self.link.delay
        self._outbox.append((due, data))
        self._held += len(data or b"")
        if self._held > _BUFFERED_BYTES and self.transport is not None and not self.lost:
            self.transport.pause_reading()
        self.go_on()

    def go_on(self) -> None:
        """Hand over what is due."""
        if self.link.state is State.STALLED or self.peer is None or self.peer.transport is None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        while self._outbox:
            due, data = self._outbox[0]
            if self.link.delay and due > loop.time():
                self._timer = loop.call_at(due, self.go_on)
                return
            self._outbox.popleft()
            if data is None:
                self.link._sides.discard(self)
                self.peer.transport.close()
                return
            self._held -= len(data)
            if not self.peer.lost:
                self.peer.written += len(data)
                self.peer.transport.write(data)
        if self.transport is not None and not self.lost:
            with contextlib.suppress(RuntimeError):
                self.transport.resume_reading()

    def abort(self) -> None:
        self.link._sides.discard(self)
        self._outbox.clear()
        for side in (self, self.peer):
            if side is not None and side.transport is not None:
                side.transport.abort()


class _Client(_Side):
    """The side of our process."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.link.accepted(self)


class _Upstream(_Side):
    """The side of the server."""

    def __init__(self, link: Link, client: _Client) -> None:
        super().__init__(link)
        self.peer = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.peer is not None
        self.peer.peer = self
        self.peer.go_on()
