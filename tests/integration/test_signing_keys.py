"""Ed25519 keys: made once, published before they sign, changed over with an overlap. And encrypting again."""

import base64
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
import pytest_asyncio
from accepting import migrated
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sqlalchemy import LargeBinary, insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine

from broker.delivery.signing import AsymmetricKey
from broker.storage import resealing
from broker.storage.sealing import open_body, seal_body
from broker.storage.tables import events, installation, key_at
from schemas.resources import SubscriptionBody
from subscriptions import signing_keys, sinks
from subscriptions import subscriptions as service
from subscriptions.change_log import changing
from subscriptions.database import DatabaseSettings, create_engine, metadata
from subscriptions.filter_rules import FilterRules
from subscriptions.secrets import KeyRing, generate_encryption_key, secret_purpose
from subscriptions.sink_urls import SinkRules
from subscriptions.tables import organisations, subscriptions
from subscriptions.tables import signing_keys as table

RING = KeyRing([generate_encryption_key()])
NOT_SEALED = {
    "api_keys.digest", "event_ids.digest", "followed_subjects.digest", "follow_changes.fingerprints",
    "handshake_tokens.digest", "idempotency_keys.digest", "idempotency_keys.request_digest", "rejections.digest",
    "retired_numbers.digest", "signing_keys.public",
}  # fmt: skip
"""Digests and public halves: nobody reads them back, or everybody may."""


@pytest.fixture
def url(postgres_url: str) -> Iterator[str]:
    with migrated(postgres_url) as url:
        yield url


