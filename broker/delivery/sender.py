"""One attempt: a notification is composed, signed and posted, and the answer is judged.

What all notifications of a sink have in common is rendered once for the sink. The signature covers exactly the bytes
that are sent.
"""

import asyncio
import random
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from broker.delivery.amqp_messages import message_of
from broker.delivery.amqp_targets import AmqpTarget
from broker.delivery.authorization import Authorizer, TokenSource, source_of, standing
from broker.delivery.client import Client
from broker.delivery.envelopes import Envelope
from broker.delivery.exchanges import Answer, Exchange, QueueExchange, SendError, Target, Waiting
from broker.delivery.outcomes import Outcome, Reason, judge
from broker.delivery.queues import Queues
from broker.delivery.remote_queues import RemoteQueues
from broker.delivery.retries import DEFAULT, Schedule
from broker.delivery.signing import AsymmetricKey, Signer, SigningKey
from broker.delivery.tls import TlsIdentity
from subscriptions.sinks import SinkConfig

CONTENT_TYPE: Final = "application/cloudevents+json; charset=utf-8"
BATCH_CONTENT_TYPE: Final = "application/cloudevents-batch+json; charset=utf-8"
_OURS: Final = frozenset(
    {"host", "authorization", "content-type", "user-agent", "webhook-request-origin", "webhook-id", "webhook-timestamp"}
    | {"webhook-signature", "traceparent", "content-length"}
)
"""Headers that a subscription can't set."""
_NOWHERE: Final = "https://queue.invalid/"
"""In place of the URL of a sink that is not posted to (RFC 6761, 6.4)."""


def delivery_id(subscription_id: UUID, sequence: int) -> str:
    """The id of a delivery, the same over all attempts and replays; also its `webhook-id`."""
    return f"dlv_{subscription_id.hex}_{sequence}"


@dataclass(frozen=True, slots=True)
class Sink:
    """Where a subscription's notifications go, ready to be sent to."""

    config: SinkConfig
    target: Target
    keys: tuple[Signer, ...]
    schedule: Schedule
    id_prefix: str
    head: bytes
    """The request up to the headers that differ from notification to notification."""
    envelope: Envelope
    authorization: str
    """The line that every request has; empty where there is none, or one that changes."""
    tokens: TokenSource | None
    """Where the token comes from that requests need, where it changes."""
    remote: AmqpTarget | None
    """Where on the provider's RabbitMQ they go instead, published."""

    @classmethod
    def of(cls, config: SinkConfig, origin: str) -> "Sink":
        """Prepare what is the same for every notification; `origin` is our DNS name.

        Raises:
            ValueError: when the configuration, which the API has checked, is not usable after all.
        """
        remote = AmqpTarget.of(config, origin)
        url = config.sink if remote is None and config.queue is None else _NOWHERE
        target = Target.of(url, TlsIdentity.of_sink(config.identity.tls))
        authorization = standing(config)
        given = {name: value for name, value in config.headers.items() if name.lower() not in _OURS}
        headers = {
            **given,
            "content-type": CONTENT_TYPE if config.batch is None else BATCH_CONTENT_TYPE,
            "user-agent": "Bode",
            "webhook-request-origin": origin,
        }
        return cls(
            config,
            target,
            (*map(SigningKey, config.secrets), *map(AsymmetricKey, config.signing_seeds)),
            DEFAULT if config.retry is None else Schedule.of_seconds(config.retry),
            f"dlv_{config.id.hex}_",
            (
                target.head("POST") + authorization + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            ).encode("latin-1"),
            Envelope.of(config.id, config.subscriber_reference),
            authorization,
            source_of(config),
            remote,
        )

    def alone(self, content: bytes) -> bytes:
        """One event as the whole body of a request: a batch of one, where the sink asked for batches."""
        return content if self.config.batch is None else b"[%s]" % content


def traceparent(trace: int) -> str:
    """The context of a trace (W3C Trace Context), with a span of its own."""
    return f"00-{trace:032x}-{random.getrandbits(64) | 1:016x}-01"


