"""`bode ingest`: consumes its share of the ingest queues and accepts what comes."""

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from uuid import uuid4

from broker.ingest import amqp
from broker.ingest.accept import Acceptor
from broker.ingest.consumer import BROKER_TROUBLE, QueueConsumer
from broker.ingest.following import Following
from broker.ingest.view import View
from broker.ingest.wake import Waker
from broker.leasing import Leasing
from broker.processes.resources import Resources, open_resources
from broker.processes.serving import Site, status_app, tell_ready
from broker.processes.workers import Readiness, run_workers, stop_on_signals
from broker.settings import Settings
from broker.storage import acceptance, installation, leases
from broker.storage.leases import QUEUE_LEASE
from broker.telemetry import QUEUE_MESSAGES, UNROUTED, WORKER_ERRORS, log

_COUNT_EVERY = 5.0


class Consumers:
    """The consumers of the queues that this process holds, each a task of its own."""

    def __init__(self, resources: Resources, acceptor: Acceptor, waker: Waker) -> None:
        self._resources = resources
        self._acceptor = acceptor
        self._waker = waker
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def gained(self, numbers: Iterable[int]) -> None:
        """Start consuming queues."""
        settings = self._resources.settings
        for number in numbers:
            consumer = QueueConsumer(
                number,
                settings.amqp,
                self._acceptor,
                self._waker.queue,
                batch_max=settings.ingest.batch_max,
                event_max_bytes=settings.event.max_bytes,
            )
            self._tasks[number] = asyncio.create_task(consumer.run(), name=f"queue {number}")

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
    def alive(self) -> bool:
        """Whether every held queue is consumed."""
        return all(not task.done() for task in self._tasks.values())


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = stop_on_signals()
    owner = uuid4()
    session = acceptance.connection_settings(timedelta(seconds=10), timedelta(seconds=5))
    async with open_resources(
        settings, name=leases.application_name(owner), session=session, pool_size=settings.amqp.queues + 3
    ) as resources:
        queues = await installation.fixed_number(resources.pool, "ingest-queues", settings.amqp.queues)
        await _declare(settings, queues)
        following = Following(resources.engine, resources.fingerprints, settings.ingest.follow_dir)
        view = View(resources.engine, following)
        await view.load()
        acceptor = Acceptor(resources.pool, view, resources.keys, resources.fingerprints)
        waker = Waker(resources.pool)
        consumers = Consumers(resources, acceptor, waker)
        async with resources.pool.acquire() as connection:
            await leases.create(connection, QUEUE_LEASE, queues)
        leasing = Leasing(
            resources.pool,
            QUEUE_LEASE,
            owner,
            count=queues,
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
            await consumers.released(list(leasing.epochs))
            await leasing.leave()

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
                "site": site.run,
                "queues": lambda: _count_queues(settings, leasing),
                "announce": announce,
            },
            stop=stop,
            drain=drain,
        )


async def _count_queues(settings: Settings, leasing: Leasing) -> None:
    """Tell every few seconds how many messages wait in the queues of this process, and in that of the unrouted."""
    while True:
        try:
            connection = await amqp.connect(settings.amqp, "bode queue figures")
            async with connection, connection.channel() as channel:
                while True:
                    for number in list(leasing.epochs):
                        name = amqp.queue_name(number)
                        QUEUE_MESSAGES.labels(name).set(await amqp.count_messages(channel, name))
                    UNROUTED.set(await amqp.count_messages(channel, amqp.UNROUTED))
                    await asyncio.sleep(_COUNT_EVERY)
        except BROKER_TROUBLE as error:
            WORKER_ERRORS.labels("queues").inc()
            log().warning("queues-not-counted", error=type(error).__name__)
        await asyncio.sleep(_COUNT_EVERY)


async def _declare(settings: Settings, queues: int) -> None:
    """Declare the topology; waits for RabbitMQ, because it may start later than we do."""
    pause = 0.1
    while True:
        try:
            connection = await amqp.connect(settings.amqp, "bode topology")
            async with connection:
                await amqp.declare(connection, queues)
            return
        except BROKER_TROUBLE as error:
            log().warning("rabbitmq-not-ready", error=type(error).__name__)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)
