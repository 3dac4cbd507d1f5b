"""Comparing the ledgers when it is quiet: what was confirmed, what the database holds, what the receivers got.

Each complaint is a sentence that says which promise was broken, where. An empty list means that all of them hold.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.chaos import delays
from tests.chaos.evidence import Delivery, Evidence
from tests.chaos.faults import Window
from tests.chaos.providers import PULL, QUEUE
from tests.chaos.publishers import Publication
from tests.chaos.receivers import Arrival
from tests.chaos.subscribers import Wanted

RECORD_SECONDS = 2.0
"""An outcome that is not recorded so long after the answer was held up by something."""
RECOVERY_SECONDS = 5.0
"""How long after its end a fault still does harm: connections are made again, leases change hands."""
_SLOW_ATTEMPT = 0.9
"""When shards move, a quarter of the lease is waited for attempts under way."""
_MOST_OF_A_KIND = 5
_UNDER_WAY_SECONDS = 1.0
"""What was being sent when a hold was placed may still arrive."""


@dataclass(slots=True)
class Judgement:
    """What the ledgers say together."""

    complaints: list[str]
    duplicates: Counter[str]
    """Notifications that came again after they had been answered with success, by the fault that explains it."""


def judge(evidence: Evidence) -> Judgement:
    """Judge a run."""
    complaints = [complaint for check in (*_CHECKS, *delays.CHECKS) for complaint in _few(check(evidence))]
    duplicates: Counter[str] = Counter()
    complaints += _few(_unexplained(evidence, duplicates))
    return Judgement(complaints, duplicates)


def _few(complaints: Iterable[str]) -> Iterator[str]:
    """The first of a kind, and how many more there are."""
    count = 0
    for count, complaint in enumerate(complaints, 1):
        if count <= _MOST_OF_A_KIND:
            yield complaint
    if count > _MOST_OF_A_KIND:
        yield f"… and {count - _MOST_OF_A_KIND} more like it"


def _acceptance(evidence: Evidence) -> Iterator[str]:
    """Promises 1 and 4: a confirmed event is accepted once, or rejected where it must be."""
    accepted = Counter(identity for _, identity in evidence.database.events.values())
    known = {publication.id for publication in evidence.publications}
    for publication in evidence.publications:
        times = accepted[publication.id]
        if publication.confirmed_at is None:
            yield f"not confirmed to the end: {publication.id}"
        elif not publication.valid:
            if publication.id not in evidence.database.rejected:
                yield f"lost: {publication.id} was confirmed, must be rejected, and is neither rejected nor accepted"
            if times:
                yield f"accepted though it must be rejected: {publication.id}"
        elif times == 0:
            yield f"lost: {publication.id} was confirmed and is neither accepted nor rejected"
        elif times > 1:
            yield f"accepted {times} times: {publication.id}, published {publication.published} times"
    for identity in accepted.keys() - known:
        yield f"accepted without having been published: {identity}"


def _matching(evidence: Evidence) -> Iterator[str]:
    """Each accepted event × matching subscription has one delivery, and nothing else has."""
    published = {publication.id: publication for publication in evidence.publications}
    found: Counter[tuple[str, int]] = Counter((d.subscription, d.event_key) for d in evidence.database.deliveries)
    for key, (_, identity) in evidence.database.events.items():
        publication = published.get(identity)
        if publication is None:
            continue
        for wanted in evidence.wanted:
            times = found.pop((wanted.path, key), 0)
            expected = int(wanted.matches(publication.event))
            if times != expected:
                yield f"{identity} has {times} deliveries for '{wanted.path}', and should have {expected}"
    for path, key in found:
        yield f"a delivery for '{path}' of an event that was not accepted: key {key}"


def _numbers(evidence: Evidence) -> Iterator[str]:
    """Promise 5: from 1, without a gap or a repetition."""
    numbers: dict[str, list[int]] = defaultdict(list)
    for delivery in evidence.database.deliveries:
        numbers[delivery.subscription].append(delivery.sequence)
    for path, taken in numbers.items():
        last = evidence.database.last_numbers.get(path, 0)
        if sorted(taken) != list(range(1, last + 1)):
            repeated = [number for number, times in Counter(taken).items() if times > 1][:3]
            missing = sorted(set(range(1, last + 1)) - set(taken))[:3]
            yield f"numbers of '{path}' are not 1 to {last}: missing {missing}, repeated {repeated}"


def _ends(evidence: Evidence) -> Iterator[str]:
    """Promise 2: every delivery was delivered, and its receiver says so, or is a dead letter for a reason we made.

    What is cancelled is judged by `delays`: nothing but a correction may do it.
    """
    wanted = {each.path: each for each in evidence.wanted}
    succeeded = {(a.path, a.sequence) for a in evidence.arrivals if a.status is not None and a.status < 300}
    for delivery in evidence.database.deliveries:
        place = f"{delivery.subscription} number {delivery.sequence}"
        if delivery.state == "delivered":
            if (delivery.subscription, delivery.sequence) not in succeeded:
                yield f"recorded as delivered, and its receiver never accepted it: {place}"
        elif delivery.state == "dead":
            if delivery.reason not in wanted[delivery.subscription].allowed_reasons:
                yield f"dead letter without a cause in its receiver: {place}, {delivery.reason}"
        elif delivery.state != "cancelled":
            yield f"still {delivery.state} when all was quiet: {place}, {delivery.attempts} attempts, {delivery.reason}"


def _accounting(evidence: Evidence) -> Iterator[str]:
    """Promise 2's identity: matched = delivered + pending + dead + cancelled, by rows and by totals."""
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for delivery in evidence.database.deliveries:
        rows[delivery.subscription][delivery.state] += 1
    for path, matched in evidence.database.last_numbers.items():
        totals, counted = evidence.database.totals.get(path, Counter()), rows[path]
        if counted.total() != matched:
            yield f"accounting of '{path}': {matched} matched, {counted.total()} rows"
        for state in ("delivered", "dead", "cancelled"):
            if totals[state] != counted[state]:
                yield f"accounting of '{path}': {totals[state]} counted as {state}, {counted[state]} rows are"


