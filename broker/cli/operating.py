"""For operators: `reconcile`."""

import json
from typing import Annotated
from uuid import UUID

import asyncpg
import typer
from rich.console import Console

from broker.cli.running import fail, run, settings_for


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(reconcile)


def reconcile(
    subscription: Annotated[UUID | None, typer.Option(help="This subscription only; by default all.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Set wrong totals to what the rows say.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
) -> None:
    """Count everything anew and name what does not add up; ends with 1 when something is off."""
    from broker.storage.records import connection_settings
    from broker.tools import operate

    settings = settings_for("reconcile")
    console = Console(stderr=json_output)
    off: list[bool] = []

    async def work() -> None:
        connection = await asyncpg.connect(
            settings.database.url.get_secret_value(),
            timeout=settings.database.connect_timeout_seconds,
            server_settings=connection_settings("bode reconcile") | {"statement_timeout": "300000"},
        )
        try:
            try:
                findings = await operate.reconcile(
                    connection, subscription, repair=repair, progress=lambda line: console.print(line, style="dim")
                )
            except operate.UnknownSubscription:
                fail(f"there is no subscription {subscription}")
            rows = await operate.named(connection, findings)
        finally:
            await connection.close()
        if json_output:
            typer.echo(json.dumps(rows, indent=2))
        elif rows:
            console.print(operate.table(rows))
        off.append(bool(rows))

    run(work())
    if off[0]:
        raise typer.Exit(1)
    console.print("✔ everything adds up")
