"""`bode ingest`: consumes its share of the ingest queues and accepts what comes."""

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from uuid import uuid4

from broker.ingest import amqp
from broker.ingest.accept import Acceptor
from broker.ingest.consumer import QueueConsumer
from broker.ingest.following import Following
from broker.ingest.notices import Notifier
from broker.ingest.routing import Router
from broker.ingest.turns import Turns
from broker.ingest.view import View
from broker.ingest.wake import Waker
from broker.leasing import Leasing
from broker.processes.resources import Resources, open_resources
from broker.processes.serving import Site, status_app, tell_ready
from broker.processes.starting import reached
from broker.processes.workers import Readiness, run_workers, stop_on_signals
from broker.rabbitmq import BROKER_TROUBLE, connected
from broker.settings import Settings
from broker.storage import acceptance, installation, leases, routes
from broker.storage.leases import QUEUE_LEASE
from broker.storage.pool import DATABASE_TROUBLE
from broker.storage.routes import IngestQueue
from broker.telemetry import QUEUE_MESSAGES, UNROUTED, WORKER_ERRORS, log

_COUNT_EVERY = 5.0
_DRAIN_SECONDS = 8.0


class Consumers:
    """The consumers of the queues that this process holds, each a task of its own."""

    def __init__(self, resources: Resources, acceptor: Acceptor, waker: Waker) -> None:
        self._resources = resources
        self._acceptor = acceptor
        self._waker = waker
        self._turns = Turns(resources.settings.ingest.concurrency)
        self._names: dict[int, str] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def gained(self, numbers: Iterable[int]) -> None:
        """Start consuming queues."""
        for number in numbers:
            self._tasks[number] = asyncio.create_task(self._consume(number), name=f"queue {number}")

    async def _consume(self, number: int) -> None:
        queue = await self._look_up(number)
        settings = self._resources.settings
        self._names[number] = queue.name
        try:
            await QueueConsumer(
                queue,
                settings.amqp,
                settings.ingest,
                self._acceptor,
                self._turns,
                self._waker.queue,
                event_max_bytes=settings.event.max_bytes,
            ).run()
        finally:
            del self._names[number]

    async def _look_up(self, number: int) -> IngestQueue:
        while True:
            try:
                async with self._resources.engine.connect() as connection:
                    [queue] = await routes.read_queues(connection, [number])
                    return queue
            except DATABASE_TROUBLE as error:
                WORKER_ERRORS.labels("queue-consumer").inc()
                log().warning("queue-not-found", number=number, error=type(error).__name__)
            await asyncio.sleep(1)

    async def released(self, numbers: Iterable[int]) -> None:
        """Stop consuming queues; their unacknowledged messages return to them, in order."""
        stopped = [self._tasks.pop(number) for number in numbers if number in self._tasks]
        for task in stopped:
            task.cancel()
        await asyncio.gather(*stopped, return_exceptions=True)

    async def watch(self) -> None:
        """Raise what a consumer raised: a defect, since consumers survive trouble."""
        while True:
            for task in list(self._tasks.values()):
                if task.done() and not task.cancelled():
                    task.result()
            await asyncio.sleep(0.5)

    @property
    def queues(self) -> list[str]:
        """The names of the queues that are consumed."""
        return sorted(self._names.values())

    @property
    def alive(self) -> bool:
        """Whether every held queue is consumed."""
        return all(not task.done() for task in self._tasks.values())


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = stop_on_signals()
    owner = uuid4()
    session = acceptance.connection_settings(timedelta(seconds=10), timedelta(seconds=5))
    async with open_resources(
        settings, name=leases.application_name(owner), session=session, pool_size=settings.ingest.concurrency + 4
    ) as resources:
        queues = await reached(lambda: installation.fixed_number(resources.pool, "ingest-queues", settings.amqp.queues))
        router = Router(resources.engine, settings.amqp, queues)
        await reached(lambda: _declare(router))
        following = Following(resources.engine, resources.fingerprints, settings.ingest.follow_dir)
        view = View(resources.engine, following)
        await reached(view.load)
        acceptor = Acceptor(resources.pool, view, resources.keys, resources.fingerprints)
        waker = Waker(resources.pool)
        consumers = Consumers(resources, acceptor, waker)
        leasing = Leasing(
            resources.pool,
            QUEUE_LEASE,
            owner,
            count=None,
            span=timedelta(seconds=settings.ingest.lease_seconds),
            gained=consumers.gained,
            released=consumers.released,
            applied_version=lambda: view.version,
        )

        async def consuming() -> bool:
            return consumers.alive

        readiness = Readiness({"database": resources.database_answers, "consumers": consuming})
        site = Site(status_app(readiness), str(settings.serve.host), settings.serve.metrics_port)

        async def drain() -> None:
            """Let go of the queues; what can't be said in time, others find out by themselves."""
            try:
                async with asyncio.timeout(_DRAIN_SECONDS):
                    await consumers.released(list(leasing.epochs))
                    await leasing.leave()
            except DATABASE_TROUBLE as error:
                log().warning("shutdown-incomplete", error=type(error).__name__)

        async def announce() -> None:
            await site.started()
            tell_ready(site.port)
            log().info("process-ready", port=site.port, queues=queues)
            await asyncio.Event().wait()

        await run_workers(
            {
                "leases": leasing.run,
                "consumers": consumers.watch,
                "waker": waker.run,
                "follow-lists": following.run,
                "data-findings": acceptor.findings.run,
                "notices": Notifier(resources.pool, acceptor, waker.queue).run,
                "site": site.run,
                "queues": lambda: _count_queues(settings, consumers),
                "routes": router.run,
                "announce": announce,
            },
            stop=stop,
            drain=drain,
        )


async def _count_queues(settings: Settings, consumers: Consumers) -> None:
    """Tell every few seconds how many messages wait in the queues of this process, and in that of the unrouted."""
    told: set[str] = set()
    while True:
        try:
            async with connected(settings.amqp, "bode queue figures") as rabbit, rabbit.channel() as channel:
                while True:
                    names = consumers.queues
                    for name in told.difference(names):
                        QUEUE_MESSAGES.remove(name)  # another process tells of it
                    told = set(names)
                    for name in names:
                        QUEUE_MESSAGES.labels(name).set(await amqp.count_messages(channel, name))
                    UNROUTED.set(await amqp.count_messages(channel, amqp.UNROUTED))
                    await asyncio.sleep(_COUNT_EVERY)
        except BROKER_TROUBLE as error:
            WORKER_ERRORS.labels("queues").inc()
            log().warning("queues-not-counted", error=type(error).__name__)
        await asyncio.sleep(_COUNT_EVERY)


async def _declare(router: Router) -> None:
    """Declare the topology; waits for RabbitMQ, because it may start later than we do."""
    pause = 0.1
    while True:
        try:
            await router.declare()
            return
        except BROKER_TROUBLE as error:
            log().warning("rabbitmq-not-ready", error=type(error).__name__)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)
