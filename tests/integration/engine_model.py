"""A model of the delivery engine, as a machine that Hypothesis drives: how an example begins, and how it is judged.

What may happen in between is in `model_events`, `model_requests`, `model_pulls` and `model_disturbances`; what must
hold is in `delivery_promises` and `model_promises`.
"""

import signal
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, ClassVar, Final

from delivery_promises import ACCOUNTS, account
from engine_stage import Stage
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant
from model_disturbances import Disturbances
from model_example import CONCURRENCY, MOST_PROCESSES, SHARDS, SUBSCRIPTIONS
from model_promises import ModelPromises
from model_pulls import Pulls
from model_requests import Requests
from scripted_sinks import Move

QUIET_SECONDS: Final = 120.0
FAILING_ROUNDS: Final = 12
_COUNTED: Final = (
    "examples", "deliveries", "arrivals", "repeated after acceptance", "retried", "replays", "replayed", "pulls",
    "pulled", "queued", "RabbitMQ lost", "delayed", "corrected", "corrections too late",
)  # fmt: skip
FIGURES: dict[str, int] = dict.fromkeys(_COUNTED, 0)


class TimeIsUp(BaseException):
    """No more examples are begun; Hypothesis lets it pass."""


class Model(Requests, Pulls, Disturbances):
    """Two providers, some subscriptions, up to three processes that deliver, and all that may happen to them."""

    unsettled: ClassVar[int] = 0
    """Examples that were begun and not found to be right."""

    def __init__(self, stage: Stage, until: float) -> None:
        if time.monotonic() > until:
            raise TimeIsUp
        super().__init__(stage)

    @initialize(subscriptions=SUBSCRIPTIONS, processes=st.integers(1, MOST_PROCESSES), seed=st.integers(0, 2**16))
    def begin(self, subscriptions: Sequence[Any], processes: int, seed: int) -> None:
        Model.unsettled += 1
        self.seed(seed)
        self.host.clock.set(0.0)
        self.stage.call(self.people(subscriptions))
        starting = [self.start(ready=False) for _ in range(processes)]
        self.accept([(kind, subject) for subject in ("a", "b", "a", None) for kind in "ab"], told=False)
        for process in starting:
            self.host.until_ready(process)

    @invariant()
    def accounts_are_right(self) -> None:
        keys = [subscription.key for subscription in self.subscriptions.values()]
        if keys:
            found = account(self.stage.call(self.stage.bode.pool.fetch(ACCOUNTS, keys)))
            assert found == []

    def teardown(self) -> None:
        """Judge the example, unless a step failed; what is wrong is told at once, as another try may do otherwise."""
        try:
            if isinstance(error := sys.exception(), Exception):
                traceback.print_exception(error)
            elif self.subscriptions:
                self._become_quiet()
                self._judge()
                Model.unsettled -= 1
        except Exception:
            traceback.print_exc()
            raise
        finally:
            self.reach_rabbitmq()
            for process in self.alive:
                process.signal(signal.SIGKILL)
                self.host.ended(process)
            for name in self.subscriptions:
                self.stage.sinks.scripts.pop(name, None)

    def _become_quiet(self) -> None:
        """Nobody disturbs any more, and time goes on; in the end sinks that always failed recover. Nothing stays."""
        for process in self.alive:
            if process.stopped:
                process.go_on()
        if not self.alive:
            self.start()
        self.reach_rabbitmq()
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
                if not subscription.ended and self.stage.call(self.status(name)) != "active":
                    self.stage.call(self._resume(name))
            for name in self.pulled():
                self.pull_all(name)
            self.move(60.0)
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
        for listener in self.listeners.values():
            self.stage.call(listener.close())
        for name, subscription in self.subscriptions.items():
            if not subscription.ended:
                self.read_whole(name)
        arrivals = {name: list(script.arrivals) for name, script in self.scripts.items()}
        evidence = ModelPromises(
            self.subscriptions, {name: arrivals.get(name, []) for name in self.subscriptions}, self.processes,
            SHARDS, CONCURRENCY, links_lost=self.links_lost,
        )  # fmt: skip
        self.stage.call(evidence.read(self.stage.bode.pool))
        wrong = evidence.wrong() + [f"no sink of ours: {stray}" for stray in self.stage.sinks.strays]
        self.stage.sinks.strays.clear()
        self._count(evidence)
        if wrong:
            raise AssertionError("\n".join([*wrong, "", evidence.told()]))

    def _count(self, evidence: ModelPromises) -> None:
        each = list(self.subscriptions.values())
        delays = [delay for subscription in each for delay in subscription.delays.values()]
        reasons = [row["reason"] or "" for row in evidence.rows.values()]
        corrected = sum(reason.startswith(("corrected:", "withdrawn:")) for reason in reasons)
        found = {
            "examples": 1,
            "deliveries": len(evidence.rows),
            "arrivals": sum(map(len, evidence.arrivals.values())),
            "repeated after acceptance": evidence.duplicates(),
            "retried": sum(len(at) for subscription in each for at in subscription.retried.values()),
            "replays": len(evidence.replays),
            "replayed": sum(map(len, evidence.replayed.values())),
            "pulls": sum(len(subscription.pulled.offers) for subscription in each if subscription.pulled),
            "pulled": sum(len(subscription.pulled.taken) for subscription in each if subscription.pulled),
            "queued": sum(len(evidence.arrivals[name]) for name in self.listeners),
            "RabbitMQ lost": self.links_lost,
            "delayed": len(delays),
            "corrected": corrected,
            "corrections too late": sum(len(delay.corrections) for delay in delays) - corrected,
        }
        for name, value in found.items():
            FIGURES[name] += value