def _arrivals(evidence: Evidence) -> Iterator[str]:
    """What arrived is what the delivery row says, signed."""
    events = evidence.database.events
    rows = {(d.subscription, d.sequence): d for d in evidence.database.deliveries}
    for arrival in evidence.arrivals:
        place = f"'{arrival.path}' number {arrival.sequence}"
        row = rows.get((arrival.path, arrival.sequence))
        if not arrival.genuine:
            yield f"signature doesn't verify: {place}"
        if row is None:
            yield f"sent without a delivery in the database: {place}, event {arrival.event_id}"
        elif events.get(row.event_key, ("", ""))[1] != arrival.event_id:
            yield f"number used for another event: {place} came with {arrival.event_id}"


def _order(evidence: Evidence) -> Iterator[str]:
    """Promise 3: numbers follow the order of publication in a lane, and first arrivals follow the numbers."""
    published = {publication.id: publication for publication in evidence.publications}
    for wanted in evidence.wanted:
        yield from _order_of_acceptance(wanted, evidence, published)
        if wanted.ordering == "none":
            continue
        highest: dict[object, int] = {}
        seen: set[int] = set()
        for arrival in evidence.arrivals:
            if arrival.path != wanted.path or arrival.sequence in seen:
                continue
            seen.add(arrival.sequence)
            publication = published.get(arrival.event_id)
            lane = "subscription" if wanted.ordering == "subscription" else publication and publication.lane
            if lane is None:
                continue
            if arrival.sequence < highest.get(lane, 0):
                yield (
                    f"order: '{wanted.path}' number {arrival.sequence} arrived first after {highest[lane]} "
                    f"of the same lane ({lane})"
                )
            highest[lane] = max(highest.get(lane, 0), arrival.sequence)


