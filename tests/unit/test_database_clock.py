import time
from datetime import UTC, datetime, timedelta

import pytest

from broker.storage.clock import DatabaseClock


def test_time_is_that_of_the_database_and_goes_on_by_the_monotonic_clock() -> None:
    clock = DatabaseClock()
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(minutes=1)
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    clock.told(long_ago, time.monotonic() - 60)
    assert timedelta(seconds=60) <= clock.now() - long_ago < timedelta(minutes=5)


def test_seconds_are_the_same_time_whatever_the_machine_says(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, now = DatabaseClock(), datetime.now(UTC)
    clock.told(now, time.monotonic())
    monkeypatch.setattr(time, "time", lambda: now.timestamp() + 7200)
    assert abs(clock.seconds() - now.timestamp()) < 60
    assert abs(clock.seconds() - clock.now().timestamp()) < 1
