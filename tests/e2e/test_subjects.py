"""Promise 10: a subject is in no URL, no log line and no metric, whichever door or route it came through.

Marked subjects go in through every door of publishing, in good events and bad ones, and in every text, header, query
and path of every operation of the API. Then everything that any process wrote is searched for them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import aiohttp
import pytest

from tests.e2e.events import event
from tests.e2e.installation import Installation
from tests.e2e.receiver import Receiver

STRUCTURED, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"


@pytest.fixture
def marker() -> str:
    """A subject that nothing else can be mistaken for."""
    return f"9999{uuid4().hex}"


async def publish_by_every_door(installation: Installation, marker: str) -> None:
    source, type_ = installation.source("brp"), "nl.brp.gemerkt"
    good = [event(source, type_, marker, data={"bsn": marker}) for _ in range(3)]
    bad = [
        event(installation.source("bag"), type_, marker),
        event(source, "nl.bag.niet-van-ons", marker),
        event(source, type_, marker, time="gisteren", data=marker),
        event(source, type_, marker, data="\0" + marker),
        b'{"specversion":"1.0","subject":"%s",' % marker.encode(),
        json.dumps({"specversion": "1.0", "id": "1", "source": source, "type": type_, marker.upper(): marker}).encode(),
    ]
    await installation.publish("brp", good[:1])
    connection = await aio_pika.connect(installation.about["keys"]["registries"]["brp"]["amqp"])
    async with connection, connection.channel(publisher_confirms=True) as channel:
        exchange = await channel.get_exchange("bode.events", ensure=False)
        for body in (*bad, good[1]):
            for headers in ({"cloudEvents:subject": marker}, {"cloudEvents:subject": marker + "x"}, {}):
                message = aio_pika.Message(
                    body, content_type=STRUCTURED, delivery_mode=2, user_id=connection.url.user, headers=headers
                )
                await exchange.publish(message, routing_key=type_)
    binary = {
        "ce-specversion": "1.0",
        "ce-id": str(uuid4()),
        "ce-source": source,
        "ce-type": type_,
        "ce-subject": marker,
    }
    posts: list[tuple[bytes, dict[str, str]]] = [
        *((body, {"Content-Type": STRUCTURED}) for body in (*bad, good[2])),
        (b"[" + b",".join(good) + b"]", {"Content-Type": BATCH}),
        (b"[" + b",".join(bad[:2]) + b"]", {"Content-Type": BATCH}),
        (json.dumps({"bsn": marker}).encode(), {"Content-Type": "application/json", **binary}),
        (json.dumps(marker).encode(), {"Content-Type": "application/json", **binary, "ce-time": marker}),
        (good[0], {"Content-Type": f"text/{marker}"}),
    ]
    for body, headers in posts:
        await installation.call("POST", "/events", "brp", data=body, headers=headers)


def filled(template: Any, marker: str) -> Iterator[Any]:
    """A body with the marker in place of each text, one at a time, and as a member that isn't known."""
    for part in list(template) if isinstance(template, dict) else range(len(template)):
        value = template[part]
        if isinstance(value, str):
            replacements = iter([marker])
        elif isinstance(value, dict | list):
            replacements = filled(value, marker)
        else:
            continue
        for replacement in replacements:
            copied = json.loads(json.dumps(template))
            copied[part] = replacement
            yield copied
    if isinstance(template, dict):
        yield {**template, marker: marker}


async def call_every_operation(installation: Installation, marker: str) -> list[str]:
    """Returns every URL that was answered, in a header or a body."""
    _, document, _ = await installation.call("GET", "/openapi.json", None)
    urls: list[str] = []
    headers = {"Idempotency-Key": marker, "If-Match": marker, "traceparent": marker, "X-Marked": marker}
    async with aiohttp.ClientSession() as session:
        for path, item in document["paths"].items():
            for method, operation in item.items():
                place = path
                for parameter in operation.get("parameters", []):
                    place = place.replace("{%s}" % parameter["name"], marker)  # noqa: UP031
                content = next(iter(operation.get("requestBody", {}).get("content", {}).values()), {})
                bodies = [None, *filled(content.get("example", {}), marker)] if content else [None]
                scopes = [each["bearer"][0] for each in operation.get("security", [])]
                who = "brp" if {"registry.manage", "events.publish"} & {*scopes} else "gemeente"
                key = installation.key("operator" if scopes == ["operate"] else who)
                for body in bodies:
                    for sent, query in (
                        (headers, ""),
                        ({"Idempotency-Key": str(uuid4())}, f"?cursor={marker}&x={marker}"),
                    ):
                        url = installation.about["api"] + place + query
                        async with session.request(
                            method, url, json=body, headers={**sent, "Authorization": f"Bearer {key}"}
                        ) as response:
                            assert response.status < 500, (method, path)
                            urls += [value for name, value in response.headers.items() if name == "Location"]
                            urls += list(_urls(await response.text(), response.content_type))
    return urls


def _urls(text: str, content_type: str) -> Iterator[str]:
    def walk(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            for name, part in value.items():
                if name in ("url", "next", "previous") and isinstance(part, str):
                    yield part
                yield from walk(part)
        elif isinstance(value, list):
            for part in value:
                yield from walk(part)

    if text and "json" in content_type:
        yield from walk(json.loads(text))


def written(installation: Installation) -> dict[Path, str]:
    """Everything that any process logged: Bode's, PostgreSQL's, RabbitMQ's, and what `bode up` said."""
    folder = installation.folder
    paths = [*folder.rglob("*.log"), *(folder / "log").iterdir(), folder.parent / f"{folder.name}.log"]
    return {path: path.read_text(errors="replace") for path in paths if path.is_file()}


@pytest.mark.timeout(300)
async def test_marked_subjects_are_in_no_url_log_or_metric(
    installation: Installation, receiver: Receiver, marker: str
) -> None:
    receiver.behaviours["fails"] = lambda received: 500 if received.attempt == 1 else 204
    made = await installation.subscribe(
        "gemeente", receiver.url("fails"), types=["nl.brp.gemerkt"], subscriberReference=marker,
        filters=[{"any": [{"exact": {"subject": marker}}, {"sql": f"subject = '{marker}'"}]}], config={"x": marker},
    )  # fmt: skip
    await publish_by_every_door(installation, marker)
    received = await receiver.wait_for("fails", 3)
    assert all(item.event["subject"] == marker for item in received)
    answered = await call_every_operation(installation, marker)
    for path in ("", "/events", "/reconciliation", "/cursor"):
        _, shown, _ = await installation.call("GET", f"/subscriptions/{made['id']}{path}", "gemeente")
        answered += list(_urls(json.dumps(shown), "json"))
    status, traced, _ = await installation.call("GET", f"/traces/{received[0].event['id']}", "gemeente")
    assert status == 200
    answered += list(_urls(json.dumps(traced), "json"))
    for item in received:
        assert marker not in item.path
        assert marker not in json.dumps(item.headers)
    assert answered
    assert not [url for url in answered if marker in url]
    logs = written(installation)
    assert {"api.log", "ingest.log", "deliver.log", "postgresql.log"} <= {path.name for path in logs}
    assert any(path.is_relative_to(installation.folder / "rabbitmq") for path in logs)
    assert "request-answered" in logs[installation.folder / "log/api.log"]
    assert not [path for path, text in logs.items() if marker in text or marker.upper() in text]
    async with aiohttp.ClientSession() as session:
        for page in installation.about["metrics"]:
            async with session.get(page) as response:
                assert marker not in await response.text()
    await installation.call("DELETE", f"/subscriptions/{made['id']}", "gemeente")
