"""Three delivery processes and a thousand subscriptions, while one or another is killed or stopped every few seconds.

Long: `pytest -m long tests/integration/test_churn.py -s` prints the figures; BODE_CHURN_SECONDS says how long (300).
"""

import asyncio
import os
import random
import signal
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID, uuid4

import pytest
from accepting import Publisher
from delivery_evidence import Expected
from delivery_processes import DeliverProcess
from delivery_promises import ACCOUNTS, Promises, account
from engine_stage import Stage, staged
from managing import RING
from scripted_sinks import Move, Script

from broker.ingest.accept import Accepted
from broker.matching.index import cost
from broker.storage.acceptance import DELIVERIES_CHANNEL
from schemas.resources import SubscriptionBody
from subscriptions import life_cycle
from subscriptions import subscriptions as service
from subscriptions.change_log import changing
from subscriptions.filter_rules import FilterRules
from subscriptions.sink_urls import SinkRules

SECONDS: Final = float(os.environ.get("BODE_CHURN_SECONDS", "300"))
SUBSCRIPTIONS: Final = 1000
TYPES: Final = 50
EVENTS_A_SECOND: Final = 10
PROCESSES: Final = 3
DELIVERY: Final = {"shards": 64, "concurrency": 16, "lease_seconds": 6, "grace_seconds": 20}
SUBJECTS: Final = 5
WAITS: Final = (1.0, 2.0, 5.0, 15.0)

pytestmark = [pytest.mark.long, pytest.mark.timeout(SECONDS + 1200)]


@pytest.fixture
def stage(url: str) -> Iterator[Stage]:
    with staged(url, DELIVERY) as made:
        yield made


