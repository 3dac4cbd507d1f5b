"""Notifications into queues on a provider's own RabbitMQ (protocol AMQP with a sink): two real servers, real TLS."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import UUID

import aio_pika
import pytest
import pytest_asyncio
from accepting import Publisher, migrated
from authorities import Authority
from delivering import Delivering, delivering
from fixtures import IN_ONE_LOOP, one_process, own_types
from forward_proxy import ForwardProxy
from provider_rabbitmq import CERTIFIED, EXCHANGE, PASSWORD, STRANGER, USER, ProviderRabbitMQ
from pydantic import SecretStr
from queued import ended, taken, tried
from serving import serving
from standardwebhooks.webhooks import Webhook

from broker.delivery import amqp_connections, pace
from broker.tools.local.rabbitmq import NotInstalled, find_installed

pytestmark = IN_ONE_LOOP
SINKS, CLIENTS, OTHER = Authority("Sinks"), Authority("Clients"), Authority("Other")
TRUST = {"trustedCertificates": SINKS.root.pem}
LOGIN = {"credentialType": "PLAIN", "identifier": USER, "secret": PASSWORD}
QUICK = {"delays": ["PT0.2S"] * 50}

bode = one_process(attempt_seconds=3)
publisher = own_types()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def remote(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ProviderRabbitMQ]:
    found = find_installed()
    if isinstance(found, NotInstalled):
        pytest.skip(f"no private RabbitMQ: {found.reason}")
    async with ProviderRabbitMQ(tmp_path_factory.mktemp("remote"), SINKS, CLIENTS) as server:
        async with server.channel() as at:
            await at.declare_exchange(EXCHANGE, aio_pika.ExchangeType.TOPIC, durable=True)
        yield server


def body_of(remote: ProviderRabbitMQ, publisher: Publisher, address: str, **members: Any) -> dict[str, Any]:
    return {
        "protocol": "AMQP", "sink": remote.sink, "types": [f"{publisher.domain}.iets"], "sinkTls": TRUST,
        "protocolSettings": {"address": address}, "sinkCredential": LOGIN, "retry": QUICK,
    } | members  # fmt: skip


async def subscribe(bode: Delivering, body: dict[str, Any]) -> Any:
    made = await bode.world.call("POST", "/subscriptions", key=bode.provider_key, body=body)
    assert made.status == 201, made.text
    assert made.json["status"] == "validating"
    bode.process._handshaker.ask()
    return made.json


async def active(bode: Delivering, body: dict[str, Any]) -> Any:
    made = await subscribe(bode, body)
    await bode.wait_for(UUID(made["id"]), status="active", seconds=5)
    return made


async def change(bode: Delivering, made: Any, **members: Any) -> Any:
    answered = await bode.world.call("PATCH", f"/subscriptions/{made['id']}", key=bode.provider_key, body=members)
    assert answered.status == 200, answered.text
    return answered.json


async def failed(bode: Delivering, made: Any, reason: str) -> None:
    """Wait until an attempt failed for this reason."""
    key = (await bode.row(UUID(made["id"])))["key"]
    async with asyncio.timeout(30):
        while reason not in (
            reasons := [
                row[0] for row in await bode.pool.fetch("SELECT reason FROM attempts WHERE subscription=$1", key)
            ]
        ):
            await asyncio.sleep(0.02)
    assert set(reasons) == {reason}


def numbers(messages: list[aio_pika.abc.AbstractIncomingMessage]) -> list[int]:
    return [int(json.loads(message.body)["subscriptionsequence"]) for message in messages]


async def test_they_come_signed_persistent_and_in_order(
    bode: Delivering, publisher: Publisher, remote: ProviderRabbitMQ
) -> None:
    address = await remote.declare("notificaties/1 +")
    made = await active(bode, body_of(remote, publisher, address, subscriberReference="afdeling"))
    assert (made["sink"], "queue" in made) == (remote.sink, False)
    assert made["protocolSettings"]["address"] == address
    assert PASSWORD not in json.dumps(made)
    await bode.publish(publisher, *(f"s{number % 5}" for number in range(60)))
    rows = await ended(bode, made["id"], 60)
    assert {(row["state"], row["attempts"], row["status"]) for row in rows} == {("delivered", 1, None)}
    async with remote.channel() as at:
        messages = await taken(at, "notificaties/1 +", 60)
    came = numbers(messages)
    assert sorted(came) == list(range(1, 61))
    for lane in range(5):
        of_lane = [number for number in came if number % 5 == lane]
        assert of_lane == sorted(of_lane)
    for message, number in zip(messages, came, strict=True):
        assert message.content_type == "application/cloudevents+json; charset=utf-8"
        assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
        assert message.message_id == f"dlv_{made['id'].replace('-', '')}_{number}"
        Webhook(made["secret"]).verify(message.body, {name: str(value) for name, value in message.headers.items()})


async def test_an_exchange_routes_them_and_a_large_one_takes_several_frames(
    bode: Delivering, publisher: Publisher, remote: ProviderRabbitMQ
) -> None:
    await remote.declare("gerouteerd")
    async with remote.channel() as at:
        await (await at.get_queue("gerouteerd")).bind(EXCHANGE, "bag.#")
        made = await active(bode, body_of(remote, publisher, f"/exchanges/{EXCHANGE}/bag.pand"))
        await (await bode.acceptor()).accept([publisher.message(subject="a", data="x" * 200_000)])
        await ended(bode, made["id"], 1)
        [message] = await taken(at, "gerouteerd", 1)
    assert (message.exchange, message.routing_key) == (EXCHANGE, "bag.pand")
    assert json.loads(message.body)["data"] == "x" * 200_000


async def test_a_client_certificate_can_stand_for_user_and_password(
    bode: Delivering, publisher: Publisher, remote: ProviderRabbitMQ
) -> None:
    address = await remote.declare("gecertificeerd")
    tls = CLIENTS.client(CERTIFIED).members | TRUST
    body = body_of(remote, publisher, address, sinkTls=tls)
    del body["sinkCredential"]
    made = await active(bode, body)
    await bode.publish(publisher, "a")
    assert [row["state"] for row in await ended(bode, made["id"], 1)] == ["delivered"]


NOT_YET = [
    ("password", {"sinkCredential": LOGIN | {"secret": "anders"}}, "(access-refused)"),
    ("permission", {"sinkCredential": LOGIN | {"identifier": STRANGER}}, "(access-refused)"),
    ("virtual-host", {"sink": "{sink}-niet"}, "(access-refused)"),
    ("queue", {"protocolSettings": {"address": "/queues/er-niet"}}, "(queue-missing)"),
    ("exchange", {"protocolSettings": {"address": "/exchanges/er-niet/x"}}, "(queue-missing)"),
    ("authority", {"sinkTls": {"trustedCertificates": OTHER.root.pem}}, "no answer (tls-failed)"),
    ("stranger", {"sinkTls": CLIENTS.client("iemand").members | TRUST, "sinkCredential": None}, "(access-refused)"),
    ("their-certificate", {"sinkTls": OTHER.client().members | TRUST}, "no answer ("),
    ("no-server", {"sink": "amqps://127.0.0.1:9/x"}, "no answer (connection-refused)"),
    ("not-rabbitmq", {"sink": "amqp://127.0.0.1:{http}", "sinkTls": None}, "no answer (not-amqp)"),
]  # fmt: skip


@pytest.mark.parametrize(("members", "reason"), [case[1:] for case in NOT_YET], ids=[case[0] for case in NOT_YET])
async def test_without_leave_there_it_does_not_become_active_and_says_why(
    bode: Delivering, publisher: Publisher, remote: ProviderRabbitMQ, members: dict[str, Any], reason: str
) -> None:
    async def speak_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(8)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with serving(speak_http) as http:
        body = body_of(remote, publisher, await remote.declare("notificaties"), **members)
        body["sink"] = body["sink"].format(sink=remote.sink, http=http)
        made = await subscribe(bode, {name: value for name, value in body.items() if value is not None})
        async with asyncio.timeout(10):
            while (row := await bode.row(UUID(made["id"])))["status_reason"] is None:
                await asyncio.sleep(0.02)
    assert row["status"] == "validating"
    assert reason in row["status_reason"]
    assert row["status_reason"].startswith("handshake-failed: ")


TOKEN = {"credentialType": "ACCESSTOKEN", "accessToken": "x"}
REFUSED = [
    ({"sink": "amqps://bode:geheim@rabbit.example.nl"}, "/sink"),
    ({"sink": "https://rabbit.example.nl"}, "/sink"),
    ({"sink": None}, "/sink"),
    ({"sink": "amqps://10.0.0.1/x", "protocol": "HTTP", "protocolSettings": None}, "/sink"),
    ({"protocol": "HTTP", "sink": "https://afnemer.example.nl"}, "/protocolSettings/address"),
    ({"protocolSettings": None}, "/protocolSettings/address"),
    ({"protocolSettings": {"signatures": ["v1"]}}, "/protocolSettings/address"),
    ({"protocolSettings": {"address": "niets"}}, "/protocolSettings/address"),
    ({"protocolSettings": {"linkName": "bode"}}, "/protocolSettings/address"),
    (
        {"protocolSettings": {"address": "/queues/a", "senderSettlementMode": "settled"}},
        "/protocolSettings/senderSettlementMode",
    ),
    ({"protocolSettings": {"address": "/queues/a", "headers": {"X-A": "b"}}}, "/protocolSettings/headers"),
    ({"protocolSettings": {"address": "/queues/a", "linkProperties": {}}}, "/protocolSettings/linkProperties"),
    ({"sinkCredential": None}, "/sinkCredential"),
    ({"sinkCredential": TOKEN}, "/sinkCredential/credentialType"),
    ({"sink": "amqp://127.0.0.1"}, "/sinkTls"),
]


@pytest.mark.parametrize(("members", "name"), REFUSED)
async def test_what_cannot_work_is_refused_naming_the_member(
    bode: Delivering, publisher: Publisher, remote: ProviderRabbitMQ, members: dict[str, Any], name: str
) -> None:
    body = body_of(remote, publisher, "/queues/a", **members)
    refused = await bode.world.call("POST", "/subscriptions", key=bode.provider_key, body=body)
    assert (refused.status, refused.json["invalidParams"][0]["name"]) == (400, name), refused.text
    assert "geheim" not in refused.text


async def test_what_it_is_stays_and_without_a_credential_it_cannot_be(
    bode: Delivering, publisher: Publisher, remote: ProviderRabbitMQ
) -> None:
    made = await subscribe(bode, body_of(remote, publisher, "/queues/er-niet"))
    for members, name in (
        ({"sinkCredential": None}, "/sinkCredential"),
        ({"sink": "amqps://rabbit.example.nl"}, "/sinkCredential"),  # which another sink must not see
        ({"sink": None, "protocolSettings": None, "sinkCredential": None, "sinkTls": None}, "/sink"),
    ):
        refused = await bode.world.call(
            "PATCH", f"/subscriptions/{made['id']}", key=bode.provider_key, body=members
        )  # fmt: skip
        assert (refused.status, refused.json["invalidParams"][0]["name"]) == (400, name), refused.text
    read = await bode.shown(UUID(made["id"]))
    assert read["sinkIdentity"]["credentialType"] == "PLAIN"
    assert PASSWORD not in json.dumps(read)
    assert PASSWORD.encode() not in (await bode.row(UUID(made["id"])))["sink_credential"]
    replaced = await bode.world.call(
        "PUT", f"/subscriptions/{made['id']}", key=bode.provider_key, body={**read, "subscriberReference": "b"}
    )
    assert replaced.status == 200, replaced.text


async def test_trying_out_leaves_nothing_there(
    bode: Delivering, publisher: Publisher, remote: ProviderRabbitMQ
) -> None:
    address = await remote.declare("leeg")
    await active(bode, body_of(remote, publisher, address))
    async with remote.channel() as at:
        assert (await at.get_queue("leeg")).declaration_result.message_count == 0


async def test_a_queue_that_is_deleted_holds_its_lanes_until_it_is_there_again(
    bode: Delivering, publisher: Publisher, remote: ProviderRabbitMQ
) -> None:
    address = await remote.declare("verdwenen")
    made = await active(bode, body_of(remote, publisher, address))
    async with remote.channel() as at:
        await at.queue_delete("verdwenen")
        await bode.publish(publisher, "a", "a", "b")
        await failed(bode, made, "queue-missing")
        await remote.declare("verdwenen")
        assert {row["state"] for row in await ended(bode, made["id"], 3)} == {"delivered"}
        came = numbers(await taken(at, "verdwenen", 3))
    assert sorted(came) == [1, 2, 3]
    assert came.index(1) < came.index(2)


async def test_an_exchange_that_is_deleted_closes_the_channel_and_is_no_more_than_a_failure(
    bode: Delivering, publisher: Publisher, remote: ProviderRabbitMQ
) -> None:
    async with remote.channel() as at:
        await remote.declare("achter")
        exchange = await at.declare_exchange("tijdelijk.amq.default", durable=True)
    await remote.evaluate(
        f'rabbit_auth_backend_internal:set_permissions(<<"{USER}">>, <<"bode">>, <<"^$">>, '
        rf'<<"^(amq\.default|{EXCHANGE}|tijdelijk.*)$">>, <<"^$">>, <<"test">>)'
    )
    made = await active(bode, body_of(remote, publisher, "/exchanges/tijdelijk.amq.default"))
    async with remote.channel() as at:
        await at.exchange_delete(exchange.name)
        await bode.publish(publisher, "a")
        await failed(bode, made, "queue-missing")
        exchange = await at.declare_exchange(exchange.name, durable=True)
        await (await at.get_queue("achter")).bind(exchange, "")
        assert {row["state"] for row in await ended(bode, made["id"], 1)} == {"delivered"}


async def test_a_full_queue_refuses_until_there_is_room(
    bode: Delivering, publisher: Publisher, remote: ProviderRabbitMQ
) -> None:
    address = await remote.declare("vol", **{"x-max-length": 3, "x-overflow": "reject-publish"})
    made = await active(bode, body_of(remote, publisher, address, ordering="subscription"))
    await bode.publish(publisher, *("a" for _ in range(8)))
    await failed(bode, made, "queue-full")
    async with remote.channel() as at:
        assert numbers(await taken(at, "vol", 8)) == list(range(1, 9))
    assert {row["state"] for row in await ended(bode, made["id"], 8)} == {"delivered"}


async def test_credentials_and_targets_that_are_changed_hold_from_then_on(
    bode: Delivering, publisher: Publisher, remote: ProviderRabbitMQ
) -> None:
    address, second = await remote.declare("eerste"), await remote.declare("tweede")
    made = await active(bode, body_of(remote, publisher, address))
    await bode.publish(publisher, "a")
    await ended(bode, made["id"], 1)
    await change(bode, made, sinkCredential=LOGIN | {"secret": "anders"})
    await bode.publish(publisher, "a")
    await failed(bode, made, "access-refused")
    await change(bode, made, sinkCredential=LOGIN)
    await ended(bode, made["id"], 2)
    waits = await change(bode, made, protocolSettings={"address": second})
    assert waits["status"] == "disabled", "nobody has said yet that we may publish there"
    bode.process._handshaker.ask()
    await bode.wait_for(UUID(made["id"]), status="active", seconds=5)
    await bode.publish(publisher, "a")
    await ended(bode, made["id"], 3)
    async with remote.channel() as at:
        assert numbers(await taken(at, "eerste", 2)) == [1, 2]
        assert numbers(await taken(at, "tweede", 1)) == [3]


async def test_a_test_notification_tells_whether_the_address_takes_it(
    bode: Delivering, publisher: Publisher, remote: ProviderRabbitMQ
) -> None:
    made = await active(bode, body_of(remote, publisher, await remote.declare("proef")))
    shown = await tried(bode, made["id"])
    assert (shown["state"], shown["status"], shown["reason"], shown["answer"]) == ("answered", None, None, None)
    async with remote.channel() as at:
        [message] = await taken(at, "proef", 1)
        assert json.loads(message.body)["type"] == "nl.bode.test-notification"
        await at.queue_delete("proef")
    shown = await tried(bode, made["id"])
    assert (shown["state"], shown["reason"]) == ("failed", "queue-missing")


async def test_an_alarm_there_is_a_failure_and_afterwards_everything_comes(
    bode: Delivering, publisher: Publisher, remote: ProviderRabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "FIRST_OPEN_SECONDS", 0.5)  # else the breaker's time is the test's
    address = await remote.declare("alarm")
    made = await active(bode, body_of(remote, publisher, address))
    await bode.publish(publisher, "a")
    await ended(bode, made["id"], 1)
    await remote.alarm_memory(True)
    try:
        await bode.publish(publisher, *(f"s{number}" for number in range(20)))
        await failed(bode, made, "rabbitmq-blocked")
    finally:
        await remote.alarm_memory(False)
    rows = await ended(bode, made["id"], 21)
    assert {row["state"] for row in rows} == {"delivered"}
    async with remote.channel() as at:
        came: list[int] = []
        while set(came) != set(range(1, 22)):
            came += numbers(await taken(at, "alarm", 1))
    again = {number for number in came if came.count(number) > 1}
    assert again <= {row["sequence"] for row in rows if row["attempts"] > 1}, "RabbitMQ had read it, and not said so"


async def test_a_server_that_is_killed_under_way_loses_nothing_and_keeps_the_order(
    bode: Delivering, publisher: Publisher, remote: ProviderRabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "FIRST_OPEN_SECONDS", 0.5)  # else the breaker's time is the test's
    address = await remote.declare("gedood")
    made = await active(bode, body_of(remote, publisher, address, retry={"delays": ["PT0.5S"] * 50}))
    await bode.publish(publisher, *(f"s{number % 20}" for number in range(400)))
    await ended(bode, made["id"], 20)
    await remote.kill()
    await bode.publish(publisher, *(f"s{number % 20}" for number in range(100)))
    await remote.start_again()
    rows = await ended(bode, made["id"], 500)
    assert {(row["state"], row["reason"]) for row in rows} == {("delivered", None)}
    assert max(row["attempts"] for row in rows) > 1, "it was not killed under way"
    async with remote.channel() as at:
        found: list[int] = []
        source = await at.get_queue("gedood")
        while (message := await source.get(fail=False, no_ack=True)) is not None:
            found += numbers([message])
    assert set(found) == set(range(1, 501))
    for lane in range(20):
        first = list(dict.fromkeys(number for number in found if number % 20 == lane))
        assert first == sorted(first)


async def test_a_certificate_that_is_no_longer_good_stops_it(
    bode: Delivering, publisher: Publisher, remote: ProviderRabbitMQ
) -> None:
    address = await remote.declare("certificaat")
    made = await active(bode, body_of(remote, publisher, address))
    await change(bode, made, sinkTls={"trustedCertificates": OTHER.root.pem})
    await bode.publish(publisher, "a")
    await failed(bode, made, "tls-failed")
    await change(bode, made, sinkTls=TRUST)
    assert [row["state"] for row in await ended(bode, made["id"], 1)] == ["delivered"]


async def test_connections_with_nothing_to_do_are_closed_and_made_again(
    bode: Delivering, publisher: Publisher, remote: ProviderRabbitMQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(amqp_connections, "HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr(amqp_connections, "IDLE_SECONDS", 0.4)
    address = await remote.declare("stil")
    made = await active(bode, body_of(remote, publisher, address))
    links = bode.process._remote_queues._links
    for number in range(1, 3):
        await bode.publish(publisher, "a")
        await ended(bode, made["id"], number)
        async with asyncio.timeout(10):
            assert UUID(made["id"]) in links
            while UUID(made["id"]) in links:
                await asyncio.sleep(0.05)
    assert {row["attempts"] for row in await ended(bode, made["id"], 2)} == {1}


async def test_one_that_never_answers_costs_the_others_nothing(
    bode: Delivering, publisher: Publisher, remote: ProviderRabbitMQ
) -> None:
    asked = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()

    address = await remote.declare("gezond")
    healthy = await active(bode, body_of(remote, publisher, address))
    sick = await active(bode, body_of(remote, publisher, address))
    async with serving(say_nothing) as silent:
        # behind the back of the API, which would ask it for consent first
        await bode.alter(
            UUID(sick["id"]), f"sink = 'amqp://127.0.0.1:{silent}', sink_tls = NULL, version = version + 1"
        )
        bode.process._everything_changed()
        await bode.publish(publisher, *(f"s{number}" for number in range(100)))
        async with asyncio.timeout(10):
            await asked.wait()
        rows = await ended(bode, healthy["id"], 100, seconds=2.5)  # less than an attempt takes at the silent one
        assert {row["state"] for row in rows} == {"delivered"}
        await failed(bode, sick, "timed-out")


@pytest.fixture
def own_url(postgres_url: str) -> Iterator[str]:
    """A database in which nobody else delivers."""
    with migrated(postgres_url) as made:
        yield made


async def test_through_a_proxy_it_goes_by_connect(own_url: str, remote: ProviderRabbitMQ) -> None:
    async with ForwardProxy() as proxy, delivering(own_url, attempt_seconds=4, proxy=SecretStr(proxy.url)) as bode:
        publisher = await bode.own_types()
        made = await active(bode, body_of(remote, publisher, await remote.declare("langs-de-proxy")))
        await bode.publish(publisher, "a")
        assert [row["state"] for row in await ended(bode, made["id"], 1)] == ["delivered"]
        assert proxy.asked == [f"CONNECT 127.0.0.1:{remote.secure_port} HTTP/1.1"] * 2
        proxy.answer = lambda _: b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
        connection = bode.process._remote_queues._links[UUID(made["id"])]._connection
        assert connection is not None
        connection.close()
        await bode.publish(publisher, "a")
        await failed(bode, made, "address-not-allowed")
