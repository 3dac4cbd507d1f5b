"""Addresses within RabbitMQ, and URLs of RabbitMQs."""

import pytest
from pydantic import SecretStr

from broker.delivery.amqp_targets import Login, Server
from broker.rabbitmq import AmqpSettings, Place
from schemas.amqp_addresses import Address, InvalidAddress
from schemas.problems import InvalidInput
from subscriptions.sink_urls import SinkRules

OPEN = SinkRules(allow_http=True, check=lambda _: None)
STRICT = SinkRules(allow_http=False, check=lambda url: "must not be here" if "10.0.0.1" in url else None)


@pytest.mark.parametrize(
    ("text", "exchange", "key"),
    [
        ("/queues/notificaties", "", "notificaties"),
        ("/queues/a%2Fb%20%C3%A9", "", "a/b é"),
        ("/exchanges/veranderingen", "veranderingen", ""),
        ("/exchanges/veranderingen/bag.pand", "veranderingen", "bag.pand"),
        ("/exchanges/a%2Fb/c%2Fd", "a/b", "c/d"),
        (f"/queues/{'x' * 255}", "", "x" * 255),
    ],
)
def test_addresses_are_taken_apart(text: str, exchange: str, key: str) -> None:
    address = Address.parse(text)
    assert (address.exchange, address.routing_key) == (exchange, key)
    assert address.queue == (None if exchange else key)


@pytest.mark.parametrize(
    "text",
    [
        "", "notificaties", "/queues", "/queues/", "/queues/a/b", "/exchanges/", "/exchanges//key", "/exchanges/a/b/c",
        "/topics/x", "queues/x", "/queues/a b", "/queues/%zz", "/queues/%ff", f"/queues/{'x' * 256}", "/queues/é",
        "/exchanges/x/",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidAddress, match="must "):
        Address.parse(text)


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("amqps://rabbit.example.nl", (True, "rabbit.example.nl", 5671, "/")),
        ("amqps://rabbit.example.nl/", (True, "rabbit.example.nl", 5671, "/")),
        ("AMQPS://Rabbit.example.nl:443/bode", (True, "rabbit.example.nl", 443, "bode")),
        ("amqps://[2001:db8::1]:5671/a%2Fb", (True, "2001:db8::1", 5671, "a/b")),
        ("amqp://127.0.0.1/%2F", (False, "127.0.0.1", 5672, "/")),
    ],
)
def test_urls_of_rabbitmqs_are_taken(url: str, server: tuple[bool, str, int, str]) -> None:
    OPEN.validate_amqp(url)
    assert tuple(Server.of(url)) == server


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("https://rabbit.example.nl", "sink"),
        ("amqps://", "sink"),
        ("amqps://bode:geheim@rabbit.example.nl", "sink"),
        ("amqps://bode@rabbit.example.nl", "sink"),
        ("amqps://rabbit.example.nl/a/b", "sink"),
        ("amqps://rabbit.example.nl/a?heartbeat=0", "sink"),
        ("amqps://rabbit.example.nl/#a", "sink"),
        ("amqps://rabbit.example.nl:0/", "sink"),
        ("amqps://rabbit.example.nl:65536/", "sink"),
        ("amqps://rabbit.example.nl/%ff", "sink"),
        (f"amqps://rabbit.example.nl/{'x' * 256}", "sink"),
        ("amqps://rabbit..example.nl", "sink"),
        ("amqps://\u017fpecial.example.nl", "sink"),  # which is an s where case makes no difference
        ("amqp\u017f://rabbit.example.nl", "sink"),
        ("amqp://rabbit.example.nl", "sink-insecure"),
        ("amqps://10.0.0.1", "sink-forbidden"),
    ],
)
def test_other_urls_are_refused(url: str, code: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        STRICT.validate_amqp(url)
    [param] = raised.value.params
    assert (param.name, param.code) == ("/sink", code)
    assert "geheim" not in param.reason


async def test_who_we_are_can_be_shown_without_the_password() -> None:
    place = await Place.of(AmqpSettings(url=SecretStr("amqp://bode:geheim@127.0.0.1/")))
    assert place.user == ("bode", "geheim")
    assert "geheim" not in repr((place, Login("/", place.user, "bode")))
