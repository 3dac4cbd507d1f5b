"""What token endpoints answer: hostile input."""

import pytest

from broker.delivery.token_requests import Token, read

YEAR = 366 * 86_400.0


@pytest.mark.parametrize(
    ("lasts", "seconds"),
    [
        ("3600", 3600.0),
        ('"3600"', 3600.0),
        ("0", 0.0),
        ("1" + "0" * 400, YEAR),
        ('"1' + "0" * 400 + '"', YEAR),
        ("1e400", YEAR),
        ("NaN", None),
        ("-1", None),
        ("-1e400", None),
        ("true", None),
        ("[]", None),
        ("null", None),
    ],
)
def test_however_long_a_token_is_said_to_last_it_is_read(lasts: str, seconds: float | None) -> None:
    body = b'{"access_token": "a", "token_type": "Bearer", "expires_in": %s}' % lasts.encode()
    assert read(200, body) == Token("a", None, seconds)