@pytest_asyncio.fixture
async def engine(url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_engine(DatabaseSettings.model_validate({"url": url}))
    yield engine
    await engine.dispose()


async def _subscribe(engine: AsyncEngine, ring: KeyRing, **settings: object) -> int:
    async with changing(engine) as connection:
        organisation = uuid4()
        oin = f"{uuid4().int % 10**19:019d}0"
        await connection.execute(insert(organisations).values(id=organisation, oin=oin, name="Gemeente"))
        body = SubscriptionBody.model_validate(
            {"sink": "https://afnemer.example.nl/", "protocol": "HTTP", "protocolSettings": settings}
        )
        row, _ = await service.create(
            connection,
            body,
            organisation_id=organisation,
            keys=ring,
            sinks=SinkRules(False, lambda _: None),
            filters=FilterRules(lambda _: 0, 10),
        )
    return int(row.key)


def _verifies(public: bytes, signature: str, signed: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(base64.b64decode(signature.removeprefix("v1a,")), signed)
    except InvalidSignature:
        return False
    return True


async def test_first_key_is_made_once_and_signs_at_once(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await signing_keys.ensure(connection, RING)
        await signing_keys.ensure(connection, RING)
        published = (await signing_keys.key_set(connection))["keys"]
        signing = await signing_keys.signing_now(connection, RING, datetime.now(UTC) + timedelta(seconds=1))
    assert len(published) == len(signing.seeds) == 1
    (key,) = published
    assert {name: key[name] for name in ("kty", "crv", "use", "alg")} == {
        "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA",
    }  # fmt: skip
    public = base64.urlsafe_b64decode(key["x"] + "=")
    assert key["standardWebhooks"] == "whpk_" + base64.b64encode(public).decode()
    signature = AsymmetricKey(signing.seeds[0]).sign("dlv_1_2", 1_700_000_000, b"{}")
    assert _verifies(public, signature, b"dlv_1_2.1700000000.{}")
    assert not _verifies(public, signature, b"dlv_1_2.1700000001.{}")


async def test_successor_is_published_before_it_signs_and_both_sign_in_the_overlap(engine: AsyncEngine) -> None:
    ahead, overlap = timedelta(hours=1), timedelta(hours=2)
    async with engine.begin() as connection:
        await signing_keys.ensure(connection, RING)
        (old,) = (await signing_keys.key_set(connection))["keys"]
        new = await signing_keys.rotate(connection, RING, ahead=ahead, overlap=overlap)
        assert {key["kid"] for key in (await signing_keys.key_set(connection))["keys"]} == {old["kid"], new}
        rows = {row.kid: row for row in await connection.execute(select(table))}
        begins = rows[new].signs_from
        assert rows[old["kid"]].signs_until == begins + overlap

        async def at(moment: datetime) -> signing_keys.SigningSet:
            return await signing_keys.signing_now(connection, RING, moment)

        second = timedelta(seconds=1)
        before, during, after = await at(begins - second), await at(begins), await at(begins + overlap)
        assert [len(each.seeds) for each in (before, during, after)] == [1, 2, 1]
        assert before.seeds[0] == during.seeds[0]
        assert after.seeds[0] == during.seeds[1]
        assert before.changes_at == begins
        assert during.changes_at == begins + signing_keys.RECHECK
        assert (await at(begins + overlap - second)).changes_at == begins + overlap


@pytest.mark.parametrize(
    ("ahead", "overlap"), [(timedelta(seconds=119), timedelta(days=1)), (timedelta(days=1), timedelta(0))]
)
async def test_change_that_some_receiver_could_not_follow_is_refused(
    engine: AsyncEngine, ahead: timedelta, overlap: timedelta
) -> None:
    with pytest.raises(ValueError, match="must be"):
        async with engine.begin() as connection:
            await signing_keys.rotate(connection, RING, ahead=ahead, overlap=overlap)


async def test_successor_that_has_not_begun_has_no_successor(engine: AsyncEngine) -> None:
    day = timedelta(days=1)
    async with engine.begin() as connection:
        await signing_keys.rotate(connection, RING, ahead=day, overlap=day)
        with pytest.raises(ValueError, match="hasn't begun"):
            await signing_keys.rotate(connection, RING, ahead=day, overlap=day)


@pytest.mark.parametrize(
    ("settings", "secrets", "seeds"),
    [
        ({}, 1, 0),
        ({"signatures": ["v1"]}, 1, 0),
        ({"signatures": ["v1", "v1a"]}, 1, 1),
        ({"signatures": ["v1a"]}, 0, 1),
    ],
)
async def test_sink_has_the_keys_of_the_schemes_that_it_asks_for(
    engine: AsyncEngine, settings: dict[str, object], secrets: int, seeds: int
) -> None:
    async with engine.begin() as connection:
        await signing_keys.ensure(connection, RING)
    key = await _subscribe(engine, RING, **settings)
    (sink,) = await sinks.load_sinks(engine, RING, [key])
    assert (len(sink.secrets), len(sink.signing_seeds)) == (secrets, seeds)
    assert (sink.secrets_change_in is None) == (seeds == 0)


async def test_everything_is_sealed_again_and_the_old_key_may_go(engine: AsyncEngine) -> None:
    old_key, new_key = generate_encryption_key(), generate_encryption_key()
    old, both, new = KeyRing([old_key]), KeyRing([new_key, old_key]), KeyRing([new_key])
    event = key_at(datetime.now(UTC)) + 1
    subscription = await _subscribe(engine, old)
    async with engine.begin() as connection:
        await signing_keys.ensure(connection, old)
        await connection.execute(
            insert(installation).values(name="fingerprint-key", value=old.seal(b"k" * 32, b"fingerprint-key"))
        )
        await connection.execute(
            insert(events).values(
                key=event,
                organisation_id=uuid4(),
                source="s",
                id="1",
                type="t",
                bytes=2,
                body=seal_body(old, event, b"{}"),
            )
        )
        await connection.execute(
            update(subscriptions).values(
                previous_secret=subscriptions.c.secret, previous_secret_expires_at=datetime.now(UTC) + timedelta(days=1)
            )
        )
    first = [done async for done in resealing.reseal(engine, both)]
    assert {done.column for done in first if done.resealed} == {
        "installation.value", "signing_keys.seed", "subscriptions.secret", "subscriptions.previous_secret",
        "events.body",
    }  # fmt: skip
    assert all(done.found == done.resealed and not done.unreadable for done in first)
    assert not any([done.found async for done in resealing.reseal(engine, both)])
    async with engine.connect() as connection:
        body = (await connection.execute(select(events.c.body).where(events.c.key == event))).scalar_one()
        row = (await connection.execute(select(subscriptions).where(subscriptions.c.key == subscription))).one()
        await signing_keys.signing_now(connection, new, datetime.now(UTC) + timedelta(seconds=1))
    assert open_body(new, event, body) == b"{}"
    assert new.open(row.secret, secret_purpose(row.id)) == new.open(row.previous_secret, secret_purpose(row.id))


async def test_what_no_key_opens_stays_and_is_counted(engine: AsyncEngine) -> None:
    await _subscribe(engine, KeyRing([generate_encryption_key()]))
    done = {each.column: each async for each in resealing.reseal(engine, RING)}
    assert done["subscriptions.secret"].found == done["subscriptions.secret"].unreadable == 1
    assert done["subscriptions.secret"].resealed == 0


def test_every_column_of_bytes_is_known_as_sealed_or_as_not() -> None:
    columns = {
        f"{table.name}.{column.name}"
        for table in metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, LargeBinary)
    }
    sealed = {f"{each.table.name}.{each.column.name}" for each in resealing.SEALED}
    assert columns == sealed | NOT_SEALED
    assert not sealed & NOT_SEALED
