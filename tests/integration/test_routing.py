"""Routes: each registry's events come in by queues of its own, every event by one way, whoever makes what when."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from uuid import UUID

import aio_pika
import pytest
from accepting import Broker, broker
from managing import fresh_domain
from pydantic import SecretStr
from sqlalchemy import text

from broker.ingest import amqp
from broker.ingest.consumer import IngestSettings, QueueConsumer
from broker.ingest.publishing import message_of
from broker.ingest.routing import Router
from broker.ingest.turns import Turns
from broker.ingest.wake import Waker
from broker.rabbitmq import AmqpSettings
from broker.storage import leases, routes
from broker.storage.routes import IngestQueue
from broker.tools.local.rabbitmq import RabbitMQ
from schemas import cloudevents
from schemas.identifiers import sample_oin
from schemas.problems import Conflict, Unavailable
from subscriptions import organisations
from subscriptions.callers import Scope
from subscriptions.change_log import changing

SHARED = 2
_RANDOM = Random()


@pytest.fixture
async def bode(url: str) -> AsyncIterator[Broker]:
    async with broker(url) as made:
        yield made


@pytest.fixture(autouse=True)
def unkilled(monkeypatch: pytest.MonkeyPatch) -> None:
    """RabbitMQ isn't killed here, so new queues are safe at once."""
    monkeypatch.setattr(amqp, "_SETTLE_SECONDS", 0)


@dataclass(frozen=True)
class Registry:
    id: UUID
    oin: str

    @property
    def queues(self) -> list[str]:
        return [amqp.registry_queue_name(self.oin, number) for number in range(2)]


async def registry(bode: Broker, user: str | None = None) -> Registry:
    async with changing(bode.world.engine) as connection:
        row = await organisations.create_organisation(
            connection, oin=sample_oin(_RANDOM), name="Registratie", amqp_user=user
        )
    return Registry(row.id, row.oin)


def router(bode: Broker, rabbitmq: RabbitMQ | str) -> Router:
    url = rabbitmq if isinstance(rabbitmq, str) else rabbitmq.url()
    return Router(bode.world.engine, AmqpSettings(url=SecretStr(url), registry_queues=2), SHARED)


async def make_domain(bode: Broker, owner: Registry, name: str, route: Router | None = None) -> None:
    async def make() -> None:
        async with changing(bode.world.engine) as connection:
            await organisations.create_domain(connection, organisation_id=owner.id, name=name, by_operator=True)

    if route is None:
        await make()
    else:
        async with route.routed(owner.id, owner.oin, name):
            await make()


class Rabbit:
    """The broker's hand on RabbitMQ."""

    def __init__(self, channel: aio_pika.abc.AbstractChannel) -> None:
        self._channel = channel

    async def publish(self, *types: str) -> None:
        events = await self._channel.get_exchange(amqp.EXCHANGE)
        for number, event_type in enumerate(types):
            headers: dict[str, aio_pika.abc.HeadersType | str] = {amqp.SUBJECT_HEADER: str(number)}
            await events.publish(aio_pika.Message(event_type.encode(), headers=headers), event_type)

    async def taken(self, *queues: str) -> list[str]:
        """What waits in queues, which is taken out."""
        found = []
        for name in queues:
            queue = await self._channel.declare_queue(name, passive=True)
            arrived: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
            tag = await queue.consume(arrived.put, no_ack=True)
            async with asyncio.timeout(30):
                for _ in range(queue.declaration_result.message_count or 0):
                    found.append((await arrived.get()).body.decode())
            await queue.cancel(tag)
        return sorted(found)


SHARED_QUEUES = tuple(amqp.queue_name(number) for number in range(SHARED))


@pytest.fixture
async def rabbit(rabbitmq: RabbitMQ) -> AsyncIterator[Rabbit]:
    connection = await aio_pika.connect(rabbitmq.url())
    async with connection, connection.channel(publisher_confirms=True) as channel:
        await amqp.declare(connection, SHARED)
        hand = Rabbit(channel)
        await hand.taken(*SHARED_QUEUES, amqp.UNROUTED)
        yield hand


