"""Requests to sinks that ask for a token: it is put into each, acquired when there is none, and renewed in time.

    send ──token at hand──────────────► request ──► answer
      │                                    ▲  └─401─► acquired anew, once, and asked again within the same attempt
      └──none──► flight ──► token endpoint ┘

A flight is the one acquiring of a token that is under way for a subscription as it is now; all who need it wait for
it, and nobody who knows the subscription with another credential, or another sink, ever gets its token. Tokens are
shared by all processes through the database, where a flight holds a claim, so that a refresh token that may be traded
once is traded once. What lasts is renewed while it still does, behind the back of what is sent meanwhile.

Token endpoints are called through the same client as sinks: fence, limits, no redirects. A request to one goes over a
connection of its own, and is not sent again when that is lost.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from broker.delivery import token_requests
from broker.delivery.client import Client
from broker.delivery.exchanges import Answer, Exchange, SendError, Target
from broker.delivery.outcomes import Reason
from broker.delivery.tls import TlsIdentity
from broker.delivery.token_requests import NoToken, Token
from broker.storage import sink_tokens
from broker.storage.sink_tokens import Stored
from broker.telemetry import TOKEN_REQUESTS, WORKER_ERRORS, log
from schemas.resources.credentials import (
    AccessTokenCredential,
    ClientAuthentication,
    ClientCredential,
    PlainCredential,
    RefreshTokenCredential,
)
from subscriptions.secrets import KeyRing, SealError, token_purpose
from subscriptions.sinks import SinkConfig

UNAUTHORIZED: Final = 401
_TROUBLE: Final = (SQLAlchemyError, OSError, TimeoutError)
_POLL_SECONDS: Final = 0.2
_DATABASE_SECONDS: Final = 5.0
_SPARE_SECONDS: Final = 10.0
"""A token isn't used in its last seconds, or in the last tenth of its time if that is shorter."""
_AHEAD_SECONDS: Final = 120.0
"""It is renewed so long before, or in the last quarter of its time."""
_AGAIN_SECONDS: Final = 5.0
"""Least time between two renewals ahead of time, one of which failed."""
_ANEW_SECONDS: Final = 30.0
"""Least age of a token that a 401 is a reason to replace: a sink that refuses every token costs no flight each time."""
_UNKNOWN_SECONDS: Final = 3600.0
"""How long a token lasts of which nobody says how long, unless the sink refuses it before."""
_KEPT: Final = 20_000
_LEASE: Final = timedelta(seconds=30)
"""Of a claim, beyond the longest request: for its record."""


