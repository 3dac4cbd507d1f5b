"""What the demo shows: a table that lives on a terminal, and a plain line every few seconds elsewhere."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from broker.tools.listen_ledger import Ledger
from broker.tools.listen_receiver import Notification, Refusal
from broker.tools.listen_report import completeness, duration

_LIVE_SECONDS: Final = 0.5
_PLAIN_SECONDS: Final = 5.0


class Column:
    """One provider: what it received, and whether anything is missing."""

    def __init__(self, name: str, latencies: dict[str, float]) -> None:
        self.name = name
        self.delivered: Counter[str] = Counter()
        self.ledger: Ledger | None = None
        self.subscription: Mapping[str, Any] | None = None
        self.trouble = ""
        self._refused = 0
        self._latencies = latencies

    def taken(self, notification: Notification) -> None:
        """A notification arrived."""
        if not notification.duplicate:
            self.delivered[notification.type] += 1
        if notification.latency is not None:
            self._latencies.pop(notification.type, None)  # so that the last one stands last
            self._latencies[notification.type] = notification.latency.total_seconds()

    def refused(self, refusal: Refusal) -> None:
        """A request was not taken."""
        self._refused += 1

    @property
    def state(self) -> str:
        """How it is doing, in a few words."""
        if self.trouble:
            return self.trouble
        if self.ledger is None or self.subscription is None:
            return "subscribing"
        if self.subscription["status"] != "active":
            return str(self.subscription.get("statusReason") or self.subscription["status"])
        refused = f", {self._refused} refused" if self._refused else ""
        return (completeness(self.ledger, self.subscription["health"]) or "nothing yet") + refused


class Board:
    """What was published and delivered since the demo started."""

    def __init__(self, console: Console, types: Sequence[str]) -> None:
        self._console = console
        self._types = list(types)
        self._columns: list[Column] = []
        self._published: Counter[str] = Counter()
        self._latencies: dict[str, float] = {}
        self._said = ""
        self.trouble = ""

    def add(self, name: str) -> Column:
        """A column for a provider."""
        column = Column(name, self._latencies)
        self._columns.append(column)
        return column

    def published(self, type_: str) -> None:
        """The demo published an event, and it is safe."""
        self._published[type_] += 1

    async def run(self) -> None:
        """Show until cancelled."""
        if not self._console.is_terminal:
            while True:
                await asyncio.sleep(_PLAIN_SECONDS)
                line = self.line()
                if line != self._said:  # silence is not repeated
                    self._console.print(line, highlight=False, soft_wrap=True)
                    self._said = line
        with Live(self.table(), console=self._console, auto_refresh=False, transient=True) as live:
            while True:
                await asyncio.sleep(_LIVE_SECONDS)
                live.update(self.table(), refresh=True)

    def line(self) -> str:
        """All of it in one line."""
        latest = [duration(seconds) for seconds in list(self._latencies.values())[-1:]]
        providers = [f"{column.name} {column.delivered.total()}: {column.state}" for column in self._columns]
        return " · ".join([f"published {self._published.total()}", *providers, *latest, *filter(None, [self.trouble])])

    def table(self) -> Group:
        """All of it as a table."""
        table = Table("type", box=None, pad_edge=False, header_style="bold")
        table.add_column("published", justify="right")
        for column in self._columns:
            table.add_column(column.name, justify="right")
        table.add_column("last latency", justify="right")
        others = {type_ for column in self._columns for type_ in column.delivered} - set(self._types)
        for type_ in [*self._types, *sorted(others)]:
            delivered = [str(column.delivered[type_] or "·") for column in self._columns]
            latency = self._latencies.get(type_)
            shown = "" if latency is None else duration(latency)
            table.add_row(type_, str(self._published[type_] or "·"), *delivered, shown)
        states = [Text(f"{column.name}: {column.state}") for column in self._columns]
        return Group(table, *states, *([Text(self.trouble)] if self.trouble else []))
