"""AMQP 0-9-1 as a publisher writes and reads it: frames in and out of bytes. No network.

Names of queues, exchanges and virtual hosts are what RabbitMQ takes, any UTF-8 of up to 255 bytes; pamqp keeps to the
narrower ones of the specification (1.1), so the methods that name something are written here. Content that comes in,
which is what was returned, is of interest for its `message_id` only. Tables that come in are passed over unread: pamqp
copies the rest of a table for each field, so that one frame of somebody else's making can take it many seconds.
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
_START: Final = struct.pack(">I", commands.Connection.Start.index)
_EXPECTED: Final[dict[bytes, type[Frame]]] = {
    struct.pack(">I", kind.index): kind
    for kind in (
        commands.Connection.Tune,
        commands.Connection.OpenOk,
        commands.Connection.Blocked,
        commands.Connection.Unblocked,
        commands.Connection.Close,
        commands.Connection.CloseOk,
        commands.Channel.OpenOk,
        commands.Channel.Close,
        commands.Confirm.SelectOk,
        commands.Queue.DeclareOk,
        commands.Exchange.DeclareOk,
        commands.Tx.SelectOk,
        commands.Tx.RollbackOk,
        commands.Basic.Return,
    )
}
"""What a server has reason to say to a publisher, beside Connection.Start and confirms; no table is in it."""
_LENGTH: Final = struct.Struct(">I")
_MESSAGE_ID: Final = 1 << 7
_SHORT, _TABLE, _OCTET = range(3)
_BEFORE_MESSAGE_ID: Final = (
    (1 << 15, _SHORT),  # content-type
    (1 << 14, _SHORT),  # content-encoding
    (1 << 13, _TABLE),  # headers
    (1 << 12, _OCTET),  # delivery-mode
    (1 << 11, _OCTET),  # priority
    (1 << 10, _SHORT),  # correlation-id
    (1 << 9, _SHORT),  # reply-to
    (1 << 8, _SHORT),  # expiration
)
"""Properties that may stand before it, in their order (AMQP 0-9-1, 4.2.6.1)."""


class NotAmqp(Exception):
    """What came is not AMQP 0-9-1, or not in its bounds."""


class Confirm:
    """The server has taken, or refused, one message, or all up to it."""

    __slots__ = ("multiple", "tag", "taken")

    def __init__(self, tag: int, multiple: bool, taken: bool) -> None:
        self.tag = tag
        self.multiple = multiple
        self.taken = taken


class Content:
    """The head of content that comes in."""

    __slots__ = ("identity",)

    def __init__(self, identity: str) -> None:
        self.identity = identity
        """Its `message-id`; empty where it has none."""


Read = Frame | Content | Confirm


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
            return Content(_identity(payload))
        method = payload[:4]
        if method in (_ACK, _NACK):
            tag, bits = _CONFIRM.unpack_from(payload, 4)
            return Confirm(tag, bool(bits & 1), method == _ACK)
        if method == _START:
            return commands.Connection.Start(mechanisms=_mechanisms(payload))
        read = _EXPECTED[method]()
        read.unmarshal(payload[4:])
        return read
    except Exception as error:  # whatever is raised about bytes that somebody else chose
        raise NotAmqp from error


def _mechanisms(payload: bytes) -> str:
    """Of Connection.Start: version, a table of what the server is, mechanisms, locales."""
    place = 6
    place += _LENGTH.size + _LENGTH.unpack_from(payload, place)[0]
    return _text(payload, place + _LENGTH.size, _LENGTH.unpack_from(payload, place)[0])


def _identity(payload: bytes) -> str:
    """The `message-id` in the head of content; what stands before it is passed over."""
    (flags,) = struct.unpack_from(">H", payload, _CONTENT.size)
    place = _CONTENT.size + 2
    for flag, kind in _BEFORE_MESSAGE_ID:
        if flags & flag:
            if kind == _TABLE:
                place += _LENGTH.size + _LENGTH.unpack_from(payload, place)[0]
            else:
                place += 1 + (payload[place] if kind == _SHORT else 0)
    return _text(payload, place + 1, payload[place]) if flags & _MESSAGE_ID else ""


def _text(payload: bytes, start: int, length: int) -> str:
    if start + length > len(payload):
        raise NotAmqp
    return payload[start : start + length].decode()


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
