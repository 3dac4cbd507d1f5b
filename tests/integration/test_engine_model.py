"""The delivery engine against a simple model: processes that die, stand still, come and go, and sinks of every kind.

What may happen is in `engine_model`.

The gate tries examples for some seconds; `pytest -m long tests/integration/test_engine_model.py -s` does for as many as
BODE_MODEL_SECONDS says (900). Broken on purpose, the engine was caught: a lane that went on while its first waited for
a retry ("overtook number 1 of its lane"), and successes that were not recorded ("came again", "is pending").
"""

import os
import time
from collections.abc import Iterator
from typing import Final

import pytest
from engine_model import DELIVERY, FIGURES, Model
from engine_stage import Stage, staged
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import FlakyStrategyDefinition
from hypothesis.stateful import run_state_machine_as_test

GATE_SECONDS: Final = 15.0
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
def stage(url: str) -> Iterator[Stage]:
    with staged(url, DELIVERY) as made:
        yield made


def run(stage: Stage, chosen: settings, seconds: float) -> None:
    """Try examples for so long, one at least."""
    FIGURES.update(dict.fromkeys(FIGURES, 0))
    until = time.monotonic() + seconds
    Model.unsettled = 0
    try:
        run_state_machine_as_test(lambda: Model(stage, until), settings=chosen)
    except FlakyStrategyDefinition:  # past the time there is no stage: an example that began alike goes on otherwise
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
