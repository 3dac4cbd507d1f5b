"""Standard Webhooks signatures, symmetric (`v1`): HMAC-SHA256 over `id.timestamp.body`, the exact bytes that are sent.

Source: Standard Webhooks 1.0.0, "Signature scheme".
"""

import base64
import hashlib
import hmac
from typing import Final

PREFIX: Final = "whsec_"


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
