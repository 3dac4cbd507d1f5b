"""The tap on RabbitMQ's stream: every delivery comes out as the library would read it, everything else goes on."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pamqp import body, commands, frame, header, heartbeat

from broker.ingest.intake import Delivery, Tap

CHANNEL = 1


class Inner(asyncio.Protocol):
    def __init__(self) -> None:
        self.received = b""
        self.lost: list[Exception | None] = []

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Nothing comes but by hand."""

    def abort(self) -> None:
        self.aborted = True


def tapped() -> tuple[Tap, Inner, Wire, list[Delivery]]:
    inner, wire, taken = Inner(), Wire(), list[Delivery]()
    tap = Tap(inner, taken.append)
    tap.put_before(wire)
    return tap, inner, wire, taken


def delivery(tag: int, content: bytes, *, key: str = "nl.bag.x", part: int = 1 << 17, **properties: Any) -> bytes:
    """The frames of one delivery, its body in parts."""
    parts = [content[start : start + part] for start in range(0, len(content), part)]
    return b"".join(
        frame.marshal(each, CHANNEL)
        for each in (
            commands.Basic.Deliver("ctag1.0", tag, False, "bode.events", key),
            header.ContentHeader(0, len(content), commands.Basic.Properties(**properties)),
            *map(body.ContentBody, parts),
        )
    )


OTHERS = [
    frame.marshal(commands.Basic.ConsumeOk("ctag1.0"), CHANNEL),
    heartbeat.Heartbeat().marshal(),
    frame.marshal(commands.Basic.QosOk(), CHANNEL),
    frame.marshal(commands.Connection.Blocked("memory"), 0),
]
USUAL: dict[str, Any] = {
    "content_type": "application/cloudevents+json",
    "headers": {"cloudEvents:subject": "é", "x": ""},
    "delivery_mode": 2,
    "user_id": "bag",
}
PROPERTIES = [
    {},
    USUAL,
    {"user_id": "bag"},
    {"headers": {}},
    {"headers": {"n": 1, "nested": {"a": ["b", None]}, "when": datetime(2026, 1, 1, tzinfo=UTC), "f": 1.5, "t": True}},
    USUAL | {"message_id": "m", "timestamp": datetime(2026, 1, 1, tzinfo=UTC), "app_id": "a", "priority": 3},
    {"headers": {"cloudEvents:subject": "s", "raw": bytearray(b"\xff\xfe")}},
    {"content_encoding": "identity", "correlation_id": "c", "reply_to": "r", "expiration": "60", "message_type": "t"},
]


SENT = [
    *(delivery(7, b"{}", **properties) for properties in PROPERTIES),
    delivery(7, b"{}", **USUAL).replace("é".encode(), b"\xff\xfe"),
]


@pytest.mark.parametrize("sent", SENT)
def test_properties_are_read_as_the_library_reads_them(sent: bytes) -> None:
    tap, inner, _, taken = tapped()
    tap.data_received(sent)
    consumed, _, _ = frame.unmarshal(sent)
    _, _, content = frame.unmarshal(sent[consumed:])
    assert isinstance(content, header.ContentHeader)
    expected = content.properties
    assert taken == [Delivery(7, "nl.bag.x", expected.content_type, expected.user_id, expected.headers or {}, b"{}")]
    assert inner.received == b""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_deliveries_come_whole_however_the_stream_is_cut(data: st.DataObject) -> None:
    stream, expected, passed = b"", [], b""
    for tag in range(data.draw(st.integers(0, 6))):
        for other in data.draw(st.lists(st.sampled_from(OTHERS), max_size=2)):
            stream += other
            passed += other
        content = data.draw(st.binary(max_size=60))
        stream += delivery(tag, content, part=data.draw(st.integers(1, 70)), **data.draw(st.sampled_from(PROPERTIES)))
        expected.append((tag, content))
    tap, inner, wire, taken = tapped()
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        tap.data_received(stream[:size])
        stream = stream[size:]
    assert [(each.tag, each.body) for each in taken] == expected
    assert inner.received == passed
    assert not wire.aborted


def test_frames_of_other_channels_may_come_within_a_delivery() -> None:
    tap, inner, _, taken = tapped()
    sent = delivery(1, b"ab", part=1)
    first, _, _ = frame.unmarshal(sent)
    other = frame.marshal(commands.Basic.QosOk(), CHANNEL + 1)
    tap.data_received(sent[:first] + OTHERS[1] + sent[first:-9] + other + sent[-9:])
    assert [each.body for each in taken] == [b"ab"]
    assert inner.received == OTHERS[1] + other


@pytest.mark.parametrize(
    "broken",
    [
        delivery(1, b"ab")[:-1] + b"\x00",
        delivery(1, b"ab")[:60] * 2,
        frame.marshal(commands.Basic.Deliver("c", 1, False, "e", "k"), CHANNEL) * 2,
        frame.marshal(commands.Basic.Deliver("c", 1, False, "e", "k"), CHANNEL)
        + frame.marshal(body.ContentBody(b"x"), CHANNEL),
        delivery(1, b"ab")[: -len(frame.marshal(body.ContentBody(b"ab"), CHANNEL))]
        + frame.marshal(body.ContentBody(b"abc"), CHANNEL),
        b"\x01\x00\x01\x00\x00\x00\x05\x00\x3c\x00\x3c\xff\xce",
    ],
)
def test_stream_that_is_no_amqp_ends_the_connection(broken: bytes) -> None:
    tap, inner, wire, taken = tapped()
    tap.data_received(broken)
    assert wire.aborted
    assert taken == []
    assert len(inner.lost) == 1
    tap.connection_lost(None)
    assert len(inner.lost) == 1, "it is told once"


def test_refusal_of_the_protocol_goes_on_to_the_library() -> None:
    tap, inner, _, _ = tapped()
    tap.data_received(b"AMQP\x00\x00\x09\x01")
    assert inner.received == b"AMQP\x00\x00\x09\x01"


def test_library_hears_that_the_connection_lives_while_only_deliveries_come(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("broker.ingest.intake.time.monotonic", lambda: now)
    tap, inner, _, _ = tapped()
    tap.data_received(delivery(1, b"x"))
    assert inner.received == b""
    now += 1.5
    tap.data_received(delivery(2, b"x")[:30])
    assert inner.received == heartbeat.Heartbeat().marshal()
