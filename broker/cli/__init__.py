"""The command `bode`: the composition root, where settings become processes and tools. It decides nothing itself."""

import typer

from broker.cli import bench, operating, people, processes, providers

app = typer.Typer(
    help="Bode: a notification broker for the Dutch base registries.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
processes.add_to(app)
providers.add_to(app)
operating.add_to(app)
app.add_typer(people.key_app, name="key")
app.add_typer(people.organisation_app, name="org")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Run the command line."""
    app()
