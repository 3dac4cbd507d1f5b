"""A sink's consent by callback (CloudEvents HTTP webhook 1.0.2, section 4.1.3): tokens, and what they are good for.

Each handshake carries a URL of its own. Its token is random, kept only as a hash, valid for a day, for that sink, and
once: the first that is used ends all others of the subscription.
"""

import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import uniform
from typing import Final, NamedTuple
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.problems import NotFound
from subscriptions import life_cycle
from subscriptions.database import AnyRow
from subscriptions.life_cycle import Validation
from subscriptions.secrets import digest_of
from subscriptions.tables import handshake_tokens, subscriptions

CALLBACK_PATH: Final = "/handshakes/"
_VALID_FOR: Final = timedelta(days=1)
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_RATE: Final = re.compile(r"0{0,9}([1-9][0-9]{0,17})")
_HIGHEST_RATE: Final = 999_999_999
_SPREAD: Final = 0.1


class HandshakeSettings(BaseModel):
    """How sinks are asked for their consent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    request_rate: int | None = Field(
        default=None, ge=1, le=_HIGHEST_RATE, description="Notifications a minute to ask for; none: no rate is named."
    )
    renew_days: float = Field(
        default=7, ge=0, le=365, description="Ask a sink again so many days after its consent; 0: never."
    )

    def renew_at(self, now: datetime) -> datetime | None:
        """Returns when a consent that is given now is asked for again, spread so that not all come at once."""
        if not self.renew_days:
            return None
        return now + timedelta(days=self.renew_days) * uniform(1 - _SPREAD, 1 + _SPREAD)


class Recorded(NamedTuple):
    """What became of a subscription whose sink called back."""

    status: str
    allowed_rate: int | None


class InvalidRate(ValueError):
    """A rate that is neither a positive number nor `*`."""


def parse_rate(text: str) -> int | None:
    """Reads a WebHook-Allowed-Rate (section 4.2.2): notifications a minute; None means any.

    Raises:
        InvalidRate: it is neither a positive number nor `*`.
    """
    if text == "*":
        return None
    found = _RATE.fullmatch(text)
    if found is None:
        raise InvalidRate
    return min(int(found[1]), _HIGHEST_RATE)


async def issue_tokens(connection: AsyncConnection, validations: Sequence[Validation]) -> dict[UUID, str]:
    """Makes a token for each handshake that is about to be made, and forgets those that have expired."""
    await connection.execute(delete(handshake_tokens).where(handshake_tokens.c.expires_at < func.now()))
    tokens = {validation.id: secrets.token_urlsafe(32) for validation in validations}
    rows = [
        {
            "digest": digest_of(tokens[validation.id]),
            "subscription_id": validation.id,
            "sink": validation.sink,
            "expires_at": datetime.now(UTC) + _VALID_FOR,
        }
        for validation in validations
    ]
    if rows:
        await connection.execute(insert(handshake_tokens), rows)
    return tokens


async def redeem(
    connection: AsyncConnection, token: str, *, allowed_rate: int | None, settings: HandshakeSettings
) -> Recorded:
    """Records the consent of the sink that was given this token. Needs a transaction of `change_log.changing`.

    Raises:
        NotFound: no such token, or it was used, expired, or is for a handshake that no longer counts.
    """
    if _TOKEN.fullmatch(token) is None:
        raise NotFound
    known: AnyRow | None = (
        await connection.execute(
            select(handshake_tokens)
            .where(handshake_tokens.c.digest == digest_of(token), handshake_tokens.c.expires_at > func.now())
            .with_for_update()
        )
    ).one_or_none()
    if known is None:
        raise NotFound
    identity = known.subscription_id
    renew_at = settings.renew_at(datetime.now(UTC))
    if not await life_cycle.activate(
        connection, identity, sink=known.sink, allowed_rate=allowed_rate, renew_at=renew_at, by_callback=True
    ):
        raise NotFound
    await forget_tokens(connection, identity)
    found = await connection.execute(
        select(subscriptions.c.status, subscriptions.c.allowed_rate).where(subscriptions.c.id == identity)
    )
    return Recorded(*found.one())


async def forget_tokens(connection: AsyncConnection, subscription_id: UUID) -> None:
    """Makes every token of a subscription useless: its sink has consented."""
    await connection.execute(delete(handshake_tokens).where(handshake_tokens.c.subscription_id == subscription_id))
