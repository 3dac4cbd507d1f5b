"""Batches: several deliveries of one subscription in one request, which has one answer.

    take ──► gather ──► send ──► accepted: all are delivered
               │                 failed:   all wait, with one attempt more; one failure of the sink
               │                 refused:  again at once, in halves, until the one is found that is refused alone
               ├─► what may not be sent any more ends, and is left out
               └─► what doesn't fit goes back, to be the next batch

A batch that is refused (400, 413, 415, 422) is no attempt of its deliveries: it says that something in it isn't taken,
and not what. Each delivery then goes in the company of half as many at most, so that after a few requests the bad one
is alone and the others have gone, in order. What is refused alone is judged as it would be without batches.

Memory: a batch holds the bodies of its deliveries up to the subscription's `maxBytes`, or one that is larger alone.
When all batches of a process together hold more than 64 MiB, further ones are short.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Final, Protocol
from uuid import UUID

from broker.delivery.bodies import Bodies, Body, BodyWanted
from broker.delivery.lanes import Delivery
from broker.delivery.outcomes import OURS, REFUSED, Outcome, Verdict
from broker.delivery.runners import Runner
from broker.delivery.sender import Sender, Sending
from broker.delivery.settling import Settling
from broker.delivery.turns import Place
from broker.storage.tables import CANCELLED, KEY_SHIFT
from broker.telemetry import ATTEMPTS, BATCHES, WORKER_ERRORS, log

HELD_BYTES: Final = 64 << 20
"""Above this the batches of a process are short."""
SHORT_BYTES: Final = 64 << 10
_ASKED_AT_ONCE: Final = 16
_DATABASE_SECONDS: Final = 0.5
_UNREADABLE_SECONDS: Final = 60.0
HINDERED_SECONDS: Final = 5.0
"""For which a sink rests that nothing could be sent to for a reason of ours."""
_FRAME: Final = 2
"""Bytes around the items: brackets."""


def batch_id(subscription_id: UUID, numbers: Sequence[int]) -> str:
    """The `webhook-id` of a batch: the same for the same deliveries, and for no others."""
    digest = hashlib.sha256(",".join(map(str, numbers)).encode()).hexdigest()
    return f"bat_{subscription_id.hex}_{numbers[0]}_{digest[:32]}"


def accepted_seconds(delivery: Delivery) -> float:
    """When its event was accepted, in seconds since 1970."""
    return (delivery.event_key >> KEY_SHIFT) / 1000


class Host(Protocol):
    """What a batch asks of the engine."""

    def is_ours(self, runner: Runner) -> bool:
        """Whether the runner's shard is surely ours now."""

    def hindrance(self, runner: Runner, body: Body | None) -> str | None:
        """Why a delivery with this body may no longer be sent at all."""

    def leave(self, attempt: "Batch", now: float) -> None:
        """The batch is over: its place is free, and the runner may go on."""


class _Wanted(BodyWanted):
    """A body that a batch waits for."""

    __slots__ = ("batch", "delivery")

    def __init__(self, batch: "Batch", delivery: Delivery) -> None:
        self.batch = batch
        self.delivery = delivery

    def opened(self, body: Body | None) -> None:
        self.batch.read(self.delivery, body)

    def unreadable(self) -> None:
        WORKER_ERRORS.labels("bodies").inc()
        subscription = str(self.batch.runner.sink.config.id)
        log().error("body-unreadable", subscription=subscription, sequence=self.delivery.sequence)
        self.batch.put_off([self.delivery], _UNREADABLE_SECONDS)

    def not_read(self, error: Exception) -> None:
        WORKER_ERRORS.labels("bodies").inc()
        log().warning("body-not-read", error=type(error).__name__)
        self.batch.put_off([self.delivery], _DATABASE_SECONDS)


