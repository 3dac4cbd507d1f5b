"""AMQP 0-9-1 as a publisher writes and reads it: frames in and out of bytes. No network.

Names of queues, exchanges and virtual hosts are what RabbitMQ takes, any UTF-8 of up to 255 bytes; pamqp keeps to the
narrower ones of the specification (1.1), so the methods that name something are written here. Content that comes in,
which is what was returned, is of interest for its `message_id` only.
"""

import struct
from collections.abc import Iterator
from typing import Final

from pamqp import commands, frame, header, heartbeat
from pamqp.base import Frame

from broker.delivery.amqp_messages import short

FRAME_MAX: Final = 131_072
"""Bytes of one frame, in both directions: what RabbitMQ proposes."""
PROTOCOL: Final = header.ProtocolHeader().marshal()
HEARTBEAT: Final = heartbeat.Heartbeat().marshal()
CHANNEL: Final = 1
_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_END: Final = 0xCE
_PARTS: Final = struct.Struct(">BHI")
_FRAMING: Final = _PARTS.size + 1
_CONFIRM: Final = struct.Struct(">QB")
_CONTENT: Final = struct.Struct(">HHQ")
_ACK, _NACK = b"\x00\x3c\x00\x50", b"\x00\x3c\x00\x78"
_NO_TABLE: Final = b"\0\0\0\0"
NO_PROPERTIES: Final = b"\0\0"


class NotAmqp(Exception):
    """What came is not AMQP 0-9-1, or not in its bounds."""


class Confirm:
    """The server has taken, or refused, one message, or all up to it."""

    __slots__ = ("multiple", "tag", "taken")

    def __init__(self, tag: int, multiple: bool, taken: bool) -> None:
        self.tag = tag
        self.multiple = multiple
        self.taken = taken


Read = Frame | header.ContentHeader | Confirm


class Reader:
    """Cuts what comes in into frames; heartbeats and bodies are passed over."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, Read]]:
        """The frames that are whole now, each with its channel.

        Raises:
            NotAmqp: what comes is something else.
        """
        rest = self._rest
        rest += data
        place = 0
        try:
            while len(rest) - place >= _FRAMING:
                kind, channel, length = _PARTS.unpack_from(rest, place)
                if kind not in (_METHOD, _HEADER, _BODY, _HEARTBEAT) or length > FRAME_MAX:
                    raise NotAmqp
                end = place + _PARTS.size + length
                if len(rest) <= end:
                    break
                if rest[end] != _END:
                    raise NotAmqp
                start, place = place + _PARTS.size, end + 1
                if kind in (_METHOD, _HEADER):
                    yield channel, _read(bytes(rest[start:end]), kind)
        finally:
            del rest[:place]
        if rest and rest[0] not in (_METHOD, _HEADER, _BODY, _HEARTBEAT):
            raise NotAmqp  # such as "AMQP", which refuses our version, or "HTTP"


def _read(payload: bytes, kind: int) -> Read:
    try:
        if kind == _HEADER:
            content = header.ContentHeader()
            content.unmarshal(payload)
            return content
        method = payload[:4]
        if method in (_ACK, _NACK):
            tag, bits = _CONFIRM.unpack_from(payload, 4)
            return Confirm(tag, bool(bits & 1), method == _ACK)
        return frame._unmarshal_method_frame(payload)
    except Exception as error:  # whatever the library raises about bytes that somebody else chose
        raise NotAmqp from error


def method(content: Frame, channel: int = 0) -> bytes:
    """A method that names nothing of the provider's."""
    return frame.marshal(content, channel)


def open_host(virtual_host: str) -> bytes:
    """Connection.Open."""
    return _method(commands.Connection.Open.index, 0, short(virtual_host), short(""), b"\0")


def expect_queue(name: str) -> bytes:
    """Queue.Declare, passive: whether it is there."""
    return _method(commands.Queue.Declare.index, CHANNEL, b"\0\0", short(name), b"\1", _NO_TABLE)


def expect_exchange(name: str) -> bytes:
    """Exchange.Declare, passive: whether it is there."""
    return _method(commands.Exchange.Declare.index, CHANNEL, b"\0\0", short(name), short(""), b"\1", _NO_TABLE)


def publish(exchange: str, routing_key: str) -> bytes:
    """Basic.Publish, mandatory: what no queue takes is returned."""
    return _method(commands.Basic.Publish.index, CHANNEL, b"\0\0", short(exchange), short(routing_key), b"\1")


def content(properties: bytes, body: bytes, frame_max: int) -> bytes:
    """What follows `publish`: properties (`amqp_messages`) and body, in as many frames as it takes."""
    head = _frame(_HEADER, CHANNEL, _CONTENT.pack(commands.Basic.frame_id, 0, len(body)) + properties)
    room = frame_max - _FRAMING
    if 0 < len(body) <= room:
        return head + _frame(_BODY, CHANNEL, body)
    return head + b"".join([_frame(_BODY, CHANNEL, body[start : start + room]) for start in range(0, len(body), room)])


def _method(index: int, channel: int, *arguments: bytes) -> bytes:
    return _frame(_METHOD, channel, b"".join((struct.pack(">I", index), *arguments)))


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return b"%s%s\xce" % (_PARTS.pack(kind, channel, len(payload)), payload)
