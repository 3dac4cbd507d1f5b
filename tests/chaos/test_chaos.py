"""The short seed of the gate, and the long runs that show that the suite can fail."""

import os
import subprocess
import sys

import pytest

from broker.tools.local.rabbitmq import NotInstalled, find_installed
from tests.chaos.processes import ROOT
from tests.chaos.provocations import PROVOCATIONS

GATE_SEED = 52
_SECONDS = 600


def chaos(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, which may enter a mount namespace and whose children end with it."""
    found = find_installed()
    if isinstance(found, NotInstalled):
        pytest.skip(f"no private RabbitMQ: {found.reason}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BODE_")}
    return subprocess.run(
        [sys.executable, "-m", "tests.chaos", *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_SECONDS,
    )  # fmt: skip


@pytest.mark.timeout(_SECONDS + 30)
def test_nothing_is_lost_or_out_of_order_in_a_short_seed() -> None:
    ran = chaos("--gate", "--first", str(GATE_SEED))
    assert ran.returncode == 0, ran.stdout
    assert "✔ nothing lost, nothing out of order" in ran.stdout


SAID = {
    "acknowledge-before-commit": "lost: ",
    "no-fencing": "duplicate without a fault: ",
    "no-deduplication": "accepted 2 times: ",
    "lane-released-early": "order: ",
    "outcome-without-guard": "accounting of ",
    "taken-unasked": "cancelled, and sent all the same: ",
}


@pytest.mark.long
@pytest.mark.timeout(_SECONDS + 30)
@pytest.mark.parametrize("mutation", PROVOCATIONS)
def test_a_broken_promise_makes_the_suite_fail_and_say_why(mutation: str) -> None:
    ran = chaos("--mutation", mutation)
    assert ran.returncode == 1, ran.stdout
    assert f"✖ {SAID[mutation]}" in ran.stdout, ran.stdout


@pytest.mark.long
@pytest.mark.timeout(_SECONDS + 30)
@pytest.mark.parametrize("mutation", PROVOCATIONS)
def test_the_same_provocation_passes_where_the_promise_is_kept(mutation: str) -> None:
    ran = chaos("--mutation", mutation, "--without")
    assert ran.returncode == 0, ran.stdout
