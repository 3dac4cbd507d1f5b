"""Tokens of oidc-provider: `test_sink_credentials.py` has what a server may do wrong, this what a real one does.

The sink asks the server about every token that it is shown, and takes only those that are valid.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import jwt
import pytest
import pytest_asyncio
from accepting import Publisher
from authorities import Authority, key_pem
from broker_api import serve
from cryptography.hazmat.primitives.asymmetric import ec
from delivering import ACCEPTED, CONSENT, Asked, Delivering, RawSink, answer, delivering
from fixtures import IN_ONE_LOOP, own_types, raw_sink
from managing import RING
from token_server import SCOPE, TokenServer, machine, on_behalf, program

from broker.api import dead_letters
from broker.delivery.authorization import source_of
from subscriptions.secrets import token_purpose
from tests.installed_tools import TIMEOUT_SECONDS

pytestmark = [IN_ONE_LOOP, pytest.mark.timeout(TIMEOUT_SECONDS)]
AUTHORITY, CLIENTS = Authority("Servers"), Authority("Clients")
CERTIFICATE = CLIENTS.client("bode")
TLS = {"trustedCertificates": AUTHORITY.root.pem}
SECRET = "ge:heim+1 %&="
"""Each of these means something in a form, or in basic authentication."""
KEY = ec.generate_private_key(ec.SECP256R1())
SHORT_SECONDS = 8

publisher = own_types()
sink = raw_sink(AUTHORITY.server_context)


@pytest.fixture(scope="module", autouse=True)
def command() -> list[str]:
    """How the server is started; first of all, since it may have to be installed."""
    return program()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bode(url: str) -> AsyncIterator[Delivering]:
    async with delivering(url, attempt_seconds=6) as running:
        await serve(running, dead_letters.router)
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TokenServer]:
    jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key())) | {"kid": "k1", "use": "sig"}
    registered = [
        machine("client_secret_basic", "client_secret_basic", client_secret=SECRET),
        machine("client_secret_post", "client_secret_post", client_secret=SECRET),
        machine("private_key_jwt", "private_key_jwt", jwks={"keys": [jwk]}),
        machine("tls_client_auth", "tls_client_auth", tls_client_auth_subject_dn="O=Voorbeeld,CN=bode"),
        machine("kort", "client_secret_basic", client_secret=SECRET),
        machine("fout", "client_secret_basic", client_secret=SECRET),
        on_behalf("openbaar", token_endpoint_auth_method="none"),
        on_behalf("vertrouwelijk", client_secret=SECRET, token_endpoint_auth_method="client_secret_basic"),
        on_behalf("geruild", client_secret=SECRET, token_endpoint_auth_method="client_secret_basic"),
    ]
    folder = tmp_path_factory.mktemp("oidc-provider")
    async with TokenServer.running(command, AUTHORITY, CLIENTS, folder, registered, kort=SHORT_SECONDS) as running:
        yield running


def credential(server: TokenServer, client_id: str, **members: Any) -> dict[str, Any]:
    return {
        "credentialType": "CLIENTCREDENTIALS", "tokenEndpoint": server.url("/token"), "clientId": client_id,
        "scope": SCOPE,
    } | members  # fmt: skip


def asks(sink: RawSink, server: TokenServer, *, once: bool = False) -> list[str]:
    """The sink takes valid tokens only, if `once` each for one notification; gives all that it took, in order."""
    taken: list[str] = []

    async def judge(asked: Asked) -> bytes:
        token = asked.one("authorization").removeprefix("Bearer ")
        active = (await server.introspect(token))["active"]
        if asked.method == "OPTIONS":
            return CONSENT if active else answer("401 Unauthorized")
        if not active or (once and token in taken):
            return answer("401 Unauthorized")
        taken.append(token)
        return ACCEPTED

    sink.answers["POST", "/"] = sink.answers["OPTIONS", "/"] = judge
    return taken


@pytest.mark.parametrize(
    ("client_id", "shown", "tls"),
    [
        ("client_secret_basic", {"clientSecret": SECRET}, {}),
        ("client_secret_post", {"clientSecret": SECRET}, {}),
        ("private_key_jwt", {"privateKey": key_pem(KEY), "keyId": "k1"}, {}),
        ("tls_client_auth", {}, CERTIFICATE.members),
    ],
)
async def test_a_client_gets_one_token_for_handshake_and_many_notifications(
    bode: Delivering, publisher: Publisher, sink: RawSink, server: TokenServer,
    client_id: str, shown: dict[str, str], tls: dict[str, str],
) -> None:  # fmt: skip
    taken = asks(sink, server)
    given = credential(server, client_id, authentication=client_id, **shown)
    identity = await bode.active(publisher, sink.url("/"), sinkCredential=given, sinkTls=TLS | tls)
    await bode.publish(publisher, *"abcdefgh")
    assert await bode.delivered(identity, 8) == [1] * 8
    assert len(set(taken)) == 1
    assert await server.wait_for(client_id, 1) == [{"client": client_id, "grant": "client_credentials"}]
    said = await server.introspect(taken[0])
    assert (said["client_id"], said["scope"], said["token_type"]) == (client_id, SCOPE, "Bearer")


async def test_a_short_token_is_renewed_while_notifications_go_on(
    bode: Delivering, publisher: Publisher, sink: RawSink, server: TokenServer
) -> None:
    taken = asks(sink, server)
    given = credential(server, "kort", clientSecret=SECRET)
    identity = await bode.active(publisher, sink.url("/"), sinkCredential=given, sinkTls=TLS)
    sent = 0
    async with asyncio.timeout(40):
        while len(set(taken)) < 2:
            await bode.publish(publisher, f"p{sent}")
            sent += 1
            await sink.wait_for("POST", "/", sent)
            await asyncio.sleep(0.2)
    assert await bode.delivered(identity, sent) == [1] * sent
    assert taken == sorted(taken, key=list(dict.fromkeys(taken)).index)  # nothing goes back to the former
    told = await server.wait_for("kort", len(set(taken)))
    assert told == [{"client": "kort", "grant": "client_credentials"}] * len(set(taken))


@pytest_asyncio.fixture(loop_scope="module")
async def trade(
    bode: Delivering, publisher: Publisher, sink: RawSink, server: TokenServer, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str | None], Awaitable[tuple[UUID, str]]]:
    """Has three notifications sent, each of which needs another token; gives the subscription, and the last token.

    The server takes each refresh token once, and ends the whole grant when one comes twice.
    """
    monkeypatch.setattr("broker.delivery.authorization._ANEW_SECONDS", 0)

    async def trade(client_id: str, secret: str | None) -> tuple[UUID, str]:
        taken = asks(sink, server, once=True)
        given = refreshing(server, client_id, secret)
        identity = await bode.active(publisher, sink.url("/"), sinkCredential=given, sinkTls=TLS)
        for number in range(1, 4):
            await bode.publish(publisher, f"p{number}")
            assert await bode.delivered(identity, number) == [1] * number
        assert len(set(taken)) == 3
        await server.wait_for(client_id, 3)
        assert server.of(client_id) == [{"client": client_id, "grant": "refresh_token"}] * 3
        return identity, taken[-1]

    return trade


async def test_a_client_without_secret_trades_each_refresh_token_for_the_next(trade: Any) -> None:
    await trade("openbaar", None)


async def test_the_last_refresh_token_is_kept_and_used_by_another_process(
    bode: Delivering, server: TokenServer, trade: Any
) -> None:
    identity, last = await trade("vertrouwelijk", SECRET)
    async with delivering(bode.url, attempt_seconds=6) as other:
        [config] = await other.process.office.load_sinks([(await bode.row(identity))["key"]])
        source = source_of(config)
        assert source is not None
        refused = f"authorization: Bearer {last}\r\n".encode()
        held = await other.process._authorizer.token(source, refused, asyncio.get_running_loop().time() + 10)
    assert (await server.introspect(held.token.access))["active"]
    sealed = await bode.pool.fetchval("SELECT sealed FROM sink_tokens WHERE subscription_id = $1", identity)
    kept = json.loads(RING.open(sealed, token_purpose(identity)))["refresh"]
    assert kept == held.token.refresh != server.refresh_tokens["vertrouwelijk"]
    assert (await server.introspect(kept))["active"]


def refreshing(server: TokenServer, client_id: str, secret: str | None) -> dict[str, Any]:
    past = datetime.now(UTC) - timedelta(seconds=1)
    given = {
        "credentialType": "REFRESHTOKEN", "accessToken": "verlopen", "accessTokenExpiresUtc": past.isoformat(),
        "refreshToken": server.refresh_tokens[client_id], "refreshTokenEndpoint": server.url("/token"),
        "clientId": client_id,
    }  # fmt: skip
    return given if secret is None else given | {"clientSecret": secret}


@pytest.mark.parametrize("wrong", ["secret", "scope", "refresh token"])
async def test_what_the_server_refuses_is_shown_to_the_provider(
    bode: Delivering, publisher: Publisher, sink: RawSink, server: TokenServer, wrong: str
) -> None:
    match wrong:
        case "secret":
            given, error = credential(server, "fout", clientSecret="anders"), "invalid_client"
        case "scope":
            given, error = credential(server, "fout", clientSecret=SECRET, scope="openid"), "invalid_scope"
        case _:
            given, error = refreshing(server, "geruild", SECRET) | {"refreshToken": "nooit-gegeven"}, "invalid_grant"
    identity = await bode.active(publisher, sink.url("/"), sinkTls=TLS, retry={"delays": ["PT0.02S"]})
    changed = await bode.world.call(
        "PATCH", f"/subscriptions/{identity}", key=bode.provider_key, body={"sinkCredential": given}
    )
    assert changed.status == 200, changed.text
    await bode.publish(publisher, "a")
    await bode.tried(identity, "dead")
    listed = await bode.world.call("GET", f"/dead-letters?subscription={identity}", key=bode.provider_key)
    [letter] = listed.json["results"]
    shown = await bode.world.call("GET", f"/dead-letters/{letter['id']}", key=bode.provider_key)
    assert {attempt["reason"] for attempt in shown.json["failedAttempts"]} == {"token-refused"}
    await server.wait_for_error(given["clientId"], error)
    assert not sink.of("POST", "/")
