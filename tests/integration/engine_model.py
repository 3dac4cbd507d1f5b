"""A simple model of the delivery engine, as a machine that Hypothesis drives: what may happen, and what must hold.

Everything is real (processes, signals, leases, PostgreSQL, sockets) but the time of day, which the machine moves on so
that schedules of minutes pass in moments, and chance, which Hypothesis seeds. What is checked, during and after, stands
in `delivery_promises`.
"""

import random
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final
from uuid import UUID, uuid4

from accepting import Publisher
from delivery_evidence import Asked, Expected
from delivery_processes import POKE, DeliverProcess
from delivery_promises import ACCOUNTS, Promises, account
from engine_stage import Stage
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scripted_sinks import Move, Script
from sqlalchemy.exc import IntegrityError

from broker.ingest.accept import Accepted, Acceptor
from broker.storage import dead_letters, leases, people, replays
from broker.storage.acceptance import DELIVERIES_CHANNEL
from broker.storage.dead_letters import Selection
from schemas.resources import HoldBody, HoldScope
from subscriptions import grants, holds, life_cycle
from subscriptions.change_log import changing
from subscriptions.history import Actor
from subscriptions.life_cycle import activate

SHARDS: Final = 4
CONCURRENCY: Final = 4
MOST_TOGETHER: Final = 10
LEASE_SECONDS: Final = 1
MOST_PROCESSES: Final = 3
DELIVERY: Final = {
    "shards": SHARDS, "concurrency": CONCURRENCY, "window": 8, "attempt_seconds": 1.5,
    "lease_seconds": LEASE_SECONDS, "sweep_seconds": 0.5, "grace_seconds": 20,
}  # fmt: skip
QUIET_SECONDS: Final = 300.0
FAILING_ROUNDS: Final = 12
SCHEDULES: Final = ((1.0, 2.0, 5.0), (1.0, 1.0, 30.0, 60.0), (2.0,), (1.0,) * 12)
_AILING = [move for move in Move if move not in (Move.ACCEPT, Move.SLOW)]
MOVES: Final = st.one_of(
    st.just([]),
    st.lists(st.sampled_from([Move.ACCEPT, Move.SLOW]), max_size=12),
    st.integers(1, 14).map(lambda count: [Move.FAIL] * count),
    st.integers(1, 6).map(lambda count: [Move.ACCEPT, Move.FAIL] * count),
    st.lists(st.sampled_from([Move.THROTTLE, Move.AWAY, Move.ACCEPT]), min_size=1, max_size=4),
    st.lists(st.sampled_from([*_AILING, Move.ACCEPT]), min_size=1, max_size=8),
)
SINKS: Final = st.tuples(
    MOVES,
    st.sampled_from([Move.ACCEPT, Move.ACCEPT, Move.SLOW, Move.FAIL]),
    st.sampled_from([2, 7, 40]),
    st.sampled_from(["subject", "subject", "subscription", "none"]),
    st.sampled_from(SCHEDULES),
    st.sampled_from([None, None, 3, MOST_TOGETHER]),
)
SUBJECTS: Final = st.sampled_from(["a", "a", "b", "c", None])
EVENTS: Final = st.lists(st.tuples(st.sampled_from("ab"), SUBJECTS), min_size=3, max_size=24)

FIGURES: dict[str, int] = dict.fromkeys(
    ("examples", "deliveries", "arrivals", "repeated after acceptance", "retried", "replays", "replayed"), 0
)

_OPERATOR: Final = Actor("operator")


@dataclass
class Held:
    """A hold that stands."""

    id: UUID
    since: float
    last: dict[str, int]
    """The last number of each subscription when it was placed."""


on_stage = precondition(lambda self: self.subscriptions)


