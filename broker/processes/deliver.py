"""`bode deliver`: owns shards of subscriptions and sends what is pending in them."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID, uuid4

from broker.delivery.authorization import Authorizer
from broker.delivery.bodies import Bodies
from broker.delivery.cancelling import HoldCanceller
from broker.delivery.client import Client
from broker.delivery.engine import Engine
from broker.delivery.expiry import Expiry
from broker.delivery.fence import Fence
from broker.delivery.handshake import Handshaker
from broker.delivery.heartbeats import Heartbeats
from broker.delivery.office import DirectoryOffice
from broker.delivery.own_identity import OwnIdentity
from broker.delivery.proxy import Proxy, ProxyAddress
from broker.delivery.queues import Queues
from broker.delivery.recorder import Recorder
from broker.delivery.remote_queues import RemoteQueues
from broker.delivery.replays import Replays
from broker.delivery.sender import Sender
from broker.delivery.settings import DeliverySettings
from broker.delivery.tls import Contexts
from broker.delivery.trials import Trials
from broker.leasing import Leasing
from broker.processes.housekeeping import Housekeeper
from broker.processes.resources import Resources, open_resources
from broker.processes.serving import Site, status_app, tell_ready
from broker.processes.starting import reached
from broker.processes.workers import Readiness, run_workers, stop_on_signals
from broker.settings import Settings
from broker.storage import installation, leases, records
from broker.storage.acceptance import DELIVERIES_CHANNEL, EVERYTHING
from broker.storage.dead_letters import AGAIN_CHANNEL
from broker.storage.leases import SHARD_LEASE
from broker.storage.listening import Listener
from broker.storage.partitions import ensure_partitions
from broker.storage.pool import DATABASE_TROUBLE
from broker.telemetry import PENDING, SHARDS, WORKER_ERRORS, log
from subscriptions.change_log import CHANGES_CHANNEL
from subscriptions.idempotency import forget_expired

_POOL_SIZE = 6
_HOUSE_EVERY = 5.0
_PARTITIONS_EVERY = 3600.0


async def run(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = stop_on_signals()
    owner = uuid4()
    name = leases.application_name(owner)
    session = records.connection_settings(name)
    async with open_resources(settings, name=name, session=session, pool_size=_POOL_SIZE) as resources:
        shards = await reached(lambda: _create_shards(resources))
        process = DeliverProcess(resources, owner, shards)
        try:
            await reached(process.office.load)
            await run_workers(process.workers(), stop=stop, drain=process.drain)
        finally:
            process.close()


async def _create_shards(resources: Resources) -> int:
    """How many shards there are; the first start makes their leases."""
    shards = await installation.fixed_number(resources.pool, "shards", resources.settings.delivery.shards)
    async with resources.pool.acquire() as connection:
        await leases.create(connection, SHARD_LEASE, shards)
    return shards


class DeliverProcess:
    """The parts of a deliver process, joined."""

    def __init__(
        self, resources: Resources, owner: UUID, shards: int, *, clock: Callable[[], float] | None = None
    ) -> None:
        """Join them; `clock`, which says when a retry is due, is PostgreSQL's by default."""
        settings = resources.settings
        self._resources = resources
        self._shards = shards
        self._delivery = settings.delivery.model_copy(update={"shards": shards})
        self._sweep_asked = asyncio.Event()
        self._fence = Fence(
            allow=settings.fence.allow, ports=settings.fence.ports, resolve_seconds=settings.fence.resolve_seconds
        )
        self._own = OwnIdentity(self._delivery)
        self._client = Client(
            self._fence,
            total_seconds=self._delivery.attempt_seconds,
            tls=Contexts(self._own.read()),
            proxy=_proxy(self._delivery),
        )
        self._authorizer = Authorizer(self._client, resources.engine, resources.keys)
        self._queues = Queues(
            settings.amqp,
            total_seconds=self._delivery.attempt_seconds,
            max_length=self._delivery.queue_max_length,
        )
        self._remote_queues = RemoteQueues(self._client.dialler, total_seconds=self._delivery.attempt_seconds)
        sender = Sender(self._client, self._authorizer, self._queues, self._remote_queues)
        self._recorder = Recorder(resources.pool, shards, self._delivery.linger_seconds)
        self._bodies = Bodies(resources.pool, resources.keys, self._delivery.body_cache_bytes)
        self._handshaker = Handshaker(
            resources.engine,
            self._client,
            self._delivery.origin,
            settings.handshake,
            settings.api.public_url,
            sender=sender,
            keys=resources.keys,
        )
        self._housekeeper = Housekeeper(resources.pool, resources.engine, settings.accounting, settings.retention)
        self._hold_canceller = HoldCanceller(resources.pool, resources.engine)
        self._trials = Trials(resources.engine, resources.keys, sender, self._delivery.origin)
        self.office = DirectoryOffice(
            resources.engine,
            resources.keys,
            changed=self._subscription_changed,
            hold_ended=self._hold_ended,
            reloaded=self._everything_changed,
            applied=self._changes_applied,
        )
        self._leasing = Leasing(
            resources.pool,
            SHARD_LEASE,
            owner,
            count=shards,
            span=timedelta(seconds=self._delivery.lease_seconds),
            gained=self._shards_gained,
            released=self._shards_released,
            applied_version=lambda: self.office.version,
            catch_up=self.office.catch_up,
            sure=self._sweep_asked.set,
        )
        self._engine = Engine(
            resources.pool,
            self._delivery,
            self._leasing,
            self.office,
            sender,
            self._bodies,
            self._recorder,
            clock=clock or self._leasing.clock.seconds,
            grant_clock=self._leasing.clock.now,
        )
        self._replays = Replays(resources.pool, self._engine, self._leasing, shards, self._bodies.read_ahead)
        self._heartbeats = Heartbeats(
            resources.pool,
            self._delivery,
            self._leasing,
            self.office,
            sender,
            resting=self._engine.resting,
            gone=self._engine.sink_is_gone,
        )
        self._listener = Listener(
            resources.dsn,
            {DELIVERIES_CHANNEL: self._woken, CHANGES_CHANNEL: self._changes_told, AGAIN_CHANNEL: self._told_again},
            self._listening_again,
            leases.application_name(owner),
        )
        readiness = Readiness({"database": resources.database_answers})
        self._site = Site(status_app(readiness), str(settings.serve.host), settings.serve.metrics_port)

    def workers(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """The workers, by name."""
        return {
            "leases": self._leasing.run,
            "office": self.office.run,
            "listener": self._listener.run,
            "bodies": self._bodies.run,
            "feed": self._engine.feeder.run,
            "sweep": self._engine.feeder.sweep,
            "sweep-asked": self._sweep_when_asked,
            "recorder": self._recorder.run,
            "disable": self._engine.disable,
            "handshakes": self._handshaker.run,
            "own-certificate": partial(self._own.run, self._client),
            "expiry": Expiry(self._resources.pool, self._own.expiries).run,
            "heartbeats": self._heartbeats.run,
            "replays": self._replays.run,
            "test-notifications": self._trials.run,
            "holds": self._hold_canceller.run,
            "house": self._keep_house,
            "housekeeping": self._housekeeper.run,
            "site": self._site.run,
            "announce": self._announce,
        }

    async def drain(self) -> None:
        """Let attempts under way end, record them, give the shards back; what isn't done in time is done elsewhere."""
        try:
            async with asyncio.timeout(self._delivery.grace_seconds + 5):
                await self._engine.stop()
                await self._recorder.drained()
                await self._replays.released(range(self._shards))
                await self._leasing.leave()
        except (TimeoutError, *DATABASE_TROUBLE) as error:
            log().warning("shutdown-incomplete", error=type(error).__name__, unrecorded=self._recorder.unrecorded)

    def close(self) -> None:
        """Close connections to sinks."""
        self._authorizer.close()
        self._queues.close()
        self._remote_queues.close()
        self._client.close()
        self._fence.close()

    # what the parts tell each other

    async def _shards_gained(self, _: Iterable[int]) -> None:
        self._sweep_asked.set()

    async def _shards_released(self, numbers: Iterable[int]) -> None:
        gone = list(numbers)
        await self._engine.released(gone)
        await self._replays.released(gone)

    def _subscription_changed(self, key: int) -> None:
        self._engine.changed(key)
        self._handshaker.ask()

    def _hold_ended(self) -> None:
        self._engine.failing_starts_anew()

    def _everything_changed(self) -> None:
        self._engine.forget()
        self._sweep_asked.set()

    def _changes_applied(self) -> None:
        self._leasing.nudge()

    def _changes_told(self, _: str) -> None:
        self.office.ask()
        self._handshaker.ask()
        self._trials.ask()
        self._hold_canceller.ask()

    def _told_again(self, payload: str) -> None:
        self._engine.changed(int(payload))

    def _listening_again(self) -> None:
        self._engine.forget()  # what was retried meanwhile lies below what was read
        self._sweep_asked.set()
        self.office.ask()

    def _woken(self, payload: str) -> None:
        if payload == EVERYTHING:
            self._sweep_asked.set()
        else:
            told = [int(text) for text in payload.split(",")]
            for key in told:
                if key < 0:  # something of it was cancelled by a correction
                    self._engine.changed(-key)
            self._engine.feeder.wake(key for key in told if key > 0)

    # small workers

    async def _sweep_when_asked(self) -> None:
        while True:
            await self._sweep_asked.wait()
            self._sweep_asked.clear()
            try:
                await self._engine.feeder.sweep_once()
            except DATABASE_TROUBLE:
                WORKER_ERRORS.labels("sweep").inc()
                await asyncio.sleep(0.5)
                self._sweep_asked.set()

    async def _announce(self) -> None:
        await self._site.started()
        tell_ready(self._site.port)
        log().info("process-ready", port=self._site.port, shards=self._shards)
        await asyncio.Event().wait()

    async def _keep_house(self) -> None:
        """Every few seconds: figures and idle connections; every hour: partitions ahead, and what has expired."""
        loop = asyncio.get_running_loop()
        partitions_at = loop.time()
        while True:
            await asyncio.sleep(_HOUSE_EVERY)
            self._client.close_idle()
            SHARDS.set(len(self._leasing.epochs))
            try:
                async with self._resources.pool.acquire() as connection:
                    matched, ended = await records.totals(connection, list(self._leasing.epochs), self._shards)
                PENDING.set(matched - ended)
                if loop.time() >= partitions_at:
                    async with self._resources.engine.begin() as transaction:
                        await ensure_partitions(transaction, datetime.now(UTC))
                        await forget_expired(transaction)
                    partitions_at = loop.time() + _PARTITIONS_EVERY
            except DATABASE_TROUBLE as error:
                WORKER_ERRORS.labels("house").inc()
                log().warning("house-not-kept", error=type(error).__name__)


def _proxy(settings: DeliverySettings) -> Proxy | None:
    if settings.proxy is None:
        return None
    return Proxy(ProxyAddress.of(settings.proxy.get_secret_value()), settings.attempt_seconds)