class _NotNow(Exception):
    """There is no token to send with; `reason` says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class TokenSource:
    """Where the token of a sink comes from; prepared once for a sink."""

    subscription: UUID
    version: int
    credential_id: UUID
    credential: AccessTokenCredential | RefreshTokenCredential | ClientCredential
    endpoint: Target | None
    """None: there is the one token that was given."""


@dataclass(slots=True)
class _Held:
    """A token at hand. Times are of the monotonic clock."""

    credential_id: UUID
    token: Token
    line: bytes = field(repr=False)
    since: float
    until: float
    renew_at: float
    stored: bool = True

    @classmethod
    def of(cls, credential_id: UUID, token: Token, now: float) -> "_Held":
        lasts = _UNKNOWN_SECONDS if token.seconds is None else token.seconds
        until = now + lasts - min(_SPARE_SECONDS, lasts / 10)
        ahead = now + lasts - min(_AHEAD_SECONDS, lasts / 4)
        return cls(credential_id, token, f"authorization: Bearer {token.access}\r\n".encode(), now, until, ahead)


def standing(config: SinkConfig) -> str:
    """The `Authorization` line that every request of a sink has, or nothing."""
    match config.identity.credential:
        case PlainCredential(identifier=identifier, secret=secret):
            return f"authorization: {token_requests.basic(identifier, secret)}\r\n"
        case AccessTokenCredential(access_token=token, access_token_expires_utc=None):
            return f"authorization: Bearer {token}\r\n"
        case _:
            return ""


def source_of(config: SinkConfig) -> TokenSource | None:
    """Where its token comes from; None: it has none that ends.

    Raises:
        ValueError: when its endpoint, which the API has checked, is not usable after all.
    """
    identity = config.identity
    match identity.credential:
        case RefreshTokenCredential(refresh_token_endpoint=url):
            with_certificate = False
        case ClientCredential(token_endpoint=url, authentication=authentication):
            with_certificate = authentication is ClientAuthentication.TLS
        case AccessTokenCredential(access_token_expires_utc=datetime()) as credential:
            return TokenSource(config.id, config.version, identity.credential_id, credential, None)
        case _:
            return None
    endpoint = Target.of(url, TlsIdentity.of_sink(identity.tls, certificate=with_certificate))
    return TokenSource(config.id, config.version, identity.credential_id, identity.credential, endpoint)


class Authorizer:
    """Sends requests with the token of their sink; one for each process."""

    def __init__(
        self, client: Client, engine: AsyncEngine, keys: KeyRing, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._clock = clock
        self._engine = engine
        self._keys = keys
        self._held: dict[UUID, _Held] = {}
        self._flights: dict[tuple[UUID, int], asyncio.Task[_Held]] = {}
        """By subscription and version: what was asked for before a change is no answer to what is asked after it."""
        self._waiting: set[asyncio.Task[None]] = set()

    def send(self, source: TokenSource, target: Target, data: bytes, exchange: Exchange) -> None:
        """Send one whole request that has no `Authorization` yet; `exchange` is told of its end."""
        deadline = asyncio.get_running_loop().time() + self._client.total_seconds
        _Authorized(self, source, target, data, exchange, deadline).begin()

    def close(self) -> None:
        """Give up what is under way."""
        for task in (*self._waiting, *self._flights.values()):
            task.cancel()

    def held(self, source: TokenSource) -> _Held | None:
        """The token at hand, if it can be used; one that ends soon is renewed meanwhile."""
        now = self._clock()
        held = self._held.get(source.subscription)
        if held is None or held.credential_id != source.credential_id or now >= held.until:
            return None
        if now >= held.renew_at and source.endpoint is not None:
            held.renew_at = now + _AGAIN_SECONDS
            self._flight(source, held.line, ahead=True)
        return held

    def wait(self, authorized: "_Authorized", refused: bytes | None) -> asyncio.Task[None]:
        """Acquire a token for it, other than the refused one."""
        task = asyncio.get_running_loop().create_task(authorized.acquire(refused))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return task

    def may_renew(self, source: TokenSource, line: bytes) -> bool:
        """Whether a sink that refused the token of this line may be asked again with another."""
        held = self._held.get(source.subscription)
        if source.endpoint is None:
            return False
        return held is None or held.line != line or self._clock() - held.since >= _ANEW_SECONDS

    async def token(self, source: TokenSource, refused: bytes | None, deadline: float) -> _Held:
        """A token that can be used, other than the refused one.

        Raises:
            _NotNow: when there is none by the deadline.
        """
        held = self.held(source)
        if held is not None and held.line != refused:
            return held
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(self._flight(source, refused))
        except TimeoutError:
            raise _NotNow(Reason.TOKEN_UNAVAILABLE) from None

    def _flight(self, source: TokenSource, refused: bytes | None, *, ahead: bool = False) -> asyncio.Task[_Held]:
        number = (source.subscription, source.version)
        flight = self._flights.get(number)
        if flight is None:
            flight = asyncio.get_running_loop().create_task(self._acquire(source, refused, ahead))
            self._flights[number] = flight
            flight.add_done_callback(lambda done: self._landed(number, done))
        return flight

    def _landed(self, number: tuple[UUID, int], flight: asyncio.Task[_Held]) -> None:
        self._flights.pop(number, None)
        if flight.cancelled() or flight.exception() is not None:  # told to those who waited, if any
            return
        if len(self._held) >= _KEPT:
            self._held.pop(next(iter(self._held)))
        self._held[number[0]] = flight.result()

    async def _acquire(self, source: TokenSource, refused: bytes | None, ahead: bool) -> _Held:
        if source.endpoint is None:
            return self._given(source)
        try:
            async with asyncio.timeout(self._client.total_seconds + 2 * _DATABASE_SECONDS):
                return await self._acquire_shared(source, source.endpoint, refused, ahead)
        except _TROUBLE as error:
            self._tell(error)
            raise _NotNow(Reason.TOKEN_NOT_STORED) from None
        except SealError:
            log().error("secret-unreadable", subscription=str(source.subscription))
            raise _NotNow(Reason.TOKEN_NOT_STORED) from None

    async def _acquire_shared(self, source: TokenSource, endpoint: Target, refused: bytes | None, ahead: bool) -> _Held:
        claim = uuid4()
        while True:
            stored = await sink_tokens.read(self._engine, source.subscription, source.credential_id)
            held = self._usable(source, stored, refused, ahead)
            if held is not None:
                return held
            stored = await sink_tokens.claim(
                self._engine,
                source.subscription,
                source.credential_id,
                version=source.version,
                claim=claim,
                lease=_LEASE + timedelta(seconds=self._client.total_seconds),
            )
            if stored is not None:
                break
            await asyncio.sleep(_POLL_SECONDS)  # another process acquires it
        held = None
        try:
            held = self._usable(source, stored, refused, ahead)  # it was acquired just before
            if held is None:
                held = await self._request(source, endpoint, stored)
                await self._store(source, held, claim)
        finally:
            if held is None or held.stored:  # also when cancelled: the next one needn't wait until the claim ends
                await asyncio.shield(sink_tokens.release(self._engine, source.subscription, claim=claim))
        return held

    async def _request(self, source: TokenSource, endpoint: Target, stored: Stored) -> _Held:
        assert not isinstance(source.credential, AccessTokenCredential)
        former = self._open(source, stored)
        if (unsaved := self._unsaved(source)) is not None:
            former = unsaved.token
        refresh = None if former is None else former.refresh
        headers, body = token_requests.compose(source.credential, refresh)
        try:
            # once: a server may take a refresh token that comes twice for stolen, and revoke all that came of it
            answer = await self._client.request("POST", endpoint, headers, body, once=True)
        except SendError as error:
            self._failed(source, Reason.TOKEN_UNAVAILABLE, error.reason)
            raise _NotNow(Reason.PROXY if error.reason is Reason.PROXY else Reason.TOKEN_UNAVAILABLE) from None
        try:
            token = token_requests.read(answer.status, answer.excerpt)
        except NoToken as error:
            reason = Reason.TOKEN_REFUSED if error.refused else Reason.TOKEN_UNAVAILABLE
            self._failed(source, reason, error.error or f"status-{answer.status}")
            raise _NotNow(reason) from None
        TOKEN_REQUESTS.labels("success").inc()
        return _Held.of(
            source.credential_id, Token(token.access, token.refresh or refresh, token.seconds), self._clock()
        )

    async def _store(self, source: TokenSource, held: _Held, claim: UUID) -> None:
        """Store a token that was acquired; where that fails it is used all the same, and known to be in memory only."""
        token = held.token
        sealed = self._keys.seal(token.packed(), token_purpose(source.subscription))
        lasts = None if token.seconds is None else timedelta(seconds=token.seconds)
        try:
            async with asyncio.timeout(_DATABASE_SECONDS):
                await sink_tokens.store(self._engine, source.subscription, claim=claim, sealed=sealed, lasts=lasts)
        except _TROUBLE as error:
            held.stored = False
            self._tell(error)

    def _tell(self, error: Exception) -> None:
        WORKER_ERRORS.labels("sink-tokens").inc()
        log().warning("sink-token-not-stored", error=type(error).__name__)

    def _failed(self, source: TokenSource, reason: Reason, detail: str) -> None:
        TOKEN_REQUESTS.labels(reason).inc()
        log().warning("sink-token-not-acquired", subscription=str(source.subscription), reason=reason, detail=detail)

    def _usable(self, source: TokenSource, stored: Stored | None, refused: bytes | None, ahead: bool) -> _Held | None:
        """A stored token, or at first the one that was given, if it can be used and isn't the refused one."""
        if self._unsaved(source) is not None:  # what is stored is older
            return None
        token = self._open(source, stored)
        if token is None and isinstance(source.credential, RefreshTokenCredential):
            moment = source.credential.access_token_expires_utc
            seconds = None if moment is None else (moment - datetime.now(UTC)).total_seconds()
            token = Token(source.credential.access_token, source.credential.refresh_token, seconds)
        if token is None:
            return None
        now = self._clock()
        held = _Held.of(source.credential_id, token, now)
        if held.line == refused or now >= held.until or (ahead and now >= held.renew_at):
            return None
        return held

    def _unsaved(self, source: TokenSource) -> _Held | None:
        """The last token, if it is in memory only because it could not be stored."""
        held = self._held.get(source.subscription)
        return held if held is not None and not held.stored and held.credential_id == source.credential_id else None

    def _open(self, source: TokenSource, stored: Stored | None) -> Token | None:
        if stored is None or stored.sealed is None:
            return None
        content = self._keys.open(stored.sealed, token_purpose(source.subscription))
        return Token.unpacked(content, stored.seconds)

    def _given(self, source: TokenSource) -> _Held:
        assert isinstance(source.credential, AccessTokenCredential)
        moment = source.credential.access_token_expires_utc
        assert moment is not None
        seconds = (moment - datetime.now(UTC)).total_seconds()
        if seconds <= 0:
            raise _NotNow(Reason.CREDENTIAL_EXPIRED)
        now = self._clock()
        line = f"authorization: Bearer {source.credential.access_token}\r\n".encode()
        token = Token(source.credential.access_token, None, seconds)
        return _Held(source.credential_id, token, line, now, now + seconds, now + seconds)


