"""One connection to a RabbitMQ, a provider's or the broker's own, with one channel, for publishing with confirms.

    dialled ─log_in─► logged in ─publishes─► publishing ──close, or nothing to do──► closed
                          └─try_out─► closed          └──anything unexpected──► failed, with all that is on it

What the other side does is told to each message that is under way as a reason, and is never raised out of here. A
confirm that doesn't come in time ends the connection, unless a later message was confirmed: what hasn't left us is not
to arrive later. Where queues share the connection, the queue that it was for gets nothing more before it is
confirmed after all: RabbitMQ stops reading a channel on which one queue leaves 32 messages unconfirmed.
"""

import asyncio
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import takewhile
from typing import Any, Final

from pamqp import commands
from pamqp.base import Frame

from broker.delivery import amqp_frames
from broker.delivery.amqp_frames import CHANNEL, Confirm, Content, NotAmqp, Read
from broker.delivery.amqp_messages import AmqpMessage
from broker.delivery.amqp_targets import AmqpTarget, Login
from broker.delivery.exchanges import QueueExchange, SendError
from broker.delivery.outcomes import Reason

IDLE_SECONDS: Final = 300.0
"""Longer than for HTTP, since a connection takes six round trips; heartbeats tell meanwhile whether it is alive."""
HEARTBEAT_SECONDS: Final = 30
OVERDUE_SECONDS: Final = 300.0
_CLOSE_SECONDS: Final = 1.0
_UNASKED_BYTES: Final = 1 << 20
_UNREAD_BYTES: Final = 1 << 18
_CAPABILITIES: Final = {
    "publisher_confirms": True,
    "basic.nack": True,
    "connection.blocked": True,
    "authentication_failure_close": True,
}
_REASONS: Final = {
    402: Reason.ACCESS,
    403: Reason.ACCESS,
    404: Reason.QUEUE_MISSING,
    405: Reason.ACCESS,
    530: Reason.ACCESS,
    311: Reason.MESSAGE,
    406: Reason.MESSAGE,
}
"""By AMQP 0-9-1, 1.1 (reply codes): no such virtual host, no permission, not found, locked, not allowed; too large."""


class _Pending:
    """A message that is under way."""

    __slots__ = ("exchange", "identity", "method", "returned", "timer", "written")

    def __init__(self, exchange: QueueExchange, method: bytes, identity: str, timer: asyncio.TimerHandle) -> None:
        self.exchange: QueueExchange | None = exchange
        self.method = method
        self.identity = identity
        self.timer = timer
        self.returned = False
        self.written = 0
        """Bytes on the connection up to its end."""

    def cancel(self) -> None:
        """Nobody waits for its end any more."""
        self.exchange = None

    def end(self, reason: Reason | None) -> None:
        """Tell whoever waits."""
        self.timer.cancel()
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange._carrier = None
            if reason is None:
                exchange.confirmed()
            else:
                exchange.failed(reason)


