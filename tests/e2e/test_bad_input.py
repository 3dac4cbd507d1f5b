"""Bad input ends as a clear rejection or problem, for its publisher alone to read, and with nothing half done."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aio_pika
import pytest

from tests.e2e.events import event
from tests.e2e.installation import Installation
from tests.e2e.receiver import Receiver

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
Change = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture
async def watching(installation: Installation, receiver: Receiver, request: pytest.FixtureRequest) -> Any:
    """A subscription to all of the registry's types: what isn't rejected would arrive here."""
    made = await installation.subscribe("gemeente", receiver.url("all"), filters=[{"prefix": {"type": "nl.brp."}}])
    yield made
    await installation.call("DELETE", f"/subscriptions/{made['id']}", "gemeente")


def text(installation: Installation, **changes: Any) -> bytes:
    """An event of brp, changed; None leaves an attribute out."""
    return event(installation.source("brp"), changes.pop("type", "nl.brp.fout"), changes.pop("subject", "a"), **changes)


def without(name: str) -> Callable[[Installation], bytes]:
    return lambda installation: text(installation, **{name: None}) if name != "type" else json.dumps(
        {key: value for key, value in json.loads(text(installation)).items() if key != "type"}
    ).encode()  # fmt: skip


BODIES: dict[str, tuple[Callable[[Installation], bytes], str, str | None]] = {
    "not JSON": (lambda _: b"<event/>", "not-json", None),
    "a JSON array": (lambda _: b"[]", "not-an-object", None),
    "not UTF-8": (lambda _: b'{"id": "\xff"}', "not-utf8", None),
    "no type": (without("type"), "missing-attribute", "type"),
    "no id": (without("id"), "missing-attribute", "id"),
    "specversion 0.3": (lambda i: text(i, specversion="0.3"), "specversion-unsupported", "specversion"),
    "name with capitals": (lambda i: text(i, myExtension="x"), "attribute-name-invalid", "myExtension"),
    "name with NUL": (lambda i: text(i, **{"a\0b": "x"}), "attribute-name-invalid", "a"),
    "empty subject": (lambda i: text(i, subject=""), "attribute-empty", "subject"),
    "data twice": (lambda i: text(i, data=1, data_base64="AA=="), "data-and-data-base64", None),
    "300 KiB": (lambda i: text(i, data="x" * 300 * 1024), "too-large", None),
    "source of another": (lambda i: text(i, source=i.source("bag")), "source-not-yours", "source"),
    "source of nobody": (lambda i: text(i, source="urn:nld:oin:1:x"), "source-not-yours", "source"),
}


def body_of(case: str, installation: Installation) -> bytes:
    make, _, _ = BODIES[case]
    if "source" not in case:
        return make(installation)
    changed = json.loads(text(installation))
    changed["source"] = installation.source("bag") if "another" in case else "urn:nld:oin:1:x"
    return json.dumps(changed).encode()


async def publish(installation: Installation, registry: str, body: bytes, **properties: Any) -> None:
    """Publishes anything over AMQP, with a confirm."""
    routing_key = properties.pop("routing_key", "nl.brp.fout")
    connection = await aio_pika.connect(installation.about["keys"]["registries"][registry]["amqp"])
    user = connection.url.user
    defaults = {"content_type": STRUCTURED, "delivery_mode": 2, "user_id": user, "headers": {}}
    async with connection, connection.channel(publisher_confirms=True) as channel:
        exchange = await channel.get_exchange("bode.events", ensure=False)
        await exchange.publish(aio_pika.Message(body, **(defaults | properties)), routing_key=routing_key)


async def rejections(installation: Installation, who: str) -> list[dict[str, Any]]:
    """All of them, the latest last."""
    found, path = list[dict[str, Any]](), "/rejections?pageSize=100"
    while path:
        status, page, _ = await installation.call("GET", path, who)
        assert status == 200, page
        found += page["results"]
        path = (page["next"] or "").partition("/v1")[2]
    return found


async def rejection_of(installation: Installation, who: str, size: int, before: int) -> dict[str, Any]:
    """The rejection that comes after the first `before`."""
    async with asyncio.timeout(10):
        while True:
            found = (await rejections(installation, who))[before:]
            if found:
                [rejection] = found
                assert rejection["bytes"] == size
                return rejection
            await asyncio.sleep(0.02)


async def assert_nothing_was_done(
    installation: Installation, receiver: Receiver, watching: dict[str, Any], arrived: int
) -> None:
    """A good event behind the bad ones gets the next number, and is all that arrives."""
    await installation.publish("brp", [text(installation)])
    received = await receiver.wait_for("all", arrived + 1)
    assert [item.sequence for item in received] == list(range(1, arrived + 2))


async def test_every_bad_event_over_amqp_is_a_rejection_that_only_its_registry_reads(
    installation: Installation, receiver: Receiver, watching: dict[str, Any]
) -> None:
    for case, (_, code, attribute) in BODIES.items():
        before, others = len(await rejections(installation, "brp")), await rejections(installation, "bag")
        body = body_of(case, installation)
        await publish(installation, "brp", body, headers={"cloudEvents:subject": "a"} if "subject" not in case else {})
        rejection = await rejection_of(installation, "brp", len(body), before)
        assert rejection["code"] == code, case
        assert rejection["detail"], case
        assert (rejection["attribute"] or "").startswith(attribute or ""), case
        assert bool(rejection["attribute"]) is bool(attribute), case
        assert await rejections(installation, "bag") == others, case
    assert await installation.call("GET", "/rejections", "gemeente") is not None
    await assert_nothing_was_done(installation, receiver, watching, 0)


async def test_message_that_contradicts_its_envelope_is_a_rejection(
    installation: Installation, receiver: Receiver, watching: dict[str, Any]
) -> None:
    body = text(installation)
    cases: list[tuple[str, str, bytes, dict[str, Any]]] = [
        ("subject-header-mismatch", "brp", body, {"headers": {"cloudEvents:subject": "b"}}),
        ("routing-key-mismatch", "brp", text(installation), {"routing_key": "nl.brp.anders"}),
        ("event-format-unsupported", "brp", b"[]", {"content_type": BATCH}),
        ("event-format-unsupported", "brp", b"<x/>", {"content_type": "application/cloudevents+xml"}),
    ]
    for code, registry, content, properties in cases:
        before = len(await rejections(installation, registry))
        await publish(installation, registry, content, **properties)
        assert (await rejection_of(installation, registry, len(content), before))["code"] == code
    binary = {"cloudEvents:specversion": "1.0", "cloudEvents:type": "nl.brp.fout", "cloudEvents:id": "1"}
    for number in range(3):  # in binary mode the same body says nothing
        before = len(await rejections(installation, "brp"))
        headers = binary | {"cloudEvents:source": f"urn:{number}"}
        await publish(installation, "brp", b"", content_type="application/json", headers=headers)
        assert (await rejection_of(installation, "brp", 0, before))["code"] == "source-not-yours"
    await assert_nothing_was_done(installation, receiver, watching, 0)


async def test_message_without_a_verified_user_is_the_operators_to_read(
    installation: Installation, receiver: Receiver, watching: dict[str, Any]
) -> None:
    before = await rejections(installation, "brp")
    everything = len(await rejections(installation, "operator"))
    body = text(installation)
    await publish(installation, "brp", body, user_id=None)
    rejection = await rejection_of(installation, "operator", len(body), everything)
    assert rejection["code"] == "publisher-unknown"
    assert await rejections(installation, "brp") == before
    await assert_nothing_was_done(installation, receiver, watching, 0)


async def test_rabbitmq_lets_nobody_publish_as_another_or_another_registrys_types(installation: Installation) -> None:
    with pytest.raises(aio_pika.exceptions.AMQPError):
        await publish(installation, "brp", text(installation), user_id="bag")
    with pytest.raises(aio_pika.exceptions.AMQPError):
        await publish(installation, "brp", text(installation, type="nl.bag.iets"), routing_key="nl.bag.iets")


async def test_type_of_another_registry_under_our_routing_key_is_a_rejection(installation: Installation) -> None:
    before = len(await rejections(installation, "brp"))
    body = text(installation, type="nl.bag.iets")
    await publish(installation, "brp", body)
    assert (await rejection_of(installation, "brp", len(body), before))["code"] in (
        "type-not-yours", "routing-key-mismatch",
    )  # fmt: skip


async def test_same_bad_message_again_is_counted_not_piled_up(installation: Installation) -> None:
    body = text(installation, specversion="0.2")
    before = len(await rejections(installation, "brp"))
    for times in (1, 2, 3):
        await publish(installation, "brp", body)
        async with asyncio.timeout(10):
            while [item["times"] for item in (await rejections(installation, "brp"))[before:]] != [times]:
                await asyncio.sleep(0.02)


async def test_binary_mode_arrives_as_the_same_event_over_both_doors(
    installation: Installation, receiver: Receiver, watching: dict[str, Any]
) -> None:
    source = installation.source("brp")
    attributes = {"specversion": "1.0", "id": "binair-1", "source": source, "type": "nl.brp.binair", "subject": "é a",
                  "time": "2026-11-23T10:00:00Z", "extra": "7"}  # fmt: skip
    await publish(
        installation, "brp", b'{"x": [1.0]}', content_type="application/json", routing_key="nl.brp.binair",
        headers={f"cloudEvents:{name}": value for name, value in attributes.items()},
    )  # fmt: skip
    status, _, _ = await installation.call(
        "POST", "/events", "brp", data=b'{"x": [1.0]}',
        headers={"Content-Type": "application/json", "ce-id": "binair-2", "ce-subject": "%C3%A9%20a"}
        | {f"ce-{name}": value for name, value in attributes.items() if name not in ("id", "subject")},
    )  # fmt: skip
    assert status == 202
    received = await receiver.wait_for("all", 2)
    for item in received:
        shown = {name: value for name, value in item.event.items() if name in attributes or name.startswith("data")}
        assert shown | {"id": ""} == attributes | {
            "id": "",
            "datacontenttype": "application/json",
            "data": {"x": [1.0]},
        }
        assert b'"data":{"x": [1.0]}' in item.body
    assert {item.event["id"] for item in received} == {"binair-1", "binair-2"}


@pytest.mark.parametrize("size", [64 * 1024, 200 * 1024])
async def test_large_event_that_fits_arrives_whole(
    size: int, installation: Installation, receiver: Receiver, watching: dict[str, Any]
) -> None:
    await installation.publish("brp", [text(installation, data="x" * size)])
    status, _, _ = await installation.call(
        "POST", "/events", "brp", data=text(installation, data="y" * size), headers={"Content-Type": STRUCTURED}
    )
    assert status == 202
    received = await receiver.wait_for("all", 2)
    assert {item.event["data"] for item in received} == {"x" * size, "y" * size}


HTTP_STATUS = {"300 KiB": 413, "source of another": 403, "source of nobody": 403}


async def test_every_bad_event_over_http_is_a_problem_that_names_the_field(
    installation: Installation, receiver: Receiver, watching: dict[str, Any]
) -> None:
    before = await rejections(installation, "brp")
    for case, (_, code, attribute) in BODIES.items():
        status, problem, headers = await installation.call(
            "POST", "/events", "brp", data=body_of(case, installation), headers={"Content-Type": STRUCTURED}
        )
        assert status == HTTP_STATUS.get(case, 400), (case, problem)
        assert headers["content-type"].startswith("application/problem+json")
        assert problem["status"] == status
        assert problem["title"]
        if status == 400:
            [param] = problem["invalidParams"]
            assert param["code"] == code, case
            assert param["reason"], case
            if attribute:
                assert param["name"].startswith(f"/{attribute}"), case
    assert await rejections(installation, "brp") == before, "what was refused at the door was never received"
    await assert_nothing_was_done(installation, receiver, watching, 0)


async def test_type_of_another_registry_is_forbidden_over_http(installation: Installation) -> None:
    status, problem, _ = await installation.call(
        "POST", "/events", "brp", data=text(installation, type="nl.bag.iets"), headers={"Content-Type": STRUCTURED}
    )
    assert (status, problem["status"]) == (403, 403)


@pytest.mark.parametrize(
    "content_type",
    [None, "application/json", "text/plain", "application/cloudevents+xml", "application/cloudevents+avro"],
)
async def test_content_that_is_no_event_is_an_unsupported_media_type(
    content_type: str | None, installation: Installation
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    status, problem, _ = await installation.call("POST", "/events", "brp", data=text(installation), headers=headers)
    assert status == 415, problem


async def test_batch_is_all_or_nothing(
    installation: Installation, receiver: Receiver, watching: dict[str, Any]
) -> None:
    good = [text(installation) for _ in range(3)]
    bad = {
        400: text(installation, specversion="0.3"),
        403: body_of("source of another", installation),
    }
    for wanted, event_ in bad.items():
        body = b"[" + b",".join([*good[:2], event_, good[2]]) + b"]"
        status, problem, _ = await installation.call(
            "POST", "/events", "brp", data=body, headers={"Content-Type": BATCH}
        )
        assert status == wanted
        assert "3" in json.dumps(problem) or "/2" in json.dumps(problem), "it says which one"
    for body in (b"{}", b"[1]", b"["):
        status, _, _ = await installation.call("POST", "/events", "brp", data=body, headers={"Content-Type": BATCH})
        assert status == 400
    status, _, _ = await installation.call(
        "POST", "/events", "brp", data=b"[" + b",".join(good) + b"]", headers={"Content-Type": BATCH}
    )
    assert status == 202
    received = await receiver.wait_for("all", 3)
    assert sorted(item.event["id"] for item in received) == sorted(json.loads(item)["id"] for item in good)
    await assert_nothing_was_done(installation, receiver, watching, 3)


async def test_who_may_not_publish_is_told_so(installation: Installation) -> None:
    options: dict[str, Any] = {"data": text(installation), "headers": {"Content-Type": STRUCTURED}}
    for who, wanted in (("gemeente", 403), ("operator", 403), (None, 401)):
        status, problem, headers = await installation.call("POST", "/events", who, **options)
        assert (status, problem["status"]) == (wanted, wanted)
        assert ("www-authenticate" in headers) is (wanted == 401)
    for credentials in ("Bearer nonsense", "Bearer ", "Basic eDp5", f"Bearer {installation.key('brp')}x"):
        options["headers"] |= {"Authorization": credentials}
        status, problem, _ = await installation.call("POST", "/events", None, **options)
        assert status == 401, credentials
        assert credentials.partition(" ")[2] not in json.dumps(problem) or credentials == "Bearer "


SUBSCRIPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown dialect": ({"filters": [{"sounds-like": {"type": "x"}}]}, "/filters/0"),
    "empty all": ({"filters": [{"all": []}]}, "/filters/0/all"),
    "empty any": ({"filters": [{"any": []}]}, "/filters/0/any"),
    "nested nonsense": ({"filters": [{"all": [{"exact": {"type": 1}}]}]}, "/filters/0/all/0/exact"),
    "relative sink": ({"sink": "/hook"}, "/sink"),
    "sink without host": ({"sink": "http:///hook"}, "/sink"),
    "sink of another scheme": ({"sink": "ftp://127.0.0.1/hook"}, "/sink"),
    "sink with credentials": ({"sink": "http://u:p@127.0.0.1/hook"}, "/sink"),
    "sink at the metadata service": ({"sink": "http://169.254.169.254/latest"}, "/sink"),
    "sink in decimal": ({"sink": "https://167772161/"}, "/sink"),
    "no sink": ({"sink": None}, "/sink"),
    "unknown protocol": ({"protocol": "SMTP"}, "/protocol"),
}


@pytest.mark.parametrize("case", SUBSCRIPTIONS)
async def test_bad_subscription_is_a_problem_that_names_the_field(case: str, installation: Installation) -> None:
    changes, place = SUBSCRIPTIONS[case]
    body = {"sink": "http://127.0.0.1:9/hook", "protocol": "HTTP", **changes}
    _, before, _ = await installation.call("GET", "/subscriptions", "pensioenfonds")
    status, problem, headers = await installation.call(
        "POST", "/subscriptions", "pensioenfonds", {name: value for name, value in body.items() if value is not None}
    )
    assert status == 400
    assert headers["content-type"].startswith("application/problem+json")
    assert any(param["name"].startswith(place) for param in problem["invalidParams"]), problem
    assert all(param["reason"] for param in problem["invalidParams"])
    _, after, _ = await installation.call("GET", "/subscriptions", "pensioenfonds")
    assert after["count"] == before["count"]


async def test_registry_may_not_subscribe_nor_a_stranger_look(installation: Installation) -> None:
    body = {"sink": "http://127.0.0.1:9/hook", "protocol": "HTTP"}
    assert (await installation.call("POST", "/subscriptions", "brp", body))[0] == 403
    assert (await installation.call("POST", "/subscriptions", None, body))[0] == 401
    headers = {"Authorization": "Bearer unknown"}
    assert (await installation.call("GET", "/subscriptions", None, headers=headers))[0] == 401
