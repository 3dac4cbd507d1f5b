"""Who calls: API keys, access tokens or client certificates, their scopes and their pace.

A key, or an organisation by its OIN, is looked up at most once in `cache_seconds`, so a request costs no database round
trip and a revoked key works no longer than that; a key's last use is written at most once a minute.
"""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Final, TypeAlias
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from starlette.requests import Request

from schemas.problems import Forbidden, NotFound, TooManyRequests, Unauthenticated
from subscriptions.database import AnyRow
from subscriptions.history import Actor
from subscriptions.proxies import ProxySettings, certificate_oin
from subscriptions.secrets import API_KEY_PREFIX, api_key, digest_of
from subscriptions.tables import api_keys, organisations
from subscriptions.tokens import OauthSettings, Tokens

_LAST_USED_EVERY: Final = timedelta(minutes=1)
_LONGEST_KEY: Final = 200


class Scope(StrEnum):
    """What a key may be used for."""

    PUBLISH = "events.publish"
    CONSUME = "events.consume"
    MANAGE = "registry.manage"
    OPERATE = "operate"
    DISCLOSURES = "disclosures.read"


ORGANISATION_SCOPES: Final = frozenset(Scope) - {Scope.OPERATE}
"""What a key of an organisation can have; `operate` is for keys that belong to none."""


class ApiSettings(BaseModel):
    """What the API accepts, and how callers are recognised and paced."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate_per_second: float = Field(default=200, ge=50, le=100_000, description="Requests a second for each key.")
    burst: int = Field(default=400, ge=50, le=1_000_000, description="Requests that a key may make at once.")
    cache_seconds: float = Field(default=1, ge=0, le=2, description="How long a looked-up key is believed, s.")
    cache_size: int = Field(default=10_000, ge=100, le=1_000_000, description="Keys remembered by one process.")
    max_body_bytes: int = Field(
        default=1 << 20, ge=16 << 10, le=64 << 20, description="Largest body of a request that manages, in bytes."
    )
    max_evaluated_filters: int = Field(
        default=50,
        ge=0,
        le=100_000,
        description="Alternatives in the filters of one organisation that no look-up helps: evaluated for every event.",
    )
    allow_http_sinks: bool = Field(default=False, description="Accept sinks over plain http and amqp, for development.")
    public_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s?#]+[^\s?#/]$",
        description="Base URL of the API as callers see it, ending in /v1, when a proxy stands before it.",
    )
    cors_origins: tuple[Annotated[str, Field(pattern=r"^https?://[a-z0-9.:\[\]-]+$")], ...] = Field(
        default=(), description="Origins whose web pages may call the API, such as https://portaal.example.nl."
    )
    contact_name: str = Field(default="Bode", min_length=1, description="Who to ask about this API, in its document.")
    contact_email: str = Field(
        default="bode@example.org", pattern=r"^[^@\s]+@[^@\s]+$", description="Where to ask, by e-mail."
    )
    contact_url: str = Field(
        default="https://example.org/bode", pattern=r"^https?://\S+$", description="Where to read or ask, on the web."
    )
    idempotency_seconds: float = Field(
        default=86_400, ge=3600, le=30 * 86_400, description="How long the answer to an Idempotency-Key is repeated, s."
    )


@dataclass(frozen=True, slots=True)
class Organisation:
    """The organisation that a caller speaks for."""

    id: UUID
    oin: str
    name: str


@dataclass(frozen=True, slots=True)
class Caller:
    """Someone whom we know. No organisation: the operator."""

    key_id: UUID
    """The API key; of a caller without one, an id made of the issuer of its token and its OIN."""
    organisation: Organisation | None
    scopes: frozenset[Scope]

    @property
    def is_operator(self) -> bool:
        """Tells whether this is an operator, who sees every organisation's resources."""
        return self.organisation is None and Scope.OPERATE in self.scopes

    @property
    def own(self) -> Organisation:
        """The caller's organisation.

        Raises:
            Forbidden: the key belongs to no organisation, and this needs one.
        """
        if self.organisation is None:
            raise Forbidden("This needs a key that belongs to an organisation.")
        return self.organisation

    def acting_as(self, role: str) -> Actor:
        """The caller as who makes a change: for its organisation in this role, or else as the operator."""
        organisation_id = None if self.organisation is None else self.organisation.id
        return Actor("operator" if self.is_operator else role, organisation_id, self.key_id)

    def require(self, scopes: Iterable[str]) -> None:
        """Raises `Forbidden` unless the caller has one of the scopes."""
        needed = list(scopes)
        if self.scopes.isdisjoint(needed):
            raise Forbidden(f"This needs a key with scope {' or '.join(needed)}.")


