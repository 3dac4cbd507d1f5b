"""The delivery engine against a model: processes that die, stand still, come and go, all kinds of sinks, queues, pulls.

What may happen is in `engine_model`; what was broken on purpose, and what caught it, is in `docs/reliability.md`.

The gate tries examples for some seconds, and scenarios that examples of so short a run may miss; `pytest -m long
tests/integration/test_engine_model.py -s` tries them for as many as BODE_MODEL_SECONDS says (900).
"""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest
from engine_model import FIGURES, Model, TimeIsUp
from engine_stage import Stage, staged
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import FlakyStrategyDefinition
from hypothesis.stateful import run_state_machine_as_test
from model_example import DELIVERY, HEALTHY

from broker.tools.local.rabbitmq import RabbitMQ
from schemas.resources import HoldScope
from tests.chaos.proxy import State

GATE_SECONDS: Final = 10.0
LONG_SECONDS: Final = float(os.environ.get("BODE_MODEL_SECONDS", "900"))
_COMMON: Final = settings(
    deadline=None,
    phases=(Phase.explicit, Phase.generate),  # what several processes do is not repeated exactly, so not shrunk
    suppress_health_check=list(HealthCheck),
    database=None,
    report_multiple_bugs=False,
    print_blob=False,
)


@pytest.fixture(scope="module")
def stage(url: str, rabbitmq: RabbitMQ) -> Iterator[Stage]:
    with staged(url, DELIVERY, rabbitmq.url()) as made:
        yield made


def run(stage: Stage, chosen: settings, seconds: float) -> None:
    """Begin examples for so long, one at least."""
    FIGURES.update(dict.fromkeys(FIGURES, 0))
    until = time.monotonic() + seconds
    Model.unsettled = 0
    try:
        run_state_machine_as_test(lambda: Model(stage, until), settings=chosen)
    except (TimeIsUp, FlakyStrategyDefinition):  # the second, where an example had begun alike and gone on
        if Model.unsettled or time.monotonic() <= until:
            raise
    print(FIGURES)
    assert FIGURES["deliveries"] > FIGURES["examples"] > 0


@pytest.mark.timeout(900)
def test_engine_keeps_its_promises(stage: Stage) -> None:
    run(stage, settings(_COMMON, max_examples=5, stateful_step_count=16, derandomize=True), GATE_SECONDS)


@pytest.mark.long
@pytest.mark.timeout(LONG_SECONDS + 600)
def test_engine_keeps_its_promises_in_many_examples(stage: Stage) -> None:
    run(stage, settings(_COMMON, max_examples=10_000, stateful_step_count=40), LONG_SECONDS)


@contextmanager
def example(stage: Stage, *subscriptions: tuple[str, str], processes: int = 1) -> Iterator[Model]:
    """An example of our own: subscriptions by protocol and types, whose sinks accept everything; judged at the end."""
    model = Model(stage, math.inf)
    try:
        model.begin([(HEALTHY, 0, types, protocol) for protocol, types in subscriptions], processes, seed=0)
        yield model
    finally:
        model.teardown()


EVENTS = [(kind, subject) for subject in ("a", "b", None) for kind in "ab"]


@pytest.mark.timeout(300)
def test_holds_of_every_scope_keep_what_is_sent_queued_and_pulled(stage: Stage) -> None:
    with example(stage, ("HTTP", "ab"), ("AMQP", "ab"), ("PULL", "ab")) as model:
        for scope in HoldScope:
            model.hold_or_end_it(scope, place=0, cancelled=False, events=EVENTS)
            model.pull(place=0, limit=20, acknowledged=True)
            model.sleep(200)
            model.hold_or_end_it(scope, place=0, cancelled=scope is HoldScope.EVENT_TYPE, events=EVENTS)


@pytest.mark.timeout(300)
def test_what_waits_is_corrected_in_time_and_too_late_wherever_it_goes(stage: Stage) -> None:
    with example(stage, ("HTTP", "abd"), ("AMQP", "bd"), ("PULL", "abd"), processes=2) as model:
        for subject, withdrawn in (("a", True), ("b", False)):
            model.accept([("d", subject), ("a", subject)], told=True)
            model.correct(0, "b", withdrawn, told=True)
        model.move_the_clock(45.0)
        model.pull(place=0, limit=20, acknowledged=False)
        model.correct_the_delayed("a", "b", withdrawn=True, lateness=0.3, told=True)
        model.acknowledge(place=0, back=1)
        model.pull(place=0, limit=20, acknowledged=True)
        model.correct_the_delayed("c", "a", withdrawn=True, lateness=-0.9, told=False)
        model.kill(0)


@pytest.mark.timeout(300)
def test_queues_get_everything_in_order_while_rabbitmq_is_lost(stage: Stage) -> None:
    with example(stage, ("AMQP", "ab"), ("AMQP", "a"), processes=2) as model:
        for state in (State.STALLED, State.DEAF):
            model.accept(EVENTS, told=True)
            model.sleep(200)
            model.cut_off_from_rabbitmq(state)
            model.accept(EVENTS, told=True)
            model.sleep(100)
            model.cut_off_from_rabbitmq(None)  # with what is under way
        model.kill(0)
