"""Signatures against the reference implementation of Standard Webhooks."""

import base64
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from broker.delivery.signing import SigningKey
from subscriptions.secrets import signing_secret


def present() -> int:
    """Asked for in each test: the reference refuses a timestamp that is minutes old, and a whole run takes longer."""
    return int(datetime.now(UTC).timestamp())


def headers(identity: str, timestamp: int, signature: str) -> dict[str, str]:
    return {"webhook-id": identity, "webhook-timestamp": str(timestamp), "webhook-signature": signature}


@given(st.text(max_size=300), st.binary(min_size=24, max_size=64))
def test_reference_verifies_what_we_sign_and_signs_the_same(text: str, key: bytes) -> None:
    now = present()
    body = json.dumps(text, ensure_ascii=False).encode()
    secret = "whsec_" + base64.b64encode(key).decode()
    signature = SigningKey(secret).sign("dlv_1_2", now, body)
    assert signature == Webhook(secret).sign("dlv_1_2", datetime.fromtimestamp(now, UTC), body.decode())
    assert Webhook(secret).verify(body, headers("dlv_1_2", now, signature)) == text


def test_example_of_the_specification() -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    signature = SigningKey(secret).sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_signature_covers_id_timestamp_and_body_and_belongs_to_one_secret() -> None:
    now = present()
    secret = signing_secret()
    signature = SigningKey(secret).sign("a", now, b"{}")
    Webhook(secret).verify(b"{}", headers("a", now, signature))
    for body, sent, key in (
        (b"{} ", headers("a", now, signature), secret),
        (b"{}", headers("b", now, signature), secret),
        (b"{}", headers("a", now + 1, signature), secret),
        (b"{}", headers("a", now, signature), signing_secret()),
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(key).verify(body, sent)


def test_one_of_two_signatures_is_enough_during_a_rotation() -> None:
    now = present()
    old, new = signing_secret(), signing_secret()
    both = " ".join(SigningKey(secret).sign("a", now, b"{}") for secret in (new, old))
    for secret in (old, new):
        Webhook(secret).verify(b"{}", headers("a", now, both))


def test_key_can_be_used_again_and_again() -> None:
    key = SigningKey(signing_secret())
    assert key.sign("a", 1, b"x") == key.sign("a", 1, b"x") != key.sign("a", 1, b"y")


@pytest.mark.parametrize("secret", ["", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "WHSEC_AAAA", "whsec_!!!!", "whsec_A"])
def test_secret_of_another_form_is_refused(secret: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        SigningKey(secret)
