"""The tokens for sinks, shared by all processes. Each statement says what it guarantees.

Who acquires the next token holds a claim on the row meanwhile: a refresh token that a server takes once is not traded
by two processes. A claim is made only under the version of the subscription that the process knows, so that none acts
for a credential that was replaced.
"""

from datetime import timedelta
from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine


class Stored(NamedTuple):
    """What is stored of a token; `sealed` None: nothing. `seconds` it lasts; None: unknown."""

    sealed: bytes | None
    seconds: float | None


_READ: Final = text("""
    SELECT sealed, extract(epoch FROM expires_at - now())::float8 FROM sink_tokens
    WHERE subscription_id = :subscription AND credential_id = :credential
""")
"""The token of this credential, if there is one."""

_CLAIM: Final = text("""
    INSERT INTO sink_tokens AS token (subscription_id, credential_id, claim, claimed_until)
    SELECT id, :credential, :claim, now() + :lease FROM subscriptions WHERE id = :subscription AND version = :version
    ON CONFLICT (subscription_id) DO UPDATE SET
        credential_id = excluded.credential_id, claim = excluded.claim, claimed_until = excluded.claimed_until,
        sealed = CASE WHEN token.credential_id = excluded.credential_id THEN token.sealed END,
        expires_at = CASE WHEN token.credential_id = excluded.credential_id THEN token.expires_at END
    WHERE token.claim IS NULL OR token.claimed_until < now() OR token.credential_id <> excluded.credential_id
    RETURNING sealed, extract(epoch FROM expires_at - now())::float8
""")
"""Claims the row for a time: nobody else has it. What a former credential left is gone. No row: another has it, or
the subscription was changed."""

_STORE: Final = text("""
    UPDATE sink_tokens SET sealed = :sealed, claim = NULL, claimed_until = NULL,
        expires_at = now() + CAST(:lasts AS interval)
    WHERE subscription_id = :subscription AND claim = :claim
""")
"""Stores a token and gives up the claim, as long as the claim is held."""

_RELEASE: Final = text("""
    UPDATE sink_tokens SET claim = NULL, claimed_until = NULL WHERE subscription_id = :subscription AND claim = :claim
""")
"""Gives up the claim; the token stays as it was."""


async def read(engine: AsyncEngine, subscription: UUID, credential: UUID) -> Stored | None:
    """The token that was acquired with a credential; None: there is none."""
    async with engine.connect() as connection:
        row = (await connection.execute(_READ, {"subscription": subscription, "credential": credential})).one_or_none()
    return None if row is None else Stored(*row)


async def claim(
    engine: AsyncEngine, subscription: UUID, credential: UUID, *, version: int, claim: UUID, lease: timedelta
) -> Stored | None:
    """Claims the acquiring of the next token, for `lease`; None: another does, or the subscription was changed."""
    values = {
        "subscription": subscription, "credential": credential, "version": version, "claim": claim, "lease": lease,
    }  # fmt: skip
    async with engine.begin() as connection:
        row = (await connection.execute(_CLAIM, values)).one_or_none()
    return None if row is None else Stored(*row)


async def store(
    engine: AsyncEngine, subscription: UUID, *, claim: UUID, sealed: bytes, lasts: timedelta | None
) -> bool:
    """Stores an acquired token; returns whether the claim was still held."""
    values = {"subscription": subscription, "claim": claim, "sealed": sealed, "lasts": lasts}
    async with engine.begin() as connection:
        return (await connection.execute(_STORE, values)).rowcount > 0


async def release(engine: AsyncEngine, subscription: UUID, *, claim: UUID) -> None:
    """Gives up a claim without a token."""
    async with engine.begin() as connection:
        await connection.execute(_RELEASE, {"subscription": subscription, "claim": claim})
