"""The processes of an installation: `api`, `ingest`, `deliver`, `migrate`, and `up`, which runs them all."""

from typing import Annotated, Final

import typer

from broker.cli.running import DEFAULT_DATA, DataDir, fail, run, settings_for

NAMES: Final = ("api", "ingest", "deliver", "migrate", "up")


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (api, ingest, deliver, migrate, up):
        app.command()(command)


def api() -> None:
    """Serve the REST API."""
    from broker.processes import api as process

    run(process.run(settings_for("api")))


def ingest() -> None:
    """Take in events from RabbitMQ."""
    from broker.processes import ingest as process

    settings = settings_for("ingest")
    if settings.amqp.url is None:
        fail("BODE_AMQP_URL is not set: without RabbitMQ there is nothing to ingest; `bode api` accepts by itself")
    run(process.run(settings))


def deliver() -> None:
    """Send notifications to sinks."""
    from broker.delivery.own_identity import UnusableFile
    from broker.processes import deliver as process

    try:
        run(process.run(settings_for("deliver")))
    except UnusableFile as error:
        fail(f"settings that can't be used:\n  {error}")


def migrate() -> None:
    """Bring the database's schema to this version."""
    from broker.migrations import migrate as run_migrations
    from subscriptions.database import create_engine

    settings = settings_for("migrate")

    async def work() -> None:
        engine = create_engine(settings.database, application_name="bode migrate")
        try:
            await run_migrations(engine)
        finally:
            await engine.dispose()

    run(work())
    typer.echo("✔ schema is current")


def up(
    demo: Annotated[bool, typer.Option("--demo", help="Registries that publish, providers that receive.")] = False,
    data_dir: DataDir = DEFAULT_DATA,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port of the API; 8000 or a free one.")] = None,
) -> None:
    """Run everything on this machine, until Ctrl-C."""
    from rich.console import Console

    from broker.tools.up import CannotStart
    from broker.tools.up import up as run_all

    try:
        run(run_all(data_dir=data_dir, port=port, with_demo=demo, console=Console()))
    except CannotStart as error:
        fail(str(error))
