"""Promises broken on purpose, to show that the suite can fail.

Nothing in the product knows of these: each replaces something in the process before its command runs.
"""

from typing import Any


def acknowledge_before_commit() -> None:
    """A batch is acknowledged before it is committed: what dies in between is lost."""
    from broker.ingest.consumer import QueueConsumer

    accept: Any = QueueConsumer._accept
    consume: Any = QueueConsumer._consume

    async def consuming(self: Any, connection: Any) -> None:
        make = connection.channel

        async def channel(**options: Any) -> Any:
            made = await make(**options)
            underlay: Any = await made.get_underlay_channel()
            self._acknowledge = underlay.basic_ack
            underlay.basic_ack = _nothing
            return made

        connection.channel = channel
        await consume(self, connection)

    async def accepting(self: Any, arrivals: Any, closed: Any) -> Any:
        await self._acknowledge(arrivals[-1].tag, multiple=True)
        return await accept(self, arrivals, closed)

    QueueConsumer._consume = consuming  # type: ignore[method-assign]
    QueueConsumer._accept = accepting  # type: ignore[method-assign]


async def _nothing(*_: Any, **__: Any) -> None:
    """Already acknowledged."""


def no_fencing() -> None:
    """A process believes that a lease is its own for ever, and outcomes count under any epoch."""
    from broker.leasing import Leasing
    from broker.storage import records

    Leasing.holds = lambda self, number: number in self.epochs  # type: ignore[method-assign]
    records._RECORD = _without("AND leases.epoch = outcome.epoch", records._RECORD)
    records._RECORD_DELIVERED = _without("AND leases.epoch = ours.epoch", records._RECORD_DELIVERED)


def no_deduplication() -> None:
    """Every event counts as new."""
    from broker.storage import acceptance

    async def claim(_: Any, __: Any, keys: list[int]) -> set[int]:
        return set(keys)

    acceptance.claim_ids = claim  # type: ignore[assignment]


def lane_released_early() -> None:
    """A lane goes on as soon as its first has been taken, before its outcome is known."""
    from broker.delivery.lanes import Delivery, RunQueue

    take, done, retry = RunQueue.take, RunQueue.done, RunQueue.retry

    def taking(self: RunQueue, now: float) -> Delivery | None:
        delivery = take(self, now)
        if delivery is not None and delivery.lane in self._lanes:
            done(self, delivery, now)
        return delivery

    def retrying(self: RunQueue, delivery: Delivery, due: float) -> None:
        lane, delivery.lane = delivery.lane, None
        retry(self, delivery, due)
        delivery.lane = lane

    RunQueue.take = taking  # type: ignore[method-assign]
    RunQueue.done = lambda self, delivery, now: None  # type: ignore[method-assign]
    RunQueue.retry = retrying  # type: ignore[method-assign]


def outcome_without_guard() -> None:
    """An outcome is written whatever state its delivery is in."""
    from broker.storage import records

    guard = "AND delivery.ended_at IS NULL"
    records._RECORD = _without(guard, records._RECORD)
    records._RECORD_DELIVERED = _without(guard, records._RECORD_DELIVERED)


def taken_unasked() -> None:
    """What has waited for its delay is sent without asking whether it was cancelled, which nobody is told of either.

    The wake-up that tells it makes corrections quick, and may be lost.
    """
    from broker.ingest import corrections as read_corrections
    from broker.storage import corrections

    async def take(_: Any, deliveries: Any) -> Any:
        return {(subscription, sequence): corrections.Taken(True) for subscription, sequence, _ in deliveries}

    corrections.take = take
    read_corrections.subscriptions_told = lambda _: ()


def _without(guard: str, statement: str) -> str:
    assert guard in statement
    return statement.replace(guard, "")


MUTATIONS = {
    "acknowledge-before-commit": acknowledge_before_commit,
    "no-fencing": no_fencing,
    "no-deduplication": no_deduplication,
    "lane-released-early": lane_released_early,
    "outcome-without-guard": outcome_without_guard,
    "taken-unasked": taken_unasked,
}
