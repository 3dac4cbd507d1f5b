"""What RabbitMQ delivers, taken out of the byte stream before the AMQP library sees it.

The library makes several objects and a task of every delivery; reading it straight from the bytes costs a fraction of
that. Everything else (log-in, channels, acknowledgements, heartbeats, closing) stays the library's: this stands between
its connection and the transport, keeps `basic.deliver` with its header and body, and passes on all other frames.

    transport ──bytes──► Tap ──deliveries──► arrived(Delivery)
                          └────other frames──► aiormq

AMQP 0-9-1, 2.3.5 (frames) and 4.2.6 (content).
"""

import asyncio
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple, cast

import aiormq
from aiormq.connection import TCPTransportFactory, TLSTransportFactory
from pamqp import header, heartbeat
from pamqp.exceptions import PAMQPException
from yarl import URL

from broker.rabbitmq import AmqpSettings, hang_ups

_METHOD, _HEADER, _BODY = 1, 2, 3
_HIGHEST_KIND: Final = 8
_END: Final = 0xCE
_DELIVER: Final = b"\x00\x3c\x00\x3c"
_PARTS: Final = struct.Struct(">BHI")
_LONG: Final = struct.Struct(">I")
_LONG_LONG: Final = struct.Struct(">Q")
_PREFIX, _AFTER_HEADER = 7, 12
_CONTENT_TYPE, _HEADERS, _DELIVERY_MODE, _USER_ID = 0x8000, 0x2000, 0x1000, 0x0010
_USUAL: Final = _CONTENT_TYPE | _HEADERS | _DELIVERY_MODE | _USER_ID
_ALIVE: Final = heartbeat.Heartbeat().marshal()
_ALIVE_SECONDS: Final = 1.0
_CLOSE_SECONDS: Final = 2.0


class Delivery(NamedTuple):
    """A message as it came."""

    tag: int
    routing_key: str
    content_type: str | None
    user_id: str | None
    headers: Mapping[str, Any]
    body: bytes


class BrokenStream(ConnectionError):
    """What came is not AMQP, or not in its order."""


async def connect(
    settings: AmqpSettings, name: str, arrived: Callable[[Delivery], None]
) -> aiormq.abc.AbstractConnection:
    """Open a connection that shows under `name` in RabbitMQ's management, and calls back with what is delivered.

    Raises:
        OSError, aiormq.exceptions.AMQPError, TimeoutError: when RabbitMQ can't be reached or refuses.
    """
    if settings.url is None:
        raise ValueError("no AMQP URL is set")
    url = URL(settings.url.get_secret_value()).update_query(heartbeat=settings.heartbeat_seconds)
    connection = aiormq.Connection(url, transport_factory=_Tapped(arrived))
    try:
        with hang_ups():
            async with asyncio.timeout(settings.connect_seconds):
                await connection.connect({"connection_name": name})
                await connection.ready()
    except BaseException:
        await close(connection)
        raise
    return connection


async def close(connection: aiormq.abc.AbstractConnection) -> None:
    """Close, whatever state it is in; what was not acknowledged returns to its queue, in order."""
    with suppress(aiormq.exceptions.AMQPError, OSError, TimeoutError, asyncio.CancelledError), hang_ups():
        async with asyncio.timeout(_CLOSE_SECONDS):
            await connection.close()


