"""The installation's Ed25519 keys: made here, encrypted at rest, published as a JWKS, changed over with an overlap.

    published ──signs_from──► signing ──successor's signs_from──► overlap ──signs_until──► shown a while ─► gone

A key is published before it signs, so that receivers which keep the set for a while know it in time. In the overlap the
old and the new one both sign, so a receiver that knows either can verify. Whoever signs reads the keys anew every
`RECHECK`; a new key therefore begins no sooner than twice that after it was made.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from subscriptions.database import AnyRow
from subscriptions.secrets import KeyRing
from subscriptions.tables import signing_keys

RECHECK: Final = timedelta(seconds=60)
LEAST_AHEAD: Final = 2 * RECHECK
SHOWN_AFTERWARDS: Final = timedelta(days=30)
"""How long a key stays published after its last signature, for receivers that verify what they stored."""

PUBLIC_PREFIX: Final = "whpk_"
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtext('bode signing keys'))"


@dataclass(frozen=True, slots=True)
class SigningSet:
    """The private keys that sign now, the oldest first, and when to ask again."""

    seeds: tuple[bytes, ...]
    changes_at: datetime


def seed_purpose(kid: str) -> bytes:
    """Returns what the private key with this id is bound to."""
    return b"signing key " + kid.encode()


async def ensure(connection: AsyncConnection, keys: KeyRing) -> None:
    """Makes the first key where there is none; of several processes one does."""
    if (await connection.execute(select(func.count()).select_from(signing_keys))).scalar_one():
        return
    await connection.execute(text(_LOCK))
    if (await connection.execute(select(func.count()).select_from(signing_keys))).scalar_one():
        return
    now = (await connection.execute(select(func.now()))).scalar_one()
    await connection.execute(insert(signing_keys).values(**_make(keys), signs_from=now))


async def rotate(connection: AsyncConnection, keys: KeyRing, *, ahead: timedelta, overlap: timedelta) -> str:
    """Makes a successor that begins after `ahead`; both sign for `overlap`, then it alone. Returns its id.

    Raises:
        ValueError: when the last key hasn't begun yet, `ahead` is under `LEAST_AHEAD`, or `overlap` isn't positive.
    """
    if ahead < LEAST_AHEAD:
        raise ValueError(f"a key must be published {LEAST_AHEAD.total_seconds():.0f} s before it signs, or longer")
    if overlap <= timedelta(0):
        raise ValueError("the overlap must be longer than nothing: what was signed is still under way")
    await ensure(connection, keys)
    await connection.execute(text(_LOCK))
    now = (await connection.execute(select(func.clock_timestamp()))).scalar_one()
    last = (await connection.execute(select(signing_keys).where(signing_keys.c.signs_until.is_(None)))).one()
    if last.signs_from > now:
        raise ValueError("the last key hasn't begun to sign yet: wait until it has")
    begins = now + ahead
    await connection.execute(
        update(signing_keys).where(signing_keys.c.kid == last.kid).values(signs_until=begins + overlap)
    )
    made = _make(keys)
    await connection.execute(insert(signing_keys).values(**made, signs_from=begins))
    return str(made["kid"])


async def signing_now(connection: AsyncConnection, keys: KeyRing, now: datetime) -> SigningSet:
    """Returns the keys that sign at `now`.

    Raises:
        SealError: when no key of the ring opens one of them.
    """
    rows = (
        await connection.execute(
            select(signing_keys)
            .where(signing_keys.c.signs_until.is_(None) | (signing_keys.c.signs_until > now))
            .order_by(signing_keys.c.signs_from)
        )
    ).all()
    begun = [row for row in rows if row.signs_from <= now]
    changes = [row.signs_until for row in begun if row.signs_until is not None]
    changes += [row.signs_from for row in rows if row.signs_from > now]
    return SigningSet(
        tuple(keys.open(row.seed, seed_purpose(row.kid)) for row in begun), min([*changes, now + RECHECK])
    )


async def key_set(connection: AsyncConnection) -> dict[str, Any]:
    """Returns the public keys as a JWKS (RFC 7517, RFC 8037), each in the form of Standard Webhooks too."""
    shown = signing_keys.c.signs_until.is_(None) | (signing_keys.c.signs_until > func.now() - SHOWN_AFTERWARDS)
    rows: Sequence[AnyRow] = (
        await connection.execute(select(signing_keys).where(shown).order_by(signing_keys.c.signs_from.desc()))
    ).all()
    return {
        "keys": [
            {
                **_jwk(row.public),
                "kid": row.kid,
                "use": "sig",
                "alg": "EdDSA",
                "standardWebhooks": PUBLIC_PREFIX + base64.b64encode(row.public).decode(),
            }
            for row in rows
        ]
    }


def _make(keys: KeyRing) -> dict[str, Any]:
    private = Ed25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    kid = _thumbprint(public)
    return {"kid": kid, "public": public, "seed": keys.seal(private.private_bytes_raw(), seed_purpose(kid))}


def _jwk(public: bytes) -> dict[str, str]:
    return {"crv": "Ed25519", "kty": "OKP", "x": _base64url(public)}


def _thumbprint(public: bytes) -> str:
    # RFC 7638: the required members in lexicographic order, without white space
    return _base64url(hashlib.sha256(orjson.dumps(_jwk(public))).digest())


def _base64url(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
