"""Credentials for sinks, end to end: what the API takes is what real TLS sinks and a real token server see."""

import asyncio
import base64
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

import jwt
import pytest
from accepting import Publisher
from authorities import Authority, key_pem
from cryptography.hazmat.primitives.asymmetric import ec
from delivering import ACCEPTED, Asked, Delivering, RawSink, answer, delivering
from fixtures import IN_ONE_LOOP, one_process, own_types, raw_sink
from managing import RING
from token_endpoint import client, issued, tokens

from broker.delivery.authorization import source_of
from broker.storage import sink_tokens
from subscriptions.secrets import token_purpose

pytestmark = IN_ONE_LOOP
AUTHORITY = Authority("Voorbeeld")
TLS = {"trustedCertificates": AUTHORITY.root.pem}
LATER = "2999-01-01T00:00:00Z"
UNAUTHORIZED = answer("401 Unauthorized", body="who are you?")

bode = one_process(attempt_seconds=6)
publisher = own_types()
sink = raw_sink(AUTHORITY.server_context)
server = raw_sink(AUTHORITY.server_context)
"""A token server: answers `/token` as the test says."""


def needs(sink: RawSink, *good: str) -> None:
    """The sink takes these tokens and no others."""
    wanted = {f"Bearer {token}" for token in good}
    sink.answers["POST", "/"] = lambda asked: ACCEPTED if asked.one("authorization") in wanted else UNAUTHORIZED


async def reason_of(bode: Delivering, identity: UUID) -> str:
    return str((await bode.tried(identity))["reason"])


@pytest.mark.parametrize(
    ("credential", "line"),
    [
        (
            {"credentialType": "PLAIN", "identifier": "bode", "secret": "geheim: e"},
            "Basic " + base64.b64encode(b"bode:geheim: e").decode(),
        ),
        ({"credentialType": "ACCESSTOKEN", "accessToken": "abc.def"}, "Bearer abc.def"),
        (
            {"credentialType": "ACCESSTOKEN", "accessToken": "abc.def", "accessTokenExpiresUtc": LATER},
            "Bearer abc.def",
        ),
    ],
)  # fmt: skip
async def test_what_was_given_is_sent_with_handshake_test_and_notification(
    bode: Delivering, publisher: Publisher, sink: RawSink, credential: Any, line: str
) -> None:
    identity = await bode.active(publisher, sink.url("/"), sinkCredential=credential, sinkTls=TLS)
    await bode.world.call("POST", f"/subscriptions/{identity}/test-notifications", key=bode.provider_key)
    await sink.wait_for("POST", "/", 1)
    await bode.publish(publisher, "a")
    await sink.wait_for("POST", "/", 2)
    assert {asked.one("authorization") for asked in sink.asked} == {line}
    assert {asked.method for asked in sink.asked} == {"OPTIONS", "POST"}