class Tap(asyncio.Protocol):
    """Stands before `inner`, and calls `arrived` with each delivery."""

    def __init__(self, inner: asyncio.Protocol, arrived: Callable[[Delivery], None]) -> None:
        self._inner = inner
        self._arrived = arrived
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._channel = -1
        """Of the delivery that is coming in; none: -1."""
        self._tag = 0
        self._routing_key = ""
        self._properties: tuple[str | None, str | None, Mapping[str, Any]] = (None, None, {})
        self._wanting = -1
        """Bytes of the body that are still to come; -1: the header is."""
        self._body: list[bytes] = []
        self._told_alive = time.monotonic()

    def put_before(self, transport: asyncio.Transport) -> None:
        """From now on what the transport receives comes here."""
        self._transport = transport
        transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        """Take deliveries out, and pass on what is between them."""
        try:
            self._read(data)
        except (ValueError, struct.error, IndexError, PAMQPException, BrokenStream) as error:
            if self._transport is not None:
                self._transport.abort()
            self._inner.connection_lost(error if isinstance(error, BrokenStream) else BrokenStream(str(error)))
            self._inner = asyncio.Protocol()

    def _read(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        place, size, told = 0, len(data), False
        while size - place > _PREFIX:
            kind, channel, length = _PARTS.unpack_from(data, place)
            if kind > _HIGHEST_KIND:  # no frame: the refusal of our version
                self._inner.data_received(data[place:])
                place = size
                break
            start = place + _PREFIX
            end = start + length
            if end >= size:
                break
            if data[end] != _END:
                raise BrokenStream("a frame doesn't end as it should")
            if kind == _METHOD and data.startswith(_DELIVER, start):
                self._begin(channel, data[start:end])
            elif channel == self._channel and kind == _HEADER:
                self._read_header(data[start:end])
            elif channel == self._channel and kind == _BODY:
                self._read_body(data[start:end])
            else:
                self._inner.data_received(data[place : end + 1])
                told = True
            place = end + 1
        self._rest = data[place:]
        if told:
            self._told_alive = time.monotonic()
        elif time.monotonic() - self._told_alive > _ALIVE_SECONDS:
            self._told_alive = time.monotonic()
            self._inner.data_received(_ALIVE)  # the library would take the silence for a connection that is stuck

    def _begin(self, channel: int, method: bytes) -> None:
        if self._channel >= 0:
            raise BrokenStream("a delivery begins in another one")
        place = 5 + method[4]  # behind the consumer's tag
        (self._tag,) = _LONG_LONG.unpack_from(method, place)
        place += 9  # and whether it is a redelivery
        place += 1 + method[place]  # the exchange
        self._routing_key = method[place + 1 : place + 1 + method[place]].decode("utf-8", "replace")
        self._channel, self._wanting = channel, -1

    def _read_header(self, content: bytes) -> None:
        if self._wanting >= 0:
            raise BrokenStream("a second header")
        (self._wanting,) = _LONG_LONG.unpack_from(content, 4)
        try:
            self._properties = _usual_properties(content)
        except (_UnusualError, UnicodeDecodeError, struct.error, IndexError):
            self._properties = _any_properties(content)
        if self._wanting == 0:
            self._complete(b"")

    def _read_body(self, part: bytes) -> None:
        self._wanting -= len(part)
        if self._wanting < 0:
            raise BrokenStream("more body than announced, or a body without a header")
        if self._wanting:
            self._body.append(part)
        elif self._body:
            self._body.append(part)
            whole = b"".join(self._body)
            self._body = []
            self._complete(whole)
        else:
            self._complete(part)

    def _complete(self, body: bytes) -> None:
        self._channel = -1
        self._arrived(Delivery(self._tag, self._routing_key, *self._properties, body))

    def eof_received(self) -> bool | None:
        """Pass it on."""
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass it on."""
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Pass it on."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Pass it on."""
        self._inner.resume_writing()


class _UnusualError(Exception):
    """Properties or headers that few publishers set."""


def _usual_properties(content: bytes) -> tuple[str | None, str | None, Mapping[str, Any]]:
    """Content type, user and headers, where there is nothing else but the delivery mode, and all headers are texts."""
    flags = content[_AFTER_HEADER] << 8 | content[_AFTER_HEADER + 1]
    if flags & ~_USUAL:
        raise _UnusualError
    place = _AFTER_HEADER + 2
    content_type = user_id = None
    headers: dict[str, Any] = {}
    if flags & _CONTENT_TYPE:
        place, content_type = _short(content, place)
    if flags & _HEADERS:
        (length,) = _LONG.unpack_from(content, place)
        place += 4
        end = place + length
        while place < end:
            place, name = _short(content, place)
            if content[place] != 0x53:  # S: a long string
                raise _UnusualError
            (length,) = _LONG.unpack_from(content, place + 1)
            place += 5
            headers[name] = content[place : place + length].decode()
            place += length
        if place != end:
            raise _UnusualError
    if flags & _DELIVERY_MODE:
        place += 1
    if flags & _USER_ID:
        place, user_id = _short(content, place)
    if place != len(content):
        raise _UnusualError
    return content_type, user_id, headers


def _short(content: bytes, place: int) -> tuple[int, str]:
    end = place + 1 + content[place]
    return end, content[place + 1 : end].decode()


def _any_properties(content: bytes) -> tuple[str | None, str | None, Mapping[str, Any]]:
    """The same by the library, which knows every property and every type of header."""
    read = header.ContentHeader()
    read.unmarshal(content)
    return read.properties.content_type, read.properties.user_id, read.properties.headers or {}


class _Tapped(aiormq.TransportFactory):
    """Connects as the library would, with a tap in between."""

    def __init__(self, arrived: Callable[[Delivery], None]) -> None:
        self._arrived = arrived

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, writer = await factory.create(url, **options)
        transport = cast(asyncio.Transport, writer.transport)  # uvloop's have their methods, and not their class
        Tap(cast(asyncio.Protocol, transport.get_protocol()), self._arrived).put_before(transport)
        return reader, writer
