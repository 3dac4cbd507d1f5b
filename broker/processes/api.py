"""`bode api`: serves the REST API; without RabbitMQ it also accepts what is published over HTTP."""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from uuid import uuid4

from broker.api.app import create_app
from broker.api.arrivals import Arrivals
from broker.api.context import BrokerContext
from broker.api.key_set import key_set_route
from broker.delivery.amqp_targets import Server
from broker.delivery.exchanges import Target
from broker.delivery.fence import Fence, FenceError
from broker.ingest.accept import Acceptor
from broker.ingest.following import Following
from broker.ingest.notices import Notifier
from broker.ingest.publishing import AmqpPublisher, DirectPublisher, Publisher
from broker.ingest.routing import Router
from broker.ingest.view import View
from broker.ingest.wake import Waker
from broker.matching.index import cost
from broker.processes.resources import Resources, open_resources
from broker.processes.serving import Site, status_routes, tell_ready
from broker.processes.starting import reached
from broker.processes.workers import Readiness, run_workers, stop_on_signals
from broker.settings import Settings
from broker.storage import acceptance, installation, leases, people
from broker.storage.acceptance import DELIVERIES_CHANNEL
from broker.storage.expiring import expires_at
from broker.storage.leases import SHARD_LEASE
from broker.storage.listening import Listener
from broker.storage.retention import Day
from broker.storage.tables import accepted_at
from broker.telemetry import log
from schemas.resources import Health
from subscriptions.callers import Callers
from subscriptions.context import Context, RouteDomain, no_route
from subscriptions.sink_urls import is_amqp

_BATCH_MAX_EVENTS = 1000
_BATCH_MAX_BYTES = 4 << 20
_SETTLE_SECONDS = 0.005


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = stop_on_signals()
    session = acceptance.connection_settings(timedelta(seconds=10), timedelta(seconds=5))
    async with open_resources(
        settings, name=leases.application_name(uuid4()), session=session, pool_size=4
    ) as resources:
        waker = Waker(resources.pool)
        workers = {"waker": waker.run}
        publisher: Publisher
        if settings.amqp.url is not None:
            view = View(resources.engine)  # nothing is matched here
            publisher = AmqpPublisher(settings.amqp)
        else:
            following = Following(resources.engine, resources.fingerprints, settings.ingest.follow_dir)
            workers["follow-lists"] = following.run
            view = View(resources.engine, following)
            acceptor = Acceptor(resources.pool, view, resources.keys, resources.fingerprints)
            workers["data-findings"] = acceptor.findings.run
            workers["notices"] = Notifier(resources.pool, acceptor, waker.queue).run
            publisher = DirectPublisher(acceptor, waker.queue, settings.ingest.batch_max)
        await reached(view.load)
        arrivals = Arrivals()
        listener = Listener(resources.dsn, {DELIVERIES_CHANNEL: arrivals.told}, arrivals.anything, resources.name)
        readiness = Readiness({"database": resources.database_answers, "publisher": publisher.ready})
        app = create_app(
            _context(resources, await _route_domain(resources)),
            BrokerContext(
                resources.engine,
                publisher,
                view,
                resources.fingerprints,
                arrivals,
                settings.event.max_bytes,
                _BATCH_MAX_BYTES,
                _BATCH_MAX_EVENTS,
            ),
            [*status_routes(readiness), key_set_route(resources.engine)],
        )
        site = Site(app, str(settings.serve.host), settings.serve.port)

        async def announce() -> None:
            await site.started()
            tell_ready(site.port)
            log().info("process-ready", port=site.port)
            await asyncio.Event().wait()

        async def drain() -> None:
            """Requests under way are finished by the site when it is cancelled."""

        await run_workers(
            workers | {"site": site.run, "publisher": publisher.run, "announce": announce, "listener": listener.run},
            stop=stop,
            drain=drain,
        )


async def _route_domain(resources: Resources) -> RouteDomain:
    settings = resources.settings.amqp
    if settings.url is None:
        return no_route
    queues = await reached(lambda: installation.fixed_number(resources.pool, "ingest-queues", settings.queues))
    return Router(resources.engine, settings, queues).routed


def _context(resources: Resources, route_domain: RouteDomain) -> Context:
    fence = Fence(allow=resources.settings.fence.allow, ports=resources.settings.fence.ports)

    def check_sink(url: str) -> str | None:
        try:
            target = Server.of(url) if is_amqp(url) else Target.of(url)
            fence.check_port(target.port)
            fence.check_literal(target.host)
        except (ValueError, FenceError) as error:
            return str(error)
        return None

    default = resources.settings.retention.days

    async def health_of(keys: Sequence[int]) -> Mapping[int, Health]:
        async with resources.engine.connect() as connection:
            rows = await people.read_health(connection, keys)
        return {
            row.key: Health(
                last_sequence=row.last_sequence,
                delivered_through=row.last_sequence if row.first_pending is None else row.first_pending - 1,
                pending=row.pending,
                oldest_pending_at=None if row.oldest is None else accepted_at(row.oldest),
                expires_next_at=None
                if row.oldest is None
                else expires_at(Day(accepted_at(row.oldest).date()), row.retention_days or default),
                dead_letters=row.dead_letters,
                last_outcome=row.last_outcome,
            )
            for row in rows
        }

    async def settled(version: int) -> None:
        """Wait for the delivery processes; one that is silent for a lease's time can no longer send (promise 6)."""
        span = timedelta(seconds=resources.settings.delivery.lease_seconds)
        async with asyncio.timeout(2 * span.total_seconds()), resources.pool.acquire() as connection:
            while await leases.holders_behind(  # noqa: ASYNC110  # other processes, which set no event of ours
                connection, SHARD_LEASE, version, span
            ):
                await asyncio.sleep(_SETTLE_SECONDS)

    return Context(
        engine=resources.engine,
        keys=resources.keys,
        settings=resources.settings.api,
        callers=Callers(
            resources.engine,
            resources.settings.api,
            oauth=resources.settings.oauth,
            proxy=resources.settings.proxy,
        ),
        check_sink=check_sink,
        count_evaluated=lambda condition: cost(condition).evaluated_always,
        health_of=health_of,
        cancel_ungranted=people.cancel_ungranted,
        cancel_subscription=people.cancel_subscription,
        settled=settled,
        handshakes=resources.settings.handshake,
        route_domain=route_domain,
        offer_queues=resources.settings.amqp.url is not None,
    )
