"""A lean HTTP/1.1 client for posting to sinks: keep-alive, fenced, capped and time-limited.

It does what a sender of webhooks needs and nothing else: no redirects, no cookies, no decompression. Parsing is
llhttp's (httptools). Why it is ours: docs/decisions/0001-http-client.md.
"""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import httptools

from broker.delivery.fence import Fence, FenceError, ResolveError
from broker.delivery.outcomes import Reason

MAX_HEADER_BYTES: Final = 32 * 1024
MAX_BODY_BYTES: Final = 64 * 1024
EXCERPT_BYTES: Final = 1024
IDLE_SECONDS: Final = 30.0
_KEPT_HEADERS: Final = frozenset(
    {b"retry-after", b"webhook-allowed-origin", b"webhook-allowed-rate", b"allow", b"location"}
)


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

    @classmethod
    def of(cls, url: str) -> "Target":
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
        return cls(secure, parts.hostname, port, path, authority)

    @property
    def origin(self) -> tuple[bool, str, int]:
        """What connections can be shared by."""
        return (self.secure, self.host, self.port)


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


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    __slots__ = (
        "_answer",
        "_framed",
        "_limit",
        "_parser",
        "_pending",
        "_received",
        "idle_since",
        "transport",
        "usable",
    )

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.usable = True
        self.idle_since = 0.0
        self._pending: asyncio.Future[Answer] | None = None
        self._answer = Answer()
        self._limit: asyncio.TimerHandle | None = None
        self._framed = False
        self._received = 0

    def request(self, data: bytes, deadline: float) -> "asyncio.Future[Answer]":
        loop = asyncio.get_running_loop()
        self._pending = future = loop.create_future()
        self._limit = loop.call_at(deadline, self._fail, Reason.TIMEOUT)
        self._answer = Answer()
        self._framed = False
        self._received = 0
        if self.usable:
            self.transport.write(data)
        else:
            self._fail(Reason.CLOSED)
        return future

    @property
    def answered(self) -> bool:
        """Whether any byte of an answer to the current request has come."""
        return self._received > 0

    def close(self) -> None:
        self.usable = False
        self._take_pending()
        self.transport.abort()

    # asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # a stream transport, by create_connection
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        if self._pending is None:  # bytes that nobody asked for
            self.close()
            return
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(Reason.NONSENSE)
            return
        if self._pending is None:
            return
        if not self._answer.status and self._received > MAX_HEADER_BYTES:
            self._fail(Reason.OVERSIZED)
        elif self._received > MAX_HEADER_BYTES + MAX_BODY_BYTES:
            # the status stands; reading on is what a hostile sink wants
            self._finish()
            self.usable = False
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        if self._answer.status and not self._framed and error is None:
            # an answer whose end is the end of the connection (RFC 9112, 6.3)
            self._finish()
        else:
            self._fail(Reason.CLOSED)

    # httptools
    def on_message_begin(self) -> None:
        if self._pending is None:  # an answer behind the answer: the next request must not be given it
            self.usable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._answer.status:  # a trailer, which says nothing here
            return
        lowered = name.lower()
        if lowered in _KEPT_HEADERS:
            self._answer.headers.setdefault(lowered.decode(), []).append(value.decode("latin-1").strip())
        elif lowered in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self._answer.status = status
            self.usable = self.usable and self._parser.should_keep_alive()
        else:  # an interim answer; the real one follows
            self._answer.headers.clear()
            self._framed = False

    def on_body(self, data: bytes) -> None:
        room = EXCERPT_BYTES - len(self._answer.excerpt)
        if room > 0:
            self._answer.excerpt += data[:room]

    def on_message_complete(self) -> None:
        if self._answer.status:
            self._finish()

    def _take_pending(self) -> "asyncio.Future[Answer] | None":
        pending, self._pending = self._pending, None
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
        return pending

    def _finish(self) -> None:
        pending = self._take_pending()
        answer, self._answer = self._answer, Answer()  # what comes after it can't change it
        if pending is not None and not pending.done():
            pending.set_result(answer)

    def _fail(self, reason: Reason) -> None:
        self.usable = False
        pending = self._take_pending()
        if pending is not None and not pending.done():
            pending.set_exception(SendError(reason))
        self.transport.abort()


class Client:
    """Posts over pooled connections, each made to an address that the fence has judged."""

    def __init__(self, fence: Fence, *, total_seconds: float, tls: ssl.SSLContext | None = None) -> None:
        """Make a client.

        Args:
            fence: judges every address before it is connected to.
            total_seconds: limit for one request, from look-up to the last byte of the answer.
            tls: trust and identity for https; the system's trust by default.
        """
        self._fence = fence
        self._total_seconds = total_seconds
        self._tls = tls or ssl.create_default_context()
        self._idle: dict[tuple[bool, str, int], deque[_Connection]] = {}

    async def request(self, method: str, target: Target, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        """Send one request and read its answer.

        A kept connection that turns out to be closed before any byte of an answer is replaced once, within the
        same attempt: the sink's idle limit is not its failure.

        Raises:
            SendError: when there is no usable answer; never for a status.
        """
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        data = (
            f"{method} {target.path} HTTP/1.1\r\nhost: {target.authority}\r\n{lines}content-length: {len(body)}\r\n\r\n"
        ).encode("latin-1") + body
        deadline = asyncio.get_running_loop().time() + self._total_seconds
        connection = self._take_idle(target)
        try:
            if connection is not None:
                try:
                    answer = await connection.request(data, deadline)
                except SendError as error:
                    if error.reason is not Reason.CLOSED or connection.answered:
                        raise
                    connection = None
            if connection is None:
                async with asyncio.timeout_at(deadline):
                    connection = await self._connect(target)
                answer = await connection.request(data, deadline)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, TimeoutError):
                raise SendError(Reason.TIMEOUT) from None
            raise
        if connection.usable:
            connection.idle_since = time.monotonic()
            self._idle.setdefault(target.origin, deque()).append(connection)
        else:
            connection.close()
        return answer

    def _take_idle(self, target: Target) -> _Connection | None:
        idle = self._idle.get(target.origin)
        while idle:
            connection = idle.pop()
            if connection.usable:
                return connection
        return None

    async def _connect(self, target: Target) -> _Connection:
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
                    _Connection,
                    address,
                    target.port,
                    ssl=self._tls if target.secure else None,
                    server_hostname=target.host if target.secure else None,
                )
            except (OSError, ssl.SSLError) as error:
                last = error
                continue
            return connection
        raise SendError(Reason.TLS if isinstance(last, ssl.SSLError) else Reason.REFUSED) from last

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
            if kept:
                self._idle[origin] = kept
            else:
                del self._idle[origin]

    def close(self) -> None:
        """Close every idle connection."""
        self.close_idle(older_than=-1)
