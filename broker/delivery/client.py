"""A lean HTTP/1.1 client for posting to sinks: keep-alive, fenced, capped and time-limited.

It does what a sender of webhooks needs and nothing else: no redirects, no cookies, no decompression. A request on a
kept connection costs no task; only where a connection has to be made is there one. Why it is ours:
docs/decisions/0001-http-client.md.
"""

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from typing import Final

from broker.delivery.connections import Connection
from broker.delivery.dialling import Dialler
from broker.delivery.exchanges import Answer, Exchange, Origin, SendError, Target, Waiting, WaitingOnce
from broker.delivery.fence import Fence
from broker.delivery.outcomes import Reason
from broker.delivery.proxy import Proxy
from broker.delivery.tls import Contexts, TlsIdentity

IDLE_SECONDS: Final = 30.0
_IDLE_MAX: Final = 2048
"""Connections that are kept though nothing is asked on them: files that the process has open."""


class Client:
    """Posts over pooled connections, each made to an address that the fence has judged."""

    def __init__(
        self, fence: Fence, *, total_seconds: float, tls: Contexts | None = None, proxy: Proxy | None = None
    ) -> None:
        """Make a client.

        Args:
            fence: judges every address before it is connected to.
            total_seconds: limit for one request, from look-up to the last byte of the answer.
            tls: trust and identity for https; the system's trust alone by default.
            proxy: what everything goes through; then the fence that counts is its.
        """
        self.dialler = Dialler(fence, tls=tls, proxy=proxy)
        """Makes its connections, and those of other protocols."""
        self._total_seconds = total_seconds
        self._idle: dict[Origin, deque[Connection]] = {}
        self._idle_count = 0
        self._limits: deque[tuple[float, Connection, int]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    async def request(
        self, method: str, target: Target, headers: Mapping[str, str], body: bytes = b"", *, once: bool = False
    ) -> Answer:
        """Send one request and read its answer, with the first bytes of its body.

        `once`: never twice, whatever becomes of the connection, and with the whole body, up to `MAX_BODY_BYTES`.

        Raises:
            SendError: when there is no usable answer; never for a status.
        """
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        head = f"{target.head(method)}{lines}content-length: {len(body)}\r\n\r\n".encode("latin-1")
        kind = WaitingOnce if once else Waiting
        waiting = kind(asyncio.get_running_loop().create_future())
        self.send(target, head + body, waiting)
        try:
            return await waiting.future
        finally:
            waiting.abandon()

    @property
    def total_seconds(self) -> float:
        """Limit for one request."""
        return self._total_seconds

    def send(self, target: Target, data: bytes, exchange: Exchange, deadline: float | None = None) -> None:
        """Send one whole request; `exchange` is told of its end. `deadline`, by the loop's clock, can only be earlier.

        A kept connection that turns out at once to be closed, before any byte of an answer, is replaced once, within
        the same attempt: the sink's idle limit is not its failure. What may go `once` only never takes a kept one.
        """
        connection = None if exchange.once else self._take_idle(target)
        if deadline is not None:  # out of line with the limits below
            if connection is None:
                self.replace(target, data, exchange, deadline)
            else:
                asyncio.get_running_loop().call_at(deadline, self._limit, connection, connection.number + 1)
                connection.begin(exchange, data, deadline)
            return
        deadline = asyncio.get_running_loop().time() + self._total_seconds
        if connection is None:
            self.replace(target, data, exchange, deadline)
            return
        # All have the same time, so that their limits come in the order in which they began: one timer serves them all.
        self._limits.append((deadline, connection, connection.number + 1))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_at(deadline, self._look_at_limits)
        connection.begin(exchange, data, deadline)

    def replace(self, target: Target, data: bytes, exchange: Exchange, deadline: float) -> None:
        """Send the request over a new connection."""
        task = asyncio.get_running_loop().create_task(self._open(target, data, exchange, deadline))
        exchange._carrier = task
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _open(self, target: Target, data: bytes, exchange: Exchange, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                connection = await self._connect(target)
        except TimeoutError:
            exchange._carrier = None
            exchange.failed(Reason.TIMEOUT)
        except SendError as error:
            exchange._carrier = None
            exchange.failed(error.reason)
        else:
            exchange._carrier = None
            if exchange.may_go():
                asyncio.get_running_loop().call_at(deadline, self._limit, connection, connection.number + 1)
                connection.begin(exchange, data, deadline)
            else:
                connection.close()

    def _limit(self, connection: Connection, number: int) -> None:
        if connection.number == number and connection.busy:
            connection.fail(Reason.TIMEOUT)

    def _look_at_limits(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        limits = self._limits
        while limits:
            deadline, connection, number = limits[0]
            if deadline > now and connection.number == number and connection.busy:
                self._timer = loop.call_at(deadline, self._look_at_limits)
                return
            limits.popleft()
            self._limit(connection, number)
        self._timer = None

    def take_back(self, connection: Connection) -> None:
        """Keep a connection whose request was answered, if it can be used again."""
        if not connection.usable or connection.generation != self.dialler.generation or self._idle_count >= _IDLE_MAX:
            connection.close()
        else:
            connection.idle_since = time.monotonic()
            self._idle.setdefault(connection.target.origin, deque()).append(connection)
            self._idle_count += 1

    def _take_idle(self, target: Target) -> Connection | None:
        idle = self._idle.get(target.origin)
        while idle:
            connection = idle.pop()
            self._idle_count -= 1
            if connection.usable:
                return connection
        return None

    async def _connect(self, target: Target) -> Connection:
        generation = self.dialler.generation
        connection = await self.dialler.dial(target, lambda: Connection(self, target))
        connection.generation = generation
        return connection

    def close_idle(self, older_than: float = IDLE_SECONDS) -> None:
        """Close connections that have been idle for longer than `older_than` seconds."""
        limit = time.monotonic() - older_than
        for origin in list(self._idle):
            kept = deque[Connection]()
            for connection in self._idle[origin]:
                if connection.usable and connection.idle_since >= limit:
                    kept.append(connection)
                else:
                    connection.close()
            self._idle_count += len(kept) - len(self._idle[origin])
            if kept:
                self._idle[origin] = kept
            else:
                del self._idle[origin]

    def replace_identity(self, own: TlsIdentity | None) -> None:
        """Show another identity of the broker in new connections; those there are close when they are idle.

        Raises:
            ValueError, ssl.SSLError: it can't be used; nothing changes.
        """
        self.dialler.replace_identity(own)
        self.close_idle(older_than=-1)

    def close(self) -> None:
        """Close every idle connection, and make no more."""
        for task in self._connecting:
            task.cancel()
        self.close_idle(older_than=-1)
