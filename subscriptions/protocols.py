"""What each protocol of delivery asks of a subscription, and rules out."""

from uuid import UUID

from schemas.problems import InvalidInput, InvalidParam
from schemas.resources import AmqpSettings, HttpSettings, SubscriptionBody
from schemas.resources.credentials import PlainCredential
from schemas.resources.subscriptions import HEARTBEAT_SECONDS, Protocol
from subscriptions.credentials import Identity
from subscriptions.database import AnyRow
from subscriptions.sink_urls import SinkRules


def validate(body: SubscriptionBody, sinks: SinkRules) -> None:
    """Raises `InvalidInput`, naming each member, unless a subscription fits its protocol."""
    match body.protocol:
        case Protocol.HTTP:
            if body.sink is None:
                raise InvalidInput.field("/sink", "missing", "is required where notifications are posted (HTTP)")
            sinks.validate(body.sink)
            if isinstance(body.protocol_settings, AmqpSettings):
                reason = "must be absent where notifications are posted (HTTP)"
                raise InvalidInput.field("/protocolSettings/address", "not-with-http", reason)
        case Protocol.AMQP if body.sink is not None:
            sinks.validate_amqp(body.sink)
            _an_address(body.protocol_settings)
        case Protocol.AMQP:
            _only_a_queue(body, sinks)
        case Protocol.PULL:
            _nothing_to_send(body)


def stays(row: AnyRow, body: SubscriptionBody) -> None:
    """Raises `InvalidInput` when a change would change the protocol: what is numbered was promised by the other."""
    if body.protocol.value != row.protocol:
        reason = f"must stay {row.protocol}: make another subscription, and end this one when you have its numbers"
        raise InvalidInput.field("/protocol", "read-only", reason)
    if row.protocol == Protocol.AMQP and (body.sink is None) != (row.sink is None):
        reason = f"must stay {'absent' if row.sink is None else 'a RabbitMQ of yours'}: make another subscription"
        raise InvalidInput.field("/sink", "read-only", reason)


def check_identity(body: SubscriptionBody, shown: Identity) -> None:
    """Raises `InvalidInput` unless a RabbitMQ of the provider's can know us by what it is shown."""
    if body.protocol is not Protocol.AMQP or body.sink is None:
        return
    if shown.credential is None and (shown.tls is None or shown.tls.certificate is None):
        reason = "is required to log in to a RabbitMQ: a user and password (PLAIN), or a certificate in sinkTls"
        raise InvalidInput.field("/sinkCredential", "missing", reason)
    if shown.credential is not None and not isinstance(shown.credential, PlainCredential):
        raise InvalidInput.field("/sinkCredential/credentialType", "not-with-amqp", "must be PLAIN for a RabbitMQ")


def leads_elsewhere(row: AnyRow, body: SubscriptionBody) -> bool:
    """Tells whether a change leads to another sink, or elsewhere on its RabbitMQ, which nobody has consented to yet."""
    settings = body.protocol_settings
    address = settings.address if isinstance(settings, AmqpSettings) else None
    return bool(body.sink != row.sink or address != row.protocol_settings.get("address"))


def queue_name(oin: str, subscription_id: UUID) -> str:
    """The queue of a subscription; those of one organisation start alike, so that one permission is for all of them."""
    return f"bode.deliver.{oin}.{subscription_id}"


def _an_address(settings: HttpSettings | AmqpSettings | None) -> None:
    if isinstance(settings, AmqpSettings):
        return
    reason = "is required where notifications are published to a RabbitMQ: /queues/<queue> or /exchanges/<exchange>"
    params = [InvalidParam(location="body", name="/protocolSettings/address", code="missing", reason=reason)]
    raise InvalidInput(params=params + _only_of_http(settings))


def _only_of_http(settings: HttpSettings | None) -> list[InvalidParam]:
    given = {} if settings is None else {"headers": settings.headers, "batch": settings.batch}
    return [
        InvalidParam(
            location="body",
            name=f"/protocolSettings/{name}",
            code="not-with-amqp",
            reason="must be absent where notifications are messages (AMQP)",
        )
        for name, value in given.items()
        if value is not None
    ]


def _only_a_queue(body: SubscriptionBody, sinks: SinkRules) -> None:
    if not sinks.offer_queues:
        reason = "needs a sink, which is a RabbitMQ of yours: this installation has none"
        raise InvalidInput.field("/protocol", "not-offered", reason)
    settings = body.protocol_settings
    if isinstance(settings, AmqpSettings):
        raise InvalidInput.field("/sink", "missing", "is required with an address: the RabbitMQ that it is on")
    given = {"/sinkCredential": body.sink_credential, "/sinkTls": body.sink_tls}
    reason = "must be absent where notifications go into a queue of the broker's (AMQP without sink)"
    params = _only_of_http(settings) + [
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
