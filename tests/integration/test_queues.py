"""Notifications into providers' queues on the broker's RabbitMQ (protocol AMQP), with real servers."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import aio_pika
import pytest
from accepting import Publisher
from delivering import Delivering, delivering
from local_processes import marked, until_registered
from queued import ended, taken, tried
from standardwebhooks.webhooks import Webhook

from broker.delivery import queue_declaring
from broker.delivery.outcomes import Reason
from broker.telemetry import ATTEMPTS
from broker.tools.local.rabbitmq import RabbitMQ


@pytest.fixture(autouse=True)
def unkilled(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Where RabbitMQ isn't killed new queues are safe at once."""
    if "killed" not in request.node.name:
        monkeypatch.setattr(queue_declaring, "SETTLE_SECONDS", 0)


@asynccontextmanager
async def channel(rabbitmq: RabbitMQ) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    connection = await aio_pika.connect(rabbitmq.url())
    async with connection, connection.channel() as made:
        yield made


async def subscribe(bode: Delivering, publisher: Publisher, **members: Any) -> Any:
    """An AMQP subscription as it was answered."""
    body = {"protocol": "AMQP", "types": [f"{publisher.domain}.iets"]} | members
    made = await bode.world.call("POST", "/subscriptions", key=bode.provider_key, body=body)
    assert made.status == 201, made.text
    assert made.json["status"] == "active", "there is no sink to ask"
    return made.json


async def test_notifications_go_into_the_queue_signed_persistent_and_in_order(url: str, rabbitmq: RabbitMQ) -> None:
    async with delivering(url, amqp=rabbitmq.url(), concurrency=200) as bode, channel(rabbitmq) as at:
        publisher = await bode.own_types()
        made = await subscribe(bode, publisher, subscriberReference="afdeling")
        oin = made["organisation"]
        assert made["queue"] == f"bode.deliver.{oin}.{made['id']}"
        assert "sink" not in made
        await bode.publish(publisher, *(f"s{number % 5}" for number in range(60)))
        rows = await ended(bode, made["id"], 60)
        assert {(row["state"], row["attempts"], row["status"]) for row in rows} == {("delivered", 1, None)}
        pace = bode.process._engine._runners.pace_of((await bode.row(UUID(made["id"])))["key"])
        assert pace is not None
        assert pace.concurrency < 32, "else RabbitMQ may stop reading for all queues"
        messages = await taken(at, made["queue"], 60)
        events = [json.loads(message.body) for message in messages]
        came = [int(event["subscriptionsequence"]) for event in events]
        assert sorted(came) == list(range(1, 61))
        for lane in range(5):
            of_lane = [number for number in came if number % 5 == lane]
            assert of_lane == sorted(of_lane)
        for message, event in zip(messages, events, strict=True):
            assert message.content_type == "application/cloudevents+json; charset=utf-8"
            assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
            assert message.message_id == f"dlv_{made['id'].replace('-', '')}_{event['subscriptionsequence']}"
            assert (event["subscription"], event["subscriberreference"]) == (made["id"], "afdeling")
            headers = {name: str(value) for name, value in message.headers.items()}
            Webhook(made["secret"]).verify(message.body, headers)


async def test_queue_that_was_deleted_is_a_failure_and_there_again_for_the_retry(url: str, rabbitmq: RabbitMQ) -> None:
    async with delivering(url, amqp=rabbitmq.url()) as bode, channel(rabbitmq) as at:
        publisher = await bode.own_types()
        made = await subscribe(bode, publisher)
        await bode.publish(publisher, "a")
        await ended(bode, made["id"], 1)
        await at.queue_delete(made["queue"])
        await bode.publish(publisher, "a", "a")
        rows = await ended(bode, made["id"], 3)
        assert [(row["state"], row["attempts"]) for row in rows] == [
            ("delivered", 1),
            ("delivered", 2),
            ("delivered", 1),
        ]
        reasons = await bode.pool.fetch("SELECT reason FROM attempts WHERE subscription = $1", rows[0]["subscription"])
        assert [row["reason"] for row in reasons] == ["queue-missing"]
        came = [json.loads(message.body)["subscriptionsequence"] for message in await taken(at, made["queue"], 2)]
        assert came == ["2", "3"]


