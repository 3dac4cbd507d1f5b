"""The benchmarks run, at the smallest size, and say what they should. No time is asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from broker.tools.bench_installation import Workload
from broker.tools.bench_report import Report, Run, Throughput
from broker.tools.bench_yardsticks import Yardstick

KINDS = {"deliver", "ingest", "postgresql", "rabbitmq"}
SPREAD = {"median", "lowest", "highest"}


def bench(tmp_path: Path, *arguments: str) -> tuple[Any, str]:
    """What a benchmark gave as JSON, and what it said beside."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BODE_")}
    done = subprocess.run(
        [sys.executable, "-m", "broker.cli", "bench", *arguments, "--json"],
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
        env={**environment, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout[done.stdout.index("{") if arguments[0] != "deliver" else 0 :]), done.stderr


@pytest.mark.timeout(900)
def test_bench_deliver_measures_throughput_latency_and_yardsticks(tmp_path: Path) -> None:
    picture = tmp_path / "picture.svg"
    options = "--fan-out 2 --batch 20 --sinks 3 --deliveries 100 --runs 1 --rate 100 --seconds 0.5"
    [report], said = bench(tmp_path, "deliver", *options.split(), "--plot", str(picture))
    workload = report["workload"]
    assert (workload["fan_out"], workload["sinks"], workload["payload_bytes"]) == (2, 3, 1000)
    assert report["environment"]["receiver"] in ("nginx", "bode bench's own")
    [run] = report["runs"]
    full, steady = run["throughput"], run["latency"]
    assert set(full["cpu_us"]) == KINDS
    assert set(full["process_cpu_us"]) == {"deliver0", "ingest0", "postgresql", "rabbitmq"}
    assert min(full["memory_mb"].values()) > 1
    assert full["deliveries_per_second"] > 0
    assert full["rows"] >= 1
    assert full["wal_bytes"] > 100
    assert 0 < full["commits"] < 100
    assert steady["counted"] >= 50
    assert steady["p50_ms"] <= steady["p99_ms"] <= steady["highest_ms"]
    assert set(run["yardsticks"]) == {"bare_client", "bare_aiohttp", "bare_consume", "signing_v1", "signing_v1a"}
    assert run["yardsticks"]["signing_v1"]["cpu_us"] < run["yardsticks"]["signing_v1a"]["cpu_us"]
    assert "signing_v1_percent" not in report["summary"], "a batch has one signature"
    yardsticks = {name: Yardstick(**one) for name, one in run["yardsticks"].items()}
    alone = Report(Workload(2), 100.0, {}, [Run(Throughput(**full), None, yardsticks, 0.0)]).summary()
    assert 0 < alone["signing_v1_percent"].median < alone["signing_v1a_percent"].median
    assert all(one["per_second"] > 0 for one in run["yardsticks"].values())
    assert {"deliveries_per_second", "cpu_us", "p50_ms", "p99_ms", "bare_consume_per_second"} <= set(report["summary"])
    assert all(set(spread) == SPREAD for spread in report["summary"].values())
    assert "fan-out 2, 3 sinks, 1,000 bytes, batches of 20" in said
    words = [element.text for element in ElementTree.parse(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert "deliveries per second, full speed" in words
    assert list(tmp_path.iterdir()) == [picture], "it leaves nothing behind"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_bench_follow_loads_verifies_and_changes(tmp_path: Path) -> None:
    report, _ = bench(tmp_path, "follow", "--subjects", "3000", "--lists", "3")
    assert (report["subjects"], report["lists"]) == (3_000, 3)
    assert report["table_bytes_each"] > 40
    assert report["file_bytes_each"] > 8
    assert min(report["verify_us"], report["change_us"], report["apply_us"], report["look_up_us"]) > 0


@pytest.mark.long
@pytest.mark.timeout(900)
def test_bench_changes_are_seen_by_the_very_next_events(tmp_path: Path) -> None:
    report, _ = bench(tmp_path, "changes", "--subscriptions", "30", "--at-once", "10", "--rounds", "3")
    assert (report["subscriptions"], report["rounds"]) == (30, 3)
    assert report["applied_per_second"] > 0
    assert report["applied_version"] >= 60


@pytest.mark.timeout(900)
def test_bench_deliver_measures_queues_on_another_rabbitmq(tmp_path: Path) -> None:
    options = "--fan-out 2 --sinks 2 --deliveries 100 --runs 1 --measure throughput --to rabbitmq"
    [report], said = bench(tmp_path, "deliver", *options.split())
    assert (report["workload"]["to"], report["environment"]["receiver"]) == ("rabbitmq", "queues (rabbitmq)")
    [run] = report["runs"]
    assert set(run["throughput"]["cpu_us"]) == KINDS
    assert run["throughput"]["receiver_cpu_us"] > 0, "it is the other RabbitMQ"
    assert "to rabbitmq" in said


@pytest.mark.timeout(900)
def test_bench_start_measures_first_and_later_starts(tmp_path: Path) -> None:
    report, said = bench(tmp_path, "start", "--runs", "1")
    kinds = [(start["rabbitmq"], start["first"]) for start in report["starts"]]
    assert kinds == [(False, True), (False, False), (True, True), (True, False)]
    assert all(start["seconds"] > 0.1 and start["cpu_seconds"] > 0.1 for start in report["starts"]), said
    assert list(tmp_path.iterdir()) == []