def sign_and_frame(sink: Sink, identity: str, trace: int, content: bytes, timestamp: int) -> bytes:
    """The whole request for a body that is ready: its head, signed, and the body.

    Args:
        sink: where it goes.
        identity: the `webhook-id`.
        trace: 128 bits that become the trace id.
        content: the body, exactly as it is sent.
        timestamp: seconds since 1970.
    """
    keys = sink.keys
    if len(keys) == 1:
        signatures = keys[0].sign(identity, timestamp, content)
    else:
        signatures = " ".join([key.sign(identity, timestamp, content) for key in keys])
    head = (
        f"webhook-id: {identity}\r\nwebhook-timestamp: {timestamp}\r\nwebhook-signature: {signatures}\r\n"
        f"traceparent: {traceparent(trace)}\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return b"".join((sink.head, head.encode(), content))


class Sending(QueueExchange):
    """An exchange whose answer is judged; `ended` is called with the outcome."""

    __slots__ = ()

    @abstractmethod
    def ended(self, outcome: Outcome) -> None:
        """What came of it. A sink that fails is an outcome, never an exception."""

    def answered(self, answer: Answer) -> None:
        """Judge the answer."""
        if answer.status == 204:  # what nearly every answer is
            self.ended(_TAKEN)
            return
        self.ended(judge(answer.status, answer.header("retry-after"), answer.excerpt, datetime.now(UTC)))

    def confirmed(self) -> None:
        """A queue has it, which is as good as an answer."""
        self.ended(_CONFIRMED)

    def failed(self, reason: Reason) -> None:
        """There was no answer to judge."""
        self.ended(Outcome(reason))


_TAKEN: Final = Outcome(None, 204)
_CONFIRMED: Final = Outcome(None)


class _Awaited(Sending):
    """One whose outcome somebody awaits."""

    __slots__ = ("future",)

    def __init__(self, future: "asyncio.Future[Outcome]") -> None:
        super().__init__()
        self.future = future

    def ended(self, outcome: Outcome) -> None:
        if not self.future.done():
            self.future.set_result(outcome)


class Sender:
    """Sends notifications over one client, and into queues."""

    def __init__(
        self,
        client: Client,
        authorizer: Authorizer | None = None,
        queues: Queues | None = None,
        remote: RemoteQueues | None = None,
    ) -> None:
        """Make one; without an authorizer or queues nothing is sent to sinks that need them."""
        self._client = client
        self._authorizer = authorizer
        self._queues = queues
        self._remote = remote

    def begin(self, sink: Sink, sequence: int, event_key: int, body: bytes, sending: Sending) -> None:
        """Begin an attempt, whose outcome `sending` is told."""
        content = sink.envelope.compose(body, sequence)
        if sink.config.queue is not None or sink.remote is not None:
            self.begin_content(sink, f"{sink.id_prefix}{sequence}", event_key, content, sending)
            return
        data = sign_and_frame(sink, f"{sink.id_prefix}{sequence}", event_key, content, int(time.time()))
        if sink.tokens is None:
            self._client.send(sink.target, data, sending)
        else:
            self.post(sink, data, sending)

    def post(self, sink: Sink, data: bytes, exchange: Exchange) -> None:
        """Send one whole request to a sink, with the token that it needs."""
        if sink.tokens is None:
            self._client.send(sink.target, data, exchange)
        elif self._authorizer is None:
            exchange.failed(Reason.TOKEN_UNAVAILABLE)
        else:
            self._authorizer.send(sink.tokens, sink.target, data, exchange)

    async def ask(self, sink: Sink, method: str, headers: Mapping[str, str]) -> Answer:
        """Send a request without a body, showing the sink what notifications show it.

        Raises:
            SendError: when there is no usable answer; never for a status.
        """
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        head = f"{sink.target.head(method)}{sink.authorization}{lines}content-length: 0\r\n\r\n"
        waiting = Waiting(asyncio.get_running_loop().create_future())
        self.post(sink, head.encode("latin-1"), waiting)
        try:
            return await waiting.future
        finally:
            waiting.abandon()

    def begin_content(self, sink: Sink, identity: str, trace: int, content: bytes, exchange: QueueExchange) -> None:
        """Begin an attempt whose body is ready, such as a batch; `exchange` is told what came of it."""
        queue, remote, now = sink.config.queue, sink.remote, int(time.time())
        if queue is None and remote is None:
            self.post(sink, sign_and_frame(sink, identity, trace, content, now), exchange)
            return
        signatures = " ".join([key.sign(identity, now, content) for key in sink.keys])
        message = message_of(content, CONTENT_TYPE, identity, now, signatures, traceparent(trace))
        if remote is not None and self._remote is not None:
            self._remote.begin(remote, message, exchange)
        elif queue is not None and self._queues is not None:
            self._queues.begin(queue, message, exchange)
        else:
            exchange.failed(Reason.RABBITMQ)

    async def try_out(self, target: AmqpTarget) -> None:
        """See whether we may publish to a provider's RabbitMQ.

        Raises:
            SendError: we may not, or it can't be reached.
        """
        if self._remote is None:
            raise SendError(Reason.RABBITMQ)
        await self._remote.try_out(target)

    async def send(self, sink: Sink, identity: str, trace: int, content: bytes) -> Outcome:
        """Post a body that isn't a delivery's, signed as all are, and wait for the outcome."""
        awaited = _Awaited(asyncio.get_running_loop().create_future())
        self.begin_content(sink, identity, trace, sink.alone(content), awaited)
        try:
            return await awaited.future
        finally:
            awaited.abandon()
