"""Requests to token endpoints and their answers (RFC 6749, 4.4, 5 and 6; RFC 7523; RFC 8705). Pure.

An answer is hostile input: what isn't a token as the specification has it is no token.
"""

import base64
import json
import re
import time
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote_plus, urlencode
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from schemas.resources.credentials import ClientAuthentication, ClientCredential, RefreshTokenCredential

_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,16384}")
_LONGEST_SECONDS: Final = 366 * 86_400.0
_ASSERTION_SECONDS: Final = 60
_ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ERRORS: Final = frozenset(
    {"invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type"}
    | {"invalid_scope", "invalid_target"}
)
"""Error codes of RFC 6749, 5.2 and RFC 8707, 2: the only words of an answer that are passed on."""


@dataclass(frozen=True, slots=True)
class Token:
    """An access token, with a refresh token where there is one. `seconds` it lasts; None: unknown."""

    access: str
    refresh: str | None
    seconds: float | None

    def __repr__(self) -> str:
        """Nothing of it."""
        return "Token(…)"

    def packed(self) -> bytes:
        """What is sealed and stored of it."""
        return json.dumps({"access": self.access, "refresh": self.refresh}).encode()

    @classmethod
    def unpacked(cls, content: bytes, seconds: float | None) -> "Token":
        """One that was stored."""
        members = json.loads(content)
        return cls(members["access"], members["refresh"], seconds)


class NoToken(Exception):
    """The answer holds no token. `refused`: the endpoint said no, in `error` if it named one of its codes."""

    def __init__(self, refused: bool, error: str | None = None) -> None:
        super().__init__("refused" if refused else "no usable answer")
        self.refused = refused
        self.error = error


def compose(
    credential: RefreshTokenCredential | ClientCredential, refresh: str | None, now: float | None = None
) -> tuple[dict[str, str], bytes]:
    """Headers and body of the request for a token.

    Args:
        credential: whose.
        refresh: the refresh token to be traded; None: none was issued.
        now: seconds since 1970.
    """
    headers = {"content-type": "application/x-www-form-urlencoded", "accept": "application/json", "user-agent": "Bode"}
    form: dict[str, str] = {}
    if isinstance(credential, RefreshTokenCredential):
        form |= {"grant_type": "refresh_token", "refresh_token": refresh or credential.refresh_token}
        if credential.client_secret is not None:
            headers["authorization"] = _basic(credential.client_id or "", credential.client_secret)
        elif credential.client_id is not None:
            form["client_id"] = credential.client_id
        return headers, urlencode(form).encode()
    form["grant_type"] = "client_credentials"
    if credential.scope is not None:
        form["scope"] = credential.scope
    if credential.audience is not None:
        form["audience"] = credential.audience
    match credential.authentication:
        case ClientAuthentication.BASIC:
            headers["authorization"] = _basic(credential.client_id, credential.client_secret or "")
        case ClientAuthentication.POST:
            form |= {"client_id": credential.client_id, "client_secret": credential.client_secret or ""}
        case ClientAuthentication.TLS:
            form["client_id"] = credential.client_id
        case ClientAuthentication.PRIVATE_KEY_JWT:
            form |= {
                "client_id": credential.client_id,
                "client_assertion_type": _ASSERTION_TYPE,
                "client_assertion": _assertion(credential, time.time() if now is None else now),
            }
    return headers, urlencode(form).encode()


def read(status: int, body: bytes) -> Token:
    """The token in an answer.

    Raises:
        NoToken: there is none.
    """
    members = _members(body)
    if status != 200:
        error = members.get("error")
        known = isinstance(error, str) and error in ERRORS
        raise NoToken(400 <= status < 500 and status not in (408, 429), error if known else None)
    kind, refresh = members.get("token_type", "bearer"), members.get("refresh_token")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise NoToken(False)
    return Token(
        _token(members.get("access_token")),
        None if refresh is None else _token(refresh),
        _seconds(members.get("expires_in")),
    )


def basic(identifier: str, secret: str) -> str:
    """The value of `Authorization` for a plain credential (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{identifier}:{secret}".encode()).decode()


def _basic(client_id: str, secret: str) -> str:
    return basic(quote_plus(client_id), quote_plus(secret))  # RFC 6749, 2.3.1: encoded as in a form first


def _assertion(credential: ClientCredential, now: float) -> str:
    key = load_pem_private_key((credential.private_key or "").encode(), None)
    if isinstance(key, rsa.RSAPrivateKey):
        algorithm = "RS256"
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        algorithm = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}[key.curve.name]
    else:
        algorithm = "EdDSA"
    claims = {
        "iss": credential.client_id, "sub": credential.client_id, "aud": credential.token_endpoint,
        "jti": str(uuid4()), "iat": int(now), "exp": int(now) + _ASSERTION_SECONDS,
    }  # fmt: skip
    headers = None if credential.key_id is None else {"kid": credential.key_id}
    return jwt.encode(claims, key, algorithm=algorithm, headers=headers)  # type: ignore[arg-type]


def _members(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _token(value: Any) -> str:
    if not isinstance(value, str) or _TOKEN.fullmatch(value) is None:  # it goes into a header
        raise NoToken(False)
    return value


def _seconds(value: Any) -> float | None:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value[:12])
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        return None
    return float(min(value, _LONGEST_SECONDS))  # an integer may be too large for a float
