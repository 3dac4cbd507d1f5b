"""What each protocol of delivery asks of a subscription, and rules out."""

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
        case Protocol.PULL:
            _nothing_to_send(body)


def stays(row: AnyRow, body: SubscriptionBody) -> None:
    """Raises `InvalidInput` when a change would change the protocol: what is numbered was promised by the other."""
    if body.protocol.value != row.protocol:
        reason = f"must stay {row.protocol}: make another subscription, and end this one when you have its numbers"
        raise InvalidInput.field("/protocol", "read-only", reason)


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
