"""`bode bench fairness-sinks`: healthy sinks beside a million deliveries that wait on dead ones (promise 7).

Two databases on one server, alike but for the backlog. In turn a delivery process is started on the one and on the
other, given time to find out which sinks are dead, and measured with the same work: first as fast as it goes, then at a
steady rate. The backlog comes about as any other: its events are accepted, for subscriptions whose sinks refuse the
connection, take it and say nothing, or answer 500.
"""

import asyncio
import contextlib
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import asyncpg
from rich.console import Console
from rich.table import Table

from broker.tools.bench_backlog_side import Measurement, Side, Workload
from broker.tools.bench_sink import fast_sink
from broker.tools.local.postgres import Postgres


@dataclass(frozen=True, slots=True)
class Report:
    """Runs in pairs."""

    workload: Workload
    without: list[Measurement]
    beside: list[Measurement]

    def ratios(self, figure: str) -> list[float]:
        """With the backlog to without it, pair by pair."""
        pairs = zip(self.beside, self.without, strict=True)
        return [getattr(beside, figure) / getattr(without, figure) for beside, without in pairs]

    def as_json(self) -> dict[str, Any]:
        """The report as JSON types."""
        return asdict(self) | {
            "ratios": {figure: self.ratios(figure) for figure in ("per_second", "p50", "p99", "cpu_us")}
        }


def table(report: Report) -> Table:
    """The report for people: medians, with the lowest and highest."""
    work = report.workload
    made = Table(
        title=f"{work.backlog:,} deliveries waiting on {work.dead_sinks} dead sinks, {len(report.beside)} pairs"
    )
    for column in ("healthy sinks", "without", "with", "ratio of a pair"):
        made.add_column(column, justify="left" if column == "healthy sinks" else "right")
    names = {
        "per_second": "deliveries per second", "p50": "latency p50, ms", "p99": "latency p99, ms",
        "cpu_us": "CPU µs of the process per delivery", "idle_cpu": "cores used when idle",
        "memory_mb": "memory, MB",
    }  # fmt: skip
    for figure, name in names.items():
        columns = [[getattr(run, figure) for run in runs] for runs in (report.without, report.beside)]
        ratios = [] if figure in ("idle_cpu", "memory_mb") else [report.ratios(figure)]
        made.add_row(name, *(_spread(values) for values in [*columns, *ratios]))
    return made


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.3g} ({min(values):,.3g} – {max(values):,.3g})"


async def run(workload: Workload, pairs: int, console: Console) -> Report:
    """Measure in pairs, alternating which comes first."""
    folder = Path(tempfile.mkdtemp(prefix="bode-bench-"))
    try:
        async with (
            fast_sink(folder / "sink", workload.healthy_sinks) as sink,
            _listening(asyncio.Protocol) as silent_port,
            _listening(_Failing) as failing_port,
            _refusing() as refused_port,
            Postgres(folder / "postgres") as postgres,
        ):
            dead = (
                f"http://127.0.0.1:{refused_port}/", f"http://127.0.0.1:{silent_port}/",
                f"http://127.0.0.1:{failing_port}/",
            )  # fmt: skip
            async with contextlib.AsyncExitStack() as stack:
                sides = []
                for name in ("without", "beside"):
                    side = Side(folder / name, workload, await _database(postgres.url, name), sink)
                    await stack.enter_async_context(side.open(dead))
                    sides.append(side)
                without, beside = sides
                started = time.perf_counter()
                await beside.pile_up(console)
                console.print(f"backlog accepted in {time.perf_counter() - started:.0f} s")
                report = Report(workload, [], [])
                for number in range(pairs):
                    for side in (without, beside) if number % 2 == 0 else (beside, without):
                        measured = await side.measure()
                        (report.without if side is without else report.beside).append(measured)
                    console.print(f"pair {number + 1}: {report.without[-1]} without, {report.beside[-1]} with")
                left = await beside.waiting()
                console.print(f"{left:,} deliveries wait on dead sinks at the end")
                return report
    finally:
        shutil.rmtree(folder)


async def _database(url: str, name: str) -> str:
    """Another database on the same server; its URL."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f'CREATE DATABASE "{name}"')
    finally:
        await connection.close()
    base, question, query = url.partition("?")
    return base.rpartition("/")[0] + "/" + name + question + query


class _Failing(asyncio.Protocol):
    """Answers 500 to whatever comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # a stream transport, by create_server

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"POST"):
            self._transport.write(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")


@contextlib.asynccontextmanager
async def _listening(protocol: type[asyncio.Protocol]) -> AsyncIterator[int]:
    """The port of sinks of a kind; a bare `Protocol` takes every connection and request and never says anything."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, backlog=4096)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@contextlib.asynccontextmanager
async def _refusing() -> AsyncIterator[int]:
    """A port that is taken, and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]