class AmqpConnection(asyncio.Protocol):
    """A connection as the protocol of its transport. What comes in is bounded by what went out."""

    transport: asyncio.Transport

    def __init__(
        self,
        login: Login,
        ended: Callable[["AmqpConnection"], None],
        heartbeat: int | None = None,
        *,
        shared: bool = False,
    ) -> None:
        """Make one.

        Args:
            login: who we are there.
            ended: told once, when nothing can be published on it any more.
            heartbeat: seconds, unless the other side wants fewer; after twice as long of silence it ends. None: the
                usual 30.
            shared: by queues that have nothing to do with each other.
        """
        self._login = login
        self._heartbeat = HEARTBEAT_SECONDS if heartbeat is None else heartbeat
        self._told = ended
        self._loop = asyncio.get_running_loop()
        self._reader = amqp_frames.Reader()
        self._pending: dict[int, _Pending] = {}
        self._shared = shared
        self._overdue: dict[int, tuple[bytes, float]] = {}
        """Messages that were given up and may still be confirmed, where to, and since when."""
        self._sick: Counter[bytes] = Counter()
        """Where to, and how many of them."""
        self._tag = 0
        self._confirmed_to = 0
        self._frame_max = amqp_frames.FRAME_MAX
        self._awaited: tuple[type[Frame], asyncio.Future[Any]] | None = None
        self._failure: Reason | None = None
        self._publishing = self._retired = self._closing = self._returning = False
        self._blocked = False
        self._sent = self._received = 0
        self._wrote = self._heard = self._used = self._loop.time()
        self._beating: asyncio.TimerHandle | None = None

    # what its owner asks

    @property
    def usable(self) -> bool:
        """Whether something can be published on it."""
        return self._publishing and self._failure is None and not self._closing and not self._retired

    @property
    def idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._pending

    @property
    def failure(self) -> Reason | None:
        """Why it has ended; None: it hasn't."""
        return self._failure

    async def log_in(self) -> None:
        """Make ourselves known, and open the virtual host and the channel.

        Raises:
            SendError: the other side doesn't let us, or isn't RabbitMQ.
        """
        self._write(amqp_frames.PROTOCOL)
        start = await self._next(commands.Connection.Start)
        mechanism, response = self._proof(start.mechanisms.split())
        properties = {"product": "Bode", "connection_name": self._login.name, "capabilities": _CAPABILITIES}
        answer = commands.Connection.StartOk(properties, mechanism, response)  # type: ignore[arg-type]  # a table
        self._write(amqp_frames.method(answer))
        tune = await self._next(commands.Connection.Tune)
        seconds = min(int(tune.heartbeat) or self._heartbeat, self._heartbeat)
        self._frame_max = min(int(tune.frame_max) or amqp_frames.FRAME_MAX, amqp_frames.FRAME_MAX)
        if self._frame_max < 4096:  # AMQP 0-9-1, 4.2.3: frame-min-size
            self._fail(Reason.NOT_AMQP)
        tuned = commands.Connection.TuneOk(int(tune.channel_max), self._frame_max, seconds)
        self._write(amqp_frames.method(tuned) + amqp_frames.open_host(self._login.virtual_host))
        await self._next(commands.Connection.OpenOk)
        self._write(amqp_frames.method(commands.Channel.Open(), CHANNEL))
        await self._next(commands.Channel.OpenOk)
        self._beating = self._loop.call_later(seconds / 2, self._beat, seconds)

    async def publishes(self) -> None:
        """Have what is published confirmed.

        Raises:
            SendError: it isn't to be.
        """
        self._write(amqp_frames.method(commands.Confirm.Select(), CHANNEL))
        await self._next(commands.Confirm.SelectOk)
        self._publishing = True

    async def try_out(self, target: AmqpTarget) -> None:
        """See whether we may publish to a target, and leave nothing there: in a transaction that is rolled back.

        Raises:
            SendError: it isn't there, or we may not.
        """
        address = target.address
        if address.queue is not None:
            self._write(amqp_frames.expect_queue(address.queue))
            await self._next(commands.Queue.DeclareOk)
        else:
            self._write(amqp_frames.expect_exchange(address.exchange))
            await self._next(commands.Exchange.DeclareOk)
        self._write(amqp_frames.method(commands.Tx.Select(), CHANNEL))
        await self._next(commands.Tx.SelectOk)
        nothing = amqp_frames.content(amqp_frames.NO_PROPERTIES, b"", self._frame_max)
        self._write(target.publish + nothing + amqp_frames.method(commands.Tx.Rollback(), CHANNEL))
        await self._next(commands.Tx.RollbackOk)

    def publish(self, method: bytes, message: AmqpMessage, exchange: QueueExchange, deadline: float) -> None:
        """Publish a message where `method` says (`amqp_frames.publish`).

        `exchange` is told what came of it, by the deadline, which is of the loop's clock.
        """
        if self._blocked or not self.usable:
            exchange.failed(Reason.BLOCKED if self._blocked else Reason.CLOSED)
            return
        if method in self._sick:
            exchange.failed(Reason.TIMEOUT)
            return
        self._tag += 1
        timer = self._loop.call_at(deadline, self._late, self._tag)
        pending = self._pending[self._tag] = _Pending(exchange, method, message.identity, timer)
        exchange._carrier = pending
        self._used = self._loop.time()
        self._write(method + amqp_frames.content(message.properties, message.body, self._frame_max))
        pending.written = self._sent

    def retire(self) -> None:
        """Publish nothing more; it closes when what is under way has ended."""
        self._retired = True
        self._close_when_done()

    def close(self) -> None:
        """Say goodbye, and wait a moment for the answer; what is under way is lost, and nobody told of it."""
        for pending in self._pending.values():
            pending.cancel()
        self._end(Reason.CLOSED)
        if not self._closing and not self.transport.is_closing():
            self._closing = True
            goodbye = commands.Connection.Close(reply_code=200, reply_text="", class_id=0, method_id=0)
            self._write(amqp_frames.method(goodbye))
            self._loop.call_later(_CLOSE_SECONDS, self.transport.abort)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self.transport = transport  # type: ignore[assignment]  # a stream transport, by create_connection

    def data_received(self, data: bytes) -> None:
        """Some bytes of it."""
        self._received += len(data)
        self._heard = self._loop.time()
        if self._received > 2 * self._sent + _UNASKED_BYTES:  # nothing that was asked for is as long
            self._fail(Reason.NOT_AMQP)
            return
        try:
            for channel, read in self._reader.feed(data):
                self._take(channel, read)
                if self.transport.is_closing():
                    return
        except NotAmqp:
            self._fail(Reason.NOT_AMQP)

    def connection_lost(self, error: Exception | None) -> None:
        """It is closed."""
        # in TLS 1.3 a certificate of ours that isn't taken is told after the handshake
        self._end(Reason.TLS if isinstance(error, ssl.SSLError) else Reason.CLOSED)

    # what comes in

    def _take(self, channel: int, read: Read) -> None:
        match read:
            case Confirm():
                self._confirmed(read)
            case commands.Basic.Return():
                self._returning = True
            case commands.Connection.Blocked():
                self._blocked = True
            case commands.Connection.Unblocked():
                self._blocked = False
            case commands.Connection.Close():
                self._write(amqp_frames.method(commands.Connection.CloseOk()))
                self._leave(_REASONS.get(int(read.reply_code or 0), Reason.CLOSED))
            case commands.Connection.CloseOk():
                self._leave(Reason.CLOSED)
            case commands.Channel.Close():
                reason = _REASONS.get(int(read.reply_code or 0), Reason.CLOSED)
                self._write(amqp_frames.method(commands.Channel.CloseOk(), channel))
                self._end(reason)
                self.close()
            case Content():
                self._returned(read.identity)
            case _:
                self._answered(read)

    def _answered(self, read: Frame) -> None:
        awaited, self._awaited = self._awaited, None
        if awaited is None or not isinstance(read, awaited[0]):
            self._awaited = awaited
            self._fail(Reason.NOT_AMQP)
        elif not awaited[1].done():
            awaited[1].set_result(read)

    def _returned(self, identity: str) -> None:
        if not self._returning:
            self._fail(Reason.NOT_AMQP)
            return
        self._returning = False
        for pending in self._pending.values():
            if pending.identity == identity:
                pending.returned = True

    def _confirmed(self, confirm: Confirm) -> None:
        tags = _covered(confirm, self._pending)
        if tags and not self._may_have_been_read(self._pending[tags[-1]]):
            self._fail(Reason.NOT_AMQP)
            return
        self._confirmed_to = max(self._confirmed_to, min(confirm.tag, self._tag))
        ended = [self._pending.pop(tag) for tag in tags]
        for tag in _covered(confirm, self._overdue):
            where, _ = self._overdue.pop(tag)
            self._sick[where] -= 1
            if not self._sick[where]:
                del self._sick[where]
        for pending in ended:
            if not confirm.taken:
                pending.end(Reason.QUEUE_FULL)
            else:
                pending.end(Reason.QUEUE_MISSING if pending.returned else None)
        self._used = self._heard
        self._close_when_done()

    def _may_have_been_read(self, pending: _Pending) -> bool:
        """Whether a message has left us. Who confirms without reading would have us keep whatever we write, for ever.

        TLS adds to what waits to be written, but never as much again.
        """
        behind = self._sent - pending.written
        return self.transport.get_write_buffer_size() <= 2 * behind + _UNREAD_BYTES

    # how it goes on, and ends

    def _proof(self, offered: list[str]) -> tuple[str, str]:
        """SASL mechanism and response (RFC 4616; RFC 4422, A)."""
        user = self._login.user
        mechanism = "EXTERNAL" if user is None else "PLAIN"
        if mechanism not in offered:
            self.close()
            raise SendError(Reason.ACCESS)
        return mechanism, "" if user is None else "\0{}\0{}".format(*user)

    async def _next(self, kind: type[Frame]) -> Any:
        if self._failure is not None:
            raise SendError(self._failure)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._awaited = (kind, future)
        return await future

    def _write(self, data: bytes) -> None:
        self._sent += len(data)
        self._wrote = self._loop.time()
        self.transport.write(data)

    def _late(self, tag: int) -> None:
        reason = Reason.BLOCKED if self._blocked else Reason.TIMEOUT
        if tag < self._confirmed_to:  # it was read, as a later one was: a queue without a majority of its nodes
            if (pending := self._pending.pop(tag, None)) is not None:
                if self._shared:
                    self._overdue[tag] = (pending.method, self._loop.time())
                    self._sick[pending.method] += 1
                pending.end(reason)
                self._close_when_done()
        elif tag in self._pending:
            self._fail(reason)

    def _beat(self, seconds: float) -> None:
        """Show that we are there, see that the other side is, and close when there is nothing to do."""
        now = self._loop.time()
        if now - self._heard > 2 * seconds:
            self._fail(Reason.CLOSED)
        elif self._overdue and now - next(iter(self._overdue.values()))[1] > OVERDUE_SECONDS:
            self._fail(Reason.TIMEOUT)  # it will hardly be confirmed any more, and its queue may be well
        elif not self._pending and now - self._used > IDLE_SECONDS:
            self.close()
        else:
            if now - self._wrote >= seconds / 2:
                self._write(amqp_frames.HEARTBEAT)
            self._beating = self._loop.call_later(seconds / 2, self._beat, seconds)

    def _close_when_done(self) -> None:
        if self._retired and not self._pending:
            self.close()

    def _leave(self, reason: Reason) -> None:
        """The other side has nothing more to say: close as soon as our last words are out."""
        self._closing = True
        self.transport.close()
        self._loop.call_later(_CLOSE_SECONDS, self.transport.abort)
        self._end(reason)

    def _fail(self, reason: Reason) -> None:
        self.transport.abort()
        self._end(reason)

    def _end(self, reason: Reason) -> None:
        """Tell all who wait, once."""
        if self._failure is not None:
            return
        self._failure = reason
        if self._beating is not None:
            self._beating.cancel()
        pending, self._pending = self._pending, {}
        awaited, self._awaited = self._awaited, None
        if awaited is not None and not awaited[1].done():
            awaited[1].set_exception(SendError(reason))
        self._told(self)
        for each in pending.values():
            each.end(reason)


def _covered(confirm: Confirm, waiting: Mapping[int, object]) -> list[int]:
    """Which of those that wait, by tag and in its order, are confirmed."""
    if confirm.multiple:
        return list(takewhile(lambda tag: tag <= confirm.tag, waiting))
    return [confirm.tag] if confirm.tag in waiting else []
