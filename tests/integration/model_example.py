"""The stage of one example of the model: who is there when it begins, and what the model knows of them.

Everything is real (processes, signals, leases, PostgreSQL, RabbitMQ, sockets) but the time of day, which the model
moves on so that schedules of minutes pass in moments, and chance, which Hypothesis seeds.
"""

import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid4

from accepting import Publisher
from delivery_evidence import Expected, Pulled
from delivery_processes import POKE, DeliverProcess
from engine_stage import Stage
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine
from queue_listeners import QueueListener
from scripted_sinks import Move, Script

from broker.ingest.accept import Acceptor
from schemas.resources import HoldScope
from subscriptions.callers import Scope, create_key
from subscriptions.change_log import changing
from subscriptions.life_cycle import activate

SHARDS: Final = 4
CONCURRENCY: Final = 4
MOST_TOGETHER: Final = 10
LEASE_SECONDS: Final = 1
MOST_PROCESSES: Final = 3
DELAY_SECONDS: Final = 1
"""Of events of type `d`; by PostgreSQL's clock, so nobody can move it on."""
DELIVERY: Final = {
    "shards": SHARDS, "concurrency": CONCURRENCY, "window": 8, "attempt_seconds": 1.5,
    "lease_seconds": LEASE_SECONDS, "sweep_seconds": 0.5, "grace_seconds": 20,
}  # fmt: skip
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
HEALTHY: Final = ((), Move.ACCEPT, 2, "subject", SCHEDULES[0], None)
"""A sink of `SINKS` that accepts everything."""
PROTOCOLS: Final = st.sampled_from(["HTTP", "HTTP", "HTTP", "PULL", "AMQP"])
SUBSCRIPTIONS: Final = st.lists(
    st.tuples(SINKS, st.integers(0, 1), st.sampled_from(["abd", "ab", "a", "b", "bd"]), PROTOCOLS),
    min_size=2,
    max_size=6,
)
SUBJECTS: Final = st.sampled_from(["a", "a", "b", "c", None])
EVENTS: Final = st.lists(st.tuples(st.sampled_from("aabbd"), SUBJECTS), min_size=3, max_size=24)


@dataclass
class Held:
    """A hold that stands."""

    id: UUID
    since: float
    last: dict[str, int]
    """The last number of each subscription when it was placed."""


@dataclass
class Waiting:
    """An event that has a delay, as the model knows it."""

    id: str
    subject: str | None
    begin: float
    end: float
    """Between when its delay is over, in real time."""
    numbers: dict[str, int]
    """What number it has for whom."""


