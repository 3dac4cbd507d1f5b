"""Delays, corrections and queues held against the promises, beside what `delivery_promises` looks at.

Whether a correction came in time PostgreSQL decides; where the model can't know, either is right, and never both.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from delivery_evidence import Delay, Expected, numbered
from delivery_promises import Promises
from scripted_sinks import Arrival

CLOCKS_SECONDS: Final = 0.05
"""By how much a process may be wrong about PostgreSQL's clock, on a slow machine."""


@dataclass
class ModelPromises(Promises):
    """All that the model promises."""

    links_lost: int = 0
    """How often something befell the connections to RabbitMQ."""

    def checks(self) -> Sequence[Callable[[], Iterator[str]]]:
        return (*super().checks(), self.delays, self.corrections, self.queues)

    def delays(self) -> Iterator[str]:
        """Nothing leaves before its time."""
        for subscription, arrival in self._each():
            delay = subscription.delays.get(arrival.sequence)
            if delay is not None and arrival.begun < delay.begin - CLOCKS_SECONDS:
                yield f"{arrival} came {delay.begin - arrival.begun:.3f} s before its time"

    def corrections(self) -> Iterator[str]:
        """What was corrected in time is cancelled and never comes; what wasn't, isn't. Withdrawals share its end."""
        for name, subscription in self.subscriptions.items():
            for sequence, delay in subscription.delays.items():
                row = self.rows.get((subscription.key, sequence))
                if row is not None:
                    yield from self._corrected(name, subscription, sequence, delay)

    def _corrected(self, name: str, subscription: Expected, sequence: int, delay: Delay) -> Iterator[str]:
        row, what = self.rows[subscription.key, sequence], f"{subscription.key}#{sequence}"
        reason = row["reason"] or ""
        cancelled = row["state"] == "cancelled" and reason.startswith(("corrected:", "withdrawn:"))
        by = None
        for each in delay.corrections:
            word = "withdrawn" if each.withdrawn else "corrected"
            if cancelled and reason == f"{word}: by {each.event}":
                by = each
                if each.began > delay.end + CLOCKS_SECONDS:
                    yield f"{what} was {reason}, which came too late"
            elif row["state"] != "cancelled" and each.answered < delay.begin - CLOCKS_SECONDS:
                yield f"{what} is {row['state']}, though {each.event} {word} it in time"
        if cancelled and by is None:
            yield f"{what} is {reason}, which nobody said"
        if cancelled and (found := self._came(name, subscription, sequence)):
            yield f"{what} was {reason}, and {found}"
        for each in delay.corrections:
            own = None if each.number is None else self.rows.get((subscription.key, each.number))
            untold = own is not None and own["state"] == "cancelled" and own["reason"].startswith("withdrawal:")
            if own is not None and untold != (each is by and each.withdrawn) and own["state"] != "cancelled":
                yield f"{subscription.key}#{each.number} is {own['state']}, and withdrew what was never told"
            if untold and not (each is by and each.withdrawn):
                yield f"{subscription.key}#{each.number} is {own and own['reason']}, and that was not withdrawn by it"
            if untold and each.number is not None and (found := self._came(name, subscription, each.number)):
                yield f"{subscription.key}#{each.number} withdrew what nobody was told of, and {found}"

    def _came(self, name: str, subscription: Expected, sequence: int) -> str:
        """What there is to show that it was told; nothing: an empty text."""
        came = [str(each) for each in self._arrivals_of(name) if each.sequence == sequence]
        if sequence in subscription.shown:
            came.append("a pull showed it")
        return ", ".join(came)

    def _arrivals_of(self, name: str) -> list[Arrival]:
        return [*self.arrivals.get(name, ()), *self.replayed.get(name, ())]

    def queues(self) -> Iterator[str]:
        """A queue gets again only what was under way when a process, a shard's owner or RabbitMQ was disturbed."""
        for name, subscription in self.subscriptions.items():
            if subscription.protocol != "AMQP":
                continue
            again = sum(len(each) - 1 for each in numbered(self.arrivals[name]).values())
            again -= sum(map(len, subscription.retried.values()))
            causes = self.links_lost + len(self._hands(subscription))
            causes += sum(len(process.disturbed) for process in self.processes.values())
            if again > causes * self.concurrency:
                yield f"{again} came again into the queue of {subscription.key}, for {causes} causes"