async def test_every_event_takes_one_way_that_of_the_longest_domain(
    bode: Broker, rabbitmq: RabbitMQ, rabbit: Rabbit
) -> None:
    outer, inner, route = await registry(bode), await registry(bode), router(bode, rabbitmq)
    domain = fresh_domain()
    await make_domain(bode, inner, f"{domain}.deel.adres", route)  # the inner one first: order makes no difference
    await make_domain(bode, outer, domain, route)
    await make_domain(bode, outer, f"{domain}.deel.adres.eigen", route)
    second = fresh_domain()
    await make_domain(bode, outer, second, route)
    theirs = [f"{domain}.deel.adres", f"{domain}.deel.adres.x", f"{domain}.deel.adres.x.y"]
    own = [domain, f"{domain}.x", f"{domain}.deel", f"{domain}.deel.adressen", f"{domain}.deel.adres.eigen.x", second]
    nobodys = [f"{domain}x.y", "nl", "nl.onbekend.x", "x" * 255]
    await rabbit.publish(*theirs, *own, *nobodys)
    assert await rabbit.taken(*inner.queues) == sorted(theirs)
    assert await rabbit.taken(*outer.queues) == sorted(own)
    assert await rabbit.taken(*SHARED_QUEUES) == sorted(nobodys)
    assert await rabbit.taken(amqp.UNROUTED) == []


async def test_domain_too_deep_for_a_route_goes_with_those_around_it(
    bode: Broker, rabbitmq: RabbitMQ, rabbit: Rabbit
) -> None:
    outer, inner, route = await registry(bode), await registry(bode), router(bode, rabbitmq)
    domain = fresh_domain()
    deep = domain + ".a" * amqp.LEVELS
    await make_domain(bode, outer, domain, route)
    await make_domain(bode, inner, deep, route)
    await rabbit.publish(deep, f"{deep}.x")
    assert await rabbit.taken(*outer.queues) == [deep, f"{deep}.x"]
    assert await rabbit.taken(*inner.queues, *SHARED_QUEUES) == []


async def test_domain_that_could_not_be_made_leaves_no_route_and_takes_no_one_elses(
    bode: Broker, rabbitmq: RabbitMQ, rabbit: Rabbit
) -> None:
    owner, other, route = await registry(bode), await registry(bode), router(bode, rabbitmq)
    taken, failed = fresh_domain(), fresh_domain()
    await make_domain(bode, owner, taken, route)
    with pytest.raises(Conflict):
        await make_domain(bode, other, taken, route)
    with pytest.raises(Conflict):
        await make_domain(bode, owner, taken, route)
    with pytest.raises(RuntimeError, match="in the midst"):
        async with route.routed(other.id, other.oin, failed):
            raise RuntimeError("in the midst")
    await make_domain(bode, owner, failed, route)
    await rabbit.publish(f"{taken}.x", f"{failed}.x")
    assert await rabbit.taken(*owner.queues) == sorted([f"{taken}.x", f"{failed}.x"])
    assert await rabbit.taken(*other.queues, *SHARED_QUEUES) == []


async def test_two_that_make_one_domain_at_once_do_not_both_route_it(bode: Broker, rabbitmq: RabbitMQ) -> None:
    one, other, route, domain = await registry(bode), await registry(bode), router(bode, rabbitmq), fresh_domain()
    async with route.routed(one.id, one.oin, domain):
        with pytest.raises(Conflict):
            async with route.routed(other.id, other.oin, domain):
                raise AssertionError("unreachable")