class Model(RuleBasedStateMachine):
    """Two providers, some subscriptions, and up to three processes that deliver."""

    unsettled: ClassVar[int] = 0
    """Examples that were begun and not found to be right."""

    def __init__(self, stage: Stage, until: float) -> None:
        super().__init__()
        self.stage = stage
        self.too_late = time.monotonic() > until
        """Nothing more is tried: the gate has no time for more examples."""
        self.host = stage.host
        self.processes: dict[str, DeliverProcess] = {}
        """All that ever were."""
        self.alive: list[DeliverProcess] = []
        self.subscriptions: dict[str, Expected] = {}
        self.provider_of: dict[str, int] = {}
        self.types_of: dict[str, frozenset[str]] = {}
        self.paused: dict[str, tuple[float, int]] = {}
        self.scripts: dict[str, Script] = {}
        self.kinds: dict[str, list[str]] = {}
        """Of each number."""
        self.holds: dict[tuple[HoldScope, str], Held] = {}

    # the beginning

    @initialize(
        sinks=st.lists(st.tuples(SINKS, st.integers(0, 1), st.sampled_from(["ab", "a", "b"])), min_size=2, max_size=5),
        processes=st.integers(1, MOST_PROCESSES),
        seed=st.integers(0, 2**16),
    )
    def begin(self, sinks: Sequence[Any], processes: int, seed: int) -> None:
        if self.too_late:
            return
        Model.unsettled += 1
        self.wrong = False
        self.random = random.Random(seed)
        self.host.clock.set(0.0)
        self.stage.call(self._people(sinks))
        starting = [self._start(ready=False) for _ in range(processes)]
        self.accept([(kind, subject) for subject in ("a", "b", "a", None) for kind in "ab"], told=False)
        for process in starting:
            self.host.until_ready(process)

    async def _people(self, sinks: Sequence[Any]) -> None:
        bode = self.stage.bode
        self.publisher: Publisher = await bode.publisher()
        self.providers = [await bode.provider() for _ in range(2)]
        self.grants: list[UUID | None] = [await bode.grant(self.publisher, oin) for _, oin, _ in self.providers]
        for (moves, last, retry_after, ordering, waits, batch), provider, types in sinks:
            name = uuid4().hex
            url = self.stage.sinks.url(name)
            settings = None if batch is None else {"batch": {"maxCount": batch, "lingerMilliseconds": 20}}
            made = await bode.world.call(
                "POST", "/subscriptions", key=self.providers[provider][2],
                body={
                    "sink": url, "protocol": "HTTP", "types": [f"{self.publisher.domain}.{kind}" for kind in types],
                    "ordering": ordering, "retry": {"delays": list(waits)}, "protocolSettings": settings,
                },
            )  # fmt: skip
            assert made.status == 201, made.text
            identity = UUID(made.json["id"])
            async with changing(bode.world.engine) as connection:
                assert await activate(connection, identity, sink=url)
            key = await bode.pool.fetchval("SELECT key FROM subscriptions WHERE id = $1", identity)
            self.subscriptions[name] = Expected(key, identity, waits, together=batch or 1)
            self.ordering = getattr(self, "ordering", {}) | {name: ordering}
            self.provider_of[name] = provider
            self.types_of[name] = frozenset(types)
            self.scripts[name] = self.stage.sinks.scripts[name] = Script(
                deque(moves), last, retry_after, batch is not None
            )
        self.acceptor: Acceptor = await bode.acceptor()

    def _start(self, *, ready: bool = True) -> DeliverProcess:
        process = self.host.start(self.stage.settings, self.random.randrange(2**32), ready=ready)
        self.processes[process.name] = process
        self.alive.append(process)
        return process

    @precondition(lambda self: self.too_late)
    @rule()
    def nothing(self) -> None:
        """There is no stage."""

    # what people and registries do

    @on_stage
    @rule(events=EVENTS, told=st.booleans(), milliseconds=st.sampled_from([0, 0, 10, 40]))
    def accept_and_work(self, events: Sequence[tuple[str, str | None]], told: bool, milliseconds: int) -> None:
        self.accept(events, told)
        time.sleep(milliseconds / 1000)

    @on_stage
    @rule(events=EVENTS, told=st.booleans())
    def accept(self, events: Sequence[tuple[str, str | None]], told: bool) -> None:
        self.stage.call(self._accept(events, told))

    async def _accept(self, events: Sequence[tuple[str, str | None]], told: bool) -> None:
        names = [str(uuid4()) for _ in events]
        messages = [
            self.publisher.message(kind, subject, id=name) for (kind, subject), name in zip(events, names, strict=True)
        ]
        results = await self.acceptor.accept(messages)
        now = time.time()
        for (kind, subject), name, result in zip(events, names, results, strict=True):
            assert isinstance(result, Accepted), result
            matching = [each for each, types in self.types_of.items() if kind in types and self._matched(each)]
            assert set(result.subscriptions) == {self.subscriptions[each].key for each in matching}
            for each in matching:
                lane = {"subject": subject, "subscription": "all", "none": None}[self.ordering[each]]
                subscription = self.subscriptions[each]
                subscription.events.append(name)
                self.kinds.setdefault(each, []).append(kind)
                subscription.lanes.append(lane)
                subscription.accepted_by.append(now)
        if told:
            keys = {key for result in results if isinstance(result, Accepted) for key in result.subscriptions}
            payload = ",".join(map(str, keys))
            await self.stage.bode.pool.execute("SELECT pg_notify($1, $2)", DELIVERIES_CHANNEL, payload)

    def _matched(self, name: str) -> bool:
        return self.grants[self.provider_of[name]] is not None and not self.subscriptions[name].ended

    def _one(self, place: int) -> str:
        names = list(self.subscriptions)
        return names[place % len(names)]

    @on_stage
    @rule(place=st.integers(0, 4))
    def pause_or_resume(self, place: int) -> None:
        name = self._one(place)
        self.stage.call(self._resume(name) if name in self.paused else self._pause(name))

    async def _pause(self, name: str) -> None:
        subscription = self.subscriptions[name]
        status = await self._status(name)
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

    @on_stage
    @rule(scope=st.sampled_from(HoldScope), place=st.integers(0, 4), cancelled=st.booleans(), events=EVENTS)
    def hold_or_end_it(
        self, scope: HoldScope, place: int, cancelled: bool, events: Sequence[tuple[str, str | None]]
    ) -> None:
        """What is held has something to hold: events come at once, and time to send them, if anybody would."""
        name = self._one(place)
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

    def _covers(self, scope: HoldScope, value: str, name: str, number: int) -> bool:
        match scope:
            case HoldScope.SOURCE:
                return True
            case HoldScope.EVENT_TYPE:
                return value.endswith("." + self.kinds[name][number - 1])
            case HoldScope.ORGANISATION:
                return value == self.providers[self.provider_of[name]][1]
            case HoldScope.SUBSCRIPTION:
                return value == str(self.subscriptions[name].identity)

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
            covered = {number for number in numbers if self._covers(scope, value, name, number)}
            since = frozenset(number for number in covered if number > held.last[name])
            subscription.held.append((held.since, until, since, frozenset(covered - since)))
            if cancelled:
                subscription.hold_cancelled |= covered

    async def _status(self, name: str) -> str:
        statement = "SELECT status FROM subscriptions WHERE id = $1"
        return str(await self.stage.bode.pool.fetchval(statement, self.subscriptions[name].identity))

    @on_stage
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

    @on_stage
    @precondition(lambda self: sum(s.ended for s in self.subscriptions.values()) == 0)
    @rule(place=st.integers(0, 4), really=st.sampled_from([False, False, True]))
    def end(self, place: int, really: bool) -> None:
        if really:
            name = self._one(place)
            self.stage.call(self._end(name))
            self.subscriptions[name].ended = True
            self.paused.pop(name, None)

    async def _end(self, name: str) -> None:
        async with changing(self.stage.bode.world.engine, self.stage.settled) as connection:
            await life_cycle.end(
                connection, self.subscriptions[name].identity,
                organisation_id=self.providers[self.provider_of[name]][0], cancel=people.cancel_subscription,
            )  # fmt: skip

    @on_stage
    @rule(place=st.integers(0, 4))
    def retry_dead_letters(self, place: int) -> None:
        name = self._one(place)
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

    @on_stage
    @rule(place=st.integers(0, 4), share=st.sampled_from([0.3, 1.0]), cancelled=st.sampled_from([False, False, True]))
    def replay(self, place: int, share: float, cancelled: bool) -> None:
        name = self._one(place)
        subscription = self.subscriptions[name]
        if subscription.ended or not subscription.events:
            return
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

    # what time does

    @on_stage
    @rule(milliseconds=st.sampled_from([5, 30, 100]))
    def work(self, milliseconds: int) -> None:
        time.sleep(milliseconds / 1000)

    @on_stage
    @rule(seconds=st.sampled_from([0.5, 2.0, 6.0, 45.0]))
    def move_the_clock(self, seconds: float) -> None:
        self._move(seconds)

    def _move(self, seconds: float) -> None:
        self.host.clock.set(self.host.clock.added + seconds)
        for process in self.alive:
            process.signal(POKE)

    # what befalls processes

    @on_stage
    @precondition(lambda self: len(self.alive) < MOST_PROCESSES)
    @rule()
    def add(self) -> None:
        self._start()

    @on_stage
    @precondition(lambda self: self.alive)
    @rule(place=st.integers(0, 2))
    def kill(self, place: int) -> None:
        process = self.alive.pop(place % len(self.alive))
        process.kill()
        assert self.host.ended(process) == -signal.SIGKILL

    @on_stage
    @precondition(lambda self: any(not process.stopped for process in self.alive))
    @rule(place=st.integers(0, 2))
    def end_in_good_order(self, place: int) -> None:
        able = [process for process in self.alive if not process.stopped]
        process = able[place % len(able)]
        process.signal(signal.SIGTERM)
        self.alive.remove(process)
        assert self.host.ended(process) == 0

    @on_stage
    @precondition(lambda self: any(not process.stopped for process in self.alive))
    @rule(place=st.integers(0, 2))
    def stop(self, place: int) -> None:
        able = [process for process in self.alive if not process.stopped]
        process = able[place % len(able)]
        process.stop()
        process.until = time.monotonic() + 1.2 * LEASE_SECONDS

    @on_stage
    @precondition(lambda self: any(process.stopped for process in self.alive))
    @rule(past_its_lease=st.booleans())
    def go_on(self, past_its_lease: bool) -> None:
        process = next(process for process in self.alive if process.stopped)
        if past_its_lease:
            time.sleep(max(process.until - time.monotonic(), 0))
        process.go_on()

    @on_stage
    @precondition(lambda self: self.alive)
    @rule(place=st.integers(0, 2))
    def cut_off_from_the_database(self, place: int) -> None:
        process = self.alive[place % len(self.alive)]
        process.disturbed.append(time.time())
        self.stage.call(self._cut(process))

    async def _cut(self, process: DeliverProcess) -> None:
        await self.stage.bode.pool.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1",
            leases.application_name(process.owner),
        )

    # what must hold

    @invariant()
    def accounts_are_right(self) -> None:
        keys = [subscription.key for subscription in self.subscriptions.values()]
        if keys:
            found = account(self.stage.call(self.stage.bode.pool.fetch(ACCOUNTS, keys)))
            self.wrong |= bool(found)
            assert found == []

    def teardown(self) -> None:
        try:
            if self.subscriptions:
                self._become_quiet()
                self._judge()
                Model.unsettled -= not self.wrong
        finally:
            for process in self.alive:
                process.signal(signal.SIGKILL)
                self.host.ended(process)
            for name in self.subscriptions:
                self.stage.sinks.scripts.pop(name)

    def _become_quiet(self) -> None:
        """Nobody disturbs any more, and time goes on; in the end sinks that always failed recover. Nothing stays."""
        for process in self.alive:
            if process.stopped:
                process.go_on()
        if not self.alive:
            self._start()
        deadline = time.monotonic() + QUIET_SECONDS
        for scope, value in list(self.holds):
            self.stage.call(self._end_hold(scope, value, cancelled=False))
        pending, rounds = self._pending(), 0
        while pending and time.monotonic() < deadline:
            rounds += 1
            if rounds > FAILING_ROUNDS:
                for script in self.scripts.values():
                    script.moves.clear()
                    script.last = Move.ACCEPT
            for name, subscription in self.subscriptions.items():
                if not subscription.ended and self.stage.call(self._status(name)) != "active":
                    self.stage.call(self._resume(name))
            self._move(60.0)
            time.sleep(0.03)
            pending = self._pending()
        for process in self.alive:
            assert self.host.running(process), f"{process.name} ended by itself:\n{process.log.read_text()[-3000:]}"

    def _pending(self) -> int:
        keys = [subscription.key for subscription in self.subscriptions.values()]
        statement = (
            "SELECT (SELECT count(*) FROM deliveries WHERE subscription = ANY($1::bigint[]) AND state = 'pending')"
            " + (SELECT count(*) FROM replays WHERE subscription = ANY($1::bigint[]) AND state = 'running')"
        )
        return int(self.stage.call(self.stage.bode.pool.fetchval(statement, keys)))

    def _judge(self) -> None:
        evidence = Promises(
            self.subscriptions, {name: list(script.arrivals) for name, script in self.scripts.items()},
            self.processes, SHARDS, CONCURRENCY,
        )  # fmt: skip
        self.stage.call(evidence.read(self.stage.bode.pool))
        wrong = evidence.wrong() + [f"no sink of ours: {stray}" for stray in self.stage.sinks.strays]
        self.stage.sinks.strays.clear()
        FIGURES["examples"] += 1
        FIGURES["deliveries"] += len(evidence.rows)
        FIGURES["arrivals"] += sum(map(len, evidence.arrivals.values()))
        FIGURES["repeated after acceptance"] += evidence.duplicates()
        FIGURES["retried"] += sum(len(at) for each in self.subscriptions.values() for at in each.retried.values())
        FIGURES["replays"] += len(evidence.replays)
        FIGURES["replayed"] += sum(map(len, evidence.replayed.values()))
        if wrong:
            story = "\n".join([*wrong, "", evidence.told()])
            print(story)  # at once, because an example that fails does otherwise when it is tried again
            raise AssertionError(story)
