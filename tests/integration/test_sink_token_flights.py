"""Acquiring tokens while things change and break: an attempt ends, and no token goes where it doesn't belong."""

import asyncio
from typing import Any

import pytest
from accepting import Publisher
from authorities import Authority
from delivering import Asked, Delivering, RawSink
from fixtures import IN_ONE_LOOP, one_process, own_types, raw_sink
from token_endpoint import client, issued

from broker.delivery.authorization import source_of

pytestmark = IN_ONE_LOOP
AUTHORITY = Authority("Voorbeeld")
TLS = {"trustedCertificates": AUTHORITY.root.pem}

bode = one_process()
publisher = own_types()
sink = raw_sink(AUTHORITY.server_context)
server = raw_sink(AUTHORITY.server_context)


async def test_a_token_that_arrives_after_its_credential_was_replaced_is_shown_to_nobody(
    bode: Delivering, publisher: Publisher, sink: RawSink, server: RawSink
) -> None:
    identity = await bode.active(publisher, sink.url("/"), sinkTls=TLS)
    arrives = asyncio.Event()

    async def slowly(_: Asked) -> bytes:
        await arrives.wait()
        return issued("van-de-eerste")

    async def acquire(number: str) -> "asyncio.Task[Any]":
        body = {"sinkCredential": client(server, clientId=number)}
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
    body = {"sinkCredential": client(server, clientId="een")}
    await bode.world.call("PATCH", f"/subscriptions/{identity}", key=bode.provider_key, body=body)

    def unforeseen(*_: object) -> None:
        raise OverflowError

    with monkeypatch.context() as patch:
        patch.setattr("broker.delivery.token_requests.read", unforeseen)
        await bode.publish(publisher, "a")
        assert (await bode.tried(identity))["reason"] == "token-unavailable"
    assert (await bode.tried(identity, "delivered"))["attempts"] >= 2
