"""Acquiring tokens while things change and break: an attempt ends, and no token goes where it doesn't belong."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from accepting import Publisher, migrated
from authorities import Authority
from delivering import Asked, Delivering, RawSink, answer, delivering

from broker.delivery.authorization import source_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
AUTHORITY = Authority("Voorbeeld")
TLS = {"trustedCertificates": AUTHORITY.root.pem}


@pytest.fixture(scope="module")
def url(postgres_url: str) -> Iterator[str]:
    with migrated(postgres_url) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bode(url: str) -> AsyncIterator[Delivering]:
    async with delivering(url) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def publisher(bode: Delivering) -> Publisher:
    return await bode.own_types()


@pytest_asyncio.fixture(loop_scope="module")
async def sink() -> AsyncIterator[RawSink]:
    async with RawSink(tls=AUTHORITY.server_context()) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def server() -> AsyncIterator[RawSink]:
    async with RawSink(tls=AUTHORITY.server_context()) as running:
        yield running


def issued(token: str) -> bytes:
    return answer("200 OK", body=json.dumps({"access_token": token, "token_type": "Bearer", "expires_in": 3600}))


def client(server: RawSink, name: str) -> dict[str, Any]:
    endpoint = server.url("/token")
    credential = {"credentialType": "CLIENTCREDENTIALS", "tokenEndpoint": endpoint, "clientId": name}
    return {"sinkCredential": credential | {"clientSecret": "geheim"}}


async def test_a_token_that_arrives_after_its_credential_was_replaced_is_shown_to_nobody(
    bode: Delivering, publisher: Publisher, sink: RawSink, server: RawSink
) -> None:
    identity = await bode.active(publisher, sink.url("/"), sinkTls=TLS)
    arrives = asyncio.Event()

    async def slowly(_: Asked) -> bytes:
        await arrives.wait()
        return issued("van-de-eerste")

    async def acquire(number: str) -> "asyncio.Task[Any]":
        body = client(server, number)
        changed = await bode.world.call("PATCH", f"/subscriptions/{identity}", key=bode.provider_key, body=body)
        assert changed.status == 200, changed.text
        [config] = await bode.process.office.load_sinks([(await bode.row(identity))["key"]])
        source = source_of(config)
        assert source is not None
        deadline = asyncio.get_running_loop().time() + 9
        return asyncio.create_task(bode.process._authorizer.token(source, None, deadline))

    answers = iter([slowly, lambda _: issued("van-de-tweede")])
    server.answers["POST", "/token"] = lambda asked: next(answers)(asked)
    first = await acquire("eerste")
    await server.wait_for("POST", "/token", 1)
    second = await acquire("tweede")
    try:
        await server.wait_for("POST", "/token", 2, seconds=8)
        assert (await second).token.access == "van-de-tweede"
    finally:
        arrives.set()
        await asyncio.gather(first, second, return_exceptions=True)
    await bode.publish(publisher, "a")
    assert [asked.one("authorization") for asked in await sink.wait_for("POST", "/", 1)] == ["Bearer van-de-tweede"]


async def test_whatever_goes_wrong_while_a_token_is_acquired_the_attempt_ends(
    bode: Delivering, publisher: Publisher, sink: RawSink, server: RawSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = await bode.active(publisher, sink.url("/"), sinkTls=TLS)
    server.answers["POST", "/token"] = lambda _: issued("een")
    body = client(server, "een")
    await bode.world.call("PATCH", f"/subscriptions/{identity}", key=bode.provider_key, body=body)

    def unforeseen(*_: object) -> None:
        raise OverflowError

    with monkeypatch.context() as patch:
        patch.setattr("broker.delivery.token_requests.read", unforeseen)
        await bode.publish(publisher, "a")
        assert (await bode.tried(identity))["reason"] == "token-unavailable"
    assert (await bode.tried(identity, "delivered"))["attempts"] >= 2