async def test_nobody_is_shown_anything_without_credential(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    await bode.active(publisher, sink.url("/"), sinkTls=TLS)
    await bode.publish(publisher, "a")
    [got] = await sink.wait_for("POST", "/", 1)
    assert not got.all("authorization")


async def test_a_token_that_has_expired_is_not_sent(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    soon = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    credential = {"credentialType": "ACCESSTOKEN", "accessToken": "abc", "accessTokenExpiresUtc": soon}
    identity = await bode.active(publisher, sink.url("/"), sinkCredential=credential, sinkTls=TLS)
    shown = (await bode.shown(identity))["sinkIdentity"]
    assert shown["credentialType"] == "ACCESSTOKEN"
    assert datetime.fromisoformat(shown["credentialExpiresAt"]) == datetime.fromisoformat(soon)
    past = credential | {"accessTokenExpiresUtc": (datetime.now(UTC) - timedelta(seconds=1)).isoformat()}
    body = {"sinkCredential": past}
    changed = await bode.world.call("PATCH", f"/subscriptions/{identity}", key=bode.provider_key, body=body)
    assert changed.status == 200, changed.text
    await bode.publish(publisher, "a")
    assert await reason_of(bode, identity) == "credential-expired"
    assert not sink.of("POST", "/")


@pytest.mark.parametrize("authentication", ["client_secret_basic", "client_secret_post", "private_key_jwt"])
async def test_client_credentials_get_one_token_for_many_notifications(
    bode: Delivering, publisher: Publisher, sink: RawSink, server: RawSink, authentication: str
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    tokens(server, issued("eerste", refresh_token="ongevraagd"))
    needs(sink, "eerste")
    given = client(server, authentication=authentication, scope="a b", audience="https://x")
    if authentication == "private_key_jwt":
        del given["clientSecret"]
        given |= {"privateKey": key_pem(key), "keyId": "k1"}
    identity = await bode.active(publisher, sink.url("/"), sinkCredential=given, sinkTls=TLS)
    await bode.publish(publisher, *"abcdefgh")
    await sink.wait_for("POST", "/", 8)
    assert {asked.one("authorization") for asked in sink.asked} == {"Bearer eerste"}
    [asked] = server.asked
    form = {name: values[0] for name, values in parse_qs(asked.body.decode(), strict_parsing=True).items()}
    assert (form["grant_type"], form["scope"], form["audience"]) == ("client_credentials", "a b", "https://x")
    if authentication == "client_secret_basic":
        assert base64.b64decode(asked.one("authorization").removeprefix("Basic ")) == b"bode:geheim%2B1"
    elif authentication == "client_secret_post":
        assert (form["client_id"], form["client_secret"]) == ("bode", "geheim+1")
    else:
        claims = jwt.decode(form["client_assertion"], key.public_key(), ["ES256"], audience=server.url("/token"))
        assert (claims["iss"], claims["sub"]) == ("bode", "bode")
        assert jwt.get_unverified_header(form["client_assertion"])["kid"] == "k1"
    text = json.dumps(await bode.shown(identity))
    assert all(secret not in text for secret in ("geheim", "eerste", "PRIVATE"))
    row = await bode.pool.fetchrow("SELECT * FROM sink_tokens WHERE subscription_id = $1", identity)
    assert b"eerste" not in row["sealed"]
    assert "eerste" in RING.open(row["sealed"], token_purpose(identity)).decode()


async def test_a_token_that_the_sink_refuses_is_acquired_anew_within_the_attempt(
    bode: Delivering, publisher: Publisher, sink: RawSink, server: RawSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.delivery.authorization._ANEW_SECONDS", 0)
    tokens(server, issued("oud"), issued("nieuw"))
    identity = await bode.active(publisher, sink.url("/"), sinkCredential=client(server), sinkTls=TLS)
    needs(sink, "nieuw")
    await bode.publish(publisher, "a")
    row = await bode.tried(identity, "delivered")
    assert (row["attempts"], len(server.asked)) == (1, 2)
    assert [asked.one("authorization") for asked in sink.of("POST", "/")] == ["Bearer oud", "Bearer nieuw"]
    assert len({asked.one("webhook-id") for asked in sink.of("POST", "/")}) == 1


async def test_a_sink_that_refuses_every_token_has_one_acquired_and_no_more(
    bode: Delivering, publisher: Publisher, sink: RawSink, server: RawSink
) -> None:
    tokens(server, issued("oud"))
    needs(sink)
    identity = await bode.active(publisher, sink.url("/"), sinkCredential=client(server), sinkTls=TLS)
    await bode.publish(publisher, "a")
    assert await reason_of(bode, identity) == "status-401"
    await sink.wait_for("POST", "/", 3)
    assert len(server.asked) == 1


async def test_a_refresh_token_is_traded_when_the_token_ends_and_the_next_one_is_kept(
    bode: Delivering, publisher: Publisher, sink: RawSink, server: RawSink
) -> None:
    given = {
        "credentialType": "REFRESHTOKEN",
        "accessToken": "gegeven",
        "accessTokenExpiresUtc": (datetime.now(UTC) - timedelta(seconds=1)).isoformat(),
        "refreshToken": "ruil-1",
        "refreshTokenEndpoint": server.url("/token"),
        "clientId": "bode",
    }
    tokens(server, issued("een", seconds=0, refresh_token="ruil-2"), issued("twee", refresh_token="ruil-3"))
    identity = await bode.active(publisher, sink.url("/"), sinkCredential=given, sinkTls=TLS)
    await bode.publish(publisher, "a")
    await sink.wait_for("POST", "/", 1)
    traded = [parse_qs(asked.body.decode()) for asked in server.asked]
    assert [form["refresh_token"] for form in traded] == [["ruil-1"], ["ruil-2"]]
    assert {form["client_id"][0] for form in traded} == {"bode"}
    assert len({asked.address for asked in server.asked}) == 2  # a kept connection could be lost, and it sent again
    async with delivering(bode.url, attempt_seconds=6) as other:  # another process has what this one acquired
        [source] = await _sources(other, identity)
        held = await other.process._authorizer.token(source, None, asyncio.get_running_loop().time() + 5)
        assert held.token.access == "twee"
    assert len(server.asked) == 2
    sealed = await bode.pool.fetchval("SELECT sealed FROM sink_tokens WHERE subscription_id = $1", identity)
    assert json.loads(RING.open(sealed, token_purpose(identity)))["refresh"] == "ruil-3"


async def _sources(bode: Delivering, identity: UUID) -> list[Any]:
    key = (await bode.row(identity))["key"]
    return [source_of(config) for config in await bode.process.office.load_sinks([key])]


async def test_two_processes_trade_a_refresh_token_once(
    bode: Delivering, publisher: Publisher, sink: RawSink, server: RawSink
) -> None:
    given = {
        "credentialType": "REFRESHTOKEN", "accessToken": "gegeven", "refreshToken": "ruil-1",
        "refreshTokenEndpoint": server.url("/token"),
    }  # fmt: skip

    async def slowly(_: Asked) -> bytes:
        await asyncio.sleep(0.3)
        return issued("een", refresh_token="ruil-2")

    tokens(server, slowly)
    identity = await bode.active(publisher, sink.url("/"), sinkCredential=given, sinkTls=TLS)
    async with delivering(bode.url, attempt_seconds=6) as other:
        refused = b"authorization: Bearer gegeven\r\n"
        deadline = asyncio.get_running_loop().time() + 10
        [source] = await _sources(bode, identity)
        found = await asyncio.gather(
            *(each.process._authorizer.token(source, refused, deadline) for each in (bode, other) for _ in range(5))
        )
    assert {held.token.access for held in found} == {"een"}
    assert len(server.asked) == 1


async def test_a_token_is_renewed_before_it_ends_while_notifications_go_on(
    bode: Delivering, publisher: Publisher, sink: RawSink, server: RawSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.delivery.authorization._AHEAD_SECONDS", 10_000)
    waiting = asyncio.Event()

    async def held_up(_: Asked) -> bytes:
        await waiting.wait()
        return issued("twee")

    tokens(server, issued("een", seconds=40_000), held_up)
    await bode.active(publisher, sink.url("/"), sinkCredential=client(server), sinkTls=TLS)
    monkeypatch.setattr(bode.process._authorizer, "_clock", lambda: time.monotonic() + 35_000)
    await bode.publish(publisher, "a")
    await sink.wait_for("POST", "/", 1)
    await server.wait_for("POST", "/token", 2)
    await bode.publish(publisher, "b")
    await sink.wait_for("POST", "/", 2)
    waiting.set()
    for number in range(3, 50):
        await bode.publish(publisher, f"c{number}")
        if (await sink.wait_for("POST", "/", number))[-1].one("authorization") == "Bearer twee":
            break
    used = [asked.one("authorization") for asked in sink.of("POST", "/")]
    assert used[:2] == ["Bearer een"] * 2
    assert used[-1] == "Bearer twee"


def redirect(server: RawSink) -> bytes:
    return answer("302 Found", f"Location: {server.url('/elders')}")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (answer("400 Bad Request", body='{"error": "invalid_client"}'), "token-refused"),
        (answer("401 Unauthorized", body='{"error": ["geheim"]}'), "token-refused"),
        (answer("500 Internal Server Error"), "token-unavailable"),
        (answer("429 Too Many Requests"), "token-unavailable"),
        (answer("200 OK", body="geen JSON"), "token-unavailable"),
        (answer("200 OK", body="[1]"), "token-unavailable"),
        (answer("200 OK", body='{"access_token": "a\\r\\nhost: elders", "token_type": "Bearer"}'), "token-unavailable"),
        (answer("200 OK", body='{"access_token": 7, "token_type": "Bearer"}'), "token-unavailable"),
        (answer("200 OK", body='{"access_token": "x", "token_type": "mac"}'), "token-unavailable"),
        (answer("200 OK", body='{"access_token": "' + "x" * 100_000 + '"}'), "token-unavailable"),
        (b"HTTP/1.1 200 OK\r\n" + b"X-Filler: more and more\r\n" * 3000, "token-unavailable"),
        (b"", "token-unavailable"),
        (redirect, "token-unavailable"),
        (lambda _: asyncio.sleep(60), "token-unavailable"),
    ],
)  # fmt: skip
async def test_a_token_endpoint_that_misbehaves_is_a_failed_attempt(
    bode: Delivering, publisher: Publisher, sink: RawSink, server: RawSink, given: Any, reason: str
) -> None:
    if given is redirect:
        given = redirect(server)
    identity = await bode.active(publisher, sink.url("/"), sinkTls=TLS)
    tokens(server, given)
    body = {"sinkCredential": client(server)}
    changed = await bode.world.call("PATCH", f"/subscriptions/{identity}", key=bode.provider_key, body=body)
    assert changed.status == 200, changed.text
    await bode.publish(publisher, "a")
    assert await reason_of(bode, identity) == reason
    assert not sink.of("POST", "/")
    assert {asked.target for asked in server.asked} == {"/token"}


async def test_a_token_endpoint_inside_the_fence_is_refused(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    identity = await bode.active(publisher, sink.url("/"), sinkTls=TLS)
    given = {
        "credentialType": "CLIENTCREDENTIALS", "clientId": "a", "clientSecret": "b",
        "tokenEndpoint": "https://169.254.169.254/token",
    }  # fmt: skip
    await bode.world.call("PATCH", f"/subscriptions/{identity}", key=bode.provider_key, body={"sinkCredential": given})
    await bode.publish(publisher, "a")
    assert await reason_of(bode, identity) == "token-unavailable"


async def test_another_credential_or_sink_never_gets_the_token_of_the_former(
    bode: Delivering, publisher: Publisher, sink: RawSink, server: RawSink
) -> None:
    tokens(server, issued("van-de-eerste"))
    identity = await bode.active(publisher, sink.url("/"), sinkCredential=client(server), sinkTls=TLS)
    assert await bode.pool.fetchval("SELECT count(*) FROM sink_tokens WHERE subscription_id = $1", identity) == 1
    tokens(server, issued("van-de-tweede"))
    body = {"sinkCredential": client(server, clientId="tweede")}
    await bode.world.call("PATCH", f"/subscriptions/{identity}", key=bode.provider_key, body=body)
    assert await bode.pool.fetchval("SELECT count(*) FROM sink_tokens WHERE subscription_id = $1", identity) == 0
    await bode.publish(publisher, "a")
    [got] = await sink.wait_for("POST", "/", 1)
    assert got.one("authorization") == "Bearer van-de-tweede"
    body = {"sink": sink.url("/elders"), "sinkTls": TLS}
    await bode.world.call("PATCH", f"/subscriptions/{identity}", key=bode.provider_key, body=body)
    [asked] = await sink.wait_for("OPTIONS", "/elders", 1)
    assert not asked.all("authorization")


async def test_what_an_ended_subscription_showed_is_forgotten(
    bode: Delivering, publisher: Publisher, sink: RawSink, server: RawSink
) -> None:
    tokens(server, issued("een"))
    given = client(server, clientSecretExpiresUtc="2999-01-01T00:00:00Z")
    identity = await bode.active(publisher, sink.url("/"), sinkCredential=given, sinkTls=TLS)
    await bode.world.call("DELETE", f"/subscriptions/{identity}", key=bode.provider_key)
    row = await bode.row(identity)
    assert (row["status"], row["sink_credential"], row["sink_tls"]) == ("ended", None, None)
    for table in ("sink_tokens", "sink_expiries"):
        assert await bode.pool.fetchval(f"SELECT count(*) FROM {table} WHERE subscription_id = $1", identity) == 0


async def test_tokens_that_cannot_be_read_cost_neither_delivery_nor_sink(
    bode: Delivering, publisher: Publisher, sink: RawSink, server: RawSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.delivery.engine.HINDERED_SECONDS", 0.2)
    identity = await bode.active(publisher, sink.url("/"), sinkTls=TLS)
    tokens(server, issued("een"))
    body = {"sinkCredential": client(server)}
    await bode.world.call("PATCH", f"/subscriptions/{identity}", key=bode.provider_key, body=body)
    real, failed = sink_tokens.read, asyncio.Event()

    async def failing(engine: Any, subscription: UUID, credential: UUID) -> Any:
        if subscription != identity or failed.is_set():  # others try again meanwhile
            return await real(engine, subscription, credential)
        failed.set()
        raise ConnectionError

    monkeypatch.setattr(sink_tokens, "read", failing)
    await bode.publish(publisher, "a")
    row = await bode.tried(identity, "delivered")
    assert failed.is_set()
    assert row["attempts"] == 1
    assert not await bode.pool.fetchval("SELECT count(*) FROM attempts WHERE subscription = $1", row["subscription"])


async def test_a_token_that_cannot_be_stored_is_used_and_its_refresh_token_is_the_next_one(
    bode: Delivering, publisher: Publisher, sink: RawSink, server: RawSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "credentialType": "REFRESHTOKEN", "accessToken": "gegeven", "refreshToken": "ruil-1",
        "refreshTokenEndpoint": server.url("/token"),
    }  # fmt: skip
    tokens(server, issued("een", refresh_token="ruil-2"), issued("twee", refresh_token="ruil-3"))
    identity = await bode.active(publisher, sink.url("/"), sinkCredential=given, sinkTls=TLS)
    real = sink_tokens.store

    failed = asyncio.Event()

    async def failing(engine: Any, subscription: UUID, **values: Any) -> bool:
        if subscription != identity or failed.is_set():  # others try again meanwhile
            return await real(engine, subscription, **values)
        failed.set()
        raise ConnectionError

    monkeypatch.setattr(sink_tokens, "store", failing)
    [source] = await _sources(bode, identity)
    authorizer, deadline = bode.process._authorizer, asyncio.get_running_loop().time() + 10
    first = await authorizer.token(source, b"authorization: Bearer gegeven\r\n", deadline)
    await bode.pool.execute("UPDATE sink_tokens SET claimed_until = now() WHERE subscription_id = $1", identity)
    second = await authorizer.token(source, first.line, deadline)
    assert (first.token.access, second.token.access) == ("een", "twee")
    assert [parse_qs(asked.body.decode())["refresh_token"] for asked in server.asked] == [["ruil-1"], ["ruil-2"]]


async def test_a_process_that_does_not_know_the_present_credential_acquires_nothing(
    bode: Delivering, publisher: Publisher, sink: RawSink, server: RawSink
) -> None:
    tokens(server, issued("een"))
    identity = await bode.active(publisher, sink.url("/"), sinkCredential=client(server), sinkTls=TLS)
    [source] = await _sources(bode, identity)
    await bode.world.call(
        "PATCH", f"/subscriptions/{identity}", key=bode.provider_key, body={"subscriberReference": "x"}
    )
    engine = bode.process._authorizer._engine
    lease, claim = timedelta(seconds=30), UUID(int=1)
    assert await sink_tokens.claim(
        engine, identity, source.credential_id, version=source.version, claim=claim, lease=lease
    ) is None  # fmt: skip
    [source] = await _sources(bode, identity)
    for owner, claimed in ((claim, True), (UUID(int=2), False)):
        stored = await sink_tokens.claim(
            engine, identity, source.credential_id, version=source.version, claim=owner, lease=lease
        )
        assert (stored is not None) is claimed
    assert not await sink_tokens.store(engine, identity, claim=UUID(int=2), sealed=b"x", lasts=None)
    await sink_tokens.release(engine, identity, claim=claim)
