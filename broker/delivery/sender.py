"""One attempt: a notification is composed, signed and posted, and the answer is judged.

What all notifications of a sink have in common is rendered once for the sink. The signature covers exactly the bytes
that are sent.
"""

import asyncio
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from broker.delivery.client import Answer, Client, Exchange, Target
from broker.delivery.envelopes import Envelope
from broker.delivery.outcomes import Outcome, Reason, judge
from broker.delivery.retries import DEFAULT, Schedule
from broker.delivery.signing import AsymmetricKey, Signer, SigningKey
from subscriptions.sinks import SinkConfig

CONTENT_TYPE: Final = "application/cloudevents+json; charset=utf-8"
_OURS: Final = frozenset(
    {"host", "content-type", "user-agent", "webhook-request-origin", "webhook-id", "webhook-timestamp"}
    | {"webhook-signature", "traceparent", "content-length"}
)
"""Headers that a subscription can't set."""


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

    @classmethod
    def of(cls, config: SinkConfig, origin: str) -> "Sink":
        """Prepare what is the same for every notification; `origin` is our DNS name.

        Raises:
            ValueError: when the configuration, which the API has checked, is not usable after all.
        """
        target = Target.of(config.sink)
        given = {name: value for name, value in config.headers.items() if name.lower() not in _OURS}
        headers = {
            **given,
            "content-type": CONTENT_TYPE,
            "user-agent": "Bode",
            "webhook-request-origin": origin,
        }
        return cls(
            config,
            target,
            (*map(SigningKey, config.secrets), *map(AsymmetricKey, config.signing_seeds)),
            DEFAULT if config.retry is None else Schedule.of_seconds(config.retry),
            f"dlv_{config.id.hex}_",
            (target.head("POST") + "".join(f"{name}: {value}\r\n" for name, value in headers.items())).encode(
                "latin-1"
            ),
            Envelope.of(config.id, config.subscriber_reference),
        )


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
        f"traceparent: 00-{trace:032x}-{random.getrandbits(64) | 1:016x}-01\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return b"".join((sink.head, head.encode(), content))


class Sending(Exchange):
    """An exchange whose answer is judged; `ended` is called with the outcome."""

    __slots__ = ()

    def ended(self, outcome: Outcome) -> None:
        """What came of it. A sink that fails is an outcome, never an exception."""
        raise NotImplementedError

    def answered(self, answer: Answer) -> None:
        """Judge the answer."""
        if answer.status == 204:  # what nearly every answer is
            self.ended(_TAKEN)
            return
        self.ended(judge(answer.status, answer.header("retry-after"), answer.excerpt, datetime.now(UTC)))

    def failed(self, reason: Reason) -> None:
        """There was no answer to judge."""
        self.ended(Outcome(reason))


_TAKEN: Final = Outcome(None, 204)


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
    """Sends notifications over one client."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def begin(self, sink: Sink, sequence: int, event_key: int, body: bytes, sending: Sending) -> None:
        """Begin an attempt, whose outcome `sending` is told."""
        content = sink.envelope.compose(body, sequence)
        data = sign_and_frame(sink, f"{sink.id_prefix}{sequence}", event_key, content, int(time.time()))
        self._client.send(sink.target, data, sending)

    async def send(self, sink: Sink, identity: str, trace: int, content: bytes) -> Outcome:
        """Post a body that isn't a delivery's, signed as all are, and wait for the outcome."""
        awaited = _Awaited(asyncio.get_running_loop().create_future())
        self._client.send(sink.target, sign_and_frame(sink, identity, trace, content, int(time.time())), awaited)
        try:
            return await awaited.future
        finally:
            awaited.abandon()
