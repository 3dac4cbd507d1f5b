"""Access tokens: OAuth 2.0 bearer JWTs (RFC 9068) of the authorization server that the operator names.

A token counts when it is signed by a key of the server's key set, under an algorithm that the operator allows, names
our issuer and audience, and has not expired. Which algorithms count is ours to say, never the token's: `none`, and HMAC
with a public key for a secret, are not among those that can be allowed.

The key set is fetched when it is first needed, again when it is old, and when a token names a key that isn't in it
(rotation), but never more often than `refetch_seconds`. When it can't be fetched, what was fetched before counts for a
while; then nothing is known, and the answer is 503, not 401.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import aiohttp
import jwt
import orjson
import structlog
from pydantic import BaseModel, ConfigDict, Field

from schemas.identifiers import is_oin
from schemas.problems import Unauthenticated, Unavailable

Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]

_LONGEST_TOKEN: Final = 8 * 1024
_LARGEST_KEY_SET: Final = 256 * 1024
_MOST_KEYS: Final = 100
_TYPES: Final = ("jwt", "at+jwt", "application/at+jwt")
_OIN_URN: Final = "urn:nld:oin:"


class OauthSettings(BaseModel):
    """Whose access tokens are taken, and where in them what stands. Without issuer, audience and URL: nobody's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    issuer: str | None = Field(default=None, min_length=1, description="`iss` of the tokens, to the letter.")
    audience: str | None = Field(default=None, min_length=1, description="`aud` of the tokens: this API.")
    jwks_url: str | None = Field(
        default=None,
        pattern=r"^(https://[^\s/@]+|http://(127\.0\.0\.1|localhost)(:\d+)?)(/\S*)?$",
        description="URL of the authorization server's key set (RFC 7517).",
    )
    algorithms: tuple[Algorithm, ...] = Field(
        default=("RS256", "PS256", "ES256"), min_length=1, description="Signature algorithms that count."
    )
    leeway_seconds: float = Field(default=30, ge=0, le=300, description="Clock skew that is forgiven.")
    oin_claim: str = Field(
        default="oin", min_length=1, description="Claim that holds the OIN; dots lead into objects, such as `act.oin`."
    )
    scope_claim: str = Field(
        default="scope", min_length=1, description="Claim that holds the scopes: a string with spaces, or an array."
    )
    keys_seconds: float = Field(default=300, ge=1, le=86_400, description="How long a key set is taken for fresh.")
    stale_seconds: float = Field(
        default=3600, ge=0, le=604_800, description="How long after that it counts while no other can be fetched."
    )
    refetch_seconds: float = Field(default=10, ge=0, le=3600, description="Least time between two fetches.")
    fetch_seconds: float = Field(default=5, gt=0, le=60, description="Limit for one fetch of the key set.")

    @property
    def enabled(self) -> bool:
        """Tells whether tokens are taken at all."""
        return self.issuer is not None and self.audience is not None and self.jwks_url is not None


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token that counts says of its bearer."""

    issuer: str
    oin: str
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Key:
    key: Any
    algorithm: str | None
    """The only algorithm that the key set allows with it; None: any that the operator allows."""


class KeySetUnavailable(Exception):
    """The key set can't be fetched, or is none."""


