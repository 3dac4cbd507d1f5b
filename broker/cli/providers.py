"""For the developers of registries and providers: `publish`, `listen` and `trace`."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer

from broker.cli.running import DEFAULT_DATA, DataDir, fail, run
from broker.tools.publish import Format

Key = Annotated[str | None, typer.Option(envvar="BODE_KEY", help="API key, instead of one of the demo's.")]
ApiUrl = Annotated[str | None, typer.Option("--api", help="Base URL of the API, ending in /v1.")]


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(publish)
    app.command()(listen)
    app.command()(trace)


def publish(
    file: Annotated[Path | None, typer.Argument(exists=True, dir_okay=False, help="Events, one on each line.")] = None,
    format: Annotated[Format, typer.Option(help="What the file holds.")] = Format.NDJSON,
    sample: Annotated[str | None, typer.Option(help="Publish samples of this event type instead of a file.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="How many; by default all of a file, one sample.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Events a second at most.")] = None,
    registry: Annotated[str | None, typer.Option(help="Registry of the demo; by default that of the type.")] = None,
    source: Annotated[str | None, typer.Option(help="`source` of samples and BAG events.")] = None,
    amqp: Annotated[str | None, typer.Option(help="RabbitMQ as the registry's user.")] = None,
    api: ApiUrl = None,
    key: Key = None,
    data_dir: DataDir = DEFAULT_DATA,
) -> None:
    """Publish events over RabbitMQ, or over HTTP where there is none; returns when each is confirmed."""
    from broker.tools import publish as tool

    work = tool.publish(
        data_dir=data_dir,
        file=file,
        format=format,
        sample=sample,
        registry=registry,
        source=source,
        amqp_url=amqp,
        api_url=api,
        key=key,
        rate=rate,
        count=count,
    )
    try:
        run(work)
    except tool.CannotPublish as error:
        fail(str(error))


def listen(
    as_: Annotated[str | None, typer.Option("--as", help="Provider of the demo; by default the first.")] = None,
    type_: Annotated[list[str] | None, typer.Option("--type", help="Event type to hear; may be repeated.")] = None,
    filter_: Annotated[list[str] | None, typer.Option("--filter", help="A further filter, as JSON.")] = None,
    batch: Annotated[int | None, typer.Option(min=2, max=1000, help="Up to how many come in one request.")] = None,
    name: Annotated[str | None, typer.Option(help="What this listener remembers itself by.")] = None,
    subscription: Annotated[UUID | None, typer.Option(help="Listen to this subscription, made elsewhere.")] = None,
    secret: Annotated[str | None, typer.Option(envvar="BODE_SECRET", help="Its signing secret.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Port to listen on.")] = None,
    fail_rate: Annotated[float, typer.Option(min=0, max=1, help="Answer this share with 500.")] = 0,
    latency: Annotated[float, typer.Option(min=0, help="Seconds to wait before each answer.")] = 0,
    status: Annotated[int | None, typer.Option(min=200, max=599, help="Answer this status always.")] = None,
    end: Annotated[bool, typer.Option("--end/--keep", help="End the subscription at exit.")] = False,
    show_data: Annotated[bool, typer.Option("--show-data", help="Print events: they may identify persons.")] = False,
    api: ApiUrl = None,
    key: Key = None,
    data_dir: DataDir = DEFAULT_DATA,
) -> None:
    """Receive notifications, verify them, and tell whether any is missing."""
    from broker.tools import listen as tool
    from broker.tools.listen_receiver import Behaviour

    work = tool.listen(
        data_dir=data_dir,
        as_=as_,
        api_url=api,
        key=key,
        types=type_ or (),
        filters=[_filter(text) for text in filter_ or ()],
        batch=batch,
        name=name,
        subscription=subscription,
        secret=secret,
        port=port,
        behaviour=Behaviour(fail_rate, timedelta(seconds=latency), status),
        end=end,
        show_data=show_data,
    )
    try:
        run(work)
    except tool.CannotListen as error:
        fail(str(error))


def trace(
    event_id: Annotated[str, typer.Argument(help="`id` of the event.")],
    source: Annotated[str | None, typer.Option(help="Its `source`, where several use the same id.")] = None,
    as_: Annotated[str, typer.Option("--as", help="Provider or registry of the demo whose part to see.")] = "operator",
    api: ApiUrl = None,
    key: Key = None,
    data_dir: DataDir = DEFAULT_DATA,
) -> None:
    """Tell what became of an event: accepted, matched, each attempt, how it ended, and why."""
    from broker.tools import trace as tool

    work = tool.trace(event_id, data_dir=data_dir, source=source, as_=as_, api_url=api, key=key)
    try:
        run(work)
    except tool.CannotTrace as error:
        fail(str(error))


def _filter(text: str) -> dict[str, Any]:
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        fail('--filter takes a JSON object, such as \'{"prefix": {"subject": "9999"}}\'')
    return parsed
