"""What goes wrong, when and for how long: made from a seed and nothing else, so that a seed reproduces it."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from random import Random

APIS = ("api1", "api2")
INGESTS = ("ingest1", "ingest2", "ingest3")
DELIVERS = ("deliver1", "deliver2", "deliver3")
ELSEWHERE = "elsewhere"
"""The RabbitMQ as a provider's own, and the queue there: the same server, over a link of its own."""
PROCESSES = (*APIS, *INGESTS, *DELIVERS)
MOODS = ("hangs", "fails", "throttles", "breaks-off", "refuses", "slow")
LOCKED = ("event_ids", "deliveries", "subscription_numbers", "delivery_totals", "leases", "change_log_head")
RECONNECTS = 26
FIRST_AT = 3.0


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong. `seconds`: how long, from its beginning to the end of its cause."""

    kind: str
    at: float
    seconds: float = 0.0
    target: str = ""
    detail: str = ""

    def __str__(self) -> str:
        words = " ".join(word for word in (self.kind, self.target, self.detail) if word)
        return f"{self.at:7.2f} s  {words}" + (f" for {self.seconds:.1f} s" if self.seconds else "")


@dataclass(frozen=True)
class Cast:
    """Who there is to be hit."""

    paths: Sequence[str]
    processes: Sequence[str] = PROCESSES


@dataclass(frozen=True)
class Kind:
    """How a kind of fault is drawn."""

    name: str
    longest: float
    recovery: float
    """Seconds that the same resource is left alone afterwards."""
    aim: Callable[[Random, Cast], tuple[str, str]]
    resource: Callable[[str], Collection[str]]
    shortest: float = 0.0


def _process(random: Random, cast: Cast) -> tuple[str, str]:
    return random.choice(cast.processes), ""


def _nothing(_: Random, __: Cast) -> tuple[str, str]:
    return "", ""


def _link(random: Random, cast: Cast) -> tuple[str, str]:
    server = random.choice(("postgres", "rabbitmq"))
    if random.random() < 0.3:
        return "all", server
    users = [name for name in cast.processes if server == "postgres" or name not in DELIVERS]
    return random.choice(users if server == "postgres" else [*users, "bag", "brp", ELSEWHERE]), server


def _sink(random: Random, cast: Cast) -> tuple[str, str]:
    return random.choice(cast.paths), random.choice(MOODS)


def _table(random: Random, _: Cast) -> tuple[str, str]:
    return random.choice(LOCKED), ""


def _clock(random: Random, cast: Cast) -> tuple[str, str]:
    target = random.choice((*cast.processes, "postgres"))
    return target, str(random.choice((-7200, -90, -3, 3, 90, 7200)))


def _own(target: str) -> Collection[str]:
    return (target,)


def _only(*resources: str) -> Callable[[str], Collection[str]]:
    return lambda _: resources


KINDS = {
    kind.name: kind
    for kind in (
        Kind("kill", 3, 2, _process, _own),
        Kind("pause", 9, 1, _process, _own, 0.3),
        Kind("stop-and-start", 1, 2, _process, _own),
        Kind("rabbitmq-killed", 4, 8, _nothing, _only("rabbitmq")),
        Kind("rabbitmq-closes-connections", 0, 2, _nothing, _only("rabbitmq")),
        Kind("rabbitmq-memory-alarm", 6, 2, _nothing, _only("rabbitmq"), 2),
        Kind("rabbitmq-disk-alarm", 6, 2, _nothing, _only("rabbitmq"), 2),
        Kind("reconnect-loop", 0, 35, _nothing, _only("rabbitmq", "postgres", "links")),
        Kind("postgres-killed", 5, 4, _nothing, _only("postgres")),
        Kind("postgres-terminates-connections", 0, 1, _nothing, _only("postgres")),
        Kind("postgres-fails-over", 0, 15, _nothing, _only("postgres")),
        Kind("postgres-disk-full", 6, 10, _nothing, _only("postgres"), 3),
        Kind("postgres-locks", 8, 1, _table, _only("locks"), 2),
        Kind("link-cut", 6, 1, _link, _only("links"), 0.1),
        Kind("link-slow", 8, 1, _link, _only("links"), 2),
        Kind("link-stalled", 8, 1, _link, _only("links"), 1),
        Kind("link-deaf", 3, 1, _link, _only("links"), 0.2),
        Kind("clock-jumps", 8, 1, _clock, _own, 2),
        Kind("sink", 8, 1, _sink, _own, 0.5),
    )
}
LONGEST = "reconnect-loop"
LEAST_SECONDS = 60.0
"""A run must be so long to have it."""
RELAXED = 3.0
"""Longest pause between the beginnings of two faults."""


def plan(seed: int, seconds: float, cast: Cast, kinds: Collection[str] | None = None) -> list[Fault]:
    """Faults for a run of `seconds`, each kind before any comes twice, as far as the time goes."""
    random = Random(seed)
    known = [name for name in KINDS if kinds is None or name in kinds]
    free_at: dict[str, float] = {}
    planned: list[Fault] = []
    kept_from, kept = float("inf"), KINDS[LONGEST]
    if LONGEST in known and seconds >= LEAST_SECONDS:  # needs several resources for so long that it wouldn't get them
        kept_from = random.uniform(FIRST_AT, seconds - kept.recovery)
        planned.append(Fault(LONGEST, round(kept_from, 2)))
    known = [name for name in known if name != LONGEST]
    bag: list[str] = []
    now = FIRST_AT
    while now < seconds:
        if len(bag) < len(known) // 3 + 1:
            refill = known.copy()
            random.shuffle(refill)
            bag += refill
        for place, name in enumerate(bag):
            kind = KINDS[name]
            target, detail = kind.aim(random, cast)
            length = random.uniform(kind.shortest, kind.longest)
            resources = kind.resource(target)
            over = now + length + kind.recovery
            kept_now = over > kept_from and now < kept_from + kept.recovery
            if kept_now and not {*resources}.isdisjoint(kept.resource("")):
                continue
            if all(free_at.get(resource, 0.0) <= now for resource in resources):
                planned.append(Fault(name, round(now, 2), round(length, 2), target, detail))
                free_at.update(dict.fromkeys(resources, over))
                del bag[place]
                break
        now += random.uniform(0.3, RELAXED)
    return sorted(planned, key=lambda fault: fault.at)
