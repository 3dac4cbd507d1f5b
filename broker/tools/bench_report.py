"""What `bode bench deliver` has measured: as JSON, as a table for one workload, and as one line for each of many."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from rich.table import Table

from broker.tools.bench_installation import Destination, Workload
from broker.tools.bench_yardsticks import Yardstick

YARDSTICKS: Final = {
    "bare_client": ("the bare HTTP client", "post"),
    "bare_aiohttp": ("a bare aiohttp loop", "post"),
    "signing_v1": ("signing with HMAC-SHA256 (v1) alone", "signature"),
    "signing_v1a": ("signing with Ed25519 (v1a) alone", "signature"),
    "bare_consume": ("a bare RabbitMQ consume loop", "message"),
}


@dataclass(frozen=True, slots=True)
class Throughput:
    """Full speed. CPU in microseconds a delivery; megabytes of memory at the peak, of PostgreSQL in the end."""

    deliveries_per_second: float
    cpu_us: dict[str, float]
    """By kind of process, all but the receiver."""
    process_cpu_us: dict[str, float]
    receiver_cpu_us: float
    memory_mb: dict[str, float]
    wal_bytes: float
    rows: float
    """Inserted, updated or deleted, for each delivery."""
    commits: float


@dataclass(frozen=True, slots=True)
class Latency:
    """A steady rate: from the publisher's confirm to the last byte of the request at the receiver, in milliseconds."""

    deliveries_per_second: float
    p50_ms: float
    p99_ms: float
    highest_ms: float
    counted: int
    cpu_us: dict[str, float]


@dataclass(frozen=True, slots=True)
class Run:
    """One run: its phases, the yardsticks beside them, and how busy the machine was when it began."""

    throughput: Throughput | None
    latency: Latency | None
    yardsticks: dict[str, Yardstick]
    load_average: float

    def in_words(self) -> str:
        """The figures that matter most, on one line."""
        parts = []
        if self.throughput is not None:
            full = self.throughput
            parts.append(f"{full.deliveries_per_second:,.0f} deliveries/s, {sum(full.cpu_us.values()):.0f} µs CPU each")
        if self.latency is not None:
            parts.append(f"latency p50 {self.latency.p50_ms:.1f} ms, p99 {self.latency.p99_ms:.1f} ms")
        parts.append(f"bare client {self.yardsticks['bare_client'].per_second:,.0f}/s")
        return "; ".join(parts)


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the runs."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one value for each run."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Report:
    """A workload and its runs."""

    workload: Workload
    rate: float
    environment: dict[str, Any]
    runs: list[Run]

    def summary(self) -> dict[str, Spread]:
        """Every figure over the runs, by its name."""
        values: dict[str, list[float]] = {}
        for run in self.runs:
            for name, value in _figures(run, self.workload.batch == 0).items():
                values.setdefault(name, []).append(value)
        return {name: Spread.of(several) for name, several in values.items()}

    def as_json(self) -> dict[str, Any]:
        """The report as JSON types: the workload, every run, and the summary."""
        return asdict(self) | {"summary": {name: asdict(spread) for name, spread in self.summary().items()}}

    @property
    def title(self) -> str:
        """The workload in words."""
        workload = self.workload
        return (
            f"fan-out {workload.fan_out:,}, {workload.sinks:,} sink{'' if workload.sinks == 1 else 's'}, "
            f"{workload.payload_bytes:,} bytes{f', batches of {workload.batch:,}' if workload.batch else ''}"
            f"{'' if workload.to is Destination.HTTP else f', to {workload.to}'}"
        )


def _figures(run: Run, signed_alone: bool) -> dict[str, float]:
    figures: dict[str, float] = {}
    if run.throughput is not None:
        full = run.throughput
        figures["deliveries_per_second"] = full.deliveries_per_second
        figures["cpu_us"] = sum(full.cpu_us.values())
        figures |= {f"cpu_us.{name}": value for name, value in full.cpu_us.items()}
        if len(full.process_cpu_us) > len(full.cpu_us):
            figures |= {f"process_cpu_us.{name}": value for name, value in full.process_cpu_us.items()}
        figures["receiver_cpu_us"] = full.receiver_cpu_us
        figures |= {f"memory_mb.{name}": value for name, value in full.memory_mb.items()}
        figures |= {"rows": full.rows, "wal_bytes": full.wal_bytes, "commits": full.commits}
    if run.latency is not None:
        steady = run.latency
        figures |= {"p50_ms": steady.p50_ms, "p99_ms": steady.p99_ms, "highest_ms": steady.highest_ms}
        figures["steady_deliveries_per_second"] = steady.deliveries_per_second
        figures["steady_cpu_us"] = sum(steady.cpu_us.values())
    for name, yardstick in run.yardsticks.items():
        figures[f"{name}_per_second"] = yardstick.per_second
        figures[f"{name}_cpu_us"] = yardstick.cpu_us
        if name.startswith("signing_") and run.throughput is not None and signed_alone:
            figures[f"{name}_percent"] = 100 * yardstick.cpu_us / sum(run.throughput.cpu_us.values())
    return figures


