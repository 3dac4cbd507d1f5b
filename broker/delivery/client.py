"""A lean HTTP/1.1 client for posting to sinks: keep-alive, fenced, capped and time-limited.

It does what a sender of webhooks needs and nothing else: no redirects, no cookies, no decompression. Parsing is
llhttp's (httptools). A request on a kept connection costs a write and a call back, no task; only where a connection
has to be made is there one. Why it is ours: docs/decisions/0001-http-client.md.
"""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol
from urllib.parse import urlsplit

import httptools

from broker.delivery.fence import Fence, FenceError, ResolveError
from broker.delivery.outcomes import Reason
from broker.delivery.proxy import NotAllowed, NotReached, Proxy, ProxyError, Silent
from broker.delivery.tls import Contexts, TlsIdentity

MAX_HEADER_BYTES: Final = 32 * 1024
MAX_BODY_BYTES: Final = 64 * 1024
EXCERPT_BYTES: Final = 1024
IDLE_SECONDS: Final = 30.0
_IDLE_MAX: Final = 2048
"""Connections that are kept though nothing is asked on them: files that the process has open."""
_KEPT_HEADERS: Final = frozenset(
    {b"retry-after", b"webhook-allowed-origin", b"webhook-allowed-rate", b"allow", b"location"}
)
_FRAMING_HEADERS: Final = frozenset({b"content-length", b"transfer-encoding"})


class SendError(Exception):
    """No usable answer; `reason` says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Target:
    """A sink's URL, taken apart once."""

    secure: bool
    host: str
    port: int
    path: str
    authority: str
    tls: TlsIdentity | None = None
    """Trust and identity for this target alone; None: the client's."""

    @classmethod
    def of(cls, url: str, tls: TlsIdentity | None = None) -> "Target":
        """Take apart an absolute http(s) URL that the API has accepted.

        Raises:
            ValueError: when it is not one.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise ValueError("not an absolute http(s) URL without credentials")
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not url.isascii() or any(c <= " " for c in url):
            raise ValueError("the URL has characters that must be encoded")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        authority = host if port == (443 if secure else 80) else f"{host}:{port}"
        return cls(secure, parts.hostname, port, path, authority, tls)

    @property
    def origin(self) -> "Origin":
        """What connections can be shared by: never by targets that identify themselves differently."""
        return (self.secure, self.host, self.port, None if self.tls is None else self.tls.digest)

    def head(self, method: str) -> str:
        """A request's first lines, up to the first header that isn't always the same."""
        return f"{method} {self.path} HTTP/1.1\r\nhost: {self.authority}\r\n"


Origin = tuple[bool, str, int, str | None]


@dataclass(slots=True)
class Answer:
    """A sink's answer: status, the few headers that matter (lower case), and the first bytes of its body."""

    status: int = 0
    headers: dict[str, list[str]] = field(default_factory=dict)
    excerpt: bytes = b""

    def header(self, name: str) -> str | None:
        """The header's first value."""
        values = self.headers.get(name)
        return values[0] if values else None


class Cancellable(Protocol):
    """What can be given up."""

    def cancel(self) -> object:
        """Give it up."""


