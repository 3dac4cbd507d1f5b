"""Reconciliation: proof that a receiver has every number of a subscription, or which ones it lacks (promise 5).

Every number of a range is either covered by the digest of its block, which a receiver can compute from what it got, or
named by a tombstone. The definition stands in `docs/completeness.md`.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query, Request
from sqlalchemy import Row

from broker.storage import evidence
from broker.storage.evidence import BLOCK
from schemas.problems import InvalidInput, InvalidParam
from schemas.resources.evidence import Block, NumberCounts, Reconciliation, Tombstone, TombstoneState
from subscriptions import subscriptions
from subscriptions.callers import Scope
from subscriptions.context import api_url
from subscriptions.http import ByCaller, InContext, Route, operation

MOST_NUMBERS: Final = 100_000
MOST_TOMBSTONES: Final = 1_000
_DEFAULT_BLOCKS: Final = 10
_NOTHING: Final = sha256().hexdigest()
_DELIVERED: Final = "delivered"
_EXPIRED: Final = "payload-expired"

router = APIRouter(route_class=Route, tags=["subscriptions"])


@dataclass(frozen=True, slots=True)
class _Run:
    """Adjacent numbers in one state, for one reason."""

    first: int
    last: int
    state: str
    reason: str | None


@router.get(
    "/subscriptions/{id}/reconciliation",
    response_model=Reconciliation,
    **operation("reconcile", "Reconcile what was received", scopes=(Scope.CONSUME, Scope.OPERATE), problems=(404,)),
)
async def reconcile(
    request: Request,
    id: UUID,
    caller: ByCaller,
    context: InContext,
    first: Annotated[
        int | None,
        Query(alias="from", ge=1, le=2**63 - 1, description="First number; by default ten blocks before `to`."),
    ] = None,
    last: Annotated[
        int | None,
        Query(
            alias="to",
            ge=1,
            le=2**63 - 1,
            description="Last number, at most 99,999 after `from`; by default `lastSequence`.",
        ),
    ] = None,
) -> Reconciliation:
    """Tells of every number of a range whether it was delivered, with a digest of those that were.

    At most 100,000 numbers; what lies beyond `lastSequence` is left out. An answer ends early, at the end of a block,
    where it would hold more than 1,000 tombstones: `next` has the rest.
    """
    async with context.engine.connect() as connection:
        reading = await connection.execution_options(isolation_level="REPEATABLE READ")
        row = await subscriptions.get(reading, id, organisation_id=None if caller.is_operator else caller.own.id)
        head, complete_through = await evidence.read_head(reading, row.key)
        start, end = _range(first, last, head)
        rows: Sequence[Row[Any]] = ()
        gone: Sequence[Row[Any]] = ()
        provable: list[Row[Any]] = []
        if start <= end:
            await evidence.follow_indexes(reading)
            gone = await evidence.read_retired(reading, row.key, start, end)
            provable = [run for run in gone if run.digest and start <= run.first and run.last <= end]
            rows = await evidence.read_range(reading, row.key, start, end, [run.first for run in provable])
    known = [_Run(row.first, row.last, row.state, row.reason) for row in rows if row.state]
    known += [_retired_run(run, start, end) for run in gone]
    runs = list(_complete(sorted(known, key=lambda run: run.first), start, end))
    shown = _bounded(runs, end)
    runs = [_Run(run.first, min(run.last, shown), run.state, run.reason) for run in runs if run.first <= shown]
    cuts = [run.first for run in provable]
    digests = {((row.first - 1) // BLOCK, bisect_right(cuts, row.first)): row for row in rows if row.digest}
    until = head if last is None else min(last, head)
    return Reconciliation(
        subscription=id,
        last_sequence=head,
        complete_through=complete_through,
        from_=start,
        to=shown,
        clipped=max(first or 0, last or 0) > head,
        counts=_counts(runs),
        blocks=list(_blocks(digests, provable, start, shown)),
        tombstones=[
            Tombstone(from_=run.first, to=run.last, state=TombstoneState(run.state), reason=run.reason)
            for run in runs
            if run.state != _DELIVERED
        ],
        next=_next(request, id, shown + 1, last) if shown < until else None,
    )


def _next(request: Request, id: UUID, first: int, last: int | None) -> str:
    to = "" if last is None else f"&to={last}"
    return f"{api_url(request)}/subscriptions/{id}/reconciliation?from={first}{to}"


def _range(first: int | None, last: int | None, head: int) -> tuple[int, int]:
    """The range to answer first of what is asked for.

    Raises:
        InvalidInput: it runs backwards, or is too long.
    """
    if first is not None and last is not None:
        if last < first:
            raise _wrong("must not be lower than from")
        if last - first >= MOST_NUMBERS:
            raise _wrong(f"must be less than {MOST_NUMBERS} after from")
    end = head if last is None else min(last, head)
    if first is None:
        return max((end - 1) // BLOCK - _DEFAULT_BLOCKS + 1, 0) * BLOCK + 1, end
    return first, min(end, first + MOST_NUMBERS - 1)


def _wrong(reason: str) -> InvalidInput:
    return InvalidInput(params=[InvalidParam(location="query", name="to", code="range", reason=reason)])


def _complete(runs: Sequence[_Run], start: int, end: int) -> Iterator[_Run]:
    """The runs in order, with what is no longer kept between them."""
    expected = start
    for run in runs:
        if run.first > expected:
            yield _Run(expected, run.first - 1, TombstoneState.EXPIRED, _EXPIRED)
        expired = run.state == TombstoneState.EXPIRED
        yield _Run(run.first, run.last, run.state, _EXPIRED) if expired else run
        expected = run.last + 1
    if expected <= end:
        yield _Run(expected, end, TombstoneState.EXPIRED, _EXPIRED)


def _bounded(runs: Sequence[_Run], end: int) -> int:
    """The last number of the answer: the end, or that of a whole block where there would be too many tombstones.

    One block never holds more than are allowed, so an answer always goes on.
    """
    tombstones = [run for run in runs if run.state != _DELIVERED]
    if len(tombstones) <= MOST_TOMBSTONES:
        return end
    too_far = tombstones[MOST_TOMBSTONES].first
    return (too_far - 1) // BLOCK * BLOCK


def _counts(runs: Sequence[_Run]) -> NumberCounts:
    counts = dict.fromkeys((_DELIVERED, *TombstoneState), 0)
    for run in runs:
        counts[run.state] += run.last - run.first + 1
    return NumberCounts(**{str(state): count for state, count in counts.items()})


def _retired_run(row: Row[Any], start: int, end: int) -> _Run:
    """What is retired, as far as it is in the range; a digest that reaches beyond it proves nothing here."""
    whole = start <= row.first and row.last <= end
    first, last = max(row.first, start), min(row.last, end)
    if row.state == _DELIVERED and not whole:
        return _Run(first, last, TombstoneState.EXPIRED, _EXPIRED)
    return _Run(first, last, row.state, row.reason)


def _blocks(
    digests: dict[tuple[int, int], Row[Any]], retired: Sequence[Row[Any]], start: int, end: int
) -> Iterator[Block]:
    """Every block of the range, cut where retired numbers have a digest of their own."""
    if start > end:
        return
    cuts = [run.first for run in retired]
    for place in range((start - 1) // BLOCK, (end - 1) // BLOCK + 1):
        first, last = max(place * BLOCK + 1, start), min((place + 1) * BLOCK, end)
        for run in retired[bisect_left(cuts, first) : bisect_right(cuts, last)]:
            if first < run.first:
                yield _block(digests, cuts, place, first, run.first - 1)
            yield Block(from_=run.first, to=run.last, delivered=run.last - run.first + 1, digest=run.digest)
            first = run.last + 1
        if first <= last:
            yield _block(digests, cuts, place, first, last)


def _block(digests: dict[tuple[int, int], Row[Any]], cuts: Sequence[int], place: int, first: int, last: int) -> Block:
    """A block, or a part of one; also without a delivered number."""
    found = digests.get((place, bisect_right(cuts, first)))
    return Block(
        from_=first,
        to=last,
        delivered=0 if found is None else found.delivered,
        digest=_NOTHING if found is None else found.digest,
    )
