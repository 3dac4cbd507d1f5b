"""Notices become events: what stands in the outbox is accepted like what a registry publishes.

Where events are accepted, a worker looks every second. What it took and didn't finish is told again under the same
id, which acceptance recognises; so each notice is accepted once, through the kill of any process at any moment.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

import asyncpg
import orjson

from broker.ingest.accept import Accepted, Acceptor, Message, Rejected
from broker.storage import notices
from broker.storage.notices import LINGER, Notice
from broker.storage.pool import DATABASE_TROUBLE
from broker.telemetry import NOTICES, WORKER_ERRORS, log
from schemas import cloudevents
from schemas.notices import SOURCE

_LOOK_SECONDS: Final = 1.0


class Notifier:
    """Tells what the outbox holds; `run` is its worker."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        acceptor: Acceptor,
        accepted: asyncio.Queue[Accepted],
        linger: Mapping[str, timedelta] = LINGER,
    ) -> None:
        """`accepted` is told which subscriptions have something new to send."""
        self._pool = pool
        self._acceptor = acceptor
        self._accepted = accepted
        self._linger = linger

    async def run(self) -> None:
        """Tell until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await self.tell()
            except DATABASE_TROUBLE as error:
                WORKER_ERRORS.labels("notices").inc()
                log().warning("notices-not-told", error=type(error).__name__)

    async def tell(self) -> int:
        """Tell what is due; how many notices it were."""
        async with self._pool.acquire() as connection:
            due = await notices.claim(connection, self._linger)
        if not due:
            return 0
        results = await self._acceptor.accept([_message(notice) for notice in due])
        for notice, result in zip(due, results, strict=True):
            if isinstance(result, Rejected):  # a defect; telling it again would bring the same
                WORKER_ERRORS.labels("notices").inc()
                log().error("notice-rejected", type=notice.type, code=result.code)
            if isinstance(result, Accepted):
                NOTICES.labels(notice.type).inc()
                self._accepted.put_nowait(result)
        async with self._pool.acquire() as connection:
            await notices.told(connection, [notice.event_id for notice in due])
        _tell_of(due)
        return len(due)


def _message(notice: Notice) -> Message:
    raw = orjson.dumps(
        {
            "specversion": "1.0",
            "id": str(notice.event_id),
            "source": SOURCE,
            "type": notice.type,
            "time": notice.said_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "datacontenttype": "application/json",
            "data": notice.data,
        }
    )
    return Message(None, cloudevents.from_structured(raw), raw, recipient=notice.organisation_id)


def _tell_of(told: Sequence[Notice]) -> None:
    log().info("notices-told", notices=len(told))
