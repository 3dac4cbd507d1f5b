"""Connections to RabbitMQs that behave as they like: what they do is a reason, told in time, and never an exception."""

import asyncio
from dataclasses import replace

import pytest
from authorities import Authority
from pamqp import commands, header
from played_rabbitmq import LOOPBACK, START, Play, Playing, Told, message, played, published, queues, target_at
from serving import serving

from broker.delivery import amqp_frames
from broker.delivery.amqp_frames import FRAME_MAX, PROTOCOL
from broker.delivery.exchanges import SendError
from broker.delivery.fence import Fence
from broker.delivery.outcomes import Reason
from broker.delivery.tls import TlsIdentity
from schemas.amqp_addresses import Address

AUTHORITY = Authority("Sinks")


async def hang_up(_: Playing) -> None:
    pass


async def say_nothing(at: Playing) -> None:
    await at.reader.read()


async def refuse_version(at: Playing) -> None:
    at.say(PROTOCOL)
    await at.reader.read()


async def flood_before(at: Playing) -> None:
    while True:
        at.say(amqp_frames.HEARTBEAT * 10_000)
        await at.writer.drain()


async def confirm_nothing(at: Playing) -> None:
    await at.let_in()
    await at.reader.read()


async def flood_after(at: Playing) -> None:
    await at.let_in()
    await flood_before(at)


async def return_what_was_not_sent(at: Playing) -> None:
    await at.let_in()
    at.say(
        header.ProtocolHeader().marshal()[:0] + amqp_frames._frame(2, 1, header.ContentHeader(body_size=2).marshal())
    )
    await at.reader.read()


async def say_something_else(at: Playing) -> None:
    await at.let_in()
    at.say(commands.Channel.Flow(False), 1)
    await at.reader.read()


async def refuse_the_message(at: Playing) -> None:
    await at.let_in()
    await at.hear_message()
    at.say(commands.Channel.Close(406, "PRECONDITION_FAILED - message too large", 60, 40), 1)
    assert isinstance(await at.hear(), commands.Channel.CloseOk)
    assert isinstance(await at.hear(), commands.Connection.Close)
    at.say(commands.Connection.CloseOk())


async def go_away(at: Playing) -> None:
    await at.let_in()
    await at.hear_message()
    at.say(commands.Connection.Close(320, "CONNECTION_FORCED - shutdown", 0, 0))
    assert isinstance(await at.hear(), commands.Connection.CloseOk)


async def small_frames(at: Playing) -> None:
    await at.reader.readexactly(8)
    at.say(START)
    await at.hear()
    at.say(commands.Connection.Tune(1, 8, 60))
    await at.reader.read()


async def ask_for_more(at: Playing) -> None:
    await at.reader.readexactly(8)
    at.say(START)
    await at.hear()
    at.say(commands.Connection.Secure("more"))
    await at.reader.read()


async def know_no_mechanism(at: Playing) -> None:
    await at.reader.readexactly(8)
    at.say(commands.Connection.Start(0, 9, {}, "AMQPLAIN", "en_US"))
    await at.reader.read()


@pytest.mark.parametrize(
    ("play", "reason"),
    [
        (hang_up, Reason.CLOSED),
        (say_nothing, Reason.TIMEOUT),
        (refuse_version, Reason.NOT_AMQP),
        (flood_before, Reason.NOT_AMQP),
        (small_frames, Reason.NOT_AMQP),
        (ask_for_more, Reason.NOT_AMQP),
        (know_no_mechanism, Reason.ACCESS),
        (confirm_nothing, Reason.TIMEOUT),
        (flood_after, Reason.NOT_AMQP),
        (return_what_was_not_sent, Reason.NOT_AMQP),
        (say_something_else, Reason.NOT_AMQP),
        (refuse_the_message, Reason.MESSAGE),
        (go_away, Reason.CLOSED),
    ],
)
async def test_whatever_it_does_is_told_as_a_reason_and_nothing_is_left_behind(play: Play, reason: Reason) -> None:
    async with played(play) as port, queues(seconds=1 if reason is Reason.TIMEOUT else 20) as remote:
        assert await published(remote, target_at(port)) is reason
        assert not remote._links


