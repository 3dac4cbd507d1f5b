"""How long what is ready waits to be one batch."""

from typing import Any
from uuid import uuid4

import pytest

from broker.delivery.batches import Batches
from broker.delivery.lanes import Delivery
from broker.delivery.pace import Pace
from broker.delivery.runners import Runner
from broker.delivery.sender import Sink
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
