"""The check of repetitions itself: it sees what it is for, and excuses nothing else."""

import math
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from delivery_evidence import Expected
from delivery_processes import DeliverProcess
from delivery_promises import Promises
from scripted_sinks import Arrival, Move

CONCURRENCY = 2


def arrival(process: str, at: float, sequence: int = 1) -> Arrival:
    return Arrival("s", sequence, process, "e", Move.ACCEPT, 0, at, at, ended=at + 0.1, ended_by_clock=at + 0.1)


def evidence(*arrivals: Arrival) -> Promises:
    """Of one subscription in one shard, which `p1` owns from 0 s and `p2` from 100 s."""
    processes = {name: DeliverProcess(name, 0, uuid4(), Path()) for name in ("p1", "p2")}
    made = Promises({"s": Expected(1, uuid4(), (1.0,))}, {"s": list(arrivals)}, processes, 1, CONCURRENCY)
    p1, p2 = processes["p1"].owner, processes["p2"].owner
    made.owners[0] = [  # type: ignore[assignment]  # rows of the database, or what is read like them
        {"number": 0, "former": None, "owner": p1, "epoch": 1, "at": 0.0},
        {"number": 0, "former": p1, "owner": p2, "epoch": 2, "at": 100.0},
    ]
    return made


def stopped(process: DeliverProcess) -> None:
    process.stops.append((50.0, 95.0))


@pytest.mark.parametrize(
    ("befalls", "first"),
    [
        (lambda _: None, 99.5),
        (lambda process: process.disturbed.append(50.0), 49.5),
        (stopped, 49.5),
        (stopped, 95.5),
    ],
    ids=["the shard was parted with", "killed", "stopped", "woken"],
)
def test_what_was_in_flight_may_come_again(befalls: Callable[[DeliverProcess], None], first: float) -> None:
    found = evidence(arrival("p1", first), arrival("p2", 103.0))
    befalls(found.processes["p1"])
    assert list(found.repetitions()) == []


@pytest.mark.parametrize("first", [20.0, 48.0 - 0.2, 96.5, 101.5], ids=["long before", "before", "after", "once lost"])
def test_what_was_over_may_not(first: float) -> None:
    found = evidence(arrival("p1", first), arrival("p2", 110.0))
    if first < 100:
        found.owners[0][1] = {**found.owners[0][1], "at": 105.0}  # type: ignore[dict-item]
    stopped(found.processes["p1"])
    assert len(list(found.repetitions())) == 1


def test_a_change_of_hands_excuses_only_what_was_in_flight_then() -> None:
    """Not whatever came before it and again after it, and not what the new owner sends twice."""
    assert len(list(evidence(arrival("p1", 60.0), arrival("p2", 103.0)).repetitions())) == 1
    assert len(list(evidence(arrival("p2", 103.0), arrival("p2", 110.0)).repetitions())) == 1


def test_no_more_comes_again_than_can_be_in_flight() -> None:
    numbers = range(1, CONCURRENCY + 2)
    arrivals = [arrival(process, at, number) for process, at in (("p1", 49.9), ("p2", 103.0)) for number in numbers]
    found = evidence(*arrivals)
    found.processes["p1"].stops.append((50.0, math.inf))
    assert [each.split(" because ")[0] for each in found.repetitions()] == ["3 came again at 1"]
