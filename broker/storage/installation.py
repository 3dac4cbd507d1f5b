"""What is fixed at the first start of an installation and kept from then on."""

import os

import asyncpg

from broker.storage.fingerprints import KEY_BYTES, Fingerprints
from subscriptions.secrets import KeyRing

_KEEP = "INSERT INTO installation (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING"
_READ = "SELECT value FROM installation WHERE name = $1"
_FINGERPRINT_KEY = "fingerprint-key"


async def fingerprints(pool: asyncpg.Pool, keys: KeyRing) -> Fingerprints:
    """The installation's fingerprints; makes their key at the first start. Of several processes one key wins.

    Raises:
        SealError: when the key ring isn't the installation's.
    """
    bound_to = _FINGERPRINT_KEY.encode()
    async with pool.acquire() as connection:
        await connection.execute(_KEEP, _FINGERPRINT_KEY, keys.seal(os.urandom(KEY_BYTES), bound_to))
        sealed = await connection.fetchval(_READ, _FINGERPRINT_KEY)
    return Fingerprints(keys.open(sealed, bound_to))


async def fixed_number(pool: asyncpg.Pool, name: str, wanted: int) -> int:
    """A number that the first start decides; a later wish for another one has no effect here."""
    async with pool.acquire() as connection:
        await connection.execute(_KEEP, name, str(wanted).encode())
        return int(await connection.fetchval(_READ, name))