class Batch(Sending):
    """Some deliveries on their way: they wait for their bodies, then for the sink's answer."""

    __slots__ = (
        "_again", "_asked", "_bodies", "_gathering", "_held", "_over", "_sent", "begun_at", "deliveries", "epoch",
        "office", "place", "runner",
    )  # fmt: skip

    def __init__(
        self,
        office: "Batches",
        runner: Runner,
        deliveries: list[Delivery],
        epoch: int,
        place: Place[Runner],
        now: float,
    ) -> None:
        super().__init__()
        self.office = office
        self.runner = runner
        self.deliveries = deliveries
        """In order of number."""
        self.epoch = epoch
        self.place = place
        self.begun_at = now
        self._bodies: dict[int, Body | None] = {}
        self._again: dict[int, float] = {}
        """Those that are put off, by number: when they go again."""
        self._asked = 0
        self._gathering = False
        self._held = 0
        self._over = False
        self._sent: list[Delivery] = []

    # its bodies

    def gather(self) -> None:
        """Take the bodies that are in memory, ask for some of those that aren't; send when they are there."""
        if self._gathering:
            return
        self._gathering = True  # what is answered from within goes on below
        try:
            full = self._gather()
        finally:
            self._gathering = False
        if full is not None:
            self._send(full)

    def _gather(self) -> int | None:
        """How many of the deliveries the batch has room for; None: not known yet, bodies were asked for."""
        office, limits = self.office, self.runner.sink.config.batch
        assert limits is not None
        others = office.held - self._held
        limit = limits.max_bytes if others + limits.max_bytes <= HELD_BYTES else SHORT_BYTES
        limit, size, count = min(limit, limits.max_bytes), _FRAME, 0
        for place, delivery in enumerate(self.deliveries):
            number = delivery.sequence
            if number in self._again:
                continue
            if number not in self._bodies:
                body = office.bodies.kept(delivery.event_key)
                if body is None:
                    self._ask([d for d in self.deliveries[place:] if self._misses(d)][:_ASKED_AT_ONCE])
                    return None
                self._keep(number, body)
            body = self._bodies[number]
            if body is not None:
                size += len(body.content) + self.runner.sink.envelope.length(number) + 1
                if size > limit and count:
                    return place
                count += 1
        return len(self.deliveries)

    def _misses(self, delivery: Delivery) -> bool:
        number = delivery.sequence
        return not (number in self._bodies or number in self._again or self.office.bodies.has(delivery.event_key))

    def _ask(self, missing: list[Delivery]) -> None:
        self._asked = len(missing)
        for delivery in missing:
            self.office.bodies.ask(delivery.event_key, _Wanted(self, delivery))

    def read(self, delivery: Delivery, body: Body | None) -> None:
        """A body is here; None: it no longer exists."""
        self._keep(delivery.sequence, body)
        self._told()

    def _keep(self, number: int, body: Body | None) -> None:
        self._bodies[number] = body
        self._hold(self._held + (0 if body is None else len(body.content)))

    def _hold(self, size: int) -> None:
        self.office.held += size - self._held
        self._held = size

    def put_off(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        """These can't be sent now, through no fault of the sink: they, and what is behind them, go again later."""
        due = self.office.clock() + seconds
        lanes = {delivery.lane for delivery in deliveries if delivery.lane is not None}
        for each in self.deliveries:
            if each in deliveries or (each.lane in lanes and each.sequence > deliveries[0].sequence):
                self._again[each.sequence] = due
        self._told()

    def _told(self) -> None:
        self._asked -= 1
        if not self._asked and not self._over:
            self.gather()

    # its way

    def _send(self, full: int) -> None:
        """Send it without what may no longer be sent (promise 6: each is looked at just before)."""
        office, runner, now = self.office, self.runner, self.office.clock()
        if not office.host.is_ours(runner):  # the lease ran out while we waited: the next owner sends them
            self.give_up(now)
            return
        room, rest = self.deliveries[:full], self.deliveries[full:]
        if rest:
            self.deliveries = room
            runner.queue.give_back(rest, {delivery.lane for delivery in room if delivery.lane is not None})
        items: list[bytes] = []
        for delivery in room:
            if delivery.sequence in self._again:
                continue
            body = self._bodies[delivery.sequence]
            reason = office.host.hindrance(runner, body)
            if body is None or reason is not None:
                office.settling.end(runner, delivery, self.epoch, Verdict(CANCELLED, reason=reason), now)
            else:
                items.append(runner.sink.envelope.compose(body.content, delivery.sequence))
                self._sent.append(delivery)
        self._bodies.clear()
        if not items:
            runner.pace.abandoned()
            self._leave(now)
            return
        content = b"[%s]" % b",".join(items)
        self._hold(len(content))
        self.begun_at = now
        identity = batch_id(runner.sink.config.id, [delivery.sequence for delivery in self._sent])
        office.sender.begin_content(runner.sink, identity, self._sent[0].event_key, content, self)

    def may_go(self) -> bool:
        """A connection is there, which took time: whether the shard is still ours."""
        if self.office.host.is_ours(self.runner):
            return True
        self.give_up(self.office.clock())
        return False

    def ended(self, outcome: Outcome) -> None:
        """The sink has answered, or hasn't: what becomes of each."""
        office, runner, sent, now = self.office, self.runner, self._sent, self.office.clock()
        if self._over:
            return
        try:
            if outcome.reason in OURS:
                ATTEMPTS.labels(outcome.reason).inc()
                runner.pace.abandoned()
                runner.pace.rest(now, HINDERED_SECONDS)
                self._again |= dict.fromkeys((delivery.sequence for delivery in sent), now + HINDERED_SECONDS)
            elif outcome.reason is None:
                BATCHES.labels("accepted").inc()
                office.settling.succeeded(runner, sent, self.epoch, outcome.status, self.begun_at, now)
            elif outcome.status in REFUSED and len(sent) > 1:
                BATCHES.labels("refused").inc()
                runner.pace.abandoned()
                company = (len(sent) + 1) // 2
                for delivery in sent:
                    delivery.company = company
                self._again.update((delivery.sequence, 0.0) for delivery in sent)
            else:
                BATCHES.labels("failed").inc()
                if outcome.status in REFUSED:
                    sent[0].company = 1
                self._again |= office.settling.failed(runner, sent, self.epoch, outcome, self.begun_at, now)
        finally:
            self._leave(now)

    def give_up(self, now: float) -> None:
        """It was not sent, or its end is not awaited: whoever owns the shard sends it."""
        if not self._over:
            self.runner.pace.abandoned()
            self._again = dict.fromkeys((delivery.sequence for delivery in self.deliveries), 0.0)
            self._leave(now)

    def _leave(self, now: float) -> None:
        self._over = True
        self._hold(0)
        if not self.runner.stopped:
            self.runner.queue.settle(self.deliveries, self._again, now)
        self.office.host.leave(self, now)


class Batches:
    """What the batches of one process share."""

    def __init__(
        self, host: Host, bodies: Bodies, sender: Sender, settling: Settling, clock: Callable[[], float]
    ) -> None:
        self.host = host
        self.bodies = bodies
        self.sender = sender
        self.settling = settling
        self.clock = clock
        self.held = 0
        """Bytes of the batches that are under way."""

    def lingers(self, runner: Runner, now: float) -> float:
        """Seconds for which what is ready waits for more; 0: it goes now.

        It never waits when a batch is full, nor when there is a backlog, nor for what another batch had no room for.
        """
        limits = runner.sink.config.batch
        assert limits is not None
        if not limits.linger_seconds or runner.queue.behind:
            return 0.0
        if runner.queue.fills(limits.max_count, now):
            return 0.0
        if runner.lingers_since is None or runner.lingers_since > now:  # the clock was set back
            runner.lingers_since = now
        first = runner.queue.first(now)
        since = runner.lingers_since if first is None else min(runner.lingers_since, accepted_seconds(first))
        return min(max(since + limits.linger_seconds - now, 0.0), limits.linger_seconds)

    def take(self, runner: Runner, now: float) -> list[Delivery]:
        """The deliveries of the next batch; none: nothing may go now."""
        limits = runner.sink.config.batch
        assert limits is not None
        runner.lingers_since = None
        return runner.queue.take_batch(now, limits.max_count)