def _order_of_acceptance(wanted: Wanted, evidence: Evidence, published: Mapping[str, Publication]) -> Iterator[str]:
    places: dict[str, int] = {}
    rows = sorted((d for d in evidence.database.deliveries if d.subscription == wanted.path), key=_by_number)
    for delivery in rows:
        publication = published.get(evidence.database.events.get(delivery.event_key, ("", ""))[1])
        if publication is None or publication.lane is None:
            continue
        if publication.place < places.get(publication.lane, -1):
            yield (
                f"order of acceptance: '{wanted.path}' number {delivery.sequence} is event {publication.place} of "
                f"{publication.lane}, which was confirmed before event {places[publication.lane]} was published"
            )
        places[publication.lane] = max(places.get(publication.lane, -1), publication.place)


def _held(evidence: Evidence) -> Iterator[str]:
    """From the answer that something is held nothing of it begins to leave, until it is released."""
    for held in evidence.held:
        for arrival in evidence.arrivals:
            there = held.since + _UNDER_WAY_SECONDS < arrival.at < held.until
            if there and arrival.body.get("type") == held.type and arrival.sender not in (PULL, QUEUE):
                yield (
                    f"came while its type was held: '{arrival.path}' number {arrival.sequence}, "
                    f"{arrival.at - held.since:.1f} s after the hold was placed"
                )


def _replays(evidence: Evidence) -> Iterator[str]:
    """A replay that was asked for is done, and each of its numbers was sent again, or is said to have been skipped."""
    for asked in evidence.asked:
        state, settled = evidence.database.replays.get(asked.path, ("never begun", 0))
        if (state, settled) != ("done", asked.last):
            yield f"replay of '{asked.path}' is {state}, with {settled} of {asked.last} numbers settled"


_CHECKS = (_acceptance, _matching, _numbers, _ends, _accounting, _arrivals, _order, _held, _replays)


def _by_number(delivery: Delivery) -> int:
    return delivery.sequence


def _repeats(arrivals: Sequence[Arrival]) -> Iterator[tuple[Arrival, Arrival]]:
    """Each arrival after one that was answered with success, with the latest such."""
    last: dict[tuple[str, int], Arrival] = {}
    for arrival in arrivals:
        key = arrival.path, arrival.sequence
        former = last.get(key)
        if former is not None and former.answered_at is not None and former.answered_at <= arrival.at:
            yield former, arrival
        if arrival.status is not None and arrival.status < 300:
            last[key] = arrival


def _unexplained(evidence: Evidence, counted: Counter[str]) -> Iterator[str]:
    """A repetition is explained by a fault that hit its former attempt under way or not yet recorded."""
    for former, again in _repeats(evidence.arrivals):
        if again.sender == QUEUE:  # a confirm that was lost with its connection; when it was published nobody knows
            counted["queue"] += 1
            continue
        if any(
            asked.path == again.path and again.sequence <= asked.last and again.at >= asked.since
            for asked in evidence.asked
        ):
            counted["replay"] += 1
            continue
        causes = [window for window in evidence.windows if _explains(window, former, again)]
        cause = max(causes, key=lambda window: (len(window.senders - {"*"}), window.began), default=None)
        counted["none" if cause is None else cause.kind] += 1
        if cause is None:
            yield (
                f"duplicate without a fault: '{former.path}' number {former.sequence} was accepted from "
                f"{former.sender} and came again from {again.sender} {again.at - former.at:.1f} s later"
            )


def _explains(window: Window, former: Arrival, again: Arrival) -> bool:
    assert former.answered_at is not None
    if again.at < window.began:
        return False
    if window.began > former.answered_at + RECORD_SECONDS or window.ended + RECOVERY_SECONDS < former.at:
        return False
    if window.slow_only and former.answered_at - former.at < _SLOW_ATTEMPT:
        return False
    name = former.sender.partition(".")[0]
    return "*" in window.senders or name in window.senders