class KeySet:
    """The keys of the authorization server, fetched when needed."""

    def __init__(self, settings: OauthSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._keys: Mapping[str | None, _Key] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._lock = asyncio.Lock()

    async def find(self, kid: str | None) -> _Key | None:
        """Returns the key with this id; None: the server has no such key.

        Raises:
            Unavailable: what keys the server has isn't known.
        """
        known = self._known(kid)
        if known is not None and self._age() <= self._settings.keys_seconds:
            return known
        async with self._lock:
            known = self._known(kid)
            if known is not None and self._age() <= self._settings.keys_seconds:
                return known
            failed = not await self._refresh()
        known = self._known(kid)
        if known is not None and self._age() <= self._settings.keys_seconds + self._settings.stale_seconds:
            return known
        if failed or self._fetched_at is None or known is not None:
            raise Unavailable("The keys of the authorization server can't be had now, so that tokens can't be judged.")
        return None

    def _known(self, kid: str | None) -> _Key | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    def _age(self) -> float:
        return float("inf") if self._fetched_at is None else self._clock() - self._fetched_at

    async def _refresh(self) -> bool:
        """Fetch the set, unless that was tried a moment ago; tells whether the last try succeeded."""
        if self._tried_at is None or self._clock() - self._tried_at >= self._settings.refetch_seconds:
            self._tried_at = self._clock()
            try:
                self._keys = read_key_set(await self._fetch(), self._settings.algorithms)
            except KeySetUnavailable as error:
                structlog.get_logger("bode.tokens").warning("key-set-unavailable", error=str(error))
            else:
                self._fetched_at = self._tried_at
        return self._fetched_at == self._tried_at

    async def _fetch(self) -> bytes:
        assert self._settings.jwks_url is not None
        limit = aiohttp.ClientTimeout(total=self._settings.fetch_seconds)
        try:
            async with (
                aiohttp.ClientSession(timeout=limit, auto_decompress=False) as session,
                session.get(
                    self._settings.jwks_url,
                    allow_redirects=False,
                    headers={"accept": "application/jwk-set+json, application/json", "accept-encoding": "identity"},
                ) as answer,
            ):
                if answer.status != 200:
                    raise KeySetUnavailable(f"status {answer.status}")
                body = bytearray()
                async for part in answer.content.iter_chunked(16 * 1024):
                    body += part
                    if len(body) > _LARGEST_KEY_SET:
                        raise KeySetUnavailable("too large")
                return bytes(body)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise KeySetUnavailable(type(error).__name__) from error


def read_key_set(body: bytes, algorithms: tuple[str, ...]) -> Mapping[str | None, _Key]:
    """Reads the public keys for signatures in a key set; those that we can't use are left out.

    Raises:
        KeySetUnavailable: it isn't a key set.
    """
    try:
        members = orjson.loads(body)["keys"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise KeySetUnavailable("not a key set") from None
    if not isinstance(members, list):
        raise KeySetUnavailable("not a key set")
    found: dict[str | None, _Key] = {}
    for member in members[:_MOST_KEYS]:
        if not isinstance(member, dict) or member.get("kty") not in ("RSA", "EC", "OKP"):
            continue
        if member.get("use", "sig") != "sig" or member.get("alg", algorithms[0]) not in algorithms:
            continue
        public = {name: value for name, value in member.items() if name not in ("d", "p", "q", "dp", "dq", "qi", "oth")}
        try:
            key = jwt.PyJWK(public).key
        except (jwt.PyJWTError, ValueError, TypeError):
            continue
        kid = member.get("kid")
        found[kid if isinstance(kid, str) else None] = _Key(key, member.get("alg"))
    return found


class Tokens:
    """Judges access tokens."""

    def __init__(self, settings: OauthSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._keys = KeySet(settings, clock)

    async def judge(self, token: str) -> Claims:
        """Returns what a token says, if it counts.

        Raises:
            Unauthenticated: it doesn't.
            Unavailable: the keys that it could be judged by can't be had.
        """
        settings = self._settings
        if len(token) > _LONGEST_TOKEN:
            raise Unauthenticated(known=True)
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError):
            raise Unauthenticated(known=True) from None
        kid = header.get("kid")
        kind = header.get("typ", "JWT")
        if (
            header.get("alg") not in settings.algorithms
            or "crit" in header
            or not isinstance(kind, str)
            or kind.lower() not in _TYPES
            or not (kid is None or isinstance(kid, str))
        ):
            raise Unauthenticated(known=True)
        key = await self._keys.find(kid)
        if key is None or key.algorithm not in (None, header["alg"]):
            raise Unauthenticated(known=True)
        try:
            claims = jwt.decode(
                token,
                key.key,
                algorithms=[header["alg"]],  # one of those that are allowed, see above
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway_seconds,
                options={"require": ["exp", "iss", "aud"], "enforce_minimum_key_length": True},
            )
        except (jwt.PyJWTError, ValueError, TypeError):
            raise Unauthenticated(known=True) from None
        return self._read(claims)

    def _read(self, claims: Mapping[str, Any]) -> Claims:
        oin = _claim(claims, self._settings.oin_claim)
        oin = oin.removeprefix(_OIN_URN) if isinstance(oin, str) else ""
        if not is_oin(oin):
            raise Unauthenticated("The token names no OIN of 20 positions.", known=True)
        said = _claim(claims, self._settings.scope_claim)
        scopes = said.split() if isinstance(said, str) else said if isinstance(said, list) else []
        return Claims(str(self._settings.issuer), oin, frozenset(each for each in scopes if isinstance(each, str)))


def _claim(claims: Mapping[str, Any], name: str) -> Any:
    if name in claims:
        return claims[name]
    found: Any = claims
    for step in name.split("."):
        found = found.get(step) if isinstance(found, Mapping) else None
    return found
