"""What delivery processes did: arrivals at the sinks, and what the database saw happen.

Two triggers that only tests have write down every change of owner of a shard and every change of a delivery. What is
right and wrong about it says `delivery_promises`.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import asyncpg
from delivery_processes import DeliverProcess
from scripted_sinks import Arrival

WATCH: Final = """
CREATE TABLE seen_owners (number int, former uuid, owner uuid, epoch bigint, at float8);
CREATE FUNCTION see_owner() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO seen_owners
    VALUES (NEW.number, OLD.owner, NEW.owner, NEW.epoch, extract(epoch FROM clock_timestamp()));
    RETURN NULL;
END $$;
CREATE TRIGGER see_owner AFTER UPDATE ON leases FOR EACH ROW
    WHEN (NEW.kind = 'shard' AND (OLD.owner IS DISTINCT FROM NEW.owner OR OLD.epoch <> NEW.epoch))
    EXECUTE FUNCTION see_owner();
CREATE TABLE seen_deliveries
    (subscription bigint, sequence bigint, state text, attempts int, due float8, reason text, by text,
     at float8);
CREATE INDEX ON seen_deliveries (subscription, sequence);
CREATE FUNCTION see_delivery() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO seen_deliveries
    VALUES (NEW.subscription, NEW.sequence, NEW.state, NEW.attempts, extract(epoch FROM NEW.next_attempt_at),
            NEW.reason, current_setting('application_name'), extract(epoch FROM clock_timestamp()));
    RETURN NULL;
