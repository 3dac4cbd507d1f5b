"""`bode bench match`: what matching costs on one core, from the bytes of an event to the list of subscriptions.

Each line pairs the index with a plain `orjson.loads` of the same events in the same run, because figures of a shared
machine mean little by themselves. Rates and percentiles count the thread's own time; `p99_wall` is of the wall clock.
"""

from __future__ import annotations

import gc
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Final

import orjson
import psutil

from broker.matching.context import ListsOf
from broker.matching.effort import candidates
from broker.matching.follows import Base, Fingerprints, FollowLists, build
from broker.matching.index import Index
from broker.storage import follow_files
from broker.tools.match_workloads import WORKLOADS, Workload, World
from schemas.cloudevents import from_structured
from schemas.filters import Condition

SIZES: Final = (1_000, 10_000, 100_000, 1_000_000)
LISTS: Final = 4_000
_SAMPLE: Final = 300
_KEY: Final = b"only for the benchmark"


@dataclass(frozen=True, slots=True)
class Options:
    """What to measure. Without `sizes` each workload takes those of the design's budgets."""

    workloads: str = "abcdefgh"
    sizes: tuple[int, ...] = ()
    runs: int = 3
    events: int = 5_000
    followed: int = 50_000_000
    seed: int = 1
    progress: Callable[[str], None] = print


@dataclass(frozen=True, slots=True)
class Line:
    """One workload at one size: medians over the runs, and how far the rates lay apart."""

    workload: str
    title: str
    subscriptions: int
    events_per_second: float
    slowest_per_second: float
    fastest_per_second: float
    orjson_per_second: float
    decoded_per_second: float
    p50_microseconds: float
    p99_microseconds: float
    p99_wall_microseconds: float
    candidates: float
    matches: float
    evaluated_always: int
    put_microseconds: float
    change_microseconds: float
    megabytes: float
    followed: int = 0
    bytes_per_followed: float = 0.0

    def as_row(self) -> str:
        """For people."""
        spread = f"{self.slowest_per_second:,.0f}-{self.fastest_per_second:,.0f}"
        row = f"{self.workload:2}{self.subscriptions:>13,}{self.events_per_second:>10,.0f}{spread:>20}"
        row += f"{self.orjson_per_second:>10,.0f}{self.decoded_per_second:>10,.0f}{self.p50_microseconds:>7.1f}"
        row += f"{self.p99_microseconds:>8.1f}{self.p99_wall_microseconds:>8.1f}{self.candidates:>8.1f}"
        row += f"{self.matches:>8.1f}{self.evaluated_always:>8,}"
        row += f"{self.put_microseconds:>7.1f}{self.change_microseconds:>8.1f}{self.megabytes:>6.0f}"
        if self.followed:
            row += f"  {self.followed:,} followed, {self.bytes_per_followed:.1f} bytes each"
        return row


@dataclass(frozen=True, slots=True)
class Report:
    """All lines."""

    lines: tuple[Line, ...]

    def as_json(self) -> str:
        """For machines."""
        return json.dumps([asdict(line) for line in self.lines], indent=2)

    def as_table(self) -> str:
        """For people."""
        head = f"{'':2}{'subscriptions':>13}{'ev/s':>10}{'(spread)':>20}{'orjson/s':>10}{'decoded':>10}"
        head += f"{'p50':>7}{'p99':>8}"
        head += f"{'wall':>8}{'cand.':>8}{'match':>8}{'always':>8}{'put':>7}{'change':>8}{'MB':>6}"
        return "\n".join([head, *(line.as_row() for line in self.lines)])


def run(options: Options) -> Report:
    """Measure; takes minutes at the largest sizes, and some gigabytes for 50 million followed subjects."""
    lines: list[Line] = []
    for workload in WORKLOADS:
        if workload.letter not in options.workloads:
            continue
        for size in options.sizes or _sizes(workload):
            options.progress(f"({workload.letter}) {workload.title}: {size:,} subscriptions")
            lines.append(_measure(workload, size, options))
            options.progress(lines[-1].as_row())
            gc.unfreeze()
            gc.collect()
    return Report(tuple(lines))


def _sizes(workload: Workload) -> tuple[int, ...]:
    match workload.letter:
        case "c":
            return (1_000_000,)
        case "d" | "e" | "f" | "g" | "h":
            return (100_000,)
    return SIZES


