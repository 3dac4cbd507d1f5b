"""What registries do in the model: events come, with and without a delay, and correct earlier ones."""

import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from delivery_evidence import CorrectedBy, Delay
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from model_example import DELAY_SECONDS, EVENTS, SUBJECTS, Example, Waiting

from broker.ingest.accept import Accepted
from broker.ingest.wake import payloads
from broker.storage.acceptance import DELIVERIES_CHANNEL

Given = Sequence[tuple[str, str | None]]
"""Types and subjects."""


class Events(Example):
    """Acceptance as ingest does it, within the test."""

    @rule(events=EVENTS, told=st.booleans(), milliseconds=st.sampled_from([0, 0, 10, 40]))
    def accept_and_work(self, events: Given, told: bool, milliseconds: int) -> None:
        self.accept(events, told)
        self.sleep(milliseconds)

    @rule(events=EVENTS, told=st.booleans())
    def accept(self, events: Given, told: bool) -> None:
        self.stage.call(self._accept([(kind, subject, {}) for kind, subject in events], told))

    @rule(
        subject=SUBJECTS, kind=st.sampled_from("abd"), withdrawn=st.booleans(),
        lateness=st.sampled_from([-0.9, -0.5, -0.02, 0.0, 0.02, 0.3]), told=st.booleans(),
    )  # fmt: skip
    def correct_the_delayed(self, subject: str | None, kind: str, withdrawn: bool, lateness: float, told: bool) -> None:
        """What waits is corrected well in time, about when its delay is over, or after."""
        self.accept([("d", subject), ("a", subject)], told)
        time.sleep(max(self.waiting[-1].begin + lateness - time.time(), 0.0))
        self.correct(0, kind, withdrawn, told)

    @precondition(lambda self: self.waiting)
    @rule(place=st.integers(0, 3), kind=st.sampled_from("abd"), withdrawn=st.booleans(), told=st.booleans())
    def correct(self, place: int, kind: str, withdrawn: bool, told: bool) -> None:
        """One of the latest that have a delay."""
        wrong = self.waiting[-1 - place % len(self.waiting)]
        members = {"corrects": wrong.id, "correction": "withdraw" if withdrawn else "replace"}
        began = time.time()
        [(name, numbers)] = self.stage.call(self._accept([(kind, wrong.subject, members)], told))
        answered = time.time()
        for whose, number in wrong.numbers.items():
            correction = CorrectedBy(name, withdrawn, began, answered, numbers.get(whose))
            self.subscriptions[whose].delays[number].corrections.append(correction)

    async def _accept(
        self, events: Sequence[tuple[str, str | None, dict[str, Any]]], told: bool
    ) -> list[tuple[str, dict[str, int]]]:
        """The id of each event, and what number it has for whom."""
        names = [str(uuid4()) for _ in events]
        messages = [
            self.publisher.message(kind, subject, id=name, **members)
            for (kind, subject, members), name in zip(events, names, strict=True)
        ]
        before = time.time()
        results = await self.acceptor.accept(messages)
        now = time.time()
        accepted = []
        for (kind, subject, _), name, result in zip(events, names, results, strict=True):
            assert isinstance(result, Accepted), result
            matching = [each for each, types in self.types_of.items() if kind in types and self._matched(each)]
            assert {key for key in result.subscriptions if key > 0} == {self.subscriptions[n].key for n in matching}
            numbers = {each: self._number(each, name, kind, subject, now) for each in matching}
            accepted.append((name, numbers))
            if kind == "d":
                over = Waiting(name, subject, before + DELAY_SECONDS, now + DELAY_SECONDS, numbers)
                self.waiting.append(over)
                for each, number in numbers.items():
                    self.subscriptions[each].delays[number] = Delay(over.begin, over.end)
        if told:
            touched = {key for result in results if isinstance(result, Accepted) for key in result.subscriptions}
            for payload in payloads(touched):
                await self.stage.bode.pool.execute("SELECT pg_notify($1, $2)", DELIVERIES_CHANNEL, payload)
        return accepted

    def _number(self, name: str, event: str, kind: str, subject: str | None, now: float) -> int:
        subscription = self.subscriptions[name]
        subscription.events.append(event)
        subscription.lanes.append({"subject": subject, "subscription": "all", "none": None}[self.ordering[name]])
        subscription.accepted_by.append(now)
        self.kinds.setdefault(name, []).append(kind)
        return len(subscription.events)

    def _matched(self, name: str) -> bool:
        return self.grants[self.provider_of[name]] is not None and not self.subscriptions[name].ended
