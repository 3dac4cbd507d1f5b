"""The command `bode`: the composition root, where settings become processes and tools. It decides nothing itself."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import uvloop
from pydantic import ValidationError

from broker import settings as configuration
from broker.settings import Settings
from broker.telemetry import configure_logging

app = typer.Typer(
    help="Bode: a notification broker for the Dutch base registries.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
key_app = typer.Typer(help="API keys, written straight into the database.", no_args_is_help=True)
org_app = typer.Typer(help="Organisations, written straight into the database.", no_args_is_help=True)
bench_app = typer.Typer(help="Benchmarks: a table, and --json.", no_args_is_help=True)
app.add_typer(key_app, name="key")
app.add_typer(org_app, name="org")
app.add_typer(bench_app, name="bench")

DataDir = Annotated[Path, typer.Option(envvar="BODE_DATA_DIR", help="Where `bode up` keeps what it writes.")]
_DEFAULT_DATA = Path(".bode")


def main() -> None:
    """Run the command line."""
    app()


@app.command()
def api() -> None:
    """Serve the REST API."""
    from broker.processes import api as process

    settings = _settings("api")
    _run(process.run(settings))


@app.command()
def ingest() -> None:
    """Take in events from RabbitMQ."""
    from broker.processes import ingest as process

    settings = _settings("ingest")
    if settings.amqp.url is None:
        _fail("BODE_AMQP_URL is not set: without RabbitMQ there is nothing to ingest; `bode api` accepts by itself")
    _run(process.run(settings))


@app.command()
def deliver() -> None:
    """Send notifications to sinks."""
    from broker.processes import deliver as process

    settings = _settings("deliver")
    _run(process.run(settings))


@app.command()
def migrate() -> None:
    """Bring the database's schema to this version."""
    from broker.migrations import migrate as run_migrations
    from subscriptions.database import create_engine

    settings = _settings("migrate")

    async def run() -> None:
        engine = create_engine(settings.database, application_name="bode migrate")
        try:
            await run_migrations(engine)
        finally:
            await engine.dispose()

    _run(run())
    typer.echo("✔ schema is current")


@app.command()
def up(
    demo: Annotated[bool, typer.Option("--demo", help="Registries that publish, providers that receive.")] = False,
    data_dir: DataDir = _DEFAULT_DATA,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the API; 8000 or a free one.")] = None,
) -> None:
    """Run everything on this machine, until Ctrl-C."""
    from rich.console import Console

    from broker.tools.up import CannotStart
    from broker.tools.up import up as run_all

    configure_logging("up", "WARNING")
    rate = configuration.UpSettings().demo.rate
    try:
        _run(run_all(data_dir=data_dir, port=port, with_demo=demo, demo_rate=rate, console=Console()))
    except CannotStart as error:
        _fail(str(error))


@bench_app.command("deliver")
def bench_deliver(
    fan_out: Annotated[
        list[int] | None, typer.Option(min=1, max=1000, help="Subscriptions that match an event.")
    ] = None,
    deliveries: Annotated[int, typer.Option(min=100, help="Deliveries in one run.")] = 30_000,
    payload: Annotated[int, typer.Option(min=400, max=250_000, help="Bytes of an event.")] = 1000,
    runs: Annotated[int, typer.Option(min=1, max=20, help="Measured runs, after a warm-up.")] = 3,
    deliver_processes: Annotated[int, typer.Option(min=1, max=16)] = 1,
    ingest_processes: Annotated[int, typer.Option(min=1, max=16)] = 1,
    json_output: Annotated[bool, typer.Option("--json", help="JSON on standard output; the rest elsewhere.")] = False,
) -> None:
    """Measure delivery end to end, with real parts, beside the bare HTTP client."""
    import json

    from rich.console import Console

    from broker.tools import bench_deliver as bench

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

    _run(measure())


def _settings(process: str) -> Settings:
    """The settings, with logging set up; every wrong one is named in one message."""
    try:
        settings = configuration.load()
    except ValidationError as error:
        lines = [
            f"  BODE_{'_'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False)
        ]
        _fail("settings that can't be used:\n" + "\n".join(lines))
    configure_logging(process, settings.log.level)
    return settings


def _run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


def _fail(message: str) -> NoReturn:
    typer.echo(f"✖ {message}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    main()