def _measure(workload: Workload, size: int, options: Options) -> Line:
    world = World(size, options.seed)
    if workload.letter != "c":
        return _fill(workload, world, options, None, 0, 0.0)
    with tempfile.TemporaryDirectory(prefix="bode-bench-") as folder:
        base = _follow_lists(Path(folder), world, options)
        lists = FollowLists(Fingerprints(_KEY), base)
        return _fill(workload, world, options, lists.lists_of, base.count, base.size / base.count)


def _follow_lists(folder: Path, world: World, options: Options) -> Base:
    """Subjects on lists: half of what events have as `subject` and `afdeling`, and numbers nobody has."""
    rng = random.Random(options.seed)

    def entries() -> Iterator[tuple[str, str]]:
        asked = world.counts["subject"] // 2
        for number in range(asked):
            yield f"list-{rng.randrange(LISTS)}", f"{999_000_000 + 2 * number:09d}"
        for number in range(world.counts["afdeling"] // 2):
            yield f"list-{rng.randrange(LISTS)}", f"afdeling-{2 * number}"
        for number in range(options.followed - asked):
            yield f"list-{number % LISTS}", f"{number:09d}"

    started = time.perf_counter()
    path = follow_files.write_version(folder, 1, build(entries(), Fingerprints(_KEY), 1))
    options.progress(f"    follow lists built and written in {time.perf_counter() - started:.0f} s")
    return Base(follow_files.map_version(path))


def _fill(
    workload: Workload, world: World, options: Options, lists_of: ListsOf | None, followed: int, each: float
) -> Line:
    conditions = list(workload.subscriptions(world))
    gc.collect()
    gc.freeze()
    memory = psutil.Process().memory_info().rss
    index = Index(lists_of) if lists_of is not None else Index()
    put = _time(partial(_put_all, index, conditions)) / world.size
    megabytes = (psutil.Process().memory_info().rss - memory) / 1_000_000
    gc.collect()
    gc.freeze()
    count = min(options.events, workload.events_max)
    events = [world.event(workload.extra) for _ in range(count)]
    matches = sum(len(index.match_body(body)) for body in events) / len(events)
    looked_at = candidates(index, [from_structured(body) for body in events[:_SAMPLE]])
    rates, plain, decoded, p50s, p99s, walls = [], [], [], [], [], []
    for _ in range(options.runs):
        events = [world.event(workload.extra) for _ in range(count)]
        plain.append(len(events) / _time(partial(_each, orjson.loads, events)))
        rates.append(len(events) / _time(partial(_each, index.match_body, events)))
        known = [from_structured(body) for body in events]
        decoded.append(len(events) / _time(partial(_each, index.match, known)))
        spans = sorted(_clock(index, body, time.thread_time_ns) for body in events)
        wall = sorted(_clock(index, body, time.perf_counter_ns) for body in events)
        walls.append(wall[len(wall) * 99 // 100] / 1000)
        p50s.append(spans[len(spans) // 2] / 1000)
        p99s.append(spans[len(spans) * 99 // 100] / 1000)
    return Line(
        workload=workload.letter,
        title=workload.title,
        subscriptions=world.size,
        events_per_second=median(rates),
        slowest_per_second=min(rates),
        fastest_per_second=max(rates),
        orjson_per_second=median(plain),
        decoded_per_second=median(decoded),
        p50_microseconds=median(p50s),
        p99_microseconds=median(p99s),
        p99_wall_microseconds=median(walls),
        candidates=looked_at,
        matches=matches,
        evaluated_always=index.scanned,
        put_microseconds=put * 1e6,
        change_microseconds=_change(index, conditions) * 1e6,
        megabytes=megabytes,
        followed=followed,
        bytes_per_followed=each,
    )


def _put_all(index: Index, conditions: Iterable[Condition]) -> None:
    for key, condition in enumerate(conditions):
        index.put(key, condition)


def _each(function: Callable[[Any], object], given: Iterable[Any]) -> None:
    for one in given:
        function(one)


def _time(work: Callable[[], None]) -> float:
    started = time.thread_time()
    work()
    return time.thread_time() - started


def _clock(index: Index, body: bytes, clock: Callable[[], int]) -> int:
    started = clock()
    index.match_body(body)
    return clock() - started


def _change(index: Index, conditions: list[Condition]) -> float:
    """One change: a subscription taken out or put in."""
    keys = range(0, len(conditions), max(1, len(conditions) // 2_000))

    def work() -> None:
        for key in keys:
            index.discard(key)
            index.put(key, conditions[key])

    return _time(work) / len(keys) / 2
