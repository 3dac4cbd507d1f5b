"""The webhook handshake: a sink must consent before it receives anything (CloudEvents HTTP webhook 1.0.2, section 4).

`OPTIONS` with our origin; consent is in the headers of the answer, not in its status: `WebHook-Allowed-Origin` names
our origin or `*`; `WebHook-Allowed-Rate`, when given, is a number of requests a minute or `*`. A sink may also withhold
them and consent by calling `WebHook-Request-Callback`. Consent is asked for again now and then:

    due ──OPTIONS──► Consent ──────────► active; due again after the time of renewal
                     Refusal ─first────► again, ever less often, for a day; then refused
                             └─renewal─► again every eight hours, for a day; then disabled
                     Silence ─first────► as a refusal
                             └─renewal─► again after an hour: a sink that is down takes nothing back
"""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import uniform
from typing import Final
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from broker.delivery.amqp_targets import AmqpTarget
from broker.delivery.asking import Asking
from broker.delivery.client import Client
from broker.delivery.exchanges import Answer, SendError, Target
from broker.delivery.outcomes import OURS, Reason
from broker.delivery.sender import Sender, Sink
from broker.telemetry import HANDSHAKES, WORKER_ERRORS, log
from schemas.problems import Unavailable
from subscriptions.change_log import changing
from subscriptions.consent import (
    CALLBACK_PATH,
    HandshakeSettings,
    InvalidRate,
    forget_tokens,
    issue_tokens,
    parse_rate,
)
from subscriptions.life_cycle import Validation, activate, ask_later, claim_validations, handshake_failed
from subscriptions.secrets import KeyRing
from subscriptions.sink_urls import is_amqp
from subscriptions.sinks import SinkConfig, load_sinks

_POLL_SECONDS: Final = 1.0
_AT_ONCE: Final = 256
_KEPT_FOR_NEW: Final = 64
"""Places that sinks which failed before don't get: they may all be slow."""
_CLAIM: Final = timedelta(seconds=150)
"""Longer than the longest attempt and its record, so that no handshake is made twice at the same time."""
_GIVE_UP_AFTER: Final = timedelta(days=1)
_LONGEST_WAIT: Final = timedelta(minutes=10)
_RENEWAL_WAIT: Final = timedelta(hours=8)
_SILENT_WAIT: Final = timedelta(hours=1)
_HINDERED_WAIT: Final = timedelta(seconds=30)
_REFUSALS: Final = {
    Reason.ACCESS: "the RabbitMQ doesn't let us in, or doesn't let us publish there",
    Reason.QUEUE_MISSING: "the RabbitMQ has no such queue or exchange",
}
_TROUBLE: Final = (SQLAlchemyError, OSError, TimeoutError, Unavailable)


@dataclass(frozen=True, slots=True)
class Consent:
    """The sink's answer allows us. `rate` is in notifications a minute; None means any."""

    rate: int | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """No consent, in words for the provider. `withheld`: the answer didn't mention it, so a callback may follow."""

    reason: str
    withheld: bool = False


@dataclass(frozen=True, slots=True)
class Silence:
    """No answer, in words for the provider. `ours`: nothing was asked, through no fault of the sink."""

    reason: str
    ours: bool = False


def read_consent(answer: Answer, origin: str) -> Consent | Refusal:
    """Read a handshake's answer; several or malformed headers are no consent."""
    origins = answer.headers.get("webhook-allowed-origin", [])
    if not origins:
        return Refusal(f"the answer (status {answer.status}) has no WebHook-Allowed-Origin", withheld=True)
    if len(origins) > 1:
        return Refusal("the answer has several WebHook-Allowed-Origin headers")
    if origins[0] != "*" and origins[0].lower() != origin.lower():
        return Refusal("WebHook-Allowed-Origin allows another origin than ours")
    rates = answer.headers.get("webhook-allowed-rate", ["*"])
    if len(rates) > 1:
        return Refusal("the answer has several WebHook-Allowed-Rate headers")
    try:
        return Consent(parse_rate(rates[0]))
    except InvalidRate:
        return Refusal("WebHook-Allowed-Rate is neither a positive number nor *")


def next_handshake(since: datetime, now: datetime) -> datetime | None:
    """When to ask again a sink that has not consented `since` then: soon, then ever less often; None after a day."""
    age = now - since
    if age > _GIVE_UP_AFTER:
        return None
    return now + min(timedelta(seconds=1) + age / 4, _LONGEST_WAIT)


def next_renewal(since: datetime, now: datetime) -> datetime | None:
    """When to ask again a sink that consented once and has refused `since` then: three times over a day, then None."""
    if now - since >= _GIVE_UP_AFTER:
        return None
    return min(now + _RENEWAL_WAIT, since + _GIVE_UP_AFTER)