async def test_no_domain_is_made_over_the_api_while_rabbitmq_is_away(bode: Broker) -> None:
    world, domain = bode.world, fresh_domain()
    made = await world.party(Scope.MANAGE)
    away = router(bode, "amqp://bode:secret@127.0.0.1:9/bode")
    world.app.state.context = world.with_routes(away.routed)
    answer = await world.call("POST", "/domains", key=made.key, body={"name": domain})
    assert answer.status == 503
    found = await world.call("GET", f"/domains?name={domain}", key=made.key)
    assert found.json["count"] == 0
    with pytest.raises(Unavailable):
        await away.reach()


async def test_domain_made_over_the_api_is_routed_before_it_is_there(
    bode: Broker, rabbitmq: RabbitMQ, rabbit: Rabbit
) -> None:
    world, domain = bode.world, fresh_domain()
    made = await world.party(Scope.MANAGE)
    world.app.state.context = world.with_routes(router(bode, rabbitmq).routed)
    answer = await world.call("POST", "/domains", key=made.key, body={"name": domain})
    assert answer.status == 201, answer.text
    await rabbit.publish(f"{domain}.x")
    assert await rabbit.taken(*Registry(made.id, made.oin).queues) == [f"{domain}.x"]
    async with world.engine.connect() as connection:
        opened = await connection.execute(
            text("SELECT count(*) FROM ingest_queues JOIN leases USING (number) WHERE organisation_id = :id"),
            {"id": made.id},
        )
        assert opened.scalar_one() == 2


async def test_domain_made_without_rabbitmq_is_routed_once_nothing_waits_in_the_old_way(
    bode: Broker, rabbitmq: RabbitMQ, rabbit: Rabbit
) -> None:
    owner, domain, route = await registry(bode), fresh_domain(), router(bode, rabbitmq)
    await make_domain(bode, owner, domain)
    await rabbit.publish(f"{domain}.before")
    await route.repair()
    await rabbit.publish(f"{domain}.meanwhile")
    assert await rabbit.taken(*SHARED_QUEUES) == [f"{domain}.before", f"{domain}.meanwhile"]
    await route.repair()
    await rabbit.publish(f"{domain}.after")
    assert await rabbit.taken(*owner.queues) == [f"{domain}.after"]
    assert await rabbit.taken(*SHARED_QUEUES) == []


async def test_route_whose_domain_never_came_is_taken_away(bode: Broker, rabbitmq: RabbitMQ, rabbit: Rabbit) -> None:
    owner, domain, route = await registry(bode), fresh_domain(), router(bode, rabbitmq)
    stopped = route.routed(owner.id, owner.oin, domain)
    await stopped.__aenter__()  # and the process is killed
    await rabbit.publish(f"{domain}.x")
    assert await rabbit.taken(*owner.queues) == [f"{domain}.x"]
    await route.repair()
    await rabbit.publish(f"{domain}.x")
    assert await rabbit.taken(*owner.queues) == [f"{domain}.x"], "it may be being made"
    await route.repair(abandoned=timedelta(0))
    await rabbit.publish(f"{domain}.x")
    assert await rabbit.taken(*owner.queues) == []
    assert await rabbit.taken(*SHARED_QUEUES) == [f"{domain}.x"]


async def test_topology_is_declared_again_as_it_was_and_the_way_of_former_versions_goes(
    bode: Broker, rabbitmq: RabbitMQ, rabbit: Rabbit
) -> None:
    owner, domain, route = await registry(bode), fresh_domain(), router(bode, rabbitmq)
    await make_domain(bode, owner, domain, route)
    connection = await aio_pika.connect(rabbitmq.url())
    async with connection, connection.channel() as channel:
        partition = await channel.get_exchange(amqp.PARTITION)
        await partition.bind(amqp.EXCHANGE, routing_key="#")
    await route.declare()
    await rabbit.publish(f"{domain}.x", "nl.onbekend.x")
    assert await rabbit.taken(*owner.queues) == [f"{domain}.x"]
    assert await rabbit.taken(*SHARED_QUEUES) == ["nl.onbekend.x"]