@dataclass
class Churn:
    stage: Stage
    random: random.Random
    expected: dict[str, Expected] = field(default_factory=dict)
    listening: dict[str, list[str]] = field(default_factory=dict)
    """Names of subscriptions by type."""
    scripts: dict[str, Script] = field(default_factory=dict)
    processes: dict[str, DeliverProcess] = field(default_factory=dict)
    alive: list[DeliverProcess] = field(default_factory=list)
    kills: int = 0
    stops: int = 0
    long_stops: int = 0

    async def subscribe(self) -> None:
        bode = self.stage.bode
        self.publisher: Publisher = await bode.publisher()
        provider, oin, _ = await bode.provider()
        await bode.grant(self.publisher, oin)
        filters = FilterRules(lambda condition: cost(condition).evaluated_always, most_evaluated=0)
        rules = SinkRules(allow_http=True, check=lambda _: None)
        async with changing(bode.world.engine) as connection:
            for number in range(SUBSCRIPTIONS):
                name, kind = uuid4().hex, f"soort{number % TYPES}"
                url = self.stage.sinks.url(name)
                body = SubscriptionBody.model_validate(
                    {"sink": url, "protocol": "HTTP", "types": [f"{self.publisher.domain}.{kind}"],
                     "retry": {"delays": list(WAITS)}}
                )  # fmt: skip
                made, _ = await service.create(
                    connection, body, organisation_id=provider, keys=RING, sinks=rules, filters=filters
                )
                identity: UUID = made.id
                await life_cycle.activate(connection, identity, sink=url)
                self.expected[name] = Expected(made.key, identity, WAITS)
                self.listening.setdefault(kind, []).append(name)
                moves = [Move.FAIL] * self.random.choice([0, 0, 0, 1, 3])
                last = self.random.choice([Move.ACCEPT, Move.ACCEPT, Move.SLOW])
                self.scripts[name] = self.stage.sinks.scripts[name] = Script(deque(moves), last, 1)

    async def publish(self, until: float) -> int:
        """Accept events at a rate; how many."""
        acceptor = await self.stage.bode.acceptor()
        started, count = time.monotonic(), 0
        while time.monotonic() < until:
            await asyncio.sleep(max(started + count / EVENTS_A_SECOND - time.monotonic(), 0))
            names = [str(uuid4()) for _ in range(EVENTS_A_SECOND // 5)]
            kinds = [f"soort{self.random.randrange(TYPES)}" for _ in names]
            subjects = [str(self.random.randrange(SUBJECTS)) for _ in names]
            results = await acceptor.accept(
                [self.publisher.message(k, s, id=n) for k, s, n in zip(kinds, subjects, names, strict=True)]
            )
            now = time.time()
            told = set[int]()
            for kind, subject, name, result in zip(kinds, subjects, names, results, strict=True):
                assert isinstance(result, Accepted)
                told.update(result.subscriptions)
                for each in self.listening[kind]:
                    self.expected[each].events.append(name)
                    self.expected[each].lanes.append(subject)
                    self.expected[each].accepted_by.append(now)
            payload = ",".join(map(str, told))
            await self.stage.bode.pool.execute("SELECT pg_notify($1, $2)", DELIVERIES_CHANNEL, payload)
            count += len(names)
        return count

    def start(self) -> None:
        process = self.stage.host.start(self.stage.settings, self.random.randrange(2**32))
        self.processes[process.name] = process
        self.alive.append(process)

    def disturb(self) -> None:
        """Kill one and start another, or stop one, which goes on in its time."""
        able = [process for process in self.alive if not process.stopped]
        if len(able) > 1 and self.random.random() < 0.5:
            process = self.random.choice(able)
            process.stop()
            seconds = self.random.choice([1.0, 3.0, 8.0, 12.0])
            process.until = time.monotonic() + seconds
            self.stops += 1
            self.long_stops += seconds > DELIVERY["lease_seconds"]
        else:
            process = self.random.choice(self.alive)
            process.kill()
            assert self.stage.host.ended(process) == -signal.SIGKILL
            self.alive.remove(process)
            self.kills += 1
            self.start()

    def wake(self, *, all_of_them: bool = False) -> None:
        for process in self.alive:
            if process.stopped and (all_of_them or time.monotonic() >= process.until):
                process.go_on()


def test_nothing_is_lost_or_overtaken_while_processes_are_killed_and_stopped(stage: Stage) -> None:
    seed = random.randrange(2**32)
    churn = Churn(stage, random.Random(seed))
    stage.call(churn.subscribe(), 600)
    for _ in range(PROCESSES):
        churn.start()
    started = time.monotonic()
    publishing = asyncio.run_coroutine_threadsafe(churn.publish(started + SECONDS), stage.loop)
    following = started + 3
    while time.monotonic() < started + SECONDS:
        time.sleep(0.2)
        churn.wake()
        if time.monotonic() > following:
            churn.disturb()
            following = time.monotonic() + churn.random.uniform(2, 5)
    events = publishing.result(60)
    churn.wake(all_of_them=True)
    keys = [subscription.key for subscription in churn.expected.values()]
    statement = "SELECT count(*) FROM deliveries WHERE state = 'pending'"
    deadline = time.monotonic() + 600
    while pending := stage.call(stage.bode.pool.fetchval(statement)):
        assert time.monotonic() < deadline, f"{pending} are pending still"
        time.sleep(0.5)
    for process in churn.alive:
        assert stage.host.running(process), f"{process.name} ended by itself: {process.log.read_text()[-3000:]}"
    assert account(stage.call(stage.bode.pool.fetch(ACCOUNTS, keys))) == []
    evidence = Promises(
        churn.expected, {name: list(script.arrivals) for name, script in churn.scripts.items()}, churn.processes,
        DELIVERY["shards"], DELIVERY["concurrency"],
    )  # fmt: skip
    stage.call(evidence.read(stage.bode.pool), 300)
    wrong = evidence.wrong()
    hands = sum(len(changes) for changes in evidence.owners.values())
    print(
        f"\n{SECONDS:g} s, seed {seed}: {events:,} events, {len(evidence.rows):,} deliveries to {len(keys):,} "
        f"subscriptions, {churn.kills} kills, {churn.stops} stops ({churn.long_stops} past the lease), "
        f"{hands:,} changes of a shard's owner; {sum(map(len, evidence.arrivals.values())):,} arrivals, of which "
        f"{evidence.duplicates():,} repeated what had been accepted; {len(wrong)} things wrong"
    )
    for process in churn.alive:
        process.signal(signal.SIGKILL)
        stage.host.ended(process)
    assert not wrong, "\n".join(wrong[:50])
    assert churn.kills > 0
    assert churn.stops > 0
    assert {row["state"] for row in evidence.rows.values()} == {"delivered"}
