"""Turns: which registry's batch a process accepts next, when several have some (promise 7).

Each registry that has a batch gets a turn before any gets another; while others are about, a registry has one batch
under way at most, and a small one. So an event waits for one small batch of each other registry, whatever waits behind
that. A registry that is alone has all slots and large batches.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Final

_ABOUT_SECONDS: Final = 1.0
"""Whoever had a turn so lately counts as being about."""


class Turns:
    """Slots for acceptances, given in turn."""

    def __init__(self, slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._free = slots
        self._clock = clock
        self._under_way: Counter[Hashable] = Counter()
        self._waiting: dict[Hashable, deque[asyncio.Future[None]]] = {}
        self._last: dict[Hashable, float] = {}
        self._turn = 0
        self._served: dict[Hashable, int] = {}
        """The last turn of each party."""

    def crowded(self, party: Hashable) -> bool:
        """Whether other registries have, or lately had, something to accept."""
        since = self._clock() - _ABOUT_SECONDS
        return any(other != party for other in self._waiting) or any(
            at >= since for other, at in self._last.items() if other != party
        )

    @asynccontextmanager
    async def turn(self, party: Hashable) -> AsyncIterator[None]:
        """Wait for a slot, and hold it inside the block."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(party, deque()).append(granted)
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            if not granted.done() or granted.cancelled():
                self._withdraw(party, granted)
            else:
                self._give_back(party)
            raise
        try:
            yield
        finally:
            self._give_back(party)

    def _grant(self) -> None:
        while self._free > 0 and self._waiting:
            admitted = [party for party in self._waiting if self._may_start(party)]
            if not admitted:
                return
            party = min(admitted, key=lambda each: (self._under_way[each], self._served.get(each, 0)))
            queue = self._waiting[party]
            granted = queue.popleft()
            if not queue:
                del self._waiting[party]
            if granted.cancelled():
                continue
            self._turn += 1
            self._served[party] = self._turn
            self._free -= 1
            self._under_way[party] += 1
            self._last[party] = self._clock()
            granted.set_result(None)

    def _may_start(self, party: Hashable) -> bool:
        return self._under_way[party] == 0 or not self.crowded(party)

    def _give_back(self, party: Hashable) -> None:
        self._free += 1
        self._under_way[party] -= 1
        self._last[party] = self._clock()
        self._grant()

    def _withdraw(self, party: Hashable, granted: "asyncio.Future[None]") -> None:
        queue = self._waiting.get(party)
        if queue is not None and granted in queue:
            queue.remove(granted)
            if not queue:
                del self._waiting[party]
        self._grant()
