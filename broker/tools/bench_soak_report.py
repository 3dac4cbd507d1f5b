"""What a soak found: samples, lines through what must be flat, and tables for people. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any, Final

from rich.table import Table

_SIGNIFICANT: Final = 3.0
"""A slope is called one when it is so many times its spread …"""
_MATTERS: Final = 0.05
"""… and, carried over the whole run, changes the mean by more than this share."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What is done: `rate` deliveries a second, for `minutes`."""

    minutes: float
    rate: float
    fan_out: int = 10
    payload_bytes: int = 1000
    sample_seconds: float = 30.0
    subjects: int = 1000
    deliver_processes: int = 1
    ingest_processes: int = 1


@dataclass(frozen=True, slots=True)
class Sample:
    """One look. Memory in megabytes, latency in milliseconds, sizes in bytes; CPU in seconds since the start."""

    at: float
    matched: int
    delivered: int
    memory_mb: dict[str, float]
    cpu_seconds: dict[str, float]
    p50_ms: float
    p99_ms: float
    wal_bytes: int
    commits: int
    table_bytes: dict[str, int]
    index_bytes: dict[str, int]
    dead_rows: dict[str, int]
    updates: dict[str, int]
    hot_updates: dict[str, int]
    vacuums: dict[str, int]
    pending_index_bytes: int
    load: float
    """The machine's load average of a minute: what ran beside it."""


@dataclass(frozen=True, slots=True)
class Line:
    """A least-squares line through one figure: its mean, and its slope an hour with its standard error."""

    name: str
    unit: str
    mean: float
    slope: float
    spread: float
    hours: float

    @property
    def verdict(self) -> str:
        """For people."""
        return "yes" if self.flat else "falls" if self.slope < 0 else "GROWS"

    @property
    def flat(self) -> bool:
        """Whether the slope is lost in its spread, or too small to matter over the run."""
        unclear = abs(self.slope) < _SIGNIFICANT * self.spread
        return unclear or abs(self.slope) * self.hours <= _MATTERS * abs(self.mean)


@dataclass(frozen=True, slots=True)
class Report:
    """A soak: its samples, and the lines through what must be flat."""

    workload: Workload
    samples: list[Sample]
    lines: list[Line]
    per_delivery: dict[str, float] = field(default_factory=dict)
    restarts: int = 0

    def as_json(self) -> dict[str, Any]:
        """The report as JSON types."""
        return asdict(self) | {"flat": {line.name: line.flat for line in self.lines}}


def fit(name: str, unit: str, hours: Sequence[float], values: Sequence[float]) -> Line:
    """The least-squares line of values over hours; with fewer than three points the spread is infinite."""
    count, x0, y0 = len(hours), fmean(hours), fmean(values)
    square = sum((x - x0) ** 2 for x in hours)
    slope = sum((x - x0) * (y - y0) for x, y in zip(hours, values, strict=True)) / square if square else 0.0
    spread = float("inf")
    if count > 2 and square:
        residual = sum((y - y0 - slope * (x - x0)) ** 2 for x, y in zip(hours, values, strict=True))
        spread = (residual / (count - 2) / square) ** 0.5
    return Line(name, unit, y0, slope, spread, max(hours) - min(hours))


