import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

import pytest
from authorization_server import AUDIENCE, ISSUER, AuthorizationServer
from cryptography.hazmat.primitives.asymmetric import rsa
from fixtures import declared_database
from managing import Answer, Party, World, subscription, world
from pydantic import ValidationError

from subscriptions.callers import Scope
from subscriptions.proxies import ProxySettings
from subscriptions.tokens import OauthSettings

PROXY = "10.1.2.3"
UNKNOWN_OIN = "00000099999999999000"


@dataclass
class Scene:
    bode: World
    server: AuthorizationServer
    provider: Party

    async def call(self, token: str, method: str = "GET", path: str = "/subscriptions", **sent: Any) -> Answer:
        return await self.bode.call(method, path, key=token, **sent)

    async def status(self, token: str) -> int:
        return (await self.call(token)).status

    def token(self, scope: str = "events.consume", **how: Any) -> str:
        return self.server.token(how.pop("oin", self.provider.oin), scope, **how)


url = declared_database()


@pytest.fixture
async def scene(url: str) -> AsyncIterator[Scene]:
    async with AuthorizationServer().running() as server:
        oauth = OauthSettings(issuer=ISSUER, audience=AUDIENCE, jwks_url=server.url)
        proxy = ProxySettings(trusted=(ip_network("10.1.2.0/24"),), oin_header="X-Client-Oin")
        async with world(url, oauth=oauth, proxy=proxy) as bode:
            yield Scene(bode, server, await bode.provider())


async def test_a_token_speaks_for_the_organisation_whose_oin_it_holds(scene: Scene) -> None:
    made = await scene.call(scene.token(), "POST", body=subscription())
    assert made.status == 201
    assert made.json["organisation"] == scene.provider.oin
    by_key = await scene.bode.call("GET", made.json["url"], key=scene.provider.key)
    assert by_key.json["id"] == made.json["id"]
    stranger = await scene.bode.provider()
    other = scene.server.token(stranger.oin, "events.consume")
    assert (await scene.call(other, path=made.json["url"])).status == 404
    assert scene.server.fetches == 1


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        ("events.consume", 200),
        ("openid events.consume other", 200),
        (["events.consume"], 200),
        ("events.publish", 403),
        ("operate", 403),
        ("", 403),
        (None, 403),
        ({"events.consume": True}, 403),
        (["events.consume events.publish", 1], 403),
    ],
)
async def test_a_token_has_the_scopes_that_it_says_and_never_those_of_an_operator(
    scene: Scene, scope: Any, status: int
) -> None:
    token = scene.token(scope=scope)
    assert await scene.status(token) == status
    assert (await scene.call(token, path="/organisations/" + str(scene.provider.id) + "/keys")).status == 403


GOOD: dict[str, Callable[[Scene], str]] = {
    "plain": lambda scene: scene.token(),
    "at+jwt": lambda scene: scene.token(header={"typ": "at+jwt"}),
    "several audiences": lambda scene: scene.token(aud=["https://other.example", AUDIENCE]),
    "urn": lambda scene: scene.token(oin=f"urn:nld:oin:{scene.provider.oin}"),
    "expired within the skew": lambda scene: scene.token(exp=int(time.time()) - 5),
    "issued within the skew": lambda scene: scene.token(iat=int(time.time()) + 5, nbf=int(time.time()) + 5),
}
BAD: dict[str, Callable[[Scene], str]] = {
    "expired": lambda scene: scene.token(exp=int(time.time()) - 3600),
    "not yet": lambda scene: scene.token(nbf=int(time.time()) + 3600),
    "no expiry": lambda scene: scene.token(exp=None),
    "another audience": lambda scene: scene.token(aud="https://other.example"),
    "no audience": lambda scene: scene.token(aud=None),
    "another issuer": lambda scene: scene.token(iss="https://evil.example"),
    "no issuer": lambda scene: scene.token(iss=None),
    "no OIN": lambda scene: scene.token(oin=None),
    "malformed OIN": lambda scene: scene.token(oin="1234"),
    "OIN that is no text": lambda scene: scene.token(oin=1234),
    "alg none": lambda scene: scene.server.forged(scene.provider.oin, "none"),
    "alg None": lambda scene: scene.server.forged(scene.provider.oin, "None"),
    "HS256 with the public key": lambda scene: scene.server.forged(scene.provider.oin, "HS256"),
    "a kid that nobody has": lambda scene: scene.token(header={"kid": "unknown"}),
    "critical header": lambda scene: scene.token(header={"crit": ["b64"], "b64": False}),
    "another type": lambda scene: scene.token(header={"typ": "logout+jwt"}),
    "cut off": lambda scene: scene.token()[:-10],
    "no signature": lambda scene: scene.token().rpartition(".")[0] + ".",
    "not a token": lambda _: "a.b.c",
    "dots": lambda _: "...",
    "too long": lambda scene: scene.token(filler="x" * 10_000),
    "an ID in the header's place": lambda _: "x" * 43,
}


@pytest.mark.parametrize("name", GOOD)
async def test_a_token_that_counts(scene: Scene, name: str) -> None:
    assert await scene.status(GOOD[name](scene)) == 200


@pytest.mark.parametrize("name", BAD)
async def test_a_token_that_does_not_count(scene: Scene, name: str) -> None:
    answer = await scene.call(BAD[name](scene))
    assert (answer.status, answer.json["code"]) == (401, "unauthenticated")
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]


