"""What people do in the model: subscriptions are paused, held, revoked and ended; what was sent is sent again."""

import time
from typing import Final

from delivery_evidence import Asked, Expected
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from model_events import Events, Given
from model_example import EVENTS, Held
from sqlalchemy.exc import IntegrityError

from broker.storage import dead_letters, people, replays
from broker.storage.dead_letters import Selection
from schemas.resources import HoldBody, HoldScope
from subscriptions import grants, holds, life_cycle
from subscriptions.change_log import changing
from subscriptions.history import Actor

_OPERATOR: Final = Actor("operator")


class Requests(Events):
    """Requests as the API carries them out: each waits until the processes that deliver know of it."""

    @rule(place=st.integers(0, 4))
    def pause_or_resume(self, place: int) -> None:
        name = self.one(place)
        self.stage.call(self._resume(name) if name in self.paused else self._pause(name))

    async def _pause(self, name: str) -> None:
        subscription = self.subscriptions[name]
        status = await self.status(name)
        if status != "active":
            return
        async with changing(self.stage.bode.world.engine, self.stage.settled) as connection:
            try:
                await life_cycle.pause(connection, subscription.identity)
            except life_cycle.Conflict:
                return  # its sink was gone just now
        self.paused[name] = (time.time(), len(subscription.events) + 1)

    async def _resume(self, name: str) -> None:
        subscription = self.subscriptions[name]
        subscription.resumed.append(time.time())
        if name in self.paused:
            since, first = self.paused.pop(name)
            subscription.quiet.append((since, time.time(), first, len(subscription.events) + 1))
        async with changing(self.stage.bode.world.engine, self.stage.settled) as connection:
            await life_cycle.resume(connection, subscription.identity)

    @rule(scope=st.sampled_from(HoldScope), place=st.integers(0, 4), cancelled=st.booleans(), events=EVENTS)
    def hold_or_end_it(self, scope: HoldScope, place: int, cancelled: bool, events: Given) -> None:
        """What is held has something to hold: events come at once, and time to send them, if anybody would."""
        name = self.one(place)
        value = {
            HoldScope.SOURCE: self.publisher.source,
            HoldScope.EVENT_TYPE: f"{self.publisher.domain}.{'ab'[place % 2]}",
            HoldScope.ORGANISATION: self.providers[self.provider_of[name]][1],
            HoldScope.SUBSCRIPTION: str(self.subscriptions[name].identity),
        }[scope]
        if (scope, value) in self.holds:
            self.stage.call(self._end_hold(scope, value, cancelled))
        elif not (scope is HoldScope.SUBSCRIPTION and self.subscriptions[name].ended):
            self.stage.call(self._hold(scope, value))
            self.accept(events, told=True)
            time.sleep(0.04)

    async def _hold(self, scope: HoldScope, value: str) -> None:
        body = HoldBody(scope=scope, value=value, reason="model")
        async with changing(self.stage.bode.world.engine, self.stage.settled) as connection:
            row = await holds.place(connection, body, registry=None, actor=_OPERATOR)
        last = {name: len(subscription.events) for name, subscription in self.subscriptions.items()}
        self.holds[scope, value] = Held(row.id, time.time(), last)

    async def _end_hold(self, scope: HoldScope, value: str, cancelled: bool) -> None:
        held = self.holds[scope, value]
        until = time.time()
        async with changing(self.stage.bode.world.engine, self.stage.settled) as connection:
            row = await holds.get(connection, held.id, registry=None)
            if row.status == "cancelling":
                return  # the processes are at it
            if row.status == "active" and cancelled:
                await holds.cancel(connection, row, "model", _OPERATOR)
            elif row.status == "active":
                await holds.release(connection, row, None, _OPERATOR)
        if row.status == "active":
            self._note(scope, value, held, until, cancelled)
        if not (row.status == "active" and cancelled):
            del self.holds[scope, value]

    def _note(self, scope: HoldScope, value: str, held: "Held", until: float, cancelled: bool) -> None:
        for name, subscription in self.subscriptions.items():
            numbers = range(1, len(subscription.events) + 1)
            covered = {number for number in numbers if self.covers(scope, value, name, number)}
            since = frozenset(number for number in covered if number > held.last[name])
            subscription.held.append((held.since, until, since, frozenset(covered - since)))
            if cancelled:
                subscription.hold_cancelled |= covered

    @rule(provider=st.integers(0, 1))
    def revoke_or_grant(self, provider: int) -> None:
        self.stage.call(self._revoke_or_grant(provider))

    async def _revoke_or_grant(self, provider: int) -> None:
        standing = self.grants[provider]
        if standing is None:
            self.grants[provider] = await self.stage.bode.grant(self.publisher, self.providers[provider][1])
            return
        async with changing(self.stage.bode.world.engine, self.stage.settled) as connection:
            await grants.revoke_grant(
                connection, standing, registry_id=self.publisher.id, cancel_ungranted=people.cancel_ungranted
            )
        self.grants[provider] = None
        for name, whose in self.provider_of.items():
            if whose == provider:
                self.subscriptions[name].revoked.append(time.time())

    @precondition(lambda self: sum(s.ended for s in self.subscriptions.values()) == 0)
    @rule(place=st.integers(0, 4), really=st.sampled_from([False, False, True]))
    def end(self, place: int, really: bool) -> None:
        if really:
            name = self.one(place)
            self.stage.call(self._end(name))
            self.subscriptions[name].ended = True
            self.paused.pop(name, None)

    async def _end(self, name: str) -> None:
        async with changing(self.stage.bode.world.engine, self.stage.settled) as connection:
            await life_cycle.end(
                connection, self.subscriptions[name].identity,
                organisation_id=self.providers[self.provider_of[name]][0], cancel=people.cancel_subscription,
            )  # fmt: skip

    @rule(place=st.integers(0, 4))
    def retry_dead_letters(self, place: int) -> None:
        name = self.one(place)
        if not self.subscriptions[name].ended:
            self.stage.call(self._retry(name))

    async def _retry(self, name: str) -> None:
        subscription = self.subscriptions[name]
        grant, at = self.grants[self.provider_of[name]], time.time()
        async with self.stage.bode.world.engine.begin() as connection:
            await dead_letters.keep_changes_out(connection)
            portion = await dead_letters.choose(connection, subscription.key, Selection())
            if portion.rows:
                await dead_letters.retry(connection, subscription.key, portion, {r.type: grant for r in portion.rows})
        for row in portion.rows:
            subscription.retried.setdefault(row.sequence, []).append(at)

    @rule(place=st.integers(0, 4), share=st.sampled_from([0.3, 1.0]), cancelled=st.sampled_from([False, False, True]))
    def replay(self, place: int, share: float, cancelled: bool) -> None:
        name = self.one(place)
        subscription = self.subscriptions[name]
        if subscription.ended or subscription.pulled is not None or not subscription.events:
            return  # what is pulled is pulled again: the API refuses
        asked = self.stage.call(self._replay(subscription, max(1, int(share * len(subscription.events)))))
        if asked is not None and cancelled:
            time.sleep(0.05)
            self.stage.call(self._cancel(asked))

    async def _replay(self, subscription: Expected, last: int) -> Asked | None:
        at = time.time()
        try:
            async with self.stage.bode.world.engine.begin() as connection:
                made = await replays.start(connection, subscription.key, 1, last, None, 1_000)
        except IntegrityError:
            return None  # one is under way
        subscription.replays.append(Asked(made.id, at, 1, last))
        return subscription.replays[-1]

    async def _cancel(self, asked: Asked) -> None:
        async with self.stage.bode.world.engine.begin() as connection:
            await replays.cancel(connection, asked.id)
