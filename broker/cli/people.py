"""Keys and organisations, written straight into the database: how the first operator gets in."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Annotated

import asyncpg
import typer
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from broker.cli.running import fail, run, settings_for
from broker.ingest.routing import Router
from broker.settings import Settings
from broker.storage import installation, resealing
from schemas.problems import Problem
from subscriptions.callers import Scope, create_key
from subscriptions.change_log import changing
from subscriptions.database import create_engine
from subscriptions.organisations import check_domain, create_domain, create_organisation, find_organisation
from subscriptions.secrets import KeyRing
from subscriptions.signing_keys import LEAST_AHEAD, rotate

key_app = typer.Typer(help="API keys, signing keys and encryption, straight in the database.", no_args_is_help=True)
organisation_app = typer.Typer(help="Organisations, written straight into the database.", no_args_is_help=True)

OperatorFlag = Annotated[bool, typer.Option("--operator", help="A key of the operator, which belongs to nobody else.")]


@key_app.command("create")
def create_api_key(
    operator: OperatorFlag = False,
    oin: Annotated[str | None, typer.Option(help="OIN of the organisation that the key is for.")] = None,
    scope: Annotated[list[Scope] | None, typer.Option(help="What it may be used for; may be repeated.")] = None,
    label: Annotated[str, typer.Option(help="What the key is known by.")] = "",
) -> None:
    """Make an API key and print it: it is shown now, and never again."""
    if operator == (oin is not None):
        fail("give either --operator or --oin")
    scopes = scope or ([Scope.OPERATE] if operator else [])
    if not scopes:
        fail("give at least one --scope")

    async def work(connection: AsyncConnection) -> None:
        organisation = None
        if oin is not None:
            organisation = await find_organisation(connection, oin=oin)
            if organisation is None:
                fail(f"there is no organisation with OIN {oin}")
        try:
            key, _ = await create_key(
                connection, organisation_id=organisation.id if organisation else None, scopes=scopes, label=label
            )
        except ValueError as error:
            fail(str(error))
        typer.echo(key)

    _in_a_change(work)


@key_app.command("rotate-signing")
def rotate_signing_key(
    ahead: Annotated[
        float, typer.Option(min=LEAST_AHEAD.total_seconds(), help="Seconds that it is published before it signs.")
    ] = 86_400,
    overlap: Annotated[float, typer.Option(min=1, help="Seconds that the old one signs beside it.")] = 7 * 86_400,
) -> None:
    """Make the next Ed25519 key of the installation, for `v1a` signatures, and print its id."""
    settings = settings_for("people")
    ring = KeyRing(settings.secrets.keys)

    async def work(connection: AsyncConnection) -> None:
        try:
            kid = await rotate(connection, ring, ahead=timedelta(seconds=ahead), overlap=timedelta(seconds=overlap))
        except ValueError as error:
            fail(str(error))
        typer.echo(kid)

    _in_a_change(work)


@key_app.command("reseal")
def reseal() -> None:
    """Encrypt again, with the first of BODE_SECRETS_KEYS, what other keys encrypted; may be stopped and repeated."""
    settings = settings_for("people")
    ring = KeyRing(settings.secrets.keys)

    async def work() -> None:
        engine = create_engine(settings.database, application_name="bode people")
        unreadable = 0
        try:
            async for done in resealing.reseal(engine, ring):
                unreadable += done.unreadable
                typer.echo(f"{done.column}: {done.resealed} of {done.found} encrypted again")
        finally:
            await engine.dispose()
        if unreadable:
            fail(f"{unreadable} could not be opened by any key: keep looking for the key that is missing")
        typer.echo("✔ the first key opens everything; the others may go")

    run(work())


@organisation_app.command("create")
def create_an_organisation(
    oin: Annotated[str, typer.Option(help="Its OIN, 20 positions.")],
    name: Annotated[str, typer.Option(help="Its name.")],
    amqp_user: Annotated[str | None, typer.Option(help="The RabbitMQ user that speaks for it.")] = None,
    domain: Annotated[list[str] | None, typer.Option(help="Domain of event types that it owns; repeatable.")] = None,
) -> None:
    """Register an organisation, and the domains that it owns; with BODE_AMQP_URL, their way through RabbitMQ first."""
    if domain:
        _in_a_database(lambda engine, settings: _with_domains(engine, settings, oin, name, amqp_user, domain))
    else:
        _in_a_change(lambda connection: _organisation(connection, oin, name, amqp_user))


async def _organisation(connection: AsyncConnection, oin: str, name: str, amqp_user: str | None) -> None:
    typer.echo(str((await create_organisation(connection, oin=oin, name=name, amqp_user=amqp_user)).id))


async def _with_domains(
    engine: AsyncEngine, settings: Settings, oin: str, name: str, amqp_user: str | None, domains: Sequence[str]
) -> None:
    """Two steps where there is RabbitMQ: routes come before their domains, and belong to an organisation that is there.

    Raises:
        Problem: nothing was changed, unless RabbitMQ went away in the midst of it.
    """
    router = await _router(engine, settings)
    async with changing(engine) as connection:
        made = await create_organisation(connection, oin=oin, name=name, amqp_user=amqp_user)
        for owned in domains:
            await check_domain(connection, made.id, owned, by_operator=True)
            if router is None:
                await create_domain(connection, organisation_id=made.id, name=owned, by_operator=True)
    typer.echo(str(made.id))
    if router is None:
        typer.echo("no BODE_AMQP_URL: bode ingest will make the routes of these domains by itself", err=True)
        return
    for owned in domains:
        async with router.routed(made.id, oin, owned), changing(engine) as connection:
            await create_domain(connection, organisation_id=made.id, name=owned, by_operator=True)


async def _router(engine: AsyncEngine, settings: Settings) -> Router | None:
    """What makes routes; None without RabbitMQ.

    Raises:
        Unavailable: RabbitMQ can't be reached.
    """
    if settings.amqp.url is None:
        return None
    pool = await asyncpg.create_pool(settings.database.url.get_secret_value(), min_size=1, max_size=1)
    async with pool:
        router = Router(
            engine, settings.amqp, await installation.fixed_number(pool, "ingest-queues", settings.amqp.queues)
        )
    await router.reach()
    return router


def _in_a_change(work: Callable[[AsyncConnection], Awaitable[None]]) -> None:
    async def change(engine: AsyncEngine, _: Settings) -> None:
        async with changing(engine) as connection:
            await work(connection)

    _in_a_database(change)


def _in_a_database(work: Callable[[AsyncEngine, Settings], Awaitable[None]]) -> None:
    settings = settings_for("people")

    async def change() -> None:
        engine = create_engine(settings.database, application_name="bode people")
        try:
            await work(engine, settings)
        except Problem as problem:
            reasons = "; ".join(f"{param.name} {param.reason}" for param in getattr(problem, "params", ()))
            fail(problem.detail or reasons or problem.title)
        finally:
            await engine.dispose()

    run(change())
