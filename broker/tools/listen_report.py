"""What a listener tells: each notification as it comes, and, once it is quiet, whether anything is missing.

Nothing that is told identifies a person, unless the data was asked for.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, TypeAlias

from broker.tools.client import CallFailed
from broker.tools.listen_ledger import Ledger, say
from broker.tools.listen_receiver import Fault, Heartbeat, Notification, Refusal

Tell: TypeAlias = Callable[[str], None]
"""Prints a line."""
Health: TypeAlias = Mapping[str, Any]
"""What the API says of the deliveries of a subscription."""

_QUIET_SECONDS: Final = 0.2
_REPORT_SECONDS: Final = 5.0
_AGAIN_SECONDS: Final = 1.0


class Reporter:
    """Tells of one subscription. `ask` reads its health from the API; without it only gaps can be told."""

    def __init__(self, tell: Tell, *, show_data: bool = False) -> None:
        self._tell = tell
        self._show_data = show_data
        self._arrived = asyncio.Event()
        self._said: str | None = None
        self._last = 0

    def beaten(self, heartbeat: Heartbeat) -> None:
        """A heartbeat told how far the numbers go."""
        self._last = max(self._last, heartbeat.last)
        self._tell(f"♥ last number {heartbeat.last}, all ended through {heartbeat.complete_through}")
        self._said = None
        self._arrived.set()

    def tested(self) -> None:
        """A test notification was taken."""
        self._tell("test notification  ✔ signature")

    def taken(self, notification: Notification) -> None:
        """A notification was taken."""
        parts = [f"#{notification.number}", notification.type, "✔ signature"]
        if notification.latency is not None:
            parts.append(duration(notification.latency.total_seconds()))
        if notification.duplicate:
            parts.append("duplicate, recognised")
        self._tell("  ".join(parts))
        if self._show_data:
            self._tell("    " + json.dumps(notification.event, ensure_ascii=False))
        self._said = None
        self._arrived.set()

    def refused(self, refusal: Refusal) -> None:
        """A request was not taken."""
        number = "?" if refusal.number is None else refusal.number
        mark = "·" if refusal.fault is Fault.ON_PURPOSE else "✖"
        self._tell(f"#{number}  {mark} answered {refusal.status}: {refusal.fault}")

    async def run(
        self,
        ledger: Ledger,
        ask: Callable[[], Awaitable[Health]] | None,
        prove: Callable[[], Awaitable[str | None]] | None = None,
    ) -> None:
        """Tell whether anything is missing, each time that it is quiet and there is news, until cancelled.

        `prove` compares digests and gives a line; that is done once, as soon as nothing is under way any more.
        """
        while True:
            await self._quiet()
            health = None
            if ask is not None:
                with suppress(CallFailed):  # the API is away: the ledger still tells of gaps
                    health = await ask()
            text = completeness(ledger, health, self._last)
            if text is not None and text != self._said:
                self._tell(text)
                self._said = text
            settled = not ledger.missing(None if health is None else max(health["lastSequence"], self._last))
            if prove is not None and health is not None and (settled or health["pending"] == 0):
                with suppress(CallFailed):
                    proof = await prove()
                    if proof is not None:
                        self._tell(proof)
                        prove = None
            with suppress(TimeoutError):
                async with asyncio.timeout(None if settled else _AGAIN_SECONDS):
                    await self._arrived.wait()

    async def _quiet(self) -> None:
        """Wait until nothing has arrived for a moment, but not for ever."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_REPORT_SECONDS):
                while True:
                    self._arrived.clear()
                    await asyncio.sleep(_QUIET_SECONDS)
                    if not self._arrived.is_set():
                        return


def completeness(ledger: Ledger, health: Health | None, told: int = 0) -> str | None:
    """What can be said of completeness; None: there is nothing yet. `told` is the last number by a heartbeat."""
    through = max(ledger.highest, told, 0 if health is None else health["lastSequence"])
    if through == 0:
        return None
    missing = ledger.missing(through)
    parts = []
    if ledger.complete_through:
        parts.append(f"complete 1–{ledger.complete_through}")
    if missing:
        parts.append(f"not here yet: {say(missing)}")
    else:
        parts.append("nothing missing" if health is not None or told >= ledger.highest else "no gaps")
    if missing and health is not None:
        parts.append(f"{health['pending']} pending, {health['deadLetters']} given up")
    if ledger.duplicates:
        parts.append(f"{ledger.duplicates} duplicate{'s' * (ledger.duplicates > 1)} recognised")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """A time as people read it: `8 ms`, `1.2 s`, `3 min`."""
    seconds = max(seconds, 0.0)
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
