"""What delivery processes did, held against the promises.

Each function of `Promises` returns what is wrong, in words; an empty list is what we want.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import orjson
from delivery_evidence import Evidence, Expected, numbered
from scripted_sinks import THROTTLES, UNANSWERED, Arrival, Move

from broker.storage import leases

ACCOUNTS: Final = """
SELECT numbers.subscription, numbers.last_sequence AS matched,
       coalesce(totals.delivered, 0) AS delivered, coalesce(totals.dead, 0) AS dead,
       coalesce(totals.cancelled, 0) AS cancelled, counted.*
FROM subscription_numbers AS numbers LEFT JOIN delivery_totals AS totals USING (subscription)
CROSS JOIN LATERAL (
    SELECT count(*) AS rows, count(DISTINCT sequence) AS numbers, coalesce(min(sequence), 1) AS lowest,
           coalesce(max(sequence), 0) AS highest,
           count(*) FILTER (WHERE state = 'pending') AS rows_pending,
           count(*) FILTER (WHERE state = 'delivered') AS rows_delivered,
           count(*) FILTER (WHERE state = 'dead') AS rows_dead,
           count(*) FILTER (WHERE state = 'cancelled') AS rows_cancelled
    FROM deliveries WHERE deliveries.subscription = numbers.subscription
) AS counted
WHERE numbers.subscription = ANY($1::bigint[])
"""
"""One statement, so one snapshot: what is counted and what is there."""
SHORTEST: Final = 0.8
"""Of a wait of the schedule, which varies by ±20 %."""
CORRECTED: Final = ("corrected:", "withdrawn:", "withdrawal:")
"""How the reasons of what a correction cancelled begin; `model_promises` looks closer."""
_EPSILON: Final = 0.002
_STATEMENT_SECONDS: Final = 0.5
"""A statement that began before a shard changed hands, and was seen after it, may be so late."""
_COMMIT_SECONDS: Final = 2.0
"""From when a trigger sees a change to when it is committed, at most, on a slow machine."""
_LATE_SECONDS: Final = 1.0
"""From when an attempt is sent to when a sink that is busy sees it, at most, on a slow machine."""
FAILURES_TO_OPEN: Final = 10
FIRST_OPEN_SECONDS: Final = 5.0


class Promises(Evidence):
    """The evidence of some subscriptions once they are quiet, and what is wrong with it."""

    def wrong(self) -> list[str]:
        """Everything that breaks a promise."""
        return [f"{check.__name__}: {found}" for check in self.checks() for found in check()]

    def checks(self) -> Sequence[Callable[[], Iterator[str]]]:
        """Each says what is wrong."""
        return (
            self.numbers, self.ends, self.order, self.repetitions, self.strays, self.records, self.schedule,
            self.sinks, self.silence, self.again,
        )  # fmt: skip

    # promise 5

    def numbers(self) -> Iterator[str]:
        """Each event that matched has its number, contiguous from 1, and each number that arrived its event."""
        for subscription in self.subscriptions.values():
            found = sorted(sequence for key, sequence in self.rows if key == subscription.key)
            if found != list(range(1, len(subscription.events) + 1)):
                yield f"{subscription.key} has the numbers {found}, expected 1 to {len(subscription.events)}"
        for subscription, arrival in self._each():
            if not 1 <= arrival.sequence <= len(subscription.events):
                yield f"{arrival} has a number that nobody gave"
            elif arrival.event != subscription.events[arrival.sequence - 1]:
                yield f"{arrival} is not the event with this number"

    # promises 1 and 2

    def ends(self) -> Iterator[str]:
        """Delivered: the sink accepted it. Dead: by the schedule, with a reason. Cancelled: it was caused."""
        for subscription, sequence, arrivals in self._deliveries():
            row = self.rows.get((subscription.key, sequence))
            if row is None:
                continue  # told by `numbers`
            name = f"{subscription.key}#{sequence}"
            match row["state"]:
                case "delivered" if subscription.pulled is not None:
                    if sequence not in subscription.pulled.taken:
                        yield f"{name} is delivered, and nobody took it over"
                case "delivered":
                    if not any(arrival.accepted for arrival in [*arrivals, *self._replays_of(subscription, sequence)]):
                        yield f"{name} is delivered, and no sink accepted it"
                case "dead":
                    final = row["status"] in (400, 413, 415, 422) and row["attempts"] >= 2
                    if row["attempts"] != len(subscription.waits) + 1 and not final:
                        yield f"{name} is dead after {row['attempts']} attempts"
                case "cancelled":
                    caused = row["reason"] == "grant-ended" and subscription.revoked
                    caused = caused or (
                        row["reason"].startswith("hold-cancelled") and row["sequence"] in subscription.hold_cancelled
                    )
                    caused = caused or (row["reason"].startswith(CORRECTED) and bool(subscription.delays))
                    if not caused and not (row["reason"] == "subscription-ended" and subscription.ended):
                        yield f"{name} is cancelled for {row['reason']}, which nobody did"
                case state:
                    yield f"{name} is {state}, though its sink answers"
            if row["state"] in ("dead", "cancelled") and not row["reason"]:
                yield f"{name} has no reason"

    # promise 3

    def order(self) -> Iterator[str]:
        """When one of a lane arrives first, or is accepted first, all before it in the lane have ended.

        Or they had their last attempt, or they stand before it in the same request.
        """
        for name, subscription in self.subscriptions.items():
            by_number = numbered(self.arrivals[name])
            last_of_lane: dict[str, list[int]] = defaultdict(list)
            requests: dict[int, set[int]] = defaultdict(set)
            for arrival in self.arrivals[name]:
                requests[arrival.request].add(arrival.sequence)
            for sequence, lane in enumerate(subscription.lanes, 1):
                if lane is None:
                    continue
                arrivals = by_number.get(sequence, [])
                accepted = [arrival for arrival in arrivals if arrival.accepted]
                for arrival in (*arrivals[:1], *accepted[:1]):
                    for earlier in last_of_lane[lane]:
                        if earlier in requests[arrival.request]:
                            continue
                        if not self._over(subscription, earlier, by_number.get(earlier, []), arrival.begun):
                            yield f"{arrival} overtook number {earlier} of its lane"
                last_of_lane[lane].append(sequence)

    def _over(self, subscription: Expected, sequence: int, arrivals: list[Arrival], at: float) -> bool:
        before = [arrival for arrival in arrivals if arrival.begun < at and not arrival.asked]
        if any(arrival.accepted and arrival.ended <= at for arrival in before):
            return True
        row = self.rows.get((subscription.key, sequence))
        seen = self.seen[subscription.key, sequence]
        if any(change["state"] == "dead" and change["at"] <= at + _LATE_SECONDS for change in seen[:-1]):
            return True  # it freed its lane then, and was retried or replayed after
        if row is None or row["state"] not in ("dead", "cancelled"):
            return False
        return seen[-1]["at"] <= at or len(before) >= max(1, min(row["attempts"], len(subscription.waits) + 1))

    # promise 4

    def repetitions(self) -> Iterator[str]:
        """What a sink accepted comes again only for a cause: its attempt was in flight when its process was disturbed.

        Or when the answer got lost on its way, which the broker then has as a failed attempt that the sink had not
        planned. For one cause a sink gets no more again than can be in flight to it.
        """
        found = Counter[tuple[str, str]]()
        for name, subscription in self._sent():
            for sequence, arrivals in numbered(self.arrivals[name]).items():
                failures = [row["reason"] for row in self.attempts[subscription.key, sequence]]
                lost = sum(reason in ("timed-out", "connection-closed") for reason in failures)
                lost -= sum(arrival.move in UNANSWERED for arrival in arrivals)
                former: Arrival | None = None
                for again in arrivals:
                    if former is not None:
                        cause = self.cause(subscription, former)
                        if cause is not None:
                            found[name, cause] += 1
                        else:
                            lost -= 1
                            if lost < 0:
                                yield f"{again} came again, {former} had been accepted"
                    if again.accepted:
                        former = again
        for (name, cause), count in found.items():
            if count > self._in_doubt(self.subscriptions[name]):
                yield f"{count} came again at {self.subscriptions[name].key} because {cause}"

    def _in_doubt(self, subscription: Expected) -> int:
        """What can be under way to a sink; of batches also what was answered and is being recorded, a few of them."""
        return self.concurrency * (1 if subscription.together == 1 else max(subscription.together, 10))

    def cause(self, subscription: Expected, accepted: Arrival) -> str | None:
        """What kept the outcome of an attempt that a sink accepted from being recorded, if anything did.

        It lies between when the attempt was sent, `_LATE_SECONDS` before the sink saw it at most, and when its outcome
        was committed, `_COMMIT_SECONDS` after the answer at most.
        """
        process = self.processes[accepted.process]
        begin, end = accepted.begun - _LATE_SECONDS, accepted.ended + _COMMIT_SECONDS
        for since, until in process.stops:
            if since <= end and begin <= until:
                return f"{process.name} stood still from {since:.3f}"
        for moment in process.disturbed:
            if begin <= moment <= end:
                return f"{process.name} was killed or cut off at {moment:.3f}"
        for change in self._hands(subscription):
            if change["former"] == process.owner and begin <= change["at"] <= end:
                return f"{process.name} parted with the shard at {change['at']:.3f}"
        return None

    def strays(self) -> Iterator[str]:
        """Who lost a shard begins nothing more for it.

        What was under way when a process was stopped or its shard was taken may still come in: no more than the limit
        for each sink. One that was cut off from the database learns of its loss at its next renewal.
        """
        for name, subscription in self._sent():
            strays = Counter(a.process for a in self.arrivals[name] if self._stray(subscription, a))
            for process, count in strays.items():
                losses = max(len(self.processes[process].disturbed), self._losses(subscription, process))
                if count > self._in_doubt(subscription) * losses:
                    yield f"{count} arrivals at {subscription.key} from {process} after it had lost the shard"

    def records(self) -> Iterator[str]:
        """Only the owner of a shard records what came of an attempt; what is late changes nothing."""
        names = {leases.application_name(process.owner): process for process in self.processes.values()}
        for subscription in self.subscriptions.values():
            hands = self._hands(subscription)
            for sequence in range(1, len(subscription.events) + 1):
                for row in self.seen[subscription.key, sequence]:
                    process = names.get(row["by"])
                    if process is None or (row["reason"] or "").startswith("hold-cancelled"):
                        continue  # a person's request, which any process carries out where it is a hold's
                    before = [change["owner"] for change in hands if change["at"] <= row["at"] - _STATEMENT_SECONDS]
                    since = [c["owner"] for c in hands if row["at"] - _STATEMENT_SECONDS < c["at"] <= row["at"]]
                    if process.owner not in [*before[-1:], *since]:
                        name = f"{subscription.key}#{sequence}"
                        yield f"{process.name} {row['state']} {name} at {row['at']:.3f}, not being the owner"

    # promise 9 and the schedule

    def schedule(self) -> Iterator[str]:
        """No attempt comes before its wait is over, less 20 %, nor before Retry-After is; none beyond the schedule."""
        for subscription, sequence, arrivals in self._deliveries():
            row = self.rows.get((subscription.key, sequence))
            if row is not None and row["attempts"] > len(subscription.waits) + 1:
                yield f"{subscription.key}#{sequence} had {row['attempts']} attempts"
            failures = 0
            for former, again in pairwise(arrivals if subscription.protocol == "HTTP" else []):
                if any(former.begun <= at <= again.begun for at in subscription.retried.get(sequence, ())):
                    failures = 0  # it has all its attempts anew
                    continue
                one_hand = former.process == again.process and not self._changes(
                    subscription, former.begun, again.begun
                )
                if former.accepted or not one_hand:
                    failures = 0
                    if not former.accepted and not self._stray(subscription, again):
                        yield from self._not_before_recorded(subscription, again)
                    continue
                if former.move is Move.DROP:
                    continue  # a kept connection that was closed is replaced within the attempt
                if former.asked:
                    continue
                if former.move is Move.GONE:
                    failures = 0
                    continue
                failures += 1
                waited = again.begun_by_clock - former.begun_by_clock
                wait = SHORTEST * subscription.waits[min(failures, len(subscription.waits)) - 1]
                if former.move in THROTTLES:
                    wait = max(wait, min(former.retry_after, self._left(subscription, former)))
                if waited < wait - _EPSILON:
                    yield f"{again} came {waited:.3f} s after {former}, not {wait:.3f} s"

    def _left(self, subscription: Expected, arrival: Arrival) -> float:
        """Of the schedule, up to which Retry-After is obeyed, less what may pass until the answer is read."""
        age = arrival.ended_by_clock - subscription.accepted_by[arrival.sequence - 1]
        return sum(subscription.waits) - age - 0.5

    def _not_before_recorded(self, subscription: Expected, again: Arrival) -> Iterator[str]:
        """Another process keeps to the time that stands in the database."""
        seen = self.seen[subscription.key, again.sequence]
        recorded = [row for row in seen if row["at"] < again.begun - _COMMIT_SECONDS]
        if recorded and recorded[-1]["due"] and again.begun_by_clock < recorded[-1]["due"] - _EPSILON:
            yield f"{again} came before the time that was recorded for it"

    def sinks(self) -> Iterator[str]:
        """While Retry-After holds, or after ten failures in a row, a sink gets no more than what is under way."""
        for name, subscription in self._sent():
            by_process: dict[str, list[Arrival]] = defaultdict(list)
            for arrival in self.arrivals[name]:
                by_process[arrival.process].append(arrival)
            for arrivals in by_process.values():
                in_a_row, former = 0, 0.0
                requests = list({arrival.request: arrival for arrival in arrivals if not arrival.asked}.values())
                for arrival in sorted(requests, key=lambda each: each.ended):
                    anew = any(former <= moment <= arrival.ended for moment in subscription.resumed)
                    in_a_row = 0 if arrival.accepted else 1 if anew else in_a_row + 1
                    former = arrival.ended
                    if arrival.move in THROTTLES:
                        wait = min(arrival.retry_after, self._left(subscription, arrival))
                        yield from self._rests(subscription, requests, arrival, wait, "Retry-After")
                    if in_a_row >= FAILURES_TO_OPEN:
                        yield from self._rests(
                            subscription, requests, arrival, SHORTEST * FIRST_OPEN_SECONDS, "the breaker"
                        )

    def _rests(
        self, subscription: Expected, arrivals: list[Arrival], after: Arrival, seconds: float, why: str
    ) -> Iterator[str]:
        """Of one process: what begins within `seconds` after `after` was begun before the answer was read."""
        until = after.ended_by_clock + seconds - _EPSILON
        late = [a for a in arrivals if a.begun > after.ended and a.begun_by_clock < until and a is not after]
        if late and any(after.begun <= moment <= late[-1].begun for moment in subscription.resumed):
            return
        if late and any(a.accepted and a.begun <= late[0].begun for a in arrivals if a.ended > after.ended):
            return  # one that was under way succeeded, which closes the breaker
        if len(late) >= self.concurrency and not self._changes(subscription, after.begun, late[-1].begun):
            yield f"{len(late)} arrivals at {subscription.key} from {after.process} while {why} held since {after}"

    # promises 6 and 8

    def silence(self) -> Iterator[str]:
        """Paused or held: nothing that was accepted since is sent. Held or revoked: nothing of before any more."""
        for subscription, arrival in self._each():
            for begin, until, since, before in subscription.held:
                if arrival.sequence in since and begin < arrival.begun < until:
                    yield f"{arrival} came while it was held"
                calm = not any(moment < arrival.begun for moment in self._disturbed(arrival))
                if arrival.sequence in before and begin + 1.0 < arrival.begun < until and calm:
                    yield f"{arrival} came {arrival.begun - begin:.3f} s after it had been held"
            for begin, until, first, last in subscription.quiet:
                if first <= arrival.sequence < last and begin < arrival.begun < until:
                    yield f"{arrival} came while the subscription was paused"
            row = self.rows.get((subscription.key, arrival.sequence))
            if row is None or row["reason"] != "grant-ended" or arrival.sequence in subscription.retried:
                continue
            at = next(at for at in subscription.revoked if at > subscription.accepted_by[arrival.sequence - 1])
            if arrival.begun > at + 1.0 and not any(moment < arrival.begun for moment in self._disturbed(arrival)):
                yield f"{arrival} came {arrival.begun - at:.3f} s after its grant had been revoked"

    # replays

    def again(self) -> Iterator[str]:
        """A replay settles every number that it was asked for, and sends none oftener than it says.

        But for what was under way, or sent and not written, when a process was disturbed or parted with the shard.
        """
        for name, subscription in self.subscriptions.items():
            arrivals = self.replayed.get(name, [])
            told = 0
            for asked in subscription.replays:
                row = self.replays[asked.id]
                settled = row["sent"] + row["failed"] + sum(orjson.loads(row["skipped"]).values())
                told += row["sent"]
                if row["state"] == "done" and settled != asked.last - asked.first + 1:
                    yield f"replay of {asked.first} to {asked.last} of {subscription.key} settled {settled}"
                if row["state"] == "running":
                    yield f"replay of {asked.first} to {asked.last} of {subscription.key} is not done"
            accepted = sum(arrival.accepted for arrival in arrivals)
            causes = sum(
                len(process.disturbed) + self._losses(subscription, each) for each, process in self.processes.items()
            )
            cancelled = sum(self.replays[asked.id]["state"] == "cancelled" for asked in subscription.replays)
            lost = sum(arrival.move in UNANSWERED for arrival in arrivals)
            if accepted < told and not any(subscription.retried.values()):
                yield f"replays sent {told} to {subscription.key}, and {accepted} came"
            if accepted > told + lost + (causes + cancelled) * len(subscription.events):
                yield f"replays sent {told} to {subscription.key}, and {accepted} came"


def account(rows: Sequence[Any]) -> list[str]:
    """What is wrong with the accounts (promise 2), at any moment."""
    wrong = []
    for row in rows:
        sums = {state: row[state] for state in ("delivered", "dead", "cancelled")}
        counted = {state: row[f"rows_{state}"] for state in sums}
        contiguous = (row["rows"], row["numbers"], row["lowest"], row["highest"]) == (
            row["matched"], row["matched"], 1, row["matched"],
        )  # fmt: skip
        if sums != counted or not contiguous or row["matched"] != sum(counted.values()) + row["rows_pending"]:
            wrong.append(str(dict(row)))
    return wrong
