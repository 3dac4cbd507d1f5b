"""What people's requests read and change of deliveries: health, rejections, cancellations.

These run in the API's transactions. The cost of a reading doesn't grow with a backlog; a cancellation's does, with the
rows that it cancels.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Row, Select, TextClause, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.storage.tables import rejections

_TRIES: Final = 8
_DEADLOCK: Final = "40P01"

_COUNT_CANCELLED: Final = """
INSERT INTO delivery_totals AS total (subscription, cancelled)
SELECT subscription, count(*) FROM cancelled GROUP BY subscription ORDER BY subscription
ON CONFLICT (subscription) DO UPDATE SET cancelled = total.cancelled + excluded.cancelled
"""

_CANCEL_SUBSCRIPTION: Final = text(
    f"""
    WITH cancelled AS (
        UPDATE deliveries SET state = 'cancelled', ended_at = now(), next_attempt_at = NULL, reason = :reason
        WHERE subscription = :key AND state = 'pending'
        RETURNING subscription
    ) {_COUNT_CANCELLED}
    """
)
"""Cancels all that is pending of one subscription, with a reason (promise 2)."""

_REGRANT: Final = text(
    """
    UPDATE deliveries AS delivery SET grant_id = standing.id
    FROM subscriptions, events, grants AS ended, grants AS standing
    WHERE ended.id = :grant_id
      AND subscriptions.organisation_id = :provider_id AND delivery.subscription = subscriptions.key
      AND delivery.state = 'pending' AND delivery.grant_id = :grant_id AND events.key = delivery.event_key
      AND standing.id <> :grant_id AND standing.provider_id = :provider_id
      AND standing.registry_id = ended.registry_id AND standing.revoked_at IS NULL
      AND standing.valid_from <= greatest(now(), standing.created_at)
      AND (standing.valid_until IS NULL OR standing.valid_until > now())
      AND EXISTS (
          SELECT FROM unnest(standing.types) AS pattern
          WHERE pattern = events.type OR (right(pattern, 2) = '.*' AND starts_with(events.type, left(pattern, -1)))
      )
    """
)
"""What another grant covers as well goes on, on that one. When a grant begins: see `Directory.granted`."""

_CANCEL_UNGRANTED: Final = text(
    f"""
    WITH cancelled AS (
        UPDATE deliveries SET state = 'cancelled', ended_at = now(), next_attempt_at = NULL, reason = 'grant-ended'
        FROM subscriptions
        WHERE subscriptions.organisation_id = :provider_id AND subscription = subscriptions.key
          AND state = 'pending' AND grant_id = :grant_id
        RETURNING subscription
    ) {_COUNT_CANCELLED}
    """
)
"""Promise 6: a revocation cancels what is pending on its grant."""

_HEALTH: Final = text(
    """
    SELECT numbers.subscription AS key, numbers.last_sequence,
           numbers.last_sequence - coalesce(totals.delivered + totals.dead + totals.cancelled, 0) AS pending,
           coalesce(totals.dead, 0) AS dead_letters, head.sequence AS first_pending, head.event_key AS oldest,
           kind.retention_days,
           coalesce(head.reason, last.reason, last.state::text) AS last_outcome
    FROM subscription_numbers AS numbers
    LEFT JOIN delivery_totals AS totals USING (subscription)
    LEFT JOIN LATERAL (
        SELECT sequence, event_key, reason FROM deliveries
        WHERE subscription = numbers.subscription AND state = 'pending' ORDER BY sequence LIMIT 1
    ) AS head ON true
    LEFT JOIN events AS event ON event.key = head.event_key
    LEFT JOIN event_types AS kind ON kind.type = event.type
    LEFT JOIN LATERAL (
        SELECT state, reason FROM deliveries
        WHERE subscription = numbers.subscription
          AND sequence = coalesce(head.sequence - 1, numbers.last_sequence)
    ) AS last ON true
    WHERE numbers.subscription = ANY(:keys)
    """
)
"""Health of subscriptions: counters and four index probes each, whatever the backlog.

The last outcome is that of the first delivery that is pending, if it was tried, else of the one before it."""


async def cancel_subscription(connection: AsyncConnection, key: int) -> None:
    """Cancel what is pending of a subscription that ends."""
    await _cancel(connection, [_CANCEL_SUBSCRIPTION], {"key": key, "reason": "subscription-ended"})


async def cancel_ungranted(connection: AsyncConnection, provider_id: UUID, grant_id: UUID) -> None:
    """Cancel what is pending on a grant that was revoked, but for what another grant covers."""
    await _cancel(connection, [_REGRANT, _CANCEL_UNGRANTED], {"provider_id": provider_id, "grant_id": grant_id})


async def _cancel(connection: AsyncConnection, statements: Sequence[TextClause], parameters: Mapping[str, Any]) -> None:
    """Change many deliveries at once, while outcomes of the same ones are being recorded.

    Both lock rows, in orders that nobody chose; who is told of a deadlock lets go of its rows and begins again.
    """
    for left in reversed(range(_TRIES)):
        try:
            async with connection.begin_nested():
                for statement in statements:
                    await connection.execute(statement, parameters)
            return
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _DEADLOCK or not left:
                raise


async def read_health(connection: AsyncConnection, keys: Sequence[int]) -> Sequence[Row[Any]]:
    """Figures of subscriptions; one that never matched anything is missing."""
    return (await connection.execute(_HEALTH, {"keys": list(keys)})).all()


REJECTIONS_ORDER: Final = (rejections.c.id,)


def rejections_of(organisation_id: UUID | None) -> Select[Any]:
    """The rejections of a registry; None: of all publishers, the unknown ones too."""
    statement = select(rejections)
    return statement if organisation_id is None else statement.where(rejections.c.organisation_id == organisation_id)
