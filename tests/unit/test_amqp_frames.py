"""What a RabbitMQ says, cut up in any way, and what is no RabbitMQ at all."""

import itertools
import struct
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, frame, header
from pamqp.base import Frame

from broker.delivery import amqp_frames
from broker.delivery.amqp_frames import FRAME_MAX, Confirm, Content, NotAmqp, Reader
from broker.delivery.amqp_messages import message_of

SAID: list[tuple[int, Frame]] = [
    (0, commands.Connection.Start(0, 9, {"product": "RabbitMQ"}, "PLAIN EXTERNAL", "en_US")),
    (0, commands.Connection.Tune(2047, FRAME_MAX, 60)),
    (1, commands.Basic.Ack(7, True)),
    (1, commands.Basic.Nack(8, False)),
    (1, commands.Basic.Return(312, "NO_ROUTE", "", "weg")),
    (0, commands.Connection.Blocked("low on memory")),
]
STREAM = b"".join(amqp_frames.method(said, channel) for channel, said in SAID) + amqp_frames.HEARTBEAT


def shown(read: object) -> str:
    return f"{read.tag}{read.multiple}{read.taken}" if isinstance(read, Confirm) else type(read).__name__


@given(st.lists(st.integers(0, len(STREAM)), max_size=20))
def test_frames_are_the_same_however_the_bytes_come(cuts: list[int]) -> None:
    reader, found = Reader(), []
    places = [0, *sorted(cuts), len(STREAM)]
    for start, end in itertools.pairwise(places):
        found += [(channel, shown(read)) for channel, read in reader.feed(STREAM[start:end])]
    assert found == [(0, "Start"), (0, "Tune"), (1, "7TrueTrue"), (1, "8FalseFalse"), (1, "Return"), (0, "Blocked")]


@given(st.binary(max_size=200))
def test_other_bytes_are_no_amqp_or_not_yet_a_frame(data: bytes) -> None:
    reader = Reader()
    try:
        found = list(reader.feed(data))
    except NotAmqp:
        return
    assert len(found) <= len(data) / 8


@given(st.binary(max_size=60), st.sampled_from([1, 2]))
def test_frames_with_nonsense_in_them_are_no_amqp(payload: bytes, kind: int) -> None:
    reader = Reader()
    try:
        for _, read in reader.feed(amqp_frames._frame(kind, 1, payload)):
            assert isinstance(read, Frame | Content | Confirm)
    except NotAmqp:
        pass


@pytest.mark.parametrize(
    "data",
    [
        b"AMQP\0\0\x09\x01",
        b"HTTP/1.1 400 Bad Request",
        b"S",
        b"\x01\0\0" + (FRAME_MAX + 1).to_bytes(4, "big") + b"\0",
        b"\x01\0\0\0\0\0\x01x\xcd",
    ],
)
def test_what_is_surely_not_amqp_is_told_at_once(data: bytes) -> None:
    with pytest.raises(NotAmqp):
        list(Reader().feed(data))


def test_tables_are_passed_over_unread() -> None:
    """Whoever reads them takes seconds for one frame of many small fields, and nobody else's turn comes meanwhile."""
    unreadable = (100_000).to_bytes(4, "big") + b"\xff" * 100_000
    start = struct.pack(">I", commands.Connection.Start.index) + b"\0\x09" + unreadable + b"\0\0\0\x05PLAIN" + b"\0" * 4
    [(_, read)] = Reader().feed(amqp_frames._frame(1, 0, start))
    assert isinstance(read, commands.Connection.Start)
    assert read.mechanisms == "PLAIN"
    head = struct.pack(">HHQH", 60, 0, 0, 1 << 13 | 1 << 7) + unreadable + b"\x03een"
    [(_, read)] = Reader().feed(amqp_frames._frame(2, 1, head))
    assert isinstance(read, Content)
    assert read.identity == "een"


def test_methods_that_no_publisher_is_told_are_not_read() -> None:
    table = {str(number): number for number in range(1000)}
    for said in (commands.Queue.Declare(queue="q", arguments=table), commands.Connection.StartOk(table)):
        with pytest.raises(NotAmqp):
            list(Reader().feed(amqp_frames.method(said)))


@given(st.sets(st.sampled_from(sorted(commands.Basic.Properties.flags))), st.text(max_size=60))
def test_message_id_is_found_among_whatever_properties(names: set[str], identity: str) -> None:
    values: dict[str, Any] = dict.fromkeys(names, "x") | {
        name: value
        for name, value in (
            ("headers", {"a": 1}),
            ("delivery_mode", 2),
            ("priority", 3),
            ("timestamp", datetime.fromtimestamp(1, UTC)),
            ("message_id", identity),
        )
        if name in names
    }
    values.pop("cluster_id", None)  # which pamqp doesn't write
    head = header.ContentHeader(properties=commands.Basic.Properties(**values))
    [(_, read)] = Reader().feed(frame.marshal(head, 1))
    assert isinstance(read, Content)
    assert read.identity == values.get("message_id", "")


@pytest.mark.parametrize("size", [0, 1, 4088, 4089, 100_000])
def test_content_is_cut_to_frames_that_the_server_takes(size: int) -> None:
    body = bytes(number % 251 for number in range(size))
    message = message_of(body, "application/json", "een", 1_790_000_000, "v1,é v1a,b", "00-1-2-01")
    data = amqp_frames.content(message.properties, message.body, 4096)
    parts, place = [], 0
    while place < len(data):
        used, channel, part = frame.unmarshal(data[place:])
        assert used <= 4096
        assert channel == amqp_frames.CHANNEL
        parts.append(part)
        place += used
    head, *bodies = parts
    assert isinstance(head, header.ContentHeader)
    assert head.body_size == size
    assert dict(head.properties) == dict(
        commands.Basic.Properties(
            content_type="application/json",
            message_id="een",
            timestamp=datetime.fromtimestamp(1_790_000_000, UTC),
            delivery_mode=2,
            headers={
                "webhook-id": "een",
                "webhook-timestamp": "1790000000",
                "webhook-signature": "v1,é v1a,b",
                "traceparent": "00-1-2-01",
            },
        )
    )
    assert b"".join(part.value for part in bodies) == body  # type: ignore[union-attr]


def test_names_are_as_long_and_as_odd_as_rabbitmq_takes_them() -> None:
    name = 'é%" /' * 42
    assert len(name.encode()) == 252
    for data, kind in (
        (amqp_frames.publish(name, name), commands.Basic.Publish),
        (amqp_frames.expect_queue(name), commands.Queue.Declare),
        (amqp_frames.expect_exchange(name), commands.Exchange.Declare),
        (amqp_frames.open_host(name), commands.Connection.Open),
    ):
        _, _, read = frame.unmarshal(data)
        assert isinstance(read, kind)
        assert name in [getattr(read, member) for member in read.attributes()]
    _, _, read = frame.unmarshal(amqp_frames.publish("x", "y"))
    assert read.mandatory  # type: ignore[union-attr]
    _, _, read = frame.unmarshal(amqp_frames.expect_queue("x"))
    assert (read.passive, read.durable, read.nowait) == (True, False, False)  # type: ignore[union-attr]
