"""Schedules that bring a broken promise to light quickly, and the kinds of fault of the short run."""

from dataclasses import dataclass

from tests.chaos.schedule import DELIVERS, INGESTS, Fault
from tests.chaos.subscribers import WANTED

GATE_KINDS = (
    "kill", "pause", "rabbitmq-killed", "postgres-killed", "postgres-terminates-connections", "postgres-locks",
    "link-cut", "link-stalled", "link-deaf", "sink",
)  # fmt: skip


@dataclass(frozen=True)
class Provocation:
    """A schedule under which a mutation must be found."""

    schedule: tuple[Fault, ...]
    seconds: float = 14.0
    rate: float = 120.0


def _six(kind: str, targets: tuple[str, ...], detail: str, length: float) -> tuple[Fault, ...]:
    return tuple(Fault(kind, 2.0 + 2 * n, length, targets[n % len(targets)], detail) for n in range(6))


def _stops() -> tuple[Fault, ...]:
    """Each delivery process stops for longer than its lease, with work in memory, and then hears of its loss late."""
    made = []
    for number, name in enumerate(DELIVERS):
        at = 2.0 + 9.0 * number
        made += [Fault("sink", at + 0.01 * place, 2.0, wanted.path, "slow") for place, wanted in enumerate(WANTED)]
        made += [Fault("pause", at + 1.9, 6.0, name), Fault("link-slow", at + 7.8, 3.0, name, "postgres")]
    return tuple(made)


PROVOCATIONS = {
    "acknowledge-before-commit": Provocation(_six("kill", INGESTS, "", 0.1)),
    "no-deduplication": Provocation(()),
    "lane-released-early": Provocation(()),
    "no-fencing": Provocation(_stops(), seconds=30.0),
    "outcome-without-guard": Provocation(_six("link-deaf", DELIVERS, "postgres", 0.5)),
}
"""By the name of the mutation."""
