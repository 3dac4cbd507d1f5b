"""One HTTP/1.1 connection to a sink. Parsing is llhttp's (httptools); a request costs a write and a call back."""

import asyncio
import ssl
import time
from typing import Final, Protocol

import httptools

from broker.delivery.exchanges import MAX_BODY_BYTES, Answer, Exchange, Target
from broker.delivery.outcomes import Reason

MAX_HEADER_BYTES: Final = 32 * 1024
_KEPT_HEADERS: Final = frozenset(
    {b"retry-after", b"webhook-allowed-origin", b"webhook-allowed-rate", b"allow", b"location"}
)
REPLACE_SECONDS: Final = 1.0
"""A kept connection that the sink had closed says so within a round trip. Later it was the request that was closed on,
which the sink may have taken: that is an answer, if a poor one."""
_FRAMING_HEADERS: Final = frozenset({b"content-length", b"transfer-encoding"})


class Owner(Protocol):
    """Who made the connection, and keeps it when it is idle."""

    def replace(self, target: Target, data: bytes, exchange: Exchange, deadline: float) -> None:
        """Send the request over a new connection: this one was closed before any byte of an answer."""

    def take_back(self, connection: "Connection") -> None:
        """Its request was answered."""


class Connection(asyncio.Protocol):
    """One connection, one request at a time; what the sink says is capped and judged as it comes."""

    __slots__ = (
        "_answer",
        "_begun",
        "_data",
        "_ended",
        "_exchange",
        "_framed",
        "_kept",
        "_owner",
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

    def __init__(self, owner: Owner, target: Target) -> None:
        self._owner = owner
        self.target = target
        self.usable = True
        self.idle_since = 0.0
        self.generation = 0
        self.number = 0
        """Of the request that it carries, or carried last."""
        self.deadline = 0.0
        self._kept = False
        self._begun = 0.0
        self._exchange: Exchange | None = None
        self._answer = Answer()
        self._received = 0
        self._framed = False
        self._ended = False

    def begin(self, exchange: Exchange, data: bytes, deadline: float) -> None:
        """Send one whole request, whose end `exchange` is told; the owner keeps to the deadline."""
        self._exchange = exchange
        self._data = data
        self._begun = time.monotonic()
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

    def cancel(self) -> None:
        """Give up what it carries."""
        self.close()

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
        if reason is Reason.CLOSED and kept and time.monotonic() - self._begun < REPLACE_SECONDS:
            self._owner.replace(self.target, self._data, exchange, self.deadline)
        else:
            exchange.failed(reason)

    # asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self.transport = transport  # type: ignore[assignment]  # a stream transport, by create_connection
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        """Some bytes of an answer, or of what nobody asked for."""
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
        """It is closed."""
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
        self.usable = self.usable and not exchange.once
        self._owner.take_back(self)  # first: what is sent next may go over it
        exchange.answered(self._answer)

    # httptools; once the answer has ended, what comes behind it changes nothing but that the connection isn't kept
    def on_message_begin(self) -> None:
        """An answer begins."""
        if self._ended:
            self.usable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        if self._answer.status or self._ended:  # a trailer, which says nothing here
            return
        lowered = name.lower()
        if lowered in _KEPT_HEADERS:
            self._answer.headers.setdefault(lowered.decode(), []).append(value.decode("latin-1").strip())
        elif lowered in _FRAMING_HEADERS:
            self._framed = True

    def on_headers_complete(self) -> None:
        """All headers are here."""
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
        """Some of the body."""
        if self._ended or self._exchange is None:
            return
        room = self._exchange.kept_bytes - len(self._answer.excerpt)
        if room > 0:
            self._answer.excerpt += data[:room]

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self._answer.status:
            self._ended = True
