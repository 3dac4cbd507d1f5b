"""One attempt: a notification is composed, signed and posted, and the answer is judged.

The signature covers exactly the bytes that are sent.
"""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from broker.delivery.client import Client, SendError, Target
from broker.delivery.envelopes import Envelope
from broker.delivery.outcomes import Outcome, judge
from broker.delivery.retries import DEFAULT, Schedule
from broker.delivery.signing import AsymmetricKey, Signer, SigningKey
from subscriptions.sinks import SinkConfig

CONTENT_TYPE: Final = "application/cloudevents+json; charset=utf-8"


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
    envelope: Envelope

    @classmethod
    def of(cls, config: SinkConfig) -> "Sink":
        """Prepare what is the same for every notification.

        Raises:
            ValueError: when the configuration, which the API has checked, is not usable after all.
        """
        return cls(
            config,
            Target.of(config.sink),
            (*map(SigningKey, config.secrets), *map(AsymmetricKey, config.signing_seeds)),
            DEFAULT if config.retry is None else Schedule.of_seconds(config.retry),
            Envelope.of(config.id, config.subscriber_reference),
        )


class Sender:
    """Sends notifications over one client."""

    def __init__(self, client: Client, origin: str) -> None:
        self._client = client
        self._origin = origin

    async def send(self, sink: Sink, sequence: int, event_key: int, body: bytes) -> Outcome:
        """Make one attempt. A sink that fails is an outcome, never an exception."""
        now = datetime.now(UTC)
        timestamp = int(now.timestamp())
        content = sink.envelope.compose(body, sequence)
        identity = delivery_id(sink.config.id, sequence)
        headers = {
            **sink.config.headers,
            "content-type": CONTENT_TYPE,
            "user-agent": "Bode",
            "webhook-id": identity,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join([key.sign(identity, timestamp, content) for key in sink.keys]),
            "webhook-request-origin": self._origin,
            "traceparent": f"00-{event_key:032x}-{random.getrandbits(64) | 1:016x}-01",
        }
        try:
            answer = await self._client.request("POST", sink.target, headers, content)
        except SendError as error:
            return Outcome(error.reason)
        return judge(answer.status, answer.header("retry-after"), answer.excerpt, now)
