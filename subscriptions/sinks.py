"""What sending needs of a subscription: where to, signed with what, how often again. Read by the delivery processes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Row, func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from subscriptions.secrets import KeyRing, SealError, secret_purpose
from subscriptions.tables import Status, subscriptions


@dataclass(frozen=True, slots=True)
class SinkConfig:
    """A subscription as its sender sees it. `secrets` sign together: the current one first."""

    key: int
    id: UUID
    organisation_id: UUID
    sink: str
    status: Status
    secrets: tuple[str, ...]
    retry: tuple[float, ...] | None
    subscriber_reference: str | None
    allowed_rate: int | None
    headers: Mapping[str, str]
    secrets_change_at: datetime | None
    """When the previous secret stops signing; None: it has."""


async def load_sinks(engine: AsyncEngine, keys: KeyRing, wanted: Sequence[int]) -> list[SinkConfig]:
    """Reads the sinks of subscriptions, by their internal keys; those that don't exist are missing."""
    statement = select(subscriptions).where(subscriptions.c.key == func.any(list(wanted)))
    now = datetime.now(UTC)
    async with engine.connect() as connection:
        found = (await connection.execute(statement)).all()
    sinks = []
    for row in found:
        try:
            sinks.append(_sink(row, keys, now))
        except SealError:  # this one's trouble, not that of the others; its deliveries wait
            structlog.get_logger("bode.sinks").error("secret-unreadable", subscription=str(row.id))
    return sinks


def _sink(row: Row[Any], keys: KeyRing, now: datetime) -> SinkConfig:
    sealed = [row.secret]
    if row.previous_secret is not None and row.previous_secret_expires_at > now:
        sealed.append(row.previous_secret)
    return SinkConfig(
        row.key,
        row.id,
        row.organisation_id,
        row.sink,
        Status(row.status),
        tuple(keys.open(secret, secret_purpose(row.id)).decode() for secret in sealed),
        None if row.retry is None else tuple(float(seconds) for seconds in row.retry),
        row.subscriber_reference,
        row.allowed_rate,
        row.protocol_settings.get("headers") or {},
        row.previous_secret_expires_at if len(sealed) > 1 else None,
    )