class Exchange:
    """One request and its answer. Exactly one of `answered` and `failed` is called, once, unless it is abandoned."""

    __slots__ = ("_carrier",)

    kept_bytes: ClassVar[int] = EXCERPT_BYTES
    """Of the answer's body."""

    def __init__(self) -> None:
        self._carrier: _Connection | Cancellable | None = None

    def may_go(self) -> bool:
        """Asked after a connection was made, which takes time: whether the request may still be sent.

        If not, nothing is told any more, as if it were abandoned.
        """
        return True

    def answered(self, answer: Answer) -> None:
        """The answer has been read to its end."""
        raise NotImplementedError

    def failed(self, reason: Reason) -> None:
        """There is no usable answer."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Give it up, with its connection; nothing is told any more."""
        carrier, self._carrier = self._carrier, None
        if isinstance(carrier, _Connection):
            carrier.close()
        elif carrier is not None:
            carrier.cancel()


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    __slots__ = (
        "_answer",
        "_client",
        "_data",
        "_ended",
        "_exchange",
        "_framed",
        "_kept",
        "_parser",
        "_received",
        "deadline",
        "generation",
        "idle_since",
        "number",
        "target",
        "transport",
        "usable",
    )

    transport: asyncio.Transport

    def __init__(self, client: "Client", target: Target) -> None:
        self._client = client
        self.target = target
        self.usable = True
        self.idle_since = 0.0
        self.generation = 0
        self.number = 0
        """Of the request that it carries, or carried last."""
        self.deadline = 0.0
        self._kept = False
        self._exchange: Exchange | None = None
        self._answer = Answer()
        self._received = 0
        self._framed = False
        self._ended = False

    def begin(self, exchange: Exchange, data: bytes, deadline: float) -> None:
        self._exchange = exchange
        self._data = data
        self.deadline = deadline
        self.number += 1
        self._answer = Answer()
        self._received = 0
        self._framed = False
        self._ended = False
        exchange._carrier = self
        if self.usable:
            self.transport.write(data)
        else:
            self.fail(Reason.CLOSED)

    @property
    def busy(self) -> bool:
        """Whether it carries a request."""
        return self._exchange is not None

    def close(self) -> None:
        """Nobody is told."""
        self.usable = False
        self._exchange = None
        self.transport.abort()

    def fail(self, reason: Reason) -> None:
        """There will be no usable answer to the request, if there is one."""
        exchange, kept = self._exchange, self._kept and not self._received
        self.close()
        if exchange is None:
            return
        exchange._carrier = None
        if reason is Reason.CLOSED and kept:
            self._client.replace(self.target, self._data, exchange, self.deadline)
        else:
            exchange.failed(reason)

    # asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream transport, by create_connection
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        if self._exchange is None:  # bytes that nobody asked for
            self.close()
            return
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self._ended:
                self.fail(Reason.NONSENSE)
                return
            self.usable = False  # nonsense behind the answer, which stands
        if self._ended:
            self._finish()
        elif self._answer.status:
            if self._received > MAX_HEADER_BYTES + MAX_BODY_BYTES:
                self.usable = False  # the status stands; reading on is what a hostile sink wants
                self._finish()
        elif self._received > MAX_HEADER_BYTES:
            self.fail(Reason.OVERSIZED)

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        if self._exchange is None:
            return
        if self._answer.status and not self._framed and error is None:
            self._finish()  # an answer whose end is the end of the connection (RFC 9112, 6.3)
        else:
            # in TLS 1.3 a certificate of ours that isn't taken is told after the handshake
            self.fail(Reason.TLS if isinstance(error, ssl.SSLError) else Reason.CLOSED)

    def _finish(self) -> None:
        exchange, self._exchange = self._exchange, None
        assert exchange is not None
        exchange._carrier = None
        self._kept = True
        self._client.take_back(self)  # first: what is sent next may go over it
        exchange.answered(self._answer)

    # httptools; once the answer has ended, what comes behind it changes nothing but that the connection isn't kept
    def on_message_begin(self) -> None:
        if self._ended:
            self.usable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._answer.status or self._ended:  # a trailer, which says nothing here
            return
        lowered = name.lower()
        if lowered in _KEPT_HEADERS:
            self._answer.headers.setdefault(lowered.decode(), []).append(value.decode("latin-1").strip())
        elif lowered in _FRAMING_HEADERS:
            self._framed = True

    def on_headers_complete(self) -> None:
        if self._ended:
            return
        status = self._parser.get_status_code()
        if status >= 200:
            self._answer.status = status
            self.usable = self.usable and self._parser.should_keep_alive()
        else:  # an interim answer; the real one follows
            self._answer.headers.clear()
            self._framed = False

    def on_body(self, data: bytes) -> None:
        if self._ended or self._exchange is None:
            return
        room = self._exchange.kept_bytes - len(self._answer.excerpt)
        if room > 0:
            self._answer.excerpt += data[:room]

    def on_message_complete(self) -> None:
        if self._answer.status:
            self._ended = True


class Waiting(Exchange):
    """An exchange whose end somebody awaits."""

    __slots__ = ("future",)

    def __init__(self, future: "asyncio.Future[Answer]") -> None:
        super().__init__()
        self.future = future

    def answered(self, answer: Answer) -> None:
        """Hand it to who waits."""
        if not self.future.done():
            self.future.set_result(answer)

    def failed(self, reason: Reason) -> None:
        """Raise it where somebody waits."""
        if not self.future.done():
            self.future.set_exception(SendError(reason))