def _words(name: str, rate: float) -> str:
    """A figure's name for people."""
    plain = {
        "deliveries_per_second": "deliveries per second, full speed",
        "cpu_us": "CPU µs per delivery, all but the receiver",
        "receiver_cpu_us": "CPU µs per delivery of the receiver",
        "rows": "rows written per delivery",
        "wal_bytes": "WAL bytes per delivery",
        "commits": "commits per delivery",
        "p50_ms": f"latency at {rate:,.0f} deliveries/s, p50, ms",
        "p99_ms": f"latency at {rate:,.0f} deliveries/s, p99, ms",
        "highest_ms": "… the longest, ms",
        "steady_deliveries_per_second": "… deliveries per second it was",
        "steady_cpu_us": "… CPU µs per delivery",
    }
    if name in plain:
        return plain[name]
    kind, _, part = name.partition(".")
    match kind:
        case "cpu_us" | "process_cpu_us":
            return f"… {part}"
        case "memory_mb":
            return f"memory of {part}, {'now' if part == 'postgresql' else 'peak'}, MB"
    for yardstick, (words, operation) in YARDSTICKS.items():
        if name == f"{yardstick}_per_second":
            return f"{words}, {operation}s per second"
        if name == f"{yardstick}_cpu_us":
            return f"… CPU µs per {operation}"
        if name == f"{yardstick}_percent":
            return "… % of the CPU per delivery"
    return name


def table(report: Report) -> Table:
    """One workload: medians, with the lowest and highest run."""
    receiver = report.environment["receiver"]
    made = Table(title=f"{report.title}; {len(report.runs)} runs; receiver: {receiver}")
    made.add_column("what")
    made.add_column("median", justify="right")
    made.add_column("lowest – highest", justify="right")
    for name, spread in report.summary().items():
        digits = 3 if name == "commits" else 1
        cells = [f"{value:,.{digits}f}" for value in (spread.median, spread.lowest, spread.highest)]
        made.add_row(_words(name, report.rate), cells[0], f"{cells[1]} – {cells[2]}")
    return made


_COLUMNS: Final = {
    "deliveries/s": ("deliveries_per_second", 0),
    "CPU µs": ("cpu_us", 0),
    "deliver": ("cpu_us.deliver", 0),
    "ingest": ("cpu_us.ingest", 0),
    "postgres": ("cpu_us.postgresql", 0),
    "rows": ("rows", 2),
    "WAL": ("wal_bytes", 0),
    "commits": ("commits", 3),
    "p50 ms": ("p50_ms", 1),
    "p99 ms": ("p99_ms", 1),
    "client/s": ("bare_client_per_second", 0),
    "aiohttp/s": ("bare_aiohttp_per_second", 0),
    "consume/s": ("bare_consume_per_second", 0),
}


def matrix(reports: Sequence[Report]) -> Table:
    """A line for each workload: medians, and the spread of the rate."""
    made = Table(title=f"medians of {len(reports[0].runs)} runs; receiver: {reports[0].environment['receiver']}")
    for column in ("fan-out", "sinks", "bytes"):
        made.add_column(column, justify="right")
    for column in _COLUMNS:
        made.add_column(column, justify="right")
        if column == "deliveries/s":
            made.add_column("lowest – highest", justify="right")
    for report in reports:
        summary, workload = report.summary(), report.workload
        row = [f"{number:,}" for number in (workload.fan_out, workload.sinks, workload.payload_bytes)]
        for column, (name, digits) in _COLUMNS.items():
            spread = summary.get(name)
            row.append("" if spread is None else f"{spread.median:,.{digits}f}")
            if column == "deliveries/s":
                row.append("" if spread is None else f"{spread.lowest:,.0f} – {spread.highest:,.0f}")
        made.add_row(*row)
    return made