@dataclass(frozen=True, slots=True)
class _Known:
    caller: Caller | None
    expires_at: datetime | None
    read_at: float


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class Callers:
    """Recognises callers by their credentials, and holds each to its rate."""

    def __init__(
        self,
        engine: AsyncEngine,
        settings: ApiSettings,
        *,
        oauth: OauthSettings | None = None,
        proxy: ProxySettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._proxy = proxy or ProxySettings()
        self._tokens = Tokens(oauth, clock) if oauth is not None and oauth.enabled else None
        self._clock = clock
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._buckets: OrderedDict[UUID, _Bucket] = OrderedDict()

    async def identify(self, request: Request) -> Caller:
        """Returns the caller of a request: by its `Authorization`, or else by its client certificate.

        Raises:
            Unauthenticated: no credentials, none that we know, or a certificate of another organisation than theirs.
            Forbidden: no organisation with the OIN of the token or certificate is registered here.
            Unavailable: what is needed to judge a token can't be had.
        """
        oin = certificate_oin(request, self._proxy)
        header = request.headers.get("authorization")
        if header is None and oin is not None:
            return await self._organisation_caller("certificate", oin, self._proxy.scopes)
        caller = await self.authenticate(header)
        if oin is not None and caller.organisation is not None and caller.organisation.oin != oin:
            raise Unauthenticated("The client certificate is another organisation's.", known=True)
        return caller

    async def authenticate(self, header: str | None) -> Caller:
        """Returns the caller whose key or token an `Authorization` header holds.

        Raises:
            Unauthenticated: none, or one that is unknown, expired or revoked.
            Forbidden, Unavailable: as `identify`.
        """
        if not header:
            raise Unauthenticated
        scheme, _, credential = header.partition(" ")
        credential = credential.strip()
        if scheme.lower() != "bearer" or not credential.isascii():
            raise Unauthenticated(known=True)
        if self._tokens is not None and not credential.startswith(API_KEY_PREFIX):
            claims = await self._tokens.judge(credential)
            return await self._organisation_caller(claims.issuer, claims.oin, claims.scopes)
        if not credential.startswith(API_KEY_PREFIX) or len(credential) > _LONGEST_KEY:
            raise Unauthenticated(known=True)
        known = await self._look_up(digest_of(credential), _find_key)
        if known.caller is None or (known.expires_at is not None and known.expires_at <= datetime.now(UTC)):
            raise Unauthenticated(known=True)
        return known.caller

    async def _organisation_caller(self, vouched_by: str, oin: str, scopes: Iterable[str]) -> Caller:
        """The caller for whom somebody else vouches; never an operator, whatever is said."""
        known = await self._look_up(f"oin {oin}".encode(), _find_organisation)
        if known.caller is None:
            raise Forbidden("No organisation with this OIN is registered here.")
        allowed = frozenset(scope for scope in ORGANISATION_SCOPES if scope.value in set(scopes))
        return Caller(uuid5(NAMESPACE_URL, f"{vouched_by} {oin}"), known.caller.organisation, allowed)

    def take(self, caller: Caller) -> None:
        """Counts one request of this caller.

        Raises:
            TooManyRequests: the key is over its rate; says when the next request can be made.
        """
        now, rate, burst = self._clock(), self._settings.rate_per_second, self._settings.burst
        bucket = self._buckets.get(caller.key_id)
        if bucket is None:
            bucket = self._buckets[caller.key_id] = _Bucket(burst, now)
            if len(self._buckets) > self._settings.cache_size:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(caller.key_id)
        bucket.tokens = min(burst, bucket.tokens + (now - bucket.filled_at) * rate)
        bucket.filled_at = now
        if bucket.tokens < 1:
            raise TooManyRequests((1 - bucket.tokens) / rate)
        bucket.tokens -= 1

    async def _look_up(self, what: bytes, find: "_Find") -> _Known:
        known = self._known.get(what)
        if known is not None and self._clock() - known.read_at < self._settings.cache_seconds:
            return known
        read_at = self._clock()
        async with self._engine.begin() as connection:
            caller, expires_at = await find(connection, what)
        known = _Known(caller, expires_at, read_at)
        self._known[what] = known
        self._known.move_to_end(what)
        if len(self._known) > self._settings.cache_size:
            self._known.popitem(last=False)
        return known


_Find: TypeAlias = Callable[[AsyncConnection, bytes], Awaitable[tuple[Caller | None, datetime | None]]]


async def _find_organisation(connection: AsyncConnection, what: bytes) -> tuple[Caller | None, None]:
    # Finds the organisation with an OIN; it has no scopes yet.
    oin = what.decode().removeprefix("oin ")
    statement = select(organisations.c.id, organisations.c.oin, organisations.c.name).where(organisations.c.oin == oin)
    row = (await connection.execute(statement)).one_or_none()
    return (None if row is None else Caller(row.id, Organisation(*row), frozenset())), None


async def _find_key(connection: AsyncConnection, digest: bytes) -> tuple[Caller | None, datetime | None]:
    # Finds a key that still works, with its organisation, and notes its use.
    found = await connection.execute(
        select(
            api_keys.c.id,
            api_keys.c.organisation_id,
            api_keys.c.scopes,
            api_keys.c.expires_at,
            api_keys.c.last_used_at,
            organisations.c.oin,
            organisations.c.name,
        )
        .outerjoin_from(api_keys, organisations, organisations.c.id == api_keys.c.organisation_id)
        .where(
            api_keys.c.digest == digest,
            api_keys.c.revoked_at.is_(None),
            or_(api_keys.c.expires_at.is_(None), api_keys.c.expires_at > func.now()),
        )
    )
    row = found.one_or_none()
    if row is None:
        return None, None
    await _note_use(connection, row)
    return _caller(row), row.expires_at


async def _note_use(connection: AsyncConnection, row: AnyRow) -> None:
    # Writes the last use, at most once a minute for each key over all processes.
    if row.last_used_at is not None and datetime.now(UTC) - row.last_used_at < _LAST_USED_EVERY:
        return
    stale = or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < func.now() - _LAST_USED_EVERY)
    await connection.execute(update(api_keys).where(api_keys.c.id == row.id, stale).values(last_used_at=func.now()))