async def test_queues_of_one_registry_are_not_neighbours_among_the_leases(bode: Broker, rabbitmq: RabbitMQ) -> None:
    route, owners = router(bode, rabbitmq), [await registry(bode) for _ in range(2)]
    for owner in owners:
        await make_domain(bode, owner, fresh_domain(), route)
    await route.declare()
    async with bode.pool.acquire() as connection:
        rows = await connection.fetch("SELECT number, organisation_id FROM ingest_queues ORDER BY number")
        half = len(rows) // 2
        assert await leases.count(connection, leases.QUEUE_LEASE) == len(rows)
    for part in (rows[:half], rows[half:]):
        counts = Counter(row["organisation_id"] for row in part if row["organisation_id"] is not None)
        assert set(counts.values()) == {1}


async def test_event_does_not_wait_for_the_bulk_of_another_registry(bode: Broker, rabbitmq: RabbitMQ) -> None:
    """2,000 events of one registry wait when one of another arrives behind them: most of them come after it."""
    route, amqp_settings = router(bode, rabbitmq), AmqpSettings(url=SecretStr(rabbitmq.url()))
    users = {"bag": await registry(bode, "bag"), "brp": await registry(bode, "brp")}
    domains = {"bag": "nl.bag", "brp": "nl.brp"}
    for name, owner in users.items():
        await make_domain(bode, owner, domains[name], route)
    await _publish(rabbitmq, "bag", users["bag"], 2000)
    await _publish(rabbitmq, "brp", users["brp"], 1)
    async with bode.world.engine.connect() as connection:
        numbers = (await connection.execute(text("SELECT number FROM ingest_queues"))).scalars().all()
        queues = await routes.read_queues(connection, numbers)
    tasks = await _consume(bode, [queue for queue in queues if queue.organisation_id is not None], amqp_settings)
    try:
        async with asyncio.timeout(60):
            while await bode.pool.fetchval(_COUNT, [owner.id for owner in users.values()]) < 2001:
                await asyncio.sleep(0.05)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for domain in domains.values():  # other tests publish such events into the shared queues
            async with bode.world.engine.begin() as connection:
                await connection.execute(text("DELETE FROM domains WHERE name = :name"), {"name": domain})
        await route.repair(abandoned=timedelta(0))
    order = [row[0] for row in await bode.pool.fetch(_ORDER, [owner.id for owner in users.values()])]
    assert order.index(users["brp"].id) < 1100


_COUNT = "SELECT count(*) FROM events WHERE organisation_id = ANY($1::uuid[])"
_ORDER = "SELECT organisation_id FROM events WHERE organisation_id = ANY($1::uuid[]) ORDER BY key"


async def _publish(rabbitmq: RabbitMQ, name: str, owner: Registry, count: int) -> None:
    connection = await aio_pika.connect(rabbitmq.url(name))
    async with connection, connection.channel(publisher_confirms=True) as channel:
        exchange = await channel.get_exchange(amqp.EXCHANGE, ensure=False)
        events = [
            cloudevents.from_structured(
                json.dumps(
                    {
                        "specversion": "1.0",
                        "id": str(number),
                        "source": f"urn:nld:oin:{owner.oin}:systeem:test",
                        "type": f"nl.{name}.iets",
                        "subject": str(number % 50),
                    }
                ).encode()
            )
            for number in range(count)
        ]
        await asyncio.gather(*(exchange.publish(message_of(event, name), event.type) for event in events))


async def _consume(bode: Broker, queues: Sequence[IngestQueue], settings: AmqpSettings) -> list[asyncio.Task[None]]:
    acceptor, turns, waker = await bode.acceptor(), Turns(4), Waker(bode.pool)
    consumers = [
        QueueConsumer(queue, settings, IngestSettings(), acceptor, turns, waker.queue, event_max_bytes=1 << 18)
        for queue in queues
    ]
    return [asyncio.create_task(consumer.run()) for consumer in consumers]
