"""Judging delays and corrections: what waits is delivered in its time, or cancelled by a correction, never both.

All of it goes by PostgreSQL's clock. In time is a correction that is accepted while what it corrects still waits.
Where that clock jumped between the two, what was in time can't be told from outside, and isn't judged; that nothing is
both cancelled and sent is judged all the same.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.chaos.clock import Readings
from tests.chaos.evidence import Delivery, Evidence
from tests.chaos.providers import PULL, QUEUE
from tests.chaos.publishers import Publication
from tests.chaos.subscribers import DELAY_SECONDS, REPLACE, WITHDRAW

_EXACT_SECONDS = 0.01
"""Acceptance is known to the millisecond."""


@dataclass(slots=True)
class _Known:
    """The evidence by what is asked of it."""

    published: dict[str, Publication]
    keys: dict[str, int]
    rows: dict[tuple[str, int], Delivery]
    """By subscription and event."""
    corrections: dict[str, list[Publication]] = field(default_factory=lambda: defaultdict(list))
    """What was accepted of them, by what they correct."""

    @classmethod
    def of(cls, evidence: Evidence) -> "_Known":
        known = cls(
            {publication.id: publication for publication in evidence.publications},
            {identity: key for key, (_, identity) in evidence.database.events.items()},
            {(row.subscription, row.event_key): row for row in evidence.database.deliveries},
        )
        for publication in evidence.publications:
            if publication.corrects is not None and publication.id in known.keys:
                known.corrections[publication.corrects].append(publication)
        return known


def early(evidence: Evidence) -> Iterator[str]:
    """Nothing of a delayed type comes before its delay is over, by the furthest that PostgreSQL's clock can have shown.

    When something came into a queue nobody knows: that is taken out at the end.
    """
    known, readings = _Known.of(evidence), Readings(evidence.wall_offset, evidence.jumps)
    for arrival in evidence.arrivals:
        publication, key = known.published.get(arrival.event_id), known.keys.get(arrival.event_id)
        if publication is None or key is None or not publication.waits or arrival.sender == QUEUE:
            continue
        accepted = evidence.database.accepted[key]
        missing = accepted + DELAY_SECONDS - readings.furthest(readings.earliest(accepted), arrival.at)
        if missing > _EXACT_SECONDS:
            yield (
                f"came before its delay was over: '{arrival.path}' number {arrival.sequence}, {missing:.2f} s too early"
            )


def corrected(evidence: Evidence) -> Iterator[str]:
    """What was corrected in time is cancelled and not sent; nothing else is; a withdrawal of it isn't delivered."""
    known, readings = _Known.of(evidence), Readings(evidence.wall_offset, evidence.jumps)
    database = evidence.database
    arrived = {(arrival.path, arrival.sequence): arrival.sender for arrival in evidence.arrivals}
    for row in database.deliveries:
        publication = known.published.get(database.events.get(row.event_key, ("", ""))[1])
        if publication is None:
            continue
        place = f"'{row.subscription}' number {row.sequence}"
        if row.state != "cancelled":
            yield from _kept(row, publication, place, known, evidence, readings)
            continue
        sender = arrived.get((row.subscription, row.sequence))
        by = next((each for each in known.corrections[publication.id] if row.reason == _reason(each)), None)
        if by is None:
            if not _follows(row, publication, known):
                yield f"cancelled without a correction: {place}, {row.reason}"
        elif _verdict(by, row.event_key, known, evidence, readings) is False:
            yield f"cancelled by a correction that came too late: {place}, {row.reason}"
        if sender is not None and not (
            sender == PULL and by is not None and _verdict(by, row.event_key, known, evidence, readings) is None
        ):
            yield f"cancelled, and sent all the same: {place}, {row.reason}"


def tombstones(evidence: Evidence) -> Iterator[str]:
    """What is pulled as a tombstone is cancelled, with the reason that the tombstone tells."""
    rows = {(row.subscription, row.sequence): row for row in evidence.database.deliveries}
    for (path, number), stone in evidence.stones.items():
        row = rows.get((path, number))
        there = ("missing", None) if row is None else (row.state, row.reason)
        if there != (stone.state, stone.reason):
            yield f"pulled as a tombstone: '{path}' number {number}, {stone.state} ({stone.reason}), is {there}"


CHECKS = (early, corrected, tombstones)


def _kept(
    row: Delivery, publication: Publication, place: str, known: _Known, evidence: Evidence, readings: Readings
) -> Iterator[str]:
    """What a delivery that was not cancelled should have been cancelled for."""
    for by in known.corrections[publication.id]:
        if publication.waits and _verdict(by, row.event_key, known, evidence, readings):
            yield f"corrected in time, and {row.state} all the same: {place}, by {by.id}"
    if publication.corrects is not None and publication.correction == WITHDRAW:
        former = known.rows.get((row.subscription, known.keys.get(publication.corrects, -1)))
        if former is not None and former.state == "cancelled" and former.reason == _reason(publication):
            yield f"withdrawal of what was not delivered is {row.state}: {place}"


def _follows(row: Delivery, publication: Publication, known: _Known) -> bool:
    """Whether this is a withdrawal that nobody needs where what it withdrew was cancelled by it."""
    if publication.correction != WITHDRAW or publication.corrects is None:
        return False
    former = known.rows.get((row.subscription, known.keys.get(publication.corrects, -1)))
    return (
        row.reason == f"withdrawal: {publication.corrects} was not delivered"
        and former is not None
        and former.state == "cancelled"
        and former.reason == _reason(publication)
    )


def _reason(correction: Publication) -> str:
    """Why a delivery of what it corrects is cancelled."""
    return f"{'corrected' if correction.correction == REPLACE else 'withdrawn'}: by {correction.id}"


def _verdict(by: Publication, key: int, known: _Known, evidence: Evidence, readings: Readings) -> bool | None:
    """Whether a correction was surely in time (True) or surely too late (False); None: it can't be told.

    The moment at which it cancels lies between its acceptance and the commit of that.
    """
    database = evidence.database
    own = known.keys[by.id]
    until = database.accepted[key] + DELAY_SECONDS
    if readings.jumped(readings.earliest(database.accepted[key]), readings.latest(database.committed[own])):
        return None
    if database.committed[own] < until:
        return True
    return False if database.accepted[own] >= until else None
