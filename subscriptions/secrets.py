"""Secrets at rest and secrets that we hand out.

What must be readable again (signing secrets) is encrypted with AES-256-GCM under a key ring and bound to what it
belongs to, so that a ciphertext moved to another row can't be opened. What need not be (API keys) is hashed.
"""

import base64
import binascii
import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from typing import Annotated, Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr

_FORMAT: Final = b"\x01"
_KEY_BYTES: Final = 32
_KEY_ID_BYTES: Final = 4
_NONCE_BYTES: Final = 12
_HEAD_BYTES: Final = len(_FORMAT) + _KEY_ID_BYTES + _NONCE_BYTES

SIGNING_SECRET_PREFIX: Final = "whsec_"
API_KEY_PREFIX: Final = "bode_"


class SealError(Exception):
    """A ciphertext that no key of the ring opens: a lost key, another row's secret, or damage."""


def _check_key(value: SecretStr) -> SecretStr:
    _key_bytes(value)
    return value


def _key_bytes(value: SecretStr) -> bytes:
    try:
        key = base64.b64decode(value.get_secret_value(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _KEY_BYTES:
        raise ValueError("an encryption key must be the base64 of 32 bytes")
    return key


class SecretsSettings(BaseModel):
    """The keys that secrets are encrypted with at rest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys: tuple[Annotated[SecretStr, AfterValidator(_check_key)], ...] = Field(
        default=(),
        description="Base64 of 32 random bytes each. The first encrypts; the others still decrypt. "
        "Without any, `bode up` makes one in its data directory.",
    )


def generate_encryption_key() -> SecretStr:
    """Makes a key for `SecretsSettings.keys`."""
    return SecretStr(base64.b64encode(os.urandom(_KEY_BYTES)).decode())


class KeyRing:
    """Encrypts with its first key and decrypts with any; a ciphertext names its key."""

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        if not keys:
            raise ValueError("at least one encryption key is needed")
        ciphers: dict[bytes, AESGCM] = {}
        self._digest_keys = [hmac.digest(key, b"bode keyed digests", "sha256") for key in map(_key_bytes, keys)]
        for key in map(_key_bytes, keys):
            ciphers.setdefault(hashlib.sha256(b"bode key id" + key).digest()[:_KEY_ID_BYTES], AESGCM(key))
        self._ciphers = ciphers
        self._first_id = next(iter(ciphers))

    def seal(self, plaintext: bytes, bound_to: bytes) -> bytes:
        """Encrypts; `bound_to` (what the secret belongs to) is needed again to decrypt."""
        nonce = os.urandom(_NONCE_BYTES)
        head = _FORMAT + self._first_id + nonce
        return head + self._ciphers[self._first_id].encrypt(nonce, plaintext, bound_to)

    @property
    def first(self) -> bytes:
        """The beginning of every ciphertext of the first key."""
        return _FORMAT + self._first_id

    def open(self, ciphertext: bytes, bound_to: bytes) -> bytes:
        """Decrypts what `seal` made.

        Raises:
            SealError: no key of the ring fits, or it belongs to something else.
        """
        head, body = ciphertext[:_HEAD_BYTES], ciphertext[_HEAD_BYTES:]
        cipher = self._ciphers.get(head[1 : 1 + _KEY_ID_BYTES])
        if head[:1] != _FORMAT or cipher is None or len(head) < _HEAD_BYTES:
            raise SealError("no key of the ring made this")
        try:
            return cipher.decrypt(head[-_NONCE_BYTES:], body, bound_to)
        except InvalidTag:
            raise SealError("damaged, or it belongs to something else") from None

    def digests(self, content: bytes, purpose: bytes) -> list[bytes]:
        """Returns keyed digests (HMAC-SHA-256), one under each key: write the first, look for any."""
        return [hmac.digest(key, purpose + b"\0" + content, "sha256") for key in self._digest_keys]


def secret_purpose(subscription_id: UUID) -> bytes:
    """Returns what the signing secret of a subscription is bound to."""
    return b"signing secret " + subscription_id.bytes


def credential_purpose(subscription_id: UUID) -> bytes:
    """Returns what the credential for the sink of a subscription is bound to."""
    return b"sink credential " + subscription_id.bytes


def tls_purpose(subscription_id: UUID) -> bytes:
    """Returns what the client certificate for the sink of a subscription is bound to."""
    return b"sink tls " + subscription_id.bytes


def token_purpose(subscription_id: UUID) -> bytes:
    """Returns what the tokens for the sink of a subscription are bound to."""
    return b"sink token " + subscription_id.bytes


def answer_purpose(test_notification_id: UUID) -> bytes:
    """Returns what the sink's answer to a test notification is bound to."""
    return b"test answer " + test_notification_id.bytes


def signing_secret() -> str:
    """Makes a Standard Webhooks secret: `whsec_` and the base64 of 32 random bytes."""
    return SIGNING_SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def api_key() -> str:
    """Makes an API key of 256 random bits."""
    return API_KEY_PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> bytes:
    """Returns what is stored of an API key: SHA-256, enough for 256 random bits."""
    return hashlib.sha256(key.encode()).digest()
