"""The webhook handshake: a sink must consent before it receives anything (CloudEvents HTTP webhook 1.0.2, section 4).

`OPTIONS` with our origin; consent is in the headers of the answer, not in its status: `WebHook-Allowed-Origin` names
our origin or `*`; `WebHook-Allowed-Rate`, when given, is a number of requests a minute or `*`.
"""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from broker.delivery.client import Answer, Client, SendError, Target
from broker.telemetry import HANDSHAKES, WORKER_ERRORS, log
from schemas.problems import Unavailable
from subscriptions.change_log import changing
from subscriptions.life_cycle import Validation, activate, claim_validations, handshake_failed

_POLL_SECONDS: Final = 1.0
_AT_ONCE: Final = 50
_CLAIM: Final = timedelta(seconds=60)
_GIVE_UP_AFTER: Final = timedelta(days=1)
_LONGEST_WAIT: Final = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Consent:
    """The sink's answer allows us. `rate` is in notifications a minute; None means any."""

    rate: int | None


@dataclass(frozen=True, slots=True)
class Refusal:
    """No consent, in words for the provider."""

    reason: str


def read_consent(answer: Answer, origin: str) -> Consent | Refusal:
    """Read a handshake's answer; several or malformed headers are no consent."""
    origins = answer.headers.get("webhook-allowed-origin", [])
    if not origins:
        return Refusal(f"the answer (status {answer.status}) has no WebHook-Allowed-Origin")
    if len(origins) > 1:
        return Refusal("the answer has several WebHook-Allowed-Origin headers")
    if origins[0] != "*" and origins[0].lower() != origin.lower():
        return Refusal("WebHook-Allowed-Origin allows another origin than ours")
    rates = answer.headers.get("webhook-allowed-rate", ["*"])
    if len(rates) > 1:
        return Refusal("the answer has several WebHook-Allowed-Rate headers")
    if rates[0] == "*":
        return Consent(None)
    if rates[0].isascii() and rates[0].isdigit() and 0 < int(rates[0][:10]) < 10**9:
        return Consent(int(rates[0]))
    return Refusal("WebHook-Allowed-Rate is neither a positive number nor *")


def next_handshake(created_at: datetime, now: datetime) -> datetime | None:
    """When to ask again a sink that did not consent: soon at first, then ever less often; None after a day."""
    age = now - created_at
    if age > _GIVE_UP_AFTER:
        return None
    return now + min(timedelta(seconds=1) + age / 4, _LONGEST_WAIT)


class Handshaker:
    """Makes the handshakes that are due; any process may make any. `run` is its worker."""

    def __init__(self, engine: AsyncEngine, client: Client, origin: str) -> None:
        self._engine = engine
        self._client = client
        self._origin = origin
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """A handshake may be due: look now instead of at the next poll."""
        self._asked.set()

    async def run(self) -> None:
        """Make handshakes until cancelled."""
        while True:
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._asked.wait()
            except TimeoutError:
                pass
            self._asked.clear()
            try:
                await self._round()
            except (SQLAlchemyError, OSError, TimeoutError, Unavailable) as error:
                WORKER_ERRORS.labels("handshakes").inc()
                log().warning("handshakes-failed", error=type(error).__name__)
                await asyncio.sleep(0.5)

    async def _round(self) -> None:
        async with self._engine.begin() as connection:
            due = await claim_validations(connection, _AT_ONCE, _CLAIM)
        # each concludes by itself: a sink that takes its time delays no other
        await asyncio.gather(*(self._validate(validation) for validation in due))

    async def _validate(self, validation: Validation) -> None:
        result = await self.shake_hands(validation.sink)
        async with changing(self._engine) as connection:
            match result:
                case Consent(rate):
                    HANDSHAKES.labels("consent").inc()
                    await activate(connection, validation.id, sink=validation.sink, allowed_rate=rate)
                case Refusal(reason):
                    HANDSHAKES.labels("refusal").inc()
                    again = next_handshake(validation.created_at, datetime.now(UTC))
                    await handshake_failed(
                        connection, validation.id, sink=validation.sink, reason=reason, retry_at=again
                    )

    async def shake_hands(self, sink: str) -> Consent | Refusal:
        """Ask one sink for its consent."""
        headers = {"webhook-request-origin": self._origin, "webhook-request-rate": "*", "user-agent": "Bode"}
        try:
            answer = await self._client.request("OPTIONS", Target.of(sink), headers)
        except SendError as error:
            return Refusal(f"no answer ({error.reason})")
        except ValueError as error:
            return Refusal(str(error))
        return read_consent(answer, self._origin)
