"""How long what is ready waits to be one batch, and what batches hold in memory meanwhile."""

from typing import Any
from uuid import uuid4

import pytest

from broker.delivery.batches import Batch, Batches
from broker.delivery.bodies import Body
from broker.delivery.lanes import Delivery
from broker.delivery.pace import Pace
from broker.delivery.runners import Runner
from broker.delivery.sender import Sink
from broker.delivery.turns import Place
from broker.storage.tables import KEY_SHIFT
from subscriptions.secrets import signing_secret
from subscriptions.sinks import BatchLimits, SinkConfig
from subscriptions.tables import Status

LINGER = 2.0


def runner() -> Runner:
    limits = BatchLimits(10, 1 << 20, LINGER)
    given = (7, uuid4(), uuid4(), "https://sink.example/", Status.ACTIVE, (signing_secret(),), ())
    config = SinkConfig(*given, None, None, None, {}, None, batch=limits)
    return Runner(Sink.of(config, "bode.example"), 7, Pace(16))


def batches() -> Batches:
    nothing: Any = None
    return Batches(nothing, nothing, nothing, nothing, lambda: 0.0)


def one(accepted_at: float) -> Delivery:
    return Delivery(7, 1, int(accepted_at * 1000) << KEY_SHIFT, None)


@pytest.mark.parametrize("set_back", [0.0, 1.0, 3600.0])
@pytest.mark.parametrize("age", [0.0, 1.5])
def test_nothing_waits_longer_than_it_may_also_when_the_clock_is_set_back(set_back: float, age: float) -> None:
    waiting, lingering, now = runner(), batches(), 10_000.0
    waiting.queue.offer([one(now - age)], now)
    waited = lingering.lingers(waiting, now) / 2
    assert waited == (LINGER - age) / 2
    now += waited - set_back
    rest = lingering.lingers(waiting, now)
    assert 0 < rest <= LINGER
    assert lingering.lingers(waiting, now + rest) == pytest.approx(0, abs=1e-6)


class Cold:
    """Bodies that all have to be read."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def kept(self, _: int) -> None:
        """Nothing is in memory."""

    def has(self, _: int) -> bool:
        return False

    def ask(self, _: int, wanted: Any) -> None:
        self.asked.append(wanted)


class Host:
    """An engine whose shard has gone meanwhile."""

    def is_ours(self, _: Runner) -> bool:
        return False

    def leave(self, batch: Batch, now: float) -> None:
        """It is over."""


def test_what_is_gathered_counts_before_it_is_sent_and_no_longer_when_it_is_over() -> None:
    cold, host, nothing = Cold(), Host(), None
    office = Batches(host, cold, nothing, nothing, lambda: 0.0)  # type: ignore[arg-type]  # as much as it asks of them
    sending = runner()
    sending.pace.begin(0.0)
    sending.queue.offer([Delivery(7, number, number << KEY_SHIFT, None) for number in (1, 2, 3)], 0.0)
    batch = Batch(office, sending, office.take(sending, 0.0), 1, Place(sending, 0.0), 0.0)
    batch.gather()
    first, second, third = cold.asked
    first.opened(Body("nl.brp.iets", b"x" * 1000))
    second.opened(Body("nl.brp.iets", b"x" * 500))
    assert office.held == 1500
    third.opened(None)
    assert office.held == 0, "the shard had gone: given up"
