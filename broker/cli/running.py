"""What all commands share: settings read with one clear message, one event loop, one way to fail."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NoReturn

import typer
import uvloop

if TYPE_CHECKING:
    from broker.settings import Settings

DataDir = Annotated[Path, typer.Option(envvar="BODE_DATA_DIR", help="Where `bode up` keeps what it writes.")]
DEFAULT_DATA: Final = Path(".bode")


def settings_for(process: str) -> "Settings":
    """The settings, with logging set up; every wrong one is named in one message."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from broker import settings as configuration
    from broker.telemetry import configure_logging

    try:
        settings = configuration.load()
    except ValidationError as error:
        lines = [
            f"  BODE_{'_'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False)
        ]
        fail("settings that can't be used:\n" + "\n".join(lines))
    except SettingsError as error:
        fail(f"settings that can't be used: {error}; a list is written as JSON, such as '[\"10.0.0.0/8\"]'")
    configure_logging(process, settings.log.level)
    return settings


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a command to its end."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


def fail(message: str) -> NoReturn:
    """End with a message for the one who typed the command."""
    typer.echo(f"✖ {message}", err=True)
    raise typer.Exit(1)