def _caller(row: AnyRow) -> Caller:
    organisation = None if row.organisation_id is None else Organisation(row.organisation_id, row.oin, row.name)
    known = {scope.value for scope in Scope}
    return Caller(row.id, organisation, frozenset(Scope(scope) for scope in row.scopes if scope in known))


async def create_key(
    connection: AsyncConnection,
    *,
    organisation_id: UUID | None,
    scopes: Iterable[Scope],
    label: str = "",
    expires_at: datetime | None = None,
) -> tuple[str, AnyRow]:
    """Makes a key and returns it with its row. The key itself is shown now and never again.

    Raises:
        ValueError: `operate` for a key of an organisation.
    """
    wanted = sorted(set(scopes))
    if organisation_id is not None and Scope.OPERATE in wanted:
        raise ValueError("a key of an organisation can't have the scope operate")
    if organisation_id is not None:  # one at a time, so that its keys are listed in order of commit
        await connection.execute(
            select(organisations.c.id).where(organisations.c.id == organisation_id).with_for_update(key_share=True)
        )
    key = api_key()
    row = await connection.execute(
        insert(api_keys)
        .values(
            id=uuid4(),
            organisation_id=organisation_id,
            digest=digest_of(key),
            hint=key[-4:],
            scopes=wanted,
            label=label,
            expires_at=expires_at,
            created_at=func.clock_timestamp(),
        )
        .returning(api_keys)
    )
    return key, row.one()


async def revoke_key(connection: AsyncConnection, organisation_id: UUID | None, key_id: UUID) -> None:
    """Revokes a key; within `cache_seconds` no process takes it any more.

    Raises:
        NotFound: this organisation has no such key, or it was revoked before.
    """
    result = await connection.execute(
        update(api_keys)
        .where(
            api_keys.c.id == key_id,
            api_keys.c.organisation_id.is_not_distinct_from(organisation_id),
            api_keys.c.revoked_at.is_(None),
        )
        .values(revoked_at=func.now())
    )
    if result.rowcount != 1:
        raise NotFound
