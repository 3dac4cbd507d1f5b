"""Requests that wait until a subscription has something new: woken by NOTIFY, and looking again by themselves."""

import asyncio
from collections import defaultdict
from typing import Final

from broker.storage.acceptance import EVERYTHING

_LOOK_SECONDS: Final = 2.0
MOST_WAITING: Final = 2_000


class Arrivals:
    """Who waits in this process for which subscription. A wake-up that is lost costs two seconds."""

    def __init__(self) -> None:
        self._waiting: defaultdict[int, set[asyncio.Event]] = defaultdict(set)
        self._count = 0

    @property
    def full(self) -> bool:
        """Whether more can't wait: whoever comes now is answered at once."""
        return self._count >= MOST_WAITING

    def told(self, payload: str) -> None:
        """Ingest tells which subscriptions have something new."""
        if payload == EVERYTHING:
            self.anything()
            return
        for text in payload.split(","):
            for event in self._waiting.get(int(text), ()):
                event.set()

    def anything(self) -> None:
        """Wake all: something may have been missed."""
        for events in self._waiting.values():
            for event in events:
                event.set()

    async def wait(self, subscription: int, seconds: float) -> None:
        """Return when there may be something new, after `seconds` at the latest; now and then for nothing."""
        event = asyncio.Event()
        self._waiting[subscription].add(event)
        self._count += 1
        try:
            async with asyncio.timeout(min(seconds, _LOOK_SECONDS)):
                await event.wait()
        except TimeoutError:
            pass
        finally:
            self._count -= 1
            self._waiting[subscription].discard(event)
            if not self._waiting[subscription]:
                del self._waiting[subscription]
