"""Expiry is seen before it bites: in metrics by kind, and told to the provider in time, once and once more."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from authorities import Authority, issue
from delivering import Delivering, delivering
from prometheus_client import REGISTRY

from broker.delivery.expiry import Expiry

pytestmark = pytest.mark.asyncio(loop_scope="module")
AUTHORITY, TRUSTED = Authority("Provider"), issue("Sinks root", None, authority=True, days=25)
SINK = "https://afnemer.example.nl/"


@pytest_asyncio.fixture(loop_scope="module")
async def bode(url: str) -> AsyncIterator[Delivering]:
    async with delivering(url) as running:
        await running.pool.execute("DELETE FROM sink_expiries")
        await running.pool.execute("DELETE FROM notices")
        yield running


def figures(kind: str) -> tuple[float | None, float | None, float | None]:
    """Days until the next one, how many soon, how many expired."""
    seconds = REGISTRY.get_sample_value("bode_expiry_seconds", {"kind": kind})
    states = [
        REGISTRY.get_sample_value("bode_expiring", {"kind": kind, "state": state}) for state in ("soon", "expired")
    ]
    return None if seconds is None else round(seconds / 86400, 1), states[0], states[1]


async def subscribe(bode: Delivering, **members: Any) -> UUID:
    publisher = await bode.own_types()
    return await bode.subscribe_to(publisher, SINK, **members)


def token(days: float) -> dict[str, Any]:
    moment = datetime.now(UTC) + timedelta(days=days)
    return {"credentialType": "ACCESSTOKEN", "accessToken": "x", "accessTokenExpiresUtc": moment.isoformat()}


async def notices(bode: Delivering) -> list[Any]:
    rows = await bode.pool.fetch("SELECT subscription_id, data FROM notices WHERE type = 'nl.bode.credential-expiring'")
    return [(row["subscription_id"], json.loads(row["data"])) for row in rows]


async def test_what_expires_is_counted_by_kind(bode: Delivering) -> None:
    far = AUTHORITY.client(days=100)
    near = AUTHORITY.client(days=20)
    await subscribe(bode, sinkTls=far.members, sinkCredential=token(-1))
    await subscribe(bode, sinkTls=near.members | {"trustedCertificates": TRUSTED.pem}, sinkCredential=token(400))
    ended = await subscribe(bode, sinkCredential=token(3))
    await bode.world.call("DELETE", f"/subscriptions/{ended}", key=bode.provider_key)
    secret = {
        "credentialType": "CLIENTCREDENTIALS", "tokenEndpoint": "https://auth.example.nl/", "clientId": "a",
        "clientSecret": "b", "clientSecretExpiresUtc": (datetime.now(UTC) + timedelta(days=6)).isoformat(),
    }  # fmt: skip
    await subscribe(bode, sinkCredential=secret)
    own = {"broker-certificate": datetime.now(UTC) + timedelta(days=40), "broker-trust": datetime.now(UTC)}
    await Expiry(bode.pool, lambda: own).look()
    assert figures("access-token") == (400, 0, 1)
    assert figures("client-secret") == (6, 1, 0)
    assert figures("client-certificate") == (20, 1, 0)
    assert figures("trusted-certificate") == (25, 1, 0)
    assert figures("broker-certificate") == (40, 0, 0)
    assert figures("broker-trust") == (float("inf"), 0, 1)


async def test_the_provider_is_told_thirty_days_before_and_seven_and_no_more(bode: Delivering) -> None:
    identity = await subscribe(bode, sinkTls=AUTHORITY.client(days=29).members, sinkCredential=token(28))
    await subscribe(bode, sinkCredential=token(31))
    looking = Expiry(bode.pool, dict)
    for _ in range(3):
        await looking.look()
    [(whose, data)] = await notices(bode)
    assert whose == identity
    assert data["kinds"] == {"access-token": 1, "client-certificate": 1}
    first = datetime.fromisoformat(data["firstExpiresAt"])
    assert abs(first - datetime.now(UTC) - timedelta(days=28)) < timedelta(minutes=5)
    await bode.pool.execute(  # as time would
        "UPDATE sink_expiries SET expires_at = expires_at - interval '23 days', told_at = told_at - interval '23 days'"
        " WHERE subscription_id = $1",
        identity,
    )
    for _ in range(3):
        await looking.look()
    assert len(await notices(bode)) == 2
    await bode.world.call(
        "PATCH",
        f"/subscriptions/{identity}",
        key=bode.provider_key,
        body={"sinkCredential": token(90), "sinkTls": None},
    )
    await looking.look()
    assert len(await notices(bode)) == 2
    assert (await bode.shown(identity))["sinkIdentity"].keys() == {"credentialType", "credentialExpiresAt"}


async def test_two_processes_tell_once(bode: Delivering) -> None:
    await subscribe(bode, sinkCredential=token(1))
    async with bode.pool.acquire(), delivering(bode.url) as other:
        await Expiry(other.pool, dict).look()
        await Expiry(bode.pool, dict).look()
    assert len(await notices(bode)) == 1
