"""The benchmarks: a table for people, `--json` for machines."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from broker.cli.running import fail, run

app = typer.Typer(help="Benchmarks: a table, and --json.", no_args_is_help=True)

JsonOutput = Annotated[bool, typer.Option("--json", help="JSON on standard output; the rest elsewhere.")]


class Measure(StrEnum):
    """What a run measures."""

    BOTH = "both"
    THROUGHPUT = "throughput"
    LATENCY = "latency"


class To(StrEnum):
    """Where notifications go."""

    HTTP = "http"
    QUEUE = "queue"
    RABBITMQ = "rabbitmq"


_MATRIX_WIDTH: Final = 150
_MATRIX: Final = ([1, 10, 100], [1, 10, 1000], [1000, 32 * 1024])


@app.command()
def deliver(
    fan_out: Annotated[
        list[int] | None, typer.Option(min=1, max=1000, help="Subscriptions matching an event. Repeatable.")
    ] = None,
    sinks: Annotated[
        list[int] | None, typer.Option(min=1, max=5000, help="Hosts that the subscriptions are at. Repeatable.")
    ] = None,
    payload: Annotated[
        list[int] | None, typer.Option(min=400, max=250_000, help="Bytes of an event. Repeatable.")
    ] = None,
    matrix: Annotated[bool, typer.Option("--matrix", help="All of 1, 10, 100 × 1, 10, 1000 × 1,000, 32,768.")] = False,
    deliveries: Annotated[
        int | None, typer.Option(min=100, help="Deliveries in one run; else 10,000 to 30,000 by the workload.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, max=20, help="Measured runs, each with a warm-up of its own.")] = 3,
    measure: Annotated[Measure, typer.Option(help="Full speed, a steady rate, or both.")] = Measure.BOTH,
    rate: Annotated[float, typer.Option(min=1, max=100_000, help="Deliveries per second for latency.")] = 1000,
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="How long latency is measured in a run.")] = 8,
    deliver_processes: Annotated[int, typer.Option(min=1, max=16, help="Processes that deliver.")] = 1,
    ingest_processes: Annotated[int, typer.Option(min=1, max=16, help="Processes that ingest.")] = 1,
    batch: Annotated[
        list[int] | None, typer.Option(min=0, max=1000, help="Notifications in a request; 0: no batches. Repeatable.")
    ] = None,
    to: Annotated[
        To, typer.Option(help="Where to: sinks over HTTP, queues on the broker's RabbitMQ, or on another (no TLS).")
    ] = To.HTTP,
    plot: Annotated[Path | None, typer.Option(help="Write a picture, in SVG.")] = None,
    json_output: JsonOutput = False,
) -> None:
    """Measure delivery end to end, with real parts, beside bare loops. Options with several values make a matrix."""
    from broker.tools import bench_plot
    from broker.tools.bench_deliver import Bench, Options
    from broker.tools.bench_installation import Destination, Workload
    from broker.tools.bench_report import Report, Run, table
    from broker.tools.bench_report import matrix as matrix_table

    if to is not To.HTTP and (measure is not Measure.THROUGHPUT or batch):
        raise typer.BadParameter("queues have --measure throughput alone, and no batches")
    console = Console(stderr=json_output)
    wide = Console(stderr=json_output, width=max(console.width, _MATRIX_WIDTH))
    fan_outs, sink_counts, payloads = _MATRIX if matrix else ([10, 1], [1], [1000])
    workloads = [
        Workload(
            many,
            hosts,
            size,
            deliveries or _deliveries(many, size),
            deliver_processes,
            ingest_processes,
            batch=together,
            to=Destination(to),
        )
        for size in payload or payloads
        for many in fan_out or fan_outs
        for hosts in sinks or sink_counts
        for together in batch or [0]
    ]
    options = Options(runs, measure is not Measure.LATENCY, measure is not Measure.THROUGHPUT, rate, seconds)

    async def work() -> None:
        reports: list[Report] = []
        async with Bench(options) as bench:
            for workload in workloads:
                measured: list[Run] = []
                async for one in bench.runs(workload):
                    measured.append(one)
                    console.print(f"run {len(measured)}: {one.in_words()}")
                reports.append(bench.report(workload, measured))
                console.print(table(reports[-1]))
        if len(reports) > 1:
            wide.print(matrix_table(reports))
        if plot is not None:
            plot.write_text(bench_plot.picture(reports))
            console.print(f"picture: {plot}")
        if json_output:
            typer.echo(json.dumps([report.as_json() for report in reports], indent=2))

    run(work())


def _deliveries(fan_out: int, payload: int) -> int:
    """As many as take ten seconds or so: an event that is for one subscription, or large, costs more."""
    return (10_000 if fan_out < 5 else 30_000) // (3 if payload > 8192 else 1)


@app.command()
def fairness_sinks(
    pairs: Annotated[int, typer.Option(min=1, max=50, help="Runs with the backlog and without.")] = 5,
    backlog: Annotated[int, typer.Option(min=100, help="Deliveries that wait on dead sinks.")] = 1_000_000,
    dead_sinks: Annotated[int, typer.Option(min=3, max=10_000, help="Dead sinks, a third of each kind.")] = 300,
    settle: Annotated[float, typer.Option(min=0, help="Seconds to find out which are dead.")] = 20.0,
    json_output: JsonOutput = False,
) -> None:
    """Measure healthy sinks while many deliveries wait on dead ones, and without them."""
    from broker.tools import bench_backlog as bench
    from broker.tools.bench_backlog_side import Workload

    console = Console(stderr=json_output)

    async def measure() -> None:
        workload = Workload(backlog=backlog, dead_sinks=dead_sinks, settle_seconds=settle)
        report = await bench.run(workload, pairs, console)
        console.print(bench.table(report))
        if json_output:
            typer.echo(json.dumps(report.as_json(), indent=2))

    run(measure())


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long.")] = 30,
    rate: Annotated[float, typer.Option(min=1, help="Deliveries a second; half of what is possible says most.")] = 1000,
    fan_out: Annotated[int, typer.Option(min=1, max=1000, help="Subscriptions matching an event.")] = 10,
    payload: Annotated[int, typer.Option(min=400, max=250_000, help="Bytes of an event.")] = 1000,
    sample_seconds: Annotated[float, typer.Option(min=1, max=600, help="Look so often.")] = 30,
    json_output: JsonOutput = False,
) -> None:
    """Deliver at a steady rate for long, and tell whether memory, latency and tables stay as they are."""
    from broker.tools import bench_soak, bench_soak_report

    console = Console(stderr=json_output)

    async def measure() -> None:
        workload = bench_soak_report.Workload(minutes, rate, fan_out, payload, sample_seconds)
        found = await bench_soak.run(workload, console)
        for table in bench_soak_report.tables(found):
            console.print(table)
        if json_output:
            typer.echo(json.dumps(found.as_json(), indent=2))

    run(measure())


@app.command()
def match(
    workloads: Annotated[str, typer.Option(help="Which of the eight: letters a to h.")] = "abcdefgh",
    size: Annotated[list[int] | None, typer.Option(min=1, help="Subscriptions; else those of the budgets.")] = None,
    events: Annotated[int, typer.Option(min=100, help="Events in one run.")] = 5_000,
    runs: Annotated[int, typer.Option(min=1, max=20, help="Measured runs.")] = 3,
    followed: Annotated[int, typer.Option(min=1_000, help="Followed subjects of workload c.")] = 50_000_000,
    json_output: JsonOutput = False,
) -> None:
    """Measure matching on one core, beside a bare parse of the same events."""
    from broker.tools import bench_match as bench

    console = Console(stderr=json_output)
    options = bench.Options(
        workloads=workloads,
        sizes=tuple(size or ()),
        runs=runs,
        events=events,
        followed=followed,
        progress=console.print,
    )
    report = bench.run(options)
    typer.echo(report.as_json() if json_output else report.as_table())


@app.command()
def follow(
    subjects: Annotated[int, typer.Option(min=1_000, help="Followed subjects.")] = 5_000_000,
    lists: Annotated[int, typer.Option(min=1, max=10_000, help="Lists that they are on, one each.")] = 400,
    json_output: JsonOutput = False,
) -> None:
    """Measure follow lists through PostgreSQL: loading by COPY, arrays, bytes, verification and changes."""
    from broker.tools import bench_follow as bench

    console = Console(stderr=True)

    async def measure() -> None:
        report = await bench.run(bench.Options(subjects, lists, progress=console.print))
        typer.echo(report.as_json() if json_output else report.as_table())

    run(measure())


@app.command()
def changes(
    subscriptions: Annotated[int, typer.Option(min=1, help="Subscriptions that there are.")] = 2_000,
    at_once: Annotated[int, typer.Option(min=1, help="How many change in one transaction.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="How often.")] = 20,
    json_output: JsonOutput = False,
) -> None:
    """Measure how fast a process applies changes of subscriptions, matching events meanwhile."""
    from broker.tools import bench_changes as bench

    async def measure() -> None:
        report = await bench.run(bench.Options(subscriptions, at_once, rounds))
        typer.echo(report.as_json() if json_output else report.as_table())

    run(measure())


@app.command()
def fairness(
    bulk: Annotated[int, typer.Option(min=100, help="Events that one registry publishes at once.")] = 100_000,
    rate: Annotated[float, typer.Option(min=1, max=10_000, help="Events a second of the other.")] = 50,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="How long it is alone in each round.")] = 15,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="Alternations of alone and beside the bulk.")] = 3,
    ingest_processes: Annotated[int, typer.Option(min=1, max=16, help="Processes that ingest.")] = 1,
    deliver_processes: Annotated[int, typer.Option(min=1, max=16, help="Processes that deliver.")] = 1,
    shared: Annotated[bool, typer.Option("--shared", help="Both registries in the same queues.")] = False,
    json_output: JsonOutput = False,
) -> None:
    """Measure what one registry's bulk does to the latency of another's events."""
    from broker.tools import bench_fairness as bench

    console = Console(stderr=json_output)
    options = bench.Options(bulk, rate, seconds, rounds, ingest_processes, deliver_processes, shared)

    async def measure() -> None:
        made = []
        async for each in bench.run(options):
            console.print(each.in_words())
            made.append(each)
        console.print(bench.table(options, made))
        if json_output:
            typer.echo(json.dumps(bench.as_json(options, made), indent=2))

    run(measure())


@app.command()
def missed(
    notifications: Annotated[int, typer.Option(min=1_000, help="Missed while the sink hung.")] = 200_000,
    json_output: JsonOutput = False,
) -> None:
    """Measure how a provider that was down for long fetches what it missed, by pull and by replay."""
    from broker.tools import bench_missed as bench

    console = Console(stderr=json_output)

    async def measure() -> None:
        report = await bench.run(notifications, console)
        console.print(report.as_table())
        if json_output:
            typer.echo(json.dumps(report.as_json(), indent=2))

    run(measure())


@app.command()
def start(
    runs: Annotated[int, typer.Option(min=1, max=20, help="Empty data directories, each started in twice.")] = 3,
    json_output: JsonOutput = False,
) -> None:
    """Measure how long `bode up --demo` takes until all is ready, with RabbitMQ and without."""
    from broker.tools import bench_start as bench

    console = Console(stderr=json_output)
    try:
        starts = bench.run(runs, lambda start: console.print(f"{start.seconds:.1f} s", style="dim"))
    except bench.StartFailed as error:
        fail(str(error))
    if json_output:
        typer.echo(bench.as_json(starts))
    else:
        console.print(bench.as_table(starts))