class _Authorized(Exchange):
    """A request with a token; the exchange that it carries is told of its end."""

    __slots__ = ("_authorizer", "_data", "_deadline", "_inner", "_line", "_repeated", "_source", "_target", "_task")

    def __init__(
        self,
        authorizer: Authorizer,
        source: TokenSource,
        target: Target,
        data: bytes,
        inner: Exchange,
        deadline: float,
    ) -> None:
        super().__init__()
        self._authorizer = authorizer
        self._source = source
        self._target = target
        self._data = data
        self._inner = inner
        self._deadline = deadline
        self._line = b""
        self._repeated = False
        self._task: asyncio.Task[None] | None = None
        inner._carrier = self

    def begin(self) -> None:
        """Send it at once, or when there is a token."""
        held = self._authorizer.held(self._source)
        if held is None:
            self._task = self._authorizer.wait(self, None)
        else:
            self._send(held)

    async def acquire(self, refused: bytes | None) -> None:
        """Wait for a token, and send."""
        try:
            held = await self._authorizer.token(self._source, refused, self._deadline)
        except _NotNow as hindrance:
            self._task = None
            self._inner._carrier = None
            self._inner.failed(hindrance.reason)
            return
        except Exception as error:  # else it would never end, and hold its place and its lane for ever
            WORKER_ERRORS.labels("sink-tokens").inc()
            log().error("sink-token-failed", error=type(error).__name__)
            self._task = None
            self._inner._carrier = None
            self._inner.failed(Reason.TOKEN_UNAVAILABLE)
            return
        self._task = None
        if self._inner.may_go():
            self._send(held)

    def _send(self, held: _Held) -> None:
        self._line = held.line
        end = self._data.index(b"\r\n") + 2  # of the request line
        data = b"".join((self._data[:end], held.line, self._data[end:]))
        self._authorizer._client.send(self._target, data, self, self._deadline)

    def may_go(self) -> bool:
        """As the one that it carries says."""
        return self._inner.may_go()

    def answered(self, answer: Answer) -> None:
        """Pass it on, unless it is the sink's first refusal of this token."""
        if answer.status == UNAUTHORIZED and not self._repeated:
            self._repeated = True
            if self._authorizer.may_renew(self._source, self._line):
                self._task = self._authorizer.wait(self, self._line)
                return
        self._inner._carrier = None
        self._inner.answered(answer)

    def failed(self, reason: Reason) -> None:
        """Pass it on."""
        self._inner._carrier = None
        self._inner.failed(reason)

    def cancel(self) -> None:
        """The one that it carries is given up."""
        if self._task is not None:
            self._task.cancel()
        self.abandon()