async def test_a_token_of_another_key_under_a_known_kid_does_not_count(scene: Scene) -> None:
    assert await scene.status(scene.token()) == 200
    published = scene.server.keys["one"]
    scene.server.keys["one"] = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    forged = scene.token()
    scene.server.keys["one"] = published
    assert await scene.status(forged) == 401


async def test_an_organisation_that_isnt_registered_is_refused(scene: Scene) -> None:
    assert await scene.status(scene.server.token(UNKNOWN_OIN, "events.consume")) == 403


async def test_keys_are_rotated_and_the_former_one_stops_to_count(scene: Scene) -> None:
    before = scene.token()
    assert await scene.status(before) == 200
    scene.server.rotate("two")
    scene.bode.clock.now += 11
    assert await scene.status(scene.token()) == 200
    assert await scene.status(before) == 401
    assert scene.server.fetches == 2


async def test_unknown_kids_do_not_make_us_fetch_more_than_once_in_a_while(scene: Scene) -> None:
    assert await scene.status(scene.token()) == 200
    for number in range(5):
        assert await scene.status(scene.token(header={"kid": f"unknown-{number}"})) == 401
    assert scene.server.fetches == 1
    scene.bode.clock.now += 11
    for number in range(5):
        assert await scene.status(scene.token(header={"kid": f"unknown-{number}"})) == 401
    assert scene.server.fetches == 2


async def test_a_withdrawn_key_counts_no_longer_than_its_set_is_fresh(scene: Scene) -> None:
    before = scene.token()
    assert await scene.status(before) == 200
    scene.server.rotate("two")
    scene.bode.clock.now += 299
    assert await scene.status(before) == 200
    scene.bode.clock.now += 2
    assert await scene.status(before) == 401


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, None), (302, None), (200, b"nonsense"), (200, b"[]"), (200, b'{"keys": 1}'), (200, b"x" * 300_000)],
)
async def test_without_a_key_set_nothing_is_known_and_that_is_said(
    scene: Scene, status: int, body: bytes | None
) -> None:
    scene.server.status, scene.server.body = status, body
    answer = await scene.call(scene.token())
    assert (answer.status, answer.json["code"]) == (503, "unavailable")
    assert await scene.status(scene.token()) == 503
    assert scene.server.fetches == 1, "not fetched again at once"
    assert (await scene.bode.call("GET", "/subscriptions", key=scene.provider.key)).status == 200
    scene.server.status, scene.server.body = 200, None
    scene.bode.clock.now += 11
    assert await scene.status(scene.token()) == 200


async def test_a_key_set_counts_for_a_while_when_no_other_can_be_fetched(scene: Scene) -> None:
    token = scene.token()
    assert await scene.status(token) == 200
    scene.server.status = 500
    scene.bode.clock.now += 3000
    assert await scene.status(token) == 200
    assert await scene.status(scene.token(header={"kid": "unknown"})) == 503
    scene.bode.clock.now += 1000
    assert await scene.status(token) == 503


async def test_without_settings_no_token_is_taken(url: str) -> None:
    async with AuthorizationServer().running() as server, world(url) as bode:
        provider = await bode.provider()
        token = server.token(provider.oin, "events.consume")
        assert (await bode.call("GET", "/subscriptions", key=token)).status == 401
        assert server.fetches == 0


@pytest.mark.parametrize(
    "members",
    [
        {"algorithms": ["HS256"]},
        {"algorithms": ["none"]},
        {"algorithms": []},
        {"jwks_url": "http://auth.example.nl/jwks"},
        {"jwks_url": "http://localhost.evil.example/jwks"},
        {"jwks_url": "http://127.0.0.1@evil.example/jwks"},
        {"jwks_url": "file:///etc/passwd"},
        {"leeway_seconds": 3600},
    ],
)
def test_settings_that_would_let_anyone_in_are_refused(members: Any) -> None:
    with pytest.raises(ValidationError):
        OauthSettings(**members)


async def test_a_certificate_counts_when_a_trusted_proxy_passes_its_oin(scene: Scene) -> None:
    stranger = await scene.bode.provider()
    certificate = {"X-Client-Oin": scene.provider.oin}
    own = {"authorization": f"Bearer {scene.provider.key}"}
    for headers, client, status in (
        (certificate, PROXY, 200),
        (certificate, "::ffff:" + PROXY, 200),
        (certificate, "10.1.3.1", 401),
        (certificate, "nonsense", 401),
        ({"X-Client-Oin": ""}, PROXY, 401),
        ({"X-Client-Oin": "1234"}, PROXY, 401),
        ({"X-Client-Oin": UNKNOWN_OIN}, PROXY, 403),
        (certificate | own, PROXY, 200),
        ({"X-Client-Oin": stranger.oin} | own, PROXY, 401),
        ({"X-Client-Oin": stranger.oin} | own, "10.1.3.1", 200),
        ({"X-Client-Oin": stranger.oin, "authorization": f"Bearer {scene.token()}"}, PROXY, 401),
    ):
        answer = await scene.bode.call("GET", "/subscriptions", headers=headers, client=client)
        assert answer.status == status, (headers, client)
    grant = {"provider": stranger.oin, "types": ["nl.x.y"], "legalBasis": "x"}
    refused = await scene.bode.call("POST", "/grants", headers=certificate, client=PROXY, body=grant)
    assert refused.status == 403


async def test_by_default_no_header_is_believed(url: str) -> None:
    async with world(url) as bode:
        provider = await bode.party(Scope.CONSUME)
        headers = {"X-Client-Oin": provider.oin}
        assert (await bode.call("GET", "/subscriptions", headers=headers, client="127.0.0.1")).status == 401