async def test_confirms_may_be_for_several_and_in_any_order() -> None:
    async def confirm(at: Playing) -> None:
        await at.let_in()
        for _ in range(5):
            await at.hear_message()
        at.say(commands.Basic.Ack(4, False), 1)
        at.say(commands.Basic.Nack(2, True), 1)
        at.say(commands.Basic.Ack(99, False), 1)
        at.say(commands.Basic.Ack(5, True), 1)
        await at.reader.read()

    async with played(confirm) as port, queues() as remote:
        target = target_at(port)
        told = await asyncio.gather(*(published(remote, target) for _ in range(5)))
    assert told == [Reason.QUEUE_FULL, Reason.QUEUE_FULL, None, None, None]


async def test_one_that_confirms_without_reading_is_found_out_before_much_is_kept_for_it() -> None:
    async def confirm_whatever_may_come(at: Playing) -> None:
        await at.let_in()
        await at.hear_message()
        at.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a read transport too
        while True:
            at.say(commands.Basic.Ack(1 << 62, True), 1)
            await asyncio.sleep(0.001)

    async with played(confirm_whatever_may_come) as port, queues() as remote:
        target, told, kept = target_at(port), [], 0
        for _ in range(1000):
            told.append(await published(remote, target, body=b"x" * 100_000))
            if told[-1] is not None:
                break
            connection = remote._links[target.subscription]._connection
            assert connection is not None
            kept = max(kept, connection.transport.get_write_buffer_size())
    assert told[-1] is Reason.NOT_AMQP
    assert kept < 1 << 20


async def test_while_an_alarm_is_raised_nothing_is_sent_and_all_is_told_so() -> None:
    heard = 0

    async def raise_an_alarm(at: Playing) -> None:
        nonlocal heard
        await at.let_in()
        while True:
            await at.hear_message()
            heard += 1
            at.say(commands.Basic.Ack(heard, False), 1)
            at.say(commands.Connection.Blocked("low on memory"))
            await at.writer.drain()
            if heard == 1:
                await calmed.wait()
            at.say(commands.Connection.Unblocked())

    calmed = asyncio.Event()
    async with played(raise_an_alarm) as port, queues() as remote:
        target = target_at(port)
        assert await published(remote, target) is None
        connection = remote._links[target.subscription]._connection
        assert connection is not None
        async with asyncio.timeout(5):
            while not connection._blocked:
                await asyncio.sleep(0.01)
        assert [await published(remote, target) for _ in range(3)] == [Reason.BLOCKED] * 3
        calmed.set()
        async with asyncio.timeout(5):
            while connection._blocked:
                await asyncio.sleep(0.01)
        assert heard == 1
        assert await published(remote, target) is None
        assert remote._links[target.subscription]._connection is connection


async def test_what_waits_when_an_alarm_is_raised_is_told_so_in_the_end_and_cannot_come_late() -> None:
    lost = asyncio.Event()

    async def raise_an_alarm(at: Playing) -> None:
        await at.let_in()
        await at.hear_message()
        at.say(commands.Connection.Blocked("low on memory"))
        await at.reader.read()
        lost.set()

    async with played(raise_an_alarm) as port, queues(seconds=1) as remote:
        assert await published(remote, target_at(port)) is Reason.BLOCKED
        async with asyncio.timeout(5):
            await lost.wait()


async def test_one_that_is_not_confirmed_while_later_ones_are_costs_the_others_nothing() -> None:
    async def leave_one_out(at: Playing) -> None:
        await at.let_in()
        for tag in range(1, 4):
            await at.hear_message()
            if tag != 2:
                at.say(commands.Basic.Ack(tag, False), 1)
        await at.hear_message()
        await asyncio.sleep(1.5)
        at.say(commands.Basic.Ack(2, False), 1)
        at.say(commands.Basic.Ack(4, False), 1)
        await at.reader.read()

    async with played(leave_one_out) as port, queues(seconds=2) as remote:
        target = target_at(port)
        three = asyncio.gather(*(published(remote, target, identity=str(number)) for number in range(3)))
        await asyncio.sleep(1)
        last = asyncio.create_task(published(remote, target, identity="3"))
        assert await three == [None, Reason.TIMEOUT, None]
        assert await last is None


async def test_what_is_under_way_when_another_place_is_named_goes_on_and_ends_with_the_process() -> None:
    lost = asyncio.Event()

    async def keep_waiting(at: Playing) -> None:
        await at.let_in()
        await at.hear_message()
        await at.reader.read()
        lost.set()

    async with played(keep_waiting) as port:
        async with queues(seconds=20) as remote:
            target, told = target_at(port), Told()
            remote.begin(target, message(), told)
            async with asyncio.timeout(5):
                while remote._links[target.subscription]._connection is None:
                    await asyncio.sleep(0.01)
            remote.begin(replace(target, address=Address("", "r")), message(), Told())
            assert len(remote._retired) == 1
            assert not told.future.done()
        async with asyncio.timeout(5):
            await lost.wait()
        assert not remote._retired


