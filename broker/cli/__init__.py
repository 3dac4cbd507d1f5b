"""The command `bode`: the composition root, where settings become processes and tools. It decides nothing itself."""

import sys

import typer

from broker.cli import processes


def compose(command: str | None = None) -> typer.Typer:
    """The command line. For a `command` that is a process it has the processes only: the others take long to import."""
    app = typer.Typer(
        help="Bode: a notification broker for the Dutch base registries.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    processes.add_to(app)
    if command not in processes.NAMES:
        from broker.cli import bench, operating, people, providers

        providers.add_to(app)
        operating.add_to(app)
        app.add_typer(people.key_app, name="key")
        app.add_typer(people.organisation_app, name="org")
        app.add_typer(bench.app, name="bench")
    return app


def main() -> None:
    """Run the command line."""
    compose(sys.argv[1] if len(sys.argv) > 1 else None)()