class Example(RuleBasedStateMachine):
    """Two providers, some subscriptions, and up to three processes that deliver."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self.host = stage.host
        self.processes: dict[str, DeliverProcess] = {}
        """All that ever were."""
        self.alive: list[DeliverProcess] = []
        self.subscriptions: dict[str, Expected] = {}
        self.ordering: dict[str, str] = {}
        self.provider_of: dict[str, int] = {}
        self.types_of: dict[str, frozenset[str]] = {}
        self.paused: dict[str, tuple[float, int]] = {}
        self.scripts: dict[str, Script] = {}
        """Those of queues say nothing but what arrived."""
        self.listeners: dict[str, QueueListener] = {}
        self.kinds: dict[str, list[str]] = {}
        """Of each number."""
        self.holds: dict[tuple[HoldScope, str], Held] = {}
        self.waiting: list[Waiting] = []
        self.links_lost = 0
        """How often something befell the connections to RabbitMQ."""

    async def people(self, wanted: Sequence[Any]) -> None:
        """A registry, two providers and their subscriptions."""
        bode = self.stage.bode
        self.publisher: Publisher = await bode.publisher()
        async with changing(bode.world.engine) as connection:
            key, _ = await create_key(connection, organisation_id=self.publisher.id, scopes=[Scope.MANAGE])
        body = {"type": f"{self.publisher.domain}.d", "meaning": "Wacht.", "delaySeconds": DELAY_SECONDS}
        described = await bode.world.call("POST", "/event-types", key=key, body=body)
        assert described.status == 201, described.text
        self.providers = [await bode.provider() for _ in range(2)]
        self.grants: list[UUID | None] = [await bode.grant(self.publisher, oin) for _, oin, _ in self.providers]
        for sink, provider, types, protocol in wanted:
            name = uuid4().hex
            self.provider_of[name], self.types_of[name] = provider, frozenset(types)
            await self._subscribe(name, sink, protocol)
        self.acceptor: Acceptor = await bode.acceptor()

    async def _subscribe(self, name: str, sink: Any, protocol: str) -> None:
        bode = self.stage.bode
        moves, last, retry_after, ordering, waits, batch = sink
        url = self.stage.sinks.url(name)
        body: dict[str, Any] = {
            "protocol": protocol, "types": [f"{self.publisher.domain}.{kind}" for kind in self.types_of[name]],
            "ordering": ordering,
        }  # fmt: skip
        if protocol != "HTTP":
            batch = None
        if protocol != "PULL":
            body["retry"] = {"delays": list(waits)}
        if protocol == "HTTP":
            settings = None if batch is None else {"batch": {"maxCount": batch, "lingerMilliseconds": 20}}
            body |= {"sink": url, "protocolSettings": settings}
        made = await bode.world.call("POST", "/subscriptions", key=self.providers[self.provider_of[name]][2], body=body)
        assert made.status == 201, made.text
        identity = UUID(made.json["id"])
        key = await bode.pool.fetchval("SELECT key FROM subscriptions WHERE id = $1", identity)
        self.ordering[name] = ordering
        self.subscriptions[name] = Expected(key, identity, waits, together=batch or 1, protocol=protocol)
        match protocol:
            case "HTTP":
                async with changing(bode.world.engine) as connection:
                    assert await activate(connection, identity, sink=url)
                script = Script(deque(moves), last, retry_after, batch is not None)
                self.scripts[name] = self.stage.sinks.scripts[name] = script
            case "AMQP":
                listener = await QueueListener.listen(self.stage.queues, made.json["queue"])
                self.listeners[name] = listener
                self.scripts[name] = listener.script
            case _:
                self.subscriptions[name].pulled = Pulled()

    def start(self, *, ready: bool = True) -> DeliverProcess:
        """Start one more process."""
        process = self.host.start(self.stage.settings, self.random.randrange(2**32), ready=ready)
        self.processes[process.name] = process
        self.alive.append(process)
        return process

    def seed(self, seed: int) -> None:
        """What is left to chance goes by this."""
        self.random = random.Random(seed)

    def move(self, seconds: float) -> None:
        """Move the time of day on."""
        self.host.clock.set(self.host.clock.added + seconds)
        for process in self.alive:
            process.signal(POKE)

    def one(self, place: int) -> str:
        """One of the subscriptions."""
        names = list(self.subscriptions)
        return names[place % len(names)]

    def pulled(self) -> list[str]:
        """The subscriptions that are pulled and have not ended."""
        return [name for name, each in self.subscriptions.items() if each.pulled is not None and not each.ended]

    async def status(self, name: str) -> str:
        """Of a subscription."""
        statement = "SELECT status FROM subscriptions WHERE id = $1"
        return str(await self.stage.bode.pool.fetchval(statement, self.subscriptions[name].identity))

    def covers(self, scope: HoldScope, value: str, name: str, number: int) -> bool:
        """Whether a hold is one of this number of a subscription."""
        match scope:
            case HoldScope.SOURCE:
                return True
            case HoldScope.EVENT_TYPE:
                return value.endswith("." + self.kinds[name][number - 1])
            case HoldScope.ORGANISATION:
                return value == self.providers[self.provider_of[name]][1]
            case HoldScope.SUBSCRIPTION:
                return value == str(self.subscriptions[name].identity)

    def sleep(self, milliseconds: int) -> None:
        """Leave the processes some time to work."""
        time.sleep(milliseconds / 1000)
