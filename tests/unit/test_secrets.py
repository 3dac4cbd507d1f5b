import base64

import pytest
from pydantic import SecretStr, ValidationError
from standardwebhooks import Webhook

from subscriptions.database import DatabaseSettings, async_url
from subscriptions.secrets import (
    KeyRing,
    SealError,
    SecretsSettings,
    api_key,
    digest_of,
    generate_encryption_key,
    signing_secret,
)


def test_what_was_sealed_opens_only_as_what_it_was_sealed_for() -> None:
    ring = KeyRing([generate_encryption_key()])
    sealed = ring.seal(b"secret", b"row 1")
    assert ring.open(sealed, b"row 1") == b"secret"
    assert b"secret" not in sealed
    with pytest.raises(SealError):
        ring.open(sealed, b"row 2")


def test_sealing_twice_gives_different_bytes() -> None:
    ring = KeyRing([generate_encryption_key()])
    assert ring.seal(b"secret", b"") != ring.seal(b"secret", b"")


def test_an_older_key_still_opens_and_the_first_seals() -> None:
    old, new = generate_encryption_key(), generate_encryption_key()
    sealed = KeyRing([old]).seal(b"secret", b"x")
    rotated = KeyRing([new, old])
    assert rotated.open(sealed, b"x") == b"secret"
    assert KeyRing([new]).open(rotated.seal(b"secret", b"x"), b"x") == b"secret"
    with pytest.raises(SealError):
        KeyRing([new]).open(sealed, b"x")


@pytest.mark.parametrize("position", [0, 1, 5, 17, -1])
def test_damage_is_noticed(position: int) -> None:
    ring = KeyRing([generate_encryption_key()])
    sealed = bytearray(ring.seal(b"secret", b"x"))
    sealed[position] ^= 1
    with pytest.raises(SealError):
        ring.open(bytes(sealed), b"x")


@pytest.mark.parametrize("sealed", [b"", b"\x01", b"\x01" * 16, b"\x01" * 17])
def test_what_is_too_short_is_damaged(sealed: bytes) -> None:
    with pytest.raises(SealError):
        KeyRing([generate_encryption_key()]).open(sealed, b"x")


@pytest.mark.parametrize("key", ["", "x", base64.b64encode(b"x" * 31).decode(), "!" * 44])
def test_a_key_that_is_not_32_bytes_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ValidationError) as refused:
        SecretsSettings(keys=(SecretStr(key),))
    assert "32 bytes" in str(refused.value)
    assert len(key) < 2 or key not in str(refused.value)


def test_a_ring_needs_a_key() -> None:
    with pytest.raises(ValueError, match="at least one"):
        KeyRing([])


def test_a_signing_secret_is_one_of_standard_webhooks() -> None:
    secret = signing_secret()
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    assert Webhook(secret)
    assert signing_secret() != secret


def test_a_key_can_be_sent_as_a_bearer_token() -> None:
    key = api_key()
    assert key.startswith("bode_")
    assert set(key) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
    assert len(digest_of(key)) == 32


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres://u:p@h:1/d", "postgresql+asyncpg://u:p@h:1/d"),
        ("postgresql://h/d?sslmode=require", "postgresql+asyncpg://h/d?ssl=require"),
        ("postgresql+psycopg://h/d", "postgresql+asyncpg://h/d"),
        ("postgresql://u@/d?host=/run/x&port=7", "postgresql+asyncpg://u@/d?host=%2Frun%2Fx&port=7"),
    ],
)
def test_any_postgresql_url_is_understood(url: str, expected: str) -> None:
    assert async_url(url).render_as_string(hide_password=False) == expected


@pytest.mark.parametrize("url", ["mysql://u:swordfish@h/d", "swordfish", ""])
def test_another_url_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(ValueError, match="database URL") as refused:
        async_url(url)
    assert "swordfish" not in str(refused.value)
    assert "swordfish" not in repr(DatabaseSettings(url=SecretStr("postgresql://u:swordfish@h/d")))