async def test_full_queue_holds_back_until_there_is_room(url: str, rabbitmq: RabbitMQ) -> None:
    async with delivering(url, amqp=rabbitmq.url(), queue_max_length=5) as bode, channel(rabbitmq) as at:
        publisher = await bode.own_types()
        made = await subscribe(bode, publisher, ordering="subscription", retry={"delays": ["PT0.2S"] * 50})
        await bode.publish(publisher, *("a" for _ in range(12)))
        key = (await bode.row(UUID(made["id"])))["key"]
        async with asyncio.timeout(30):
            while not await bode.pool.fetchval("SELECT count(*) FROM attempts WHERE subscription = $1", key):
                await asyncio.sleep(0.05)
        assert (
            await bode.pool.fetchval("SELECT reason FROM attempts WHERE subscription = $1 LIMIT 1", key) == "queue-full"
        )
        assert 1 <= await bode.pool.fetchval(
            "SELECT count(*) FROM deliveries WHERE subscription = $1 AND state = 'pending'", key
        ) < 12  # fmt: skip
        messages = await taken(at, made["queue"], 12)
        assert [json.loads(message.body)["subscriptionsequence"] for message in messages] == [
            str(number) for number in range(1, 13)
        ]
        assert {row["state"] for row in await ended(bode, made["id"], 12)} == {"delivered"}


