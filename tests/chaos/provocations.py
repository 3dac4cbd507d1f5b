"""Schedules that bring a broken promise to light quickly, and the kinds of fault of the short run."""

from dataclasses import dataclass

from tests.chaos.schedule import DELIVERS, INGESTS, Fault

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
    shards: int = 8


def _six(kind: str, targets: tuple[str, ...], detail: str, length: float) -> tuple[Fault, ...]:
    return tuple(Fault(kind, 2.0 + 2 * n, length, targets[n % len(targets)], detail) for n in range(6))


def _silences() -> tuple[Fault, ...]:
    """Each delivery process hears nothing of PostgreSQL for longer than its lease, with work and bodies in memory.

    One sink is slow, so that work is in memory; others had the same events, so that the bodies are.
    """
    slow = Fault("sink", 1.0, 40.0, "all", "slow")
    return (slow, *(Fault("link-stalled", 4.0 + 10 * n, 8.0, DELIVERS[n % 2], "postgres") for n in range(4)))


PROVOCATIONS = {
    "acknowledge-before-commit": Provocation(_six("kill", INGESTS[:2], "", 0.1)),
    "no-deduplication": Provocation(()),
    "lane-released-early": Provocation(()),
    "no-fencing": Provocation(_silences(), seconds=42.0, shards=2),
    "outcome-without-guard": Provocation(_six("link-deaf", DELIVERS[:2], "postgres", 0.5)),
    "taken-unasked": Provocation(()),
}
"""By the name of the mutation."""
