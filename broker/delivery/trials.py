"""Test notifications: sent once, on request, by whichever delivery process claims it first, to a sink or into a queue.

The API process only writes the request: it has no way out to sinks, so it can't be used to get round the fence or the
network's rules for what leaves. A test has no number and no attempts; nothing of it is matched, counted or retried.
"""

import asyncio
import random
import time
from datetime import UTC, datetime, timedelta
from typing import Final

import orjson
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from broker.delivery.asking import Asking
from broker.delivery.exchanges import Answer, QueueExchange
from broker.delivery.outcomes import Reason, judge
from broker.delivery.sender import Sender, Sink
from broker.telemetry import WORKER_ERRORS, log
from subscriptions import trials
from subscriptions.secrets import KeyRing, answer_purpose
from subscriptions.sinks import SinkConfig, load_sinks
from subscriptions.trials import Waiting

TYPE: Final = "nl.bode.test-notification"
_POLL_SECONDS: Final = 1.0
_AT_ONCE: Final = 16
_CLAIM: Final = timedelta(seconds=150)
"""Longer than the longest attempt and its record: a test is sent once, but for a process that dies meanwhile."""
_TROUBLE: Final = (SQLAlchemyError, OSError, TimeoutError)


class _Awaited(QueueExchange):
    """One whose answer, or the reason why there is none, somebody awaits; None: a queue has it."""

    __slots__ = ("future",)

    def __init__(self, future: "asyncio.Future[Answer | Reason | None]") -> None:
        super().__init__()
        self.future = future

    def answered(self, answer: Answer) -> None:
        self._end(answer)

    def confirmed(self) -> None:
        self._end(None)

    def failed(self, reason: Reason) -> None:
        self._end(reason)

    def _end(self, result: Answer | Reason | None) -> None:
        if not self.future.done():
            self.future.set_result(result)


class Trials:
    """Sends the test notifications that wait; `run` is its worker."""

    def __init__(self, engine: AsyncEngine, keys: KeyRing, sender: Sender, origin: str) -> None:
        self._engine = engine
        self._keys = keys
        self._sender = sender
        self._origin = origin
        self._asking = Asking()
        self._under_way = 0

    def ask(self) -> None:
        """One may wait: look now instead of at the next poll."""
        self._asking.ask()

    async def run(self) -> None:
        """Send until cancelled; a slow sink delays no other."""
        async with asyncio.TaskGroup() as group:
            while True:
                await self._asking.wait(_POLL_SECONDS)
                room = _AT_ONCE - self._under_way
                if room <= 0:
                    continue
                try:
                    async with self._engine.begin() as connection:
                        waiting = await trials.claim(connection, room, _CLAIM)
                except _TROUBLE as error:
                    self._tell(error)
                    continue
                for each in waiting:
                    self._under_way += 1
                    group.create_task(self._handle(each))

    async def _handle(self, waiting: Waiting) -> None:
        """One test. What the database can't record is claimed again later."""
        try:
            for config in await load_sinks(self._engine, self._keys, [waiting.subscription]):
                await self._send(waiting, config)
        except _TROUBLE as error:
            self._tell(error)
        finally:
            self._under_way -= 1

    async def _send(self, waiting: Waiting, config: SinkConfig) -> None:
        started = time.monotonic()
        result: Answer | Reason | None
        try:
            sink = Sink.of(config, self._origin)
        except ValueError:
            result = Reason.NONSENSE
        else:
            result = await self._exchange(sink, waiting)
        milliseconds = round((time.monotonic() - started) * 1000)
        status = reason = excerpt = None
        if isinstance(result, Answer):
            judged = judge(result.status, None, result.excerpt, datetime.now(UTC)).reason
            status, reason = result.status, None if judged is None else judged.value
            excerpt = self._keys.seal(result.excerpt, answer_purpose(waiting.id)) if result.excerpt else None
        elif result is not None:
            reason = result.value
        async with self._engine.begin() as connection:
            await trials.record(
                connection, waiting.id, milliseconds=milliseconds, status=status, reason=reason, excerpt=excerpt
            )

    async def _exchange(self, sink: Sink, waiting: Waiting) -> Answer | Reason | None:
        content = sink.alone(test_event(waiting, sink.config, datetime.now(UTC)))
        awaited = _Awaited(asyncio.get_running_loop().create_future())
        self._sender.begin_content(sink, f"test_{waiting.id.hex}", random.getrandbits(128) | 1, content, awaited)
        try:
            return await awaited.future
        finally:
            awaited.abandon()

    def _tell(self, error: Exception) -> None:
        WORKER_ERRORS.labels("test-notifications").inc()
        log().warning("test-notification-failed", error=type(error).__name__)


def test_event(waiting: Waiting, config: SinkConfig, now: datetime) -> bytes:
    """The body of a test notification: synthetic, about nobody, and without a number."""
    event = {
        "specversion": "1.0",
        "id": str(waiting.id),
        "source": "urn:bode:test-notifications",
        "type": TYPE,
        "time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "subscription": str(config.id),
        **({} if config.subscriber_reference is None else {"subscriberreference": config.subscriber_reference}),
        "data": {"meaning": "A test that was asked for. It has no number, and nothing has happened."},
    }
    return orjson.dumps(event)