END $$;
CREATE TRIGGER see_delivery AFTER UPDATE ON deliveries FOR EACH ROW EXECUTE FUNCTION see_delivery();
"""


@dataclass
class Asked:
    """A replay that somebody asked for."""

    id: UUID
    at: float
    """Just before, in real time."""
    first: int
    last: int


@dataclass(frozen=True)
class CorrectedBy:
    """A correction of an event that had a delay; times are real."""

    event: str
    withdrawn: bool
    began: float
    answered: float
    number: int | None
    """Its own, where it matched."""


@dataclass
class Delay:
    """Its delay is over between these, in real time."""

    begin: float
    end: float
    corrections: list[CorrectedBy] = field(default_factory=list)


@dataclass(frozen=True)
class Offer:
    """What a pull showed, and the cursor that takes it over."""

    through: int
    cursor: str
    shown: frozenset[int]
    """As events; the rest were tombstones."""


@dataclass
class Pulled:
    """How far a provider that pulls has come."""

    through: int = 0
    taken: set[int] = field(default_factory=set)
    """Shown as events by a pull whose cursor was acknowledged."""
    offers: list[Offer] = field(default_factory=list)


@dataclass
class Expected:
    """A subscription as the model knows it. Index 0 is number 1."""

    key: int
    identity: UUID
    waits: Sequence[float]
    together: int = 1
    """Notifications in one request, at most."""
    events: list[str] = field(default_factory=list)
    lanes: list[str | None] = field(default_factory=list)
    accepted_by: list[float] = field(default_factory=list)
    """When the acceptance was answered, in real time."""
    quiet: list[tuple[float, float, int, int]] = field(default_factory=list)
    """From, until: paused; the numbers of this half-open range were accepted in between."""
    resumed: list[float] = field(default_factory=list)
    """When it was resumed, after which its sink has a new beginning."""
    held: list[tuple[float, float, frozenset[int], frozenset[int]]] = field(default_factory=list)
    """From, until: these numbers, which were accepted in between, and these, which were accepted before, were held."""
    hold_cancelled: set[int] = field(default_factory=set)
    """Numbers that a hold covered when it was cancelled."""
    revoked: list[float] = field(default_factory=list)
    retried: dict[int, list[float]] = field(default_factory=dict)
    """Dead letters that were made pending again, by number: just before that, in real time."""
    replays: list[Asked] = field(default_factory=list)
    ended: bool = False
    protocol: str = "HTTP"
    pulled: Pulled | None = None
    """Set where nothing is sent."""
    shown: set[int] = field(default_factory=set)
    """As events, by any pull."""
    delays: dict[int, Delay] = field(default_factory=dict)
    """Of numbers whose type has one."""


@dataclass
class Evidence:
    """All that is known of some subscriptions once they are quiet."""

    subscriptions: dict[str, Expected]
    arrivals: dict[str, list[Arrival]]
    processes: dict[str, DeliverProcess]
    shards: int
    concurrency: int
    owners: dict[int, list[asyncpg.Record]] = field(default_factory=lambda: defaultdict(list))
    """Changes of owner by shard."""
    seen: dict[tuple[int, int], list[asyncpg.Record]] = field(default_factory=lambda: defaultdict(list))
    rows: dict[tuple[int, int], asyncpg.Record] = field(default_factory=dict)
    attempts: dict[tuple[int, int], list[asyncpg.Record]] = field(default_factory=lambda: defaultdict(list))
    replays: dict[UUID, asyncpg.Record] = field(default_factory=dict)
    replayed: dict[str, list[Arrival]] = field(default_factory=dict)
    """What came because of replays; it is not among `arrivals`, but for the first that the sink accepted."""

    async def read(self, pool: asyncpg.Pool) -> None:
        keys = [subscription.key for subscription in self.subscriptions.values()]
        for row in await pool.fetch("SELECT * FROM seen_owners ORDER BY at"):
            self.owners[row["number"]].append(row)
        for row in await pool.fetch(
            "SELECT * FROM seen_deliveries WHERE subscription = ANY($1::bigint[]) ORDER BY at", keys
        ):
            self.seen[row["subscription"], row["sequence"]].append(row)
        for row in await pool.fetch("SELECT * FROM deliveries WHERE subscription = ANY($1::bigint[])", keys):
            self.rows[row["subscription"], row["sequence"]] = row
        for row in await pool.fetch(
            "SELECT * FROM attempts WHERE subscription = ANY($1::bigint[]) ORDER BY started_at", keys
        ):
            self.attempts[row["subscription"], row["sequence"]].append(row)
        for row in await pool.fetch("SELECT * FROM replays WHERE subscription = ANY($1::bigint[])", keys):
            self.replays[row["id"]] = row
        self._set_apart()

    def _set_apart(self) -> None:
        """Tell what replays sent from the rest: what came of a number in its range after it had ended, and had come."""
        for name, subscription in self.subscriptions.items():
            if not subscription.replays:
                continue
            self.replayed[name] = apart = []
            kept: list[Arrival] = []
            known = set[int]()
            for arrival in self.arrivals[name]:
                first = arrival.sequence not in known and self._cannot_be_replayed(subscription, arrival)
                known.add(arrival.sequence)
                (kept if first or not self._is_replayed(subscription, arrival) else apart).append(arrival)
            self.arrivals[name] = kept

    def _cannot_be_replayed(self, subscription: Expected, arrival: Arrival) -> bool:
        """The first of a number that never died: a queue may give it when its confirm has long been recorded."""
        seen = self.seen[subscription.key, arrival.sequence]
        return subscription.protocol == "AMQP" and not any(row["state"] == "dead" for row in seen)

    def _is_replayed(self, subscription: Expected, arrival: Arrival) -> bool:
        if not any(
            each.first <= arrival.sequence <= each.last and each.at <= arrival.begun for each in subscription.replays
        ):
            return False
        before = [row for row in self.seen[subscription.key, arrival.sequence] if row["at"] < arrival.begun]
        return bool(before) and before[-1]["state"] in ("delivered", "dead")

    def _replays_of(self, subscription: Expected, sequence: int) -> list[Arrival]:
        name = next(name for name, each in self.subscriptions.items() if each is subscription)
        return [arrival for arrival in self.replayed.get(name, ()) if arrival.sequence == sequence]

    def _sent(self) -> Iterator[tuple[str, Expected]]:
        """The subscriptions with a sink, whose arrivals tell who sent them."""
        return ((name, each) for name, each in self.subscriptions.items() if each.protocol == "HTTP")

    def _disturbed(self, arrival: Arrival) -> list[float]:
        """When the process that sent it was disturbed; any process, if it doesn't tell."""
        if arrival.process in self.processes:
            return self.processes[arrival.process].disturbed
        return [moment for process in self.processes.values() for moment in process.disturbed]

    def _each(self) -> Iterator[tuple[Expected, Arrival]]:
        for name, arrivals in self.arrivals.items():
            for arrival in arrivals:
                yield self.subscriptions[name], arrival

    def _deliveries(self) -> Iterator[tuple[Expected, int, list[Arrival]]]:
        for name, subscription in self.subscriptions.items():
            by_number = numbered(self.arrivals[name])
            for sequence in range(1, len(subscription.events) + 1):
                yield subscription, sequence, by_number.get(sequence, [])

    def duplicates(self) -> int:
        """How many arrivals came after one that the sink had accepted."""
        count = 0
        for _, _, arrivals in self._deliveries():
            accepted = next((i for i, arrival in enumerate(arrivals) if arrival.accepted), len(arrivals))
            count += len(arrivals[accepted + 1 :])
        return count

    def _stray(self, subscription: Expected, arrival: Arrival) -> bool:
        """Whether its process didn't own the shard when it arrived."""
        taken = [row for row in self._hands(subscription) if row["at"] <= arrival.begun]
        return not taken or taken[-1]["owner"] != self.processes[arrival.process].owner

    def _losses(self, subscription: Expected, process: str) -> int:
        owner = self.processes[process].owner
        return sum(row["former"] == owner for row in self._hands(subscription))

    def _changes(self, subscription: Expected, begin: float, end: float) -> list[asyncpg.Record]:
        return [row for row in self._hands(subscription) if begin - 0.05 <= row["at"] <= end]

    def _hands(self, subscription: Expected) -> list[asyncpg.Record]:
        """Through which hands its shard went."""
        return self.owners[subscription.key % self.shards]

    def told(self) -> str:
        """The whole story, in order of time, for a person who looks for a cause."""
        lines: list[tuple[float, str]] = []
        for subscription, arrival in self._each():
            lane = subscription.lanes[arrival.sequence - 1] if arrival.sequence <= len(subscription.lanes) else "?"
            lines.append(
                (arrival.begun, f"{subscription.key} lane {lane} {arrival} clock {arrival.begun_by_clock:.3f}")
            )
        names = {process.owner: process.name for process in self.processes.values()}
        keys = {subscription.key % self.shards for subscription in self.subscriptions.values()}
        for number in keys:
            for row in self.owners[number]:
                hands = f"{names.get(row['former'])} to {names.get(row['owner'])}"
                lines.append((row["at"], f"shard {row['number']} from {hands}, epoch {row['epoch']}"))
        for process in self.processes.values():
            lines += [(moment, f"{process.name} was disturbed") for moment in process.disturbed]
        for (key, sequence), rows in self.seen.items():
            for row in rows:
                what = f"{row['state']} attempts {row['attempts']} due {row['due']} {row['reason']}"
                lines.append((row["at"], f"recorded {key}#{sequence} {what}"))
        return "\n".join(f"{at:.3f} {text}" for at, text in sorted(lines))


def numbered(arrivals: Sequence[Arrival]) -> dict[int, list[Arrival]]:
    """By number, in the order in which they came."""
    found: dict[int, list[Arrival]] = defaultdict(list)
    for arrival in sorted(arrivals, key=lambda each: each.begun):
        found[arrival.sequence].append(arrival)
    return found
