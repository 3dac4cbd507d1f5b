"""What each protocol of delivery asks of a subscription, and rules out."""

from uuid import UUID

from schemas.problems import InvalidInput, InvalidParam
from schemas.resources import SubscriptionBody
from schemas.resources.subscriptions import HEARTBEAT_SECONDS, Protocol
from subscriptions.database import AnyRow
from subscriptions.sink_urls import SinkRules


def validate(body: SubscriptionBody, sinks: SinkRules) -> None:
    """Raises `InvalidInput`, naming each member, unless a subscription fits its protocol."""
    match body.protocol:
        case Protocol.HTTP:
            if body.sink is None:
                raise InvalidInput.field("/sink", "missing", "is required where notifications are posted (HTTP)")
            sinks.validate(body.sink)
        case Protocol.AMQP:
            _only_a_queue(body, sinks)
        case Protocol.PULL:
            _nothing_to_send(body)


def stays(row: AnyRow, body: SubscriptionBody) -> None:
    """Raises `InvalidInput` when a change would change the protocol: what is numbered was promised by the other."""
    if body.protocol.value != row.protocol:
        reason = f"must stay {row.protocol}: make another subscription, and end this one when you have its numbers"
        raise InvalidInput.field("/protocol", "read-only", reason)


def queue_name(oin: str, subscription_id: UUID) -> str:
    """The queue of a subscription; those of one organisation start alike, so that one permission is for all of them."""
    return f"bode.deliver.{oin}.{subscription_id}"


def _only_a_queue(body: SubscriptionBody, sinks: SinkRules) -> None:
    if not sinks.offer_queues:
        raise InvalidInput.field("/protocol", "not-offered", "must be HTTP or PULL: this installation has no RabbitMQ")
    settings = body.protocol_settings
    given = {
        "/sink": body.sink,
        "/sinkCredential": body.sink_credential,
        "/sinkTls": body.sink_tls,
        "/protocolSettings/headers": None if settings is None else settings.headers,
        "/protocolSettings/batch": None if settings is None else settings.batch,
    }
    reason = "must be absent where notifications go into a queue (AMQP)"
    params = [
        InvalidParam(location="body", name=name, code="not-with-amqp", reason=reason)
        for name, value in given.items()
        if value is not None
    ]
    if params:
        raise InvalidInput(params=params)


def _nothing_to_send(body: SubscriptionBody) -> None:
    given = {
        "/sink": body.sink,
        "/sinkCredential": body.sink_credential,
        "/sinkTls": body.sink_tls,
        "/protocolSettings": body.protocol_settings,
        "/retry": body.retry,
        f"/config/{HEARTBEAT_SECONDS}": body.heartbeat_seconds,
    }
    reason = "must be absent where notifications are pulled (PULL): nothing is sent"
    params = [
        InvalidParam(location="body", name=name, code="not-with-pull", reason=reason)
        for name, value in given.items()
        if value is not None
    ]
    if params:
        raise InvalidInput(params=params)
