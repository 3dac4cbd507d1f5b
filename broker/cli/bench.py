"""The benchmarks: a table for people, `--json` for machines."""

import json
from typing import Annotated

import typer
from rich.console import Console

from broker.cli.running import fail, run

app = typer.Typer(help="Benchmarks: a table, and --json.", no_args_is_help=True)

JsonOutput = Annotated[bool, typer.Option("--json", help="JSON on standard output; the rest elsewhere.")]


@app.command()
def deliver(
    fan_out: Annotated[list[int] | None, typer.Option(min=1, max=1000, help="Subscriptions matching an event.")] = None,
    deliveries: Annotated[int, typer.Option(min=100, help="Deliveries in one run.")] = 30_000,
    payload: Annotated[int, typer.Option(min=400, max=250_000, help="Bytes of an event.")] = 1000,
    runs: Annotated[int, typer.Option(min=1, max=20, help="Measured runs, after a warm-up.")] = 3,
    deliver_processes: Annotated[int, typer.Option(min=1, max=16, help="Processes that deliver.")] = 1,
    ingest_processes: Annotated[int, typer.Option(min=1, max=16, help="Processes that ingest.")] = 1,
    json_output: JsonOutput = False,
) -> None:
    """Measure delivery end to end, with real parts, beside the bare HTTP client."""
    from broker.tools import bench_deliver as bench
    from broker.tools.bench_sink import NoReceiver

    console = Console(stderr=json_output)

    async def measure() -> None:
        reports = []
        for count in fan_out or [10, 1]:
            workload = bench.Workload(
                count,
                max(deliveries // count, 1),
                payload,
                deliver_processes=deliver_processes,
                ingest_processes=ingest_processes,
            )
            report = await bench.run(workload, runs, console)
            console.print(bench.table(report))
            reports.append(report.as_json())
        if json_output:
            typer.echo(json.dumps(reports, indent=2))

    try:
        run(measure())
    except NoReceiver as error:
        fail(str(error))


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