@pytest.mark.long
async def test_rabbitmq_that_is_killed_under_way_costs_no_notification_and_no_attempt(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "rabbitmq"
    async with RabbitMQ(folder) as server, delivering(url, amqp=server.url()) as bode:
        publisher = await bode.own_types()
        made = await subscribe(bode, publisher)
        await bode.publish(publisher, *(f"s{number % 20}" for number in range(300)))
        await ended(bode, made["id"], 50)
        supervision = asyncio.create_task(server.run(lambda *_: None))
        await until_registered(folder, made["queue"])
        node = next(process for process in marked(folder) if process.name() == "beam.smp")
        node.send_signal(signal.SIGKILL)
        rows = await ended(bode, made["id"], 300, seconds=120)
        supervision.cancel()
        await asyncio.wait([supervision])
        assert {(row["state"], row["reason"]) for row in rows} == {("delivered", None)}
        assert max(row["attempts"] for row in rows) == 1, "RabbitMQ is ours: nobody pays for it"
        async with channel(server) as at:
            found: list[int] = []
            source = await at.get_queue(made["queue"])
            while (message := await source.get(fail=False, no_ack=True)) is not None:
                found.append(int(json.loads(message.body)["subscriptionsequence"]))
        assert set(found) == set(range(1, 301))
        for lane in range(20):
            first = list(dict.fromkeys(number for number in found if number % 20 == lane))
            assert first == sorted(first)


async def test_rabbitmq_that_stands_still_costs_nobody_an_attempt(
    url: str, rabbitmq: RabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.delivery.engine.HINDERED_SECONDS", 0.2)
    hindered = ATTEMPTS.labels(Reason.RABBITMQ)._value  # counted, since nothing else is left of them
    async with delivering(url, amqp=rabbitmq.url(), attempt_seconds=1.5) as bode:
        publisher = await bode.own_types()
        made = await subscribe(bode, publisher)
        await bode.publish(publisher, "a")
        await ended(bode, made["id"], 1)
        node = next(process for process in marked(rabbitmq.folder) if process.name() == "beam.smp")
        node.suspend()
        try:
            before = hindered.get()
            await bode.publish(publisher, "a")
            async with asyncio.timeout(60):
                while hindered.get() < before + 2:
                    await asyncio.sleep(0.05)
        finally:
            node.resume()
        rows = await ended(bode, made["id"], 2)
        assert [(row["state"], row["attempts"]) for row in rows] == [("delivered", 1)] * 2


async def test_what_has_no_place_with_a_queue_is_refused(url: str, rabbitmq: RabbitMQ) -> None:
    async with delivering(url, amqp=rabbitmq.url()) as bode:
        publisher = await bode.own_types()
        for members, name in (
            ({"sink": "https://afnemer.example/"}, "/sink"),
            ({"protocolSettings": {"headers": {"X-Team": "a"}}}, "/protocolSettings/headers"),
            ({"protocolSettings": {"batch": {}}}, "/protocolSettings/batch"),
            ({"sinkCredential": {"credentialType": "PLAIN", "identifier": "a", "secret": "b"}}, "/sinkCredential"),
        ):
            refused = await bode.world.call(
                "POST", "/subscriptions", key=bode.provider_key,
                body={"protocol": "AMQP", "types": [f"{publisher.domain}.iets"]} | members,
            )  # fmt: skip
            assert (refused.status, refused.json["invalidParams"][0]["name"]) == (400, name)
        made = await subscribe(bode, publisher, protocolSettings={"signatures": ["v1"]})
        path = f"/subscriptions/{made['id']}"
        replaced = await bode.world.call(
            "PUT", path, key=bode.provider_key, body={**made, "types": [f"{publisher.domain}.anders"]}
        )
        assert replaced.status == 200, replaced.text
        assert replaced.json["queue"] == made["queue"]


async def test_a_test_notification_is_confirmed_and_has_no_number(url: str, rabbitmq: RabbitMQ) -> None:
    async with delivering(url, amqp=rabbitmq.url()) as bode, channel(rabbitmq) as at:
        publisher = await bode.own_types()
        made = await subscribe(bode, publisher, subscriberReference="afdeling")
        shown = await tried(bode, made["id"])
        assert (shown["state"], shown["status"], shown["reason"]) == ("answered", None, None)
        [message] = await taken(at, made["queue"], 1)
        event = json.loads(message.body)
        assert (event["type"], event["subscriberreference"]) == ("nl.bode.test-notification", "afdeling")
        assert "subscriptionsequence" not in event
        assert message.message_id == f"test_{shown['id'].replace('-', '')}"
        Webhook(made["secret"]).verify(message.body, {name: str(value) for name, value in message.headers.items()})
        pulled = await bode.world.call(
            "POST", "/subscriptions", key=bode.provider_key,
            body={"protocol": "PULL", "types": [f"{publisher.domain}.iets"]},
        )  # fmt: skip
        path = f"/subscriptions/{pulled.json['id']}/test-notifications"
        assert (await bode.world.call("POST", path, key=bode.provider_key)).status == 409


async def test_subscription_that_was_disabled_goes_on_when_it_is_resumed(url: str, rabbitmq: RabbitMQ) -> None:
    async with delivering(url, amqp=rabbitmq.url()) as bode:
        publisher = await bode.own_types()
        made = await subscribe(bode, publisher)
        await bode.alter(UUID(made["id"]), "status = 'disabled', version = version + 1")
        answered = await bode.world.call(
            "PATCH", f"/subscriptions/{made['id']}", key=bode.provider_key, body={"status": "active"}
        )
        assert (answered.status, answered.json["status"]) == (200, "active")
        assert (await bode.row(UUID(made["id"])))["validate_at"] is None
        await bode.publish(publisher, "a")
        assert [row["state"] for row in await ended(bode, made["id"], 1)] == ["delivered"]


async def test_without_rabbitmq_queues_are_not_offered(url: str) -> None:
    async with delivering(url) as bode:
        publisher = await bode.own_types()
        state = bode.world.app.state
        state.context = replace(state.context, offer_queues=False)
        refused = await bode.world.call(
            "POST", "/subscriptions", key=bode.provider_key,
            body={"protocol": "AMQP", "types": [f"{publisher.domain}.iets"]},
        )  # fmt: skip
        assert refused.status == 400
        assert refused.json["invalidParams"][0]["code"] == "not-offered"