def report(workload: Workload, samples: Sequence[Sample], restarts: int = 0) -> Report:
    """Judge samples: lines through what must be flat, over the second half: in the first, caches fill."""
    steady = list(samples[len(samples) // 2 :])
    hours = [(sample.at - samples[0].at) / 3600 for sample in steady]

    def line(name: str, unit: str, of: Callable[[Sample], float]) -> Line:
        return fit(name, unit, hours, [of(sample) for sample in steady])

    lines = [
        line(f"memory of {name}", "MB", lambda sample, name=name: sample.memory_mb[name])  # type: ignore[misc]
        for name in samples[0].memory_mb
    ]
    lines.append(line("latency p50", "ms", lambda sample: sample.p50_ms))
    lines.append(line("latency p99", "ms", lambda sample: sample.p99_ms))
    lines.append(line("waiting deliveries", "", lambda sample: sample.matched - sample.delivered))
    small = [name for name in samples[-1].table_bytes if not name.startswith(("events", "event_ids", "deliveries"))]
    lines.append(
        line(
            "small tables and their indexes",
            "MB",
            lambda sample: sum(sample.table_bytes[n] + sample.index_bytes[n] for n in small) / 1e6,
        )
    )
    lines.append(line("indexes of what is pending", "MB", lambda sample: sample.pending_index_bytes / 1e6))
    growth = [
        (_stored(now) - _stored(before)) / (now.delivered - before.delivered)
        for before, now in _spans(steady)
        if now.delivered > before.delivered
    ]
    if growth:
        middle = [(now.at + before.at) / 2 for before, now in _spans(steady) if now.delivered > before.delivered]
        at = [(moment - samples[0].at) / 3600 for moment in middle]
        lines.append(fit("bytes at rest for each delivery", "bytes", at, growth))
    return Report(workload, list(samples), lines, _per_delivery(steady), restarts)


def _spans(samples: Sequence[Sample], step: int = 4) -> list[tuple[Sample, Sample]]:
    """Pairs of samples some way apart: tables grow by whole pages, and autovacuum comes in steps."""
    return [(samples[place], samples[place + step]) for place in range(0, len(samples) - step, step)]


def _stored(sample: Sample) -> int:
    return sum(sample.table_bytes.values()) + sum(sample.index_bytes.values())


def _per_delivery(samples: Sequence[Sample]) -> dict[str, float]:
    """What a delivery costs, over the whole steady part."""
    first, last = samples[0], samples[-1]
    count = max(last.delivered - first.delivered, 1)
    found = {
        f"CPU of {name}, µs": (last.cpu_seconds[name] - first.cpu_seconds[name]) / count * 1e6
        for name in last.cpu_seconds
    }
    found["WAL, bytes"] = (last.wal_bytes - first.wal_bytes) / count
    found["commits"] = (last.commits - first.commits) / count
    for name in sorted(last.table_bytes):
        grown = last.table_bytes[name] - first.table_bytes.get(name, 0)
        indexes = last.index_bytes[name] - first.index_bytes.get(name, 0)
        if grown + indexes > count:
            found[f"{name}, bytes"] = grown / count
            found[f"indexes of {name}, bytes"] = indexes / count
    return found


def tables(found: Report) -> list[Table]:
    """The report for people."""
    samples, workload = found.samples, found.workload
    lines = Table(title=f"soak of {workload.minutes:g} min, {workload.rate:g} deliveries/s, {len(samples)} samples")
    for column in ("what", "mean", "slope an hour", "spread of the slope", "flat"):
        lines.add_column(column, justify="left" if column == "what" else "right")
    for line in found.lines:
        unit = f" {line.unit}" if line.unit else ""
        lines.add_row(
            line.name,
            f"{line.mean:,.2f}{unit}",
            f"{line.slope:+,.2f}",
            f"{line.spread:,.2f}",
            line.verdict,
        )
    course = Table(title="in its course")
    for column in ("minute", "deliveries/s", "p50 ms", "p99 ms", *samples[0].memory_mb, "dead rows", "load"):
        course.add_column(column, justify="right")
    step = max(len(samples) // 12, 1)
    for before, now in zip(samples[::step], samples[step::step], strict=False):
        course.add_row(
            f"{(now.at - samples[0].at) / 60:.0f}",
            f"{(now.delivered - before.delivered) / (now.at - before.at):,.0f}",
            f"{now.p50_ms:.1f}",
            f"{now.p99_ms:.1f}",
            *(f"{value:.0f}" for value in now.memory_mb.values()),
            f"{sum(now.dead_rows.values()):,}",
            f"{now.load:.1f}",
        )
    costs = Table(title=f"for each delivery; median load {median(sample.load for sample in samples):.1f}")
    costs.add_column("what")
    costs.add_column("amount", justify="right")
    for name, value in found.per_delivery.items():
        costs.add_row(name, f"{value:,.2f}")
    hot = Table(title="updates, and those that touched no index (HOT)")
    for column in ("table", "updates", "HOT", "dead rows", "vacuumed"):
        hot.add_column(column, justify="left" if column == "table" else "right")
    last = samples[-1]
    for name, count in sorted(last.updates.items()):
        if count:
            share = last.hot_updates[name] / count
            hot.add_row(name, f"{count:,}", f"{share:.1%}", f"{last.dead_rows[name]:,}", str(last.vacuums[name]))
    return [lines, course, costs, hot]
