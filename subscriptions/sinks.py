"""What sending needs of a subscription: where to, signed with what, how often again. Read by the delivery processes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Row, func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from schemas.resources import AmqpSettings, SignatureScheme
from subscriptions.credentials import NOBODY, Identity, open_identity
from subscriptions.protocols import queue_name
from subscriptions.secrets import KeyRing, SealError, secret_purpose
from subscriptions.signing_keys import SigningSet, signing_now
from subscriptions.tables import Protocol, Status, organisations, subscriptions


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Up to what its notifications are sent together."""

    max_count: int
    max_bytes: int
    linger_seconds: float

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "BatchLimits | None":
        """Reads `protocolSettings` as stored; None: no batches were asked for."""
        batch = settings.get("batch")
        if batch is None:
            return None
        return cls(batch["maxCount"], batch["maxBytes"], batch["lingerMilliseconds"] / 1000)


@dataclass(frozen=True, slots=True)
class SinkConfig:
    """A subscription as its sender sees it. `secrets` sign together: the current one first."""

    key: int
    id: UUID
    organisation_id: UUID
    sink: str
    status: Status
    secrets: tuple[str, ...]
    """Empty where only `v1a` is asked for."""
    signing_seeds: tuple[bytes, ...]
    """Ed25519 private keys that sign too; empty where `v1a` isn't asked for."""
    retry: tuple[float, ...] | None
    subscriber_reference: str | None
    allowed_rate: int | None
    headers: Mapping[str, str]
    secrets_change_in: float | None
    """Seconds after which to read it anew, because other secrets or keys may sign then; None: when it is changed."""
    failing_since: datetime | None = None
    """Since when the sink has accepted nothing, as far as that was noted."""
    identity: Identity = NOBODY
    """What the sink is shown of us, opened."""
    version: int = 0
    """Raised by each change of the subscription."""
    batch: BatchLimits | None = None
    """None: each notification is a request of its own."""
    queue: str | None = None
    """On the broker's RabbitMQ, where notifications go into a queue of its own; `sink` then names it too."""
    amqp: AmqpSettings | None = None
    """Where on the RabbitMQ of `sink`, where that is one."""


async def load_sinks(engine: AsyncEngine, keys: KeyRing, wanted: Sequence[int]) -> list[SinkConfig]:
    """Reads the sinks of subscriptions, by their internal keys; those that don't exist or have none are missing."""
    statement = (
        select(subscriptions, organisations.c.oin, func.now().label("now"))
        .join(organisations, organisations.c.id == subscriptions.c.organisation_id)
        .where(subscriptions.c.key == func.any(list(wanted)), subscriptions.c.protocol != Protocol.PULL.value)
    )
    sinks = []
    async with engine.connect() as connection:
        found = (await connection.execute(statement)).all()
        ring: SigningSet | None = None
        if any(SignatureScheme.ED25519 in _schemes(row) for row in found):
            ring = await signing_now(connection, keys, found[0].now)
    for row in found:
        try:
            sinks.append(_sink(row, keys, ring))
        except SealError:  # this one's trouble, not that of the others; its deliveries wait
            structlog.get_logger("bode.sinks").error("secret-unreadable", subscription=str(row.id))
    return sinks


def _schemes(row: Row[Any]) -> tuple[str, ...]:
    return tuple(row.protocol_settings.get("signatures") or (SignatureScheme.HMAC_SHA256,))


def _sink(row: Row[Any], keys: KeyRing, ring: SigningSet | None) -> SinkConfig:
    schemes = _schemes(row)
    sealed: list[bytes] = []
    changes: list[datetime] = []
    if SignatureScheme.HMAC_SHA256 in schemes:
        sealed.append(row.secret)
        if row.previous_secret is not None and row.previous_secret_expires_at > row.now:
            sealed.append(row.previous_secret)
            changes.append(row.previous_secret_expires_at)
    seeds: tuple[bytes, ...] = ()
    if SignatureScheme.ED25519 in schemes and ring is not None:
        seeds = ring.seeds
        changes.append(ring.changes_at)
    queue = queue_name(row.oin, row.id) if row.protocol == Protocol.AMQP and row.sink is None else None
    published = row.protocol == Protocol.AMQP and row.sink is not None
    return SinkConfig(
        row.key,
        row.id,
        row.organisation_id,
        row.sink or f"queue:{queue}",
        Status(row.status),
        tuple(keys.open(secret, secret_purpose(row.id)).decode() for secret in sealed),
        seeds,
        None if row.retry is None else tuple(float(seconds) for seconds in row.retry),
        row.subscriber_reference,
        row.allowed_rate,
        row.protocol_settings.get("headers") or {},
        max((min(changes) - row.now).total_seconds(), 0.0) if changes else None,
        row.failing_since,
        open_identity(row, keys),
        row.version,
        BatchLimits.of(row.protocol_settings),
        queue,
        AmqpSettings.model_validate(row.protocol_settings) if published else None,
    )