async def test_what_is_returned_is_known_by_its_id() -> None:
    async def give_back(at: Playing) -> None:
        await at.let_in()
        for _ in range(2):
            await at.hear_message()
        at.say(commands.Basic.Return(312, "NO_ROUTE", "", "q"), 1)
        at.say(amqp_frames.content(message(identity="twee").properties, b"x" * 200_000, FRAME_MAX))
        at.say(commands.Basic.Ack(2, True), 1)
        await at.reader.read()

    async with played(give_back) as port, queues() as remote:
        target = target_at(port)
        told = await asyncio.gather(
            published(remote, target, identity="een"), published(remote, target, identity="twee", body=b"x" * 200_000)
        )
    assert told == [None, Reason.QUEUE_MISSING]


async def test_what_is_given_up_is_told_nothing_and_the_connection_goes_on() -> None:
    async def confirm(at: Playing) -> None:
        await at.let_in()
        for tag in (1, 2):
            await at.hear_message()
            at.say(commands.Basic.Ack(tag, False), 1)
        await at.reader.read()

    async with played(confirm) as port, queues() as remote:
        target, given_up, never = target_at(port), Told(), Told()
        remote.begin(target, message(), never)
        never.abandon()  # before there was a connection: it isn't sent at all
        assert await published(remote, target) is None
        remote.begin(target, message(), given_up)
        given_up.abandon()
        await asyncio.sleep(0.1)
        assert not given_up.future.done()
        assert not never.future.done()
        assert remote._links[target.subscription].idle


async def test_one_that_falls_silent_is_found_out_by_its_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.delivery.amqp_connections.HEARTBEAT_SECONDS", 1)
    beats = 0

    async def fall_silent(at: Playing) -> None:
        nonlocal beats
        await at.let_in()
        await at.hear_message()
        at.say(commands.Basic.Ack(1, False), 1)
        while await at.hear():
            beats += 1

    async with played(fall_silent) as port, queues() as remote:
        target = target_at(port)
        assert await published(remote, target) is None
        async with asyncio.timeout(10):
            while target.subscription in remote._links:
                await asyncio.sleep(0.05)
        assert beats >= 2


async def test_a_name_that_leads_to_a_fenced_address_is_not_connected_to() -> None:
    heard = 0

    async def count(at: Playing) -> None:
        nonlocal heard
        heard += 1

    async with played(count) as port:
        fence = Fence(look_up=lambda _: ["127.0.0.1"])
        async with queues(fence) as remote:
            target = target_at(port, "rabbit.example.nl")
            assert await published(remote, target) is Reason.FENCED
            with pytest.raises(SendError, match="address-not-allowed"):
                await remote.try_out(target)
            assert await published(remote, target_at(port, "127.0.0.1")) is Reason.FENCED
        assert heard == 0
        async with queues(Fence(allow=[LOOPBACK], look_up=lambda _: ["127.0.0.1"])) as remote:
            assert await published(remote, target_at(port, "rabbit.example.nl")) is Reason.CLOSED
        assert heard == 1, "without the fence it would have been"


async def test_the_judged_address_is_connected_to_and_the_name_is_what_tls_verifies_and_shows() -> None:
    shown: list[str | None] = []
    context = AUTHORITY.server_context()
    context.sni_callback = lambda _, name, __: shown.append(name)
    asked: list[str] = []

    def look_up(name: str) -> list[str]:
        asked.append(name)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.0.0.1"]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Playing(reader, writer).let_in()
        await reader.read()

    trust = TlsIdentity.of(None, None, AUTHORITY.root.pem)
    fence = Fence(allow=[LOOPBACK], look_up=look_up)
    async with serving(serve, ssl=context) as port, queues(fence, seconds=2) as remote:
        assert await published(remote, target_at(port, "localhost", trust)) is Reason.TIMEOUT, "it was let in"
        assert (asked, shown) == (["localhost"], ["localhost"])
        fence = Fence(allow=[LOOPBACK], look_up=lambda _: ["127.0.0.1"])
    async with serving(serve, ssl=context) as port, queues(fence, seconds=2) as remote:
        assert await published(remote, target_at(port, "rabbit.example.nl", trust)) is Reason.TLS, "not its name"
        assert shown == ["localhost", "rabbit.example.nl"]