class Handshaker:
    """Makes the handshakes that are due; any process may make any. `run` is its worker."""

    def __init__(
        self,
        engine: AsyncEngine,
        client: Client,
        origin: str,
        settings: HandshakeSettings | None = None,
        public_url: str | None = None,
        *,
        sender: Sender | None = None,
        keys: KeyRing | None = None,
    ) -> None:
        """Make one.

        Args:
            engine: where subscriptions are.
            client: makes the requests, behind the same fence as notifications.
            origin: our DNS name.
            settings: how sinks are asked.
            public_url: base URL of the API as sinks see it; without it no callback is offered.
            sender: shows sinks what notifications show them.
            keys: opens what that is; without them it is shown to no sink.
        """
        self._engine = engine
        self._client = client
        self._origin = origin
        self._settings = settings or HandshakeSettings()
        self._public_url = public_url
        self._sender = sender or Sender(client)
        self._keys = keys
        self._asking = Asking()
        self._under_way = 0

    def ask(self) -> None:
        """A handshake may be due: look now instead of at the next poll."""
        self._asking.ask()

    async def run(self) -> None:
        """Make handshakes until cancelled; each concludes by itself: a sink that takes its time delays no other."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._asking.wait(_POLL_SECONDS)
                try:
                    due, tokens = await self._claim()
                except _TROUBLE as error:
                    self._tell(error)
                    await asyncio.sleep(0.5)
                    continue
                for validation in due:
                    self._under_way += 1
                    group.create_task(self._handle(validation, tokens.get(validation.id)))

    async def _claim(self) -> tuple[list[Validation], dict[UUID, str]]:
        room = _AT_ONCE - self._under_way
        if room <= 0:
            return [], {}
        fresh_only = room <= _KEPT_FOR_NEW
        limit = room if fresh_only else room - _KEPT_FOR_NEW
        async with self._engine.begin() as connection:
            due = await claim_validations(connection, limit, _CLAIM, fresh_only=fresh_only)
            asked = [each for each in due if not is_amqp(each.sink)]  # a RabbitMQ calls nobody back
            tokens = await issue_tokens(connection, asked) if asked and self._public_url else {}
        if len(due) == limit:
            self._asking.ask()
        return due, tokens

    async def _handle(self, validation: Validation, token: str | None) -> None:
        """One handshake. What the database can't record is claimed and asked again later."""
        try:
            config = await self._config(validation)
            if config is not None and config.sink != validation.sink:
                return  # it was changed just now: the new sink is due by itself
            await self._record(validation, await self.shake_hands(validation.sink, token, config))
        except _TROUBLE as error:
            self._tell(error)
        finally:
            self._under_way -= 1

    async def _config(self, validation: Validation) -> SinkConfig | None:
        """What its sink is shown; None: nothing."""
        if self._keys is None or not (validation.identified or is_amqp(validation.sink)):
            return None
        for config in await load_sinks(self._engine, self._keys, [validation.key]):
            return config
        raise Unavailable  # what can't be opened now is asked later

    async def _record(self, validation: Validation, result: Consent | Refusal | Silence) -> None:
        now = datetime.now(UTC)
        sink, claimed_until = validation.sink, validation.claimed_until
        since = validation.refused_since or now
        match result:
            case Consent(rate):
                HANDSHAKES.labels("consent").inc()
                renew_at = self._settings.renew_at(now)
                under = validation.claimed_until if is_amqp(sink) else None  # else its queue may have been changed
                async with changing(self._engine) as connection:
                    if await activate(
                        connection,
                        validation.id,
                        sink=sink,
                        allowed_rate=rate,
                        renew_at=renew_at,
                        claimed_until=under,
                    ):
                        await forget_tokens(connection, validation.id)
                return
            case Refusal(reason):
                HANDSHAKES.labels("refusal").inc()
            case Silence(reason):
                HANDSHAKES.labels("no-answer").inc()
        later: datetime | None = None
        if isinstance(result, Silence) and result.ours:
            later = now + _HINDERED_WAIT * uniform(0.9, 1.1)
        elif validation.consented:
            if isinstance(result, Silence):
                later = now + _SILENT_WAIT * uniform(0.9, 1.1)
            elif isinstance(result, Refusal) and result.withheld and validation.by_callback:
                later = self._settings.renew_at(now) or now + _SILENT_WAIT
        if later is not None:
            async with self._engine.begin() as connection:
                await ask_later(connection, validation.id, sink=sink, at=later, claimed_until=claimed_until)
            return
        again = next_renewal(since, now) if validation.consented else next_handshake(since, now)
        async with changing(self._engine) as connection:
            await handshake_failed(
                connection, validation.id, sink=sink, reason=reason, retry_at=again, claimed_until=claimed_until
            )

    def _tell(self, error: Exception) -> None:
        WORKER_ERRORS.labels("handshakes").inc()
        log().warning("handshakes-failed", error=type(error).__name__)

    async def shake_hands(
        self, sink: str, token: str | None = None, config: SinkConfig | None = None
    ) -> Consent | Refusal | Silence:
        """Ask one sink for its consent, offering the callback of `token`, showing what `config` says.

        Of a RabbitMQ it is that it lets us publish to the target, with what only its owner can give.
        """
        if config is not None and config.amqp is not None:
            return await self._try_out(config)
        headers = {"webhook-request-origin": self._origin, "user-agent": "Bode"}
        if self._settings.request_rate is not None:
            headers["webhook-request-rate"] = str(self._settings.request_rate)
        if token is not None and self._public_url is not None:
            headers["webhook-request-callback"] = f"{self._public_url}{CALLBACK_PATH}{token}"
        try:
            if config is None:
                answer = await self._client.request("OPTIONS", Target.of(sink), headers)
            else:
                answer = await self._sender.ask(Sink.of(config, self._origin), "OPTIONS", headers)
        except SendError as error:
            return Silence(f"no answer ({error.reason})", error.reason in OURS)
        except ValueError as error:
            return Refusal(str(error))
        return read_consent(answer, self._origin)

    async def _try_out(self, config: SinkConfig) -> Consent | Refusal | Silence:
        try:
            target = AmqpTarget.of(config, self._origin)
            if target is None:
                raise ValueError("not on a RabbitMQ")
            await self._sender.try_out(target)
        except SendError as error:
            why = _REFUSALS.get(error.reason)
            if why is None:
                return Silence(f"no answer ({error.reason})", error.reason in OURS)
            return Refusal(f"{why} ({error.reason})")
        except ValueError as error:
            return Refusal(str(error))
        return Consent(None)
