"""What a soak calls flat, and what not."""

from random import Random
from typing import Any

import pytest

from broker.tools.bench_soak_report import Sample, Workload, fit, report, tables


def sample(minute: float, **changes: Any) -> Sample:
    delivered = int(minute * 60_000)
    names = ("events", "deliveries", "leases")
    fields: dict[str, Any] = {
        "at": 1_000_000 + minute * 60, "matched": delivered + 5, "delivered": delivered,
        "memory_mb": {"deliver0": 100.0}, "cpu_seconds": {"deliver0": minute * 9}, "p50_ms": 10.0, "p99_ms": 30.0,
        "wal_bytes": delivered * 900, "commits": delivered // 20,
        "table_bytes": {"events": delivered * 130, "deliveries": delivered * 150, "leases": 8192},
        "index_bytes": {"events": delivered * 4, "deliveries": delivered * 160, "leases": 16384},
        "dead_rows": dict.fromkeys(names, 10), "updates": {"events": 0, "deliveries": delivered, "leases": 100},
        "hot_updates": {"events": 0, "deliveries": 0, "leases": 100}, "vacuums": dict.fromkeys(names, 1),
        "pending_index_bytes": 500_000, "load": 1.0,
    }  # fmt: skip
    return Sample(**(fields | changes))


def test_line_has_the_slope_of_its_points_and_a_spread_that_shrinks_with_their_number() -> None:
    random = Random(1)
    line = fit("x", "MB", [0, 1, 2, 3], [5, 7, 9, 11])
    assert (line.mean, line.slope, line.spread) == (8, 2, 0)
    few, many = (
        fit("x", "", [n / count for n in range(count)], [random.gauss(0, 1) for _ in range(count)])
        for count in (10, 1000)
    )
    assert few.spread > 3 * many.spread
    assert fit("x", "", [0, 1], [0, 9]).flat, "two points say nothing"


@pytest.mark.parametrize(
    ("grows", "flat"),
    [
        pytest.param(lambda minute: 100 + minute, False, id="grows steadily"),
        pytest.param(lambda minute: 100 + minute / 100, True, id="grows, and it doesn't matter"),
        pytest.param(lambda minute: 100 + Random(minute).gauss(0, 20), True, id="goes up and down"),
        pytest.param(lambda minute: 40 if minute < 6 else 100, True, id="warms up"),
    ],
)
def test_memory_that_grows_is_not_flat(grows: Any, flat: bool) -> None:
    found = report(
        Workload(30, 1000), [sample(minute, memory_mb={"deliver0": grows(minute)}) for minute in range(1, 31)]
    )
    assert {line.name: line.flat for line in found.lines}["memory of deliver0"] is flat


def test_costs_are_told_for_each_delivery_and_growth_of_tables_by_what_a_delivery_needs() -> None:
    found = report(Workload(30, 1000), [sample(minute) for minute in range(1, 31)])
    assert all(line.flat for line in found.lines)
    costs = found.per_delivery
    assert costs["CPU of deliver0, µs"] == pytest.approx(150)
    assert costs["WAL, bytes"] == pytest.approx(900)
    assert costs["deliveries, bytes"] == pytest.approx(150)
    assert "leases, bytes" not in costs
    [at_rest] = [line for line in found.lines if line.name.startswith("bytes at rest")]
    assert at_rest.mean == pytest.approx(444)
    assert len(tables(found)) == 4
    assert found.as_json()["flat"]["latency p50"] is True
