"""Standard Webhooks signatures over `id.timestamp.body`, the exact bytes that are sent.

Symmetric (`v1`): HMAC-SHA256 with the subscription's secret. Asymmetric (`v1a`): Ed25519 with the installation's key.
Source: Standard Webhooks 1.0.0, "Signature scheme".
"""

import base64
import hashlib
import hmac
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PREFIX: Final = "whsec_"


class Signer(Protocol):
    """Makes one of the signatures of a notification."""

    def sign(self, delivery_id: str, timestamp: int, body: bytes) -> str:
        """One signature as it stands in `webhook-signature`; `timestamp` in seconds since 1970."""


class SigningKey:
    """A subscription's secret, ready to sign; made once, used for every attempt."""

    __slots__ = ("_template",)

    def __init__(self, secret: str) -> None:
        """Take a secret in its text form, `whsec_<base64>`.

        Raises:
            ValueError: when the secret has another form.
        """
        if not secret.startswith(PREFIX):
            raise ValueError("a signing secret starts with whsec_")
        self._template = hmac.new(base64.b64decode(secret[len(PREFIX) :], validate=True), digestmod=hashlib.sha256)

    def sign(self, delivery_id: str, timestamp: int, body: bytes) -> str:
        """The value of `webhook-signature`; `timestamp` in seconds since 1970."""
        mac = self._template.copy()
        mac.update(f"{delivery_id}.{timestamp}.".encode())
        mac.update(body)
        return "v1," + base64.b64encode(mac.digest()).decode()


class AsymmetricKey:
    """The installation's private key, ready to sign; whoever has the public key can verify, and nobody else sign."""

    __slots__ = ("_key",)

    def __init__(self, seed: bytes) -> None:
        """Take the 32 bytes of an Ed25519 private key (RFC 8032)."""
        self._key = Ed25519PrivateKey.from_private_bytes(seed)

    def sign(self, delivery_id: str, timestamp: int, body: bytes) -> str:
        """The value of `webhook-signature`; `timestamp` in seconds since 1970."""
        signature = self._key.sign(f"{delivery_id}.{timestamp}.".encode() + body)
        return "v1a," + base64.b64encode(signature).decode()