class _WaitingForAll(Waiting):
    """One whose whole answer somebody awaits."""

    __slots__ = ()
    kept_bytes = MAX_BODY_BYTES


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
        self._fence = fence
        self._total_seconds = total_seconds
        self._tls = tls or Contexts()
        self._proxy = proxy
        self._generation = 0
        """Raised when we show ourselves otherwise: connections from before carry no more requests."""
        self._idle: dict[Origin, deque[_Connection]] = {}
        self._idle_count = 0
        self._limits: deque[tuple[float, _Connection, int]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    async def request(
        self, method: str, target: Target, headers: Mapping[str, str], body: bytes = b"", *, whole: bool = False
    ) -> Answer:
        """Send one request and read its answer, with its first bytes or, up to `MAX_BODY_BYTES`, the `whole` of it.

        Raises:
            SendError: when there is no usable answer; never for a status.
        """
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        head = f"{target.head(method)}{lines}content-length: {len(body)}\r\n\r\n".encode("latin-1")
        kind = _WaitingForAll if whole else Waiting
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

        A kept connection that turns out to be closed before any byte of an answer is replaced once, within the
        same attempt: the sink's idle limit is not its failure.
        """
        connection = self._take_idle(target)
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

    def _limit(self, connection: _Connection, number: int) -> None:
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

    def take_back(self, connection: _Connection) -> None:
        """Keep a connection whose request was answered, if it can be used again."""
        if not connection.usable or connection.generation != self._generation or self._idle_count >= _IDLE_MAX:
            connection.close()
        else:
            connection.idle_since = time.monotonic()
            self._idle.setdefault(connection.target.origin, deque()).append(connection)
            self._idle_count += 1

    def _take_idle(self, target: Target) -> _Connection | None:
        idle = self._idle.get(target.origin)
        while idle:
            connection = idle.pop()
            self._idle_count -= 1
            if connection.usable:
                return connection
        return None

    async def _connect(self, target: Target) -> _Connection:
        generation = self._generation
        try:
            context = self._tls.of(target.tls) if target.secure else None
        except (ValueError, ssl.SSLError):  # what the API has taken, OpenSSL doesn't
            raise SendError(Reason.TLS) from None
        if self._proxy is None:
            connection = await self._connect_directly(target, context)
        else:
            connection = await self._connect_through(self._proxy, target, context)
        connection.generation = generation
        return connection

    async def _connect_directly(self, target: Target, context: ssl.SSLContext | None) -> _Connection:
        loop = asyncio.get_running_loop()
        last: Exception | None = None
        try:
            addresses = await self._fence.resolve(target.host, target.port)
        except FenceError:
            raise SendError(Reason.FENCED) from None
        except ResolveError:
            raise SendError(Reason.UNRESOLVED) from None
        for address in addresses:
            try:
                _, connection = await loop.create_connection(
                    lambda: _Connection(self, target),
                    address,
                    target.port,
                    ssl=context,
                    server_hostname=target.host if target.secure else None,
                )
            except (OSError, ssl.SSLError) as error:
                last = error
                continue
            return connection
        raise SendError(Reason.TLS if isinstance(last, ssl.SSLError) else Reason.REFUSED) from last

    async def _connect_through(self, proxy: Proxy, target: Target, context: ssl.SSLContext | None) -> _Connection:
        """Connect through the proxy, whose fence counts: of ours only what can be told from the URL."""
        try:
            self._fence.check_port(target.port)
            self._fence.check_literal(target.host)
            transport = await proxy.tunnel(target.host, target.port)
        except (FenceError, NotAllowed):
            raise SendError(Reason.FENCED) from None
        except NotReached:
            raise SendError(Reason.REFUSED) from None
        except Silent:
            raise SendError(Reason.TIMEOUT) from None
        except ProxyError:
            raise SendError(Reason.PROXY) from None
        connection = _Connection(self, target)
        if context is None:
            transport.set_protocol(connection)
            connection.connection_made(transport)
            return connection
        secured = None
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport, connection, context, server_hostname=target.host
            )
        except ssl.SSLError:
            raise SendError(Reason.TLS) from None
        except OSError:
            raise SendError(Reason.REFUSED) from None
        finally:
            if secured is None:
                transport.abort()
        if secured is None:  # closed meanwhile
            raise SendError(Reason.REFUSED)
        connection.connection_made(secured)
        return connection

    def close_idle(self, older_than: float = IDLE_SECONDS) -> None:
        """Close connections that have been idle for longer than `older_than` seconds."""
        limit = time.monotonic() - older_than
        for origin in list(self._idle):
            kept = deque[_Connection]()
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
        self._tls.replace(own)
        self._generation += 1
        self.close_idle(older_than=-1)

    def close(self) -> None:
        """Close every idle connection, and make no more."""
        for task in self._connecting:
            task.cancel()
        self.close_idle(older_than=-1)
