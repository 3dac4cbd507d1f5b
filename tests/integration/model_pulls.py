"""Who pulls in the model: every number comes once and in order, and what is acknowledged is what was shown."""

import time
from typing import Any, Final

from delivery_evidence import Offer, Pulled
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from model_example import Example
from model_promises import CLOCKS_SECONDS

MOST: Final = 1_000


class Pulls(Example):
    """Pulling through the API's own routes, within the test."""

    @precondition(lambda self: self.pulled())
    @rule(place=st.integers(0, 4), limit=st.sampled_from([1, 3, 20, MOST]), acknowledged=st.booleans())
    def pull(self, place: int, limit: int, acknowledged: bool) -> None:
        """What is beyond the cursor; it may be acknowledged later, or never."""
        name = self.pulled()[place % len(self.pulled())]
        self.stage.call(self._pull(name, limit))
        if acknowledged:
            self.stage.call(self._acknowledge(name, -1))

    @precondition(lambda self: any(self._of(name).offers for name in self.pulled()))
    @rule(place=st.integers(0, 4), back=st.integers(1, 3))
    def acknowledge(self, place: int, back: int) -> None:
        """One of the latest pulls, whatever has happened since, and also once more."""
        able = [name for name in self.pulled() if self._of(name).offers]
        name = able[place % len(able)]
        self.stage.call(self._acknowledge(name, -min(back, len(self._of(name).offers))))

    def pull_all(self, name: str) -> None:
        """Take over all that is there."""
        self.stage.call(self._pull(name, MOST))
        self.stage.call(self._acknowledge(name, -1))

    def read_whole(self, name: str) -> None:
        """Once nothing is pending any more the log of any subscription is whole, whatever its protocol."""
        subscription, after, seen = self.subscriptions[name], 0, list[int]()
        while after < len(subscription.events):
            answer = self.stage.call(self._get(name, f"/events?after={after}&limit=7"))
            seen += self._shown(name, after, answer)
            assert answer["completeThrough"] == len(subscription.events), answer["completeThrough"]
            assert answer["through"] > after, answer
            after = answer["through"]
        assert seen == list(range(1, len(subscription.events) + 1))

    def _of(self, name: str) -> Pulled:
        pulled = self.subscriptions[name].pulled
        assert pulled is not None
        return pulled

    async def _get(self, name: str, path: str) -> Any:
        key = self.providers[self.provider_of[name]][2]
        identity = self.subscriptions[name].identity
        answer = await self.stage.bode.world.call("GET", f"/subscriptions/{identity}{path}", key=key)
        assert answer.status == 200, answer.text
        return answer.json

    async def _cursor(self, name: str) -> int:
        return int((await self._get(name, "/cursor"))["through"])

    async def _pull(self, name: str, limit: int) -> None:
        subscription, after = self.subscriptions[name], self._of(name).through
        answer = await self._get(name, f"/events?limit={limit}")
        self._shown(name, after, answer)  # so the cursor is where it was left
        assert answer["through"] <= after + limit, "no more than asked for"
        for event in answer["events"]:
            number = int(event["subscriptionsequence"])
            assert not any(self.covers(*hold, name, number) for hold in self.holds), f"{number} is held, and shown"
        if answer["through"] < min(after + limit, len(subscription.events)):
            assert answer["held"] or answer["delayedUntil"], f"it ended at {answer['through']} without a cause"
        shown = {int(event["subscriptionsequence"]) for event in answer["events"]}
        self._of(name).offers.append(Offer(answer["through"], answer["cursor"], frozenset(shown)))

    def _shown(self, name: str, after: int, answer: Any) -> list[int]:
        """The numbers of an answer: from `after` on, each once, and events in order."""
        subscription = self.subscriptions[name]
        events = [int(event["subscriptionsequence"]) for event in answer["events"]]
        assert all(stone["state"] == "cancelled" for stone in answer["tombstones"]), "nothing expires here"
        stones = [n for stone in answer["tombstones"] for n in range(int(stone["from"]), int(stone["to"]) + 1)]
        found = sorted(events + stones)
        assert events == sorted(events), f"events out of order: {events}"
        assert found == list(range(after + 1, answer["through"] + 1)), f"{found} beyond {after}: {answer['through']}"
        for event, number in zip(answer["events"], events, strict=True):
            assert event["id"] == subscription.events[number - 1], f"{number} is another event"
            subscription.shown.add(number)
            delay = subscription.delays.get(number)
            assert delay is None or time.time() > delay.begin - CLOCKS_SECONDS, f"{number} is shown before its time"
        return found

    async def _acknowledge(self, name: str, which: int) -> None:
        subscription, pulled = self.subscriptions[name], self._of(name)
        offer = pulled.offers[which]
        key = self.providers[self.provider_of[name]][2]
        path = f"/subscriptions/{subscription.identity}/cursor"
        answer = await self.stage.bode.world.call("PUT", path, key=key, body={"cursor": offer.cursor})
        if answer.status == 409:
            assert self.holds, answer.text
            moved = await self._cursor(name)
            assert pulled.through <= moved <= offer.through
        else:
            assert answer.status == 200, answer.text
            moved = answer.json["through"]
            assert moved == max(pulled.through, offer.through), "the cursor goes to what was pulled, and never back"
        pulled.through = moved
        pulled.taken |= {number for number in offer.shown if number <= moved}
        await self._compare(name)

    async def _compare(self, name: str) -> None:
        """What was acknowledged has ended; and nothing else was delivered."""
        subscription, pulled = self.subscriptions[name], self._of(name)
        statement = "SELECT sequence, state FROM deliveries WHERE subscription = $1 ORDER BY sequence"
        rows = await self.stage.bode.pool.fetch(statement, subscription.key)
        open_ = [row["sequence"] for row in rows if row["sequence"] <= pulled.through and row["state"] == "pending"]
        assert open_ == [], f"acknowledged through {pulled.through}, and pending: {open_}"
        delivered = {row["sequence"] for row in rows if row["state"] == "delivered"}
        assert delivered <= pulled.taken, f"delivered, and not shown and acknowledged: {delivered - pulled.taken}"
