"""Bode's own notices: written with what they tell of, told once, and to nobody but their recipient."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from accepting import Broker, Subscribed, broker
from managing import RING

from broker.ingest.accept import Accepted
from broker.ingest.notices import Notifier
from broker.storage import leases, notices, records
from broker.storage.acceptance import Rejection, reject
from broker.storage.leases import SHARD_LEASE
from broker.storage.records import OutcomeRow
from broker.storage.sealing import open_body
from broker.storage.tables import DEAD, PENDING
from schemas.notices import SOURCE, NoticeType, is_own, merged
from schemas.problems import Conflict
from subscriptions import life_cycle, organisations
from subscriptions.callers import Scope, create_key
from subscriptions.change_log import changing
from subscriptions.life_cycle import CONSENT_WITHDRAWN
from subscriptions.tables import Status

DISABLED, DEAD_LETTERED, REJECTED, *_ = NoticeType
AT_ONCE: dict[str, timedelta] = {}
SINK = "https://afnemer.example/hook"


@pytest.fixture
async def bode(url: str) -> AsyncIterator[Broker]:
    async with broker(url) as made:
        async with made.pool.acquire() as connection:
            await leases.create(connection, SHARD_LEASE, 1)
        yield made


async def notifier(bode: Broker, linger: dict[str, timedelta] | None = None) -> Notifier:
    queue: asyncio.Queue[Accepted] = asyncio.Queue()
    return Notifier(bode.pool, await bode.acceptor(), queue, AT_ONCE if linger is None else linger)


async def told(bode: Broker) -> int:
    return await (await notifier(bode)).tell()


async def received(bode: Broker, subscribed: Subscribed) -> list[dict[str, Any]]:
    """The notices that a subscription was numbered for, in order."""
    rows = await bode.pool.fetch(
        "SELECT e.key, e.body FROM deliveries d JOIN events e ON e.key = d.event_key "
        "WHERE d.subscription = $1 ORDER BY d.sequence",
        subscribed.key,
    )
    return [orjson.loads(open_body(RING, row["key"], row["body"])) for row in rows]


async def dead(bode: Broker, subscribed: Subscribed, reason: str, *sequences: int, state: str = DEAD) -> int:
    """Record dead letters, as the delivery engine does."""
    epoch = await bode.pool.fetchval("SELECT epoch FROM leases WHERE kind = 'shard'")
    rows = await bode.deliveries(subscribed.key)
    now = await bode.pool.fetchval("SELECT now()")
    outcomes = [
        OutcomeRow(
            row["subscription"], row["sequence"], row["event_key"], state, 1, None, now if state == DEAD else None,
            400, reason, epoch,
        )
        for row in rows
        if row["sequence"] in sequences
    ]  # fmt: skip
    async with bode.pool.acquire() as connection:
        return await records.record(connection, outcomes, [], 1)


async def test_disabled_subscription_is_told_to_its_provider_alone(bode: Broker) -> None:
    registry = await bode.publisher()
    watched = await bode.subscribed(registry)
    owner = await bode.pool.fetchval("SELECT organisation_id FROM subscriptions WHERE id = $1", watched.id)
    key = await _key_of(bode, owner)
    _, _, stranger_key = await bode.provider()
    mine = await bode.subscribe(key, types=[DISABLED])
    whole = await bode.subscribe(key, domain="nl.bode")
    strangers = await bode.subscribe(stranger_key, types=list(NoticeType))
    curious = await bode.subscribe(stranger_key, domain="nl.bode", filters=[{"prefix": {"type": "nl.bode."}}])
    async with changing(bode.world.engine) as connection:
        assert await life_cycle.disable(connection, watched.id, "sink-gone: the sink answered 410")
        assert not await life_cycle.disable(connection, watched.id, "sink-gone: again")
    assert await told(bode) == 1
    for subscribed in (mine, whole):
        [notice] = await received(bode, subscribed)
        assert (notice["source"], notice["type"]) == (SOURCE, DISABLED)
        assert notice["data"] == {"subscription": str(watched.id), "reason": "sink-gone"}
        assert "subject" not in notice
    assert await received(bode, strangers) == await received(bode, curious) == []
    assert await told(bode) == 0


async def test_withdrawn_consent_is_told_and_a_first_refusal_is_not(bode: Broker) -> None:
    registry = await bode.publisher()
    watched = await bode.subscribed(registry)
    owner = await bode.pool.fetchval("SELECT organisation_id FROM subscriptions WHERE id = $1", watched.id)
    mine = await bode.subscribe(await _key_of(bode, owner), types=[DISABLED])
    for status, expected in ((Status.VALIDATING, Status.REFUSED), (Status.ACTIVE, Status.DISABLED)):
        await bode.pool.execute(
            "UPDATE subscriptions SET status = $2, validated_at = now(), validate_at = now() WHERE id = $1",
            watched.id, status.value,
        )  # fmt: skip
        async with changing(bode.world.engine) as connection:
            assert await life_cycle.handshake_failed(
                connection, watched.id, sink=SINK, reason="no-consent", retry_at=None
            )
        assert await bode.pool.fetchval("SELECT status FROM subscriptions WHERE id = $1", watched.id) == expected
    assert await told(bode) == 1
    [notice] = await received(bode, mine)
    assert notice["data"] == {"subscription": str(watched.id), "reason": CONSENT_WITHDRAWN}


async def test_nothing_is_told_of_what_was_rolled_back(bode: Broker) -> None:
    watched = await bode.subscribed(await bode.publisher())

    async def disable_in_vain() -> None:
        async with changing(bode.world.engine) as connection:
            await life_cycle.disable(connection, watched.id, "sink-gone")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await disable_in_vain()
    assert await told(bode) == 0


async def test_dead_letters_of_many_batches_are_told_together_and_only_those_that_counted(bode: Broker) -> None:
    registry = await bode.publisher()
    watched = await bode.subscribed(registry)
    owner = await bode.pool.fetchval("SELECT organisation_id FROM subscriptions WHERE id = $1", watched.id)
    mine = await bode.subscribe(await _key_of(bode, owner), types=[DEAD_LETTERED])
    await (await bode.acceptor()).accept([registry.message() for _ in range(6)])
    assert await dead(bode, watched, "status-500", 5, state=PENDING) == 1
    assert await bode.pool.fetchval("SELECT count(*) FROM notices") == 0, "a batch without dead letters writes nothing"
    assert await dead(bode, watched, "status-400", 2, 3) == 2
    assert await dead(bode, watched, "status-400", 3) == 0, "it is dead already"
    assert await dead(bode, watched, "timed-out", 6) == 1
    assert await bode.pool.fetchval("SELECT count(*) FROM notices") == 2
    patient = await notifier(bode, {DEAD_LETTERED: timedelta(hours=1)})
    assert await patient.tell() == 0, "not before it has been gathered for long enough"
    assert await told(bode) == 1
    [notice] = await received(bode, mine)
    assert notice["data"] == {
        "subscription": str(watched.id), "count": 3, "firstSequence": 2, "lastSequence": 6,
        "reasons": {"status-400": 2, "timed-out": 1},
    }  # fmt: skip


async def test_dead_letter_of_a_notice_makes_no_notice(bode: Broker) -> None:
    watched = await bode.subscribed(await bode.publisher())
    owner = await bode.pool.fetchval("SELECT organisation_id FROM subscriptions WHERE id = $1", watched.id)
    mine = await bode.subscribe(await _key_of(bode, owner), types=[DISABLED, DEAD_LETTERED])
    async with changing(bode.world.engine) as connection:
        await life_cycle.disable(connection, watched.id, "sink-gone")
    await told(bode)
    assert await dead(bode, mine, "status-400", 1) == 1
    assert await told(bode) == 0
    assert len(await received(bode, mine)) == 1


async def test_rejections_of_a_registry_are_told_to_it_and_a_flood_makes_one_notice(bode: Broker) -> None:
    registry, other = await bode.publisher(), await bode.publisher()
    mine = await bode.subscribe(await _key_of(bode, registry.id), types=[REJECTED])
    others = await bode.subscribe(await _key_of(bode, other.id), types=[REJECTED])
    acceptor = await bode.acceptor()
    for number in range(5):
        await acceptor.accept(
            [
                registry.message(type="nl.van-niemand.iets", id=f"n-{number}"),
                registry.message(source=other.source, id=f"s-{number}"),
                registry.message(id=f"good-{number}"),
            ]
        )
    assert await told(bode) == 1
    [notice] = await received(bode, mine)
    assert notice["data"] == {"count": 10, "codes": {"type-not-yours": 5, "source-not-yours": 5}}
    assert await received(bode, others) == []


async def test_what_nobody_published_is_told_to_nobody(bode: Broker) -> None:
    rejection = Rejection(uuid4().bytes, None, "publisher-unknown", "", None, None, None, None, 1)
    async with bode.pool.acquire() as connection:
        await reject(connection, [rejection])
    assert await told(bode) == 0


async def test_who_died_while_telling_is_followed_and_each_notice_is_accepted_once(bode: Broker) -> None:
    watched = await bode.subscribed(await bode.publisher())
    owner = await bode.pool.fetchval("SELECT organisation_id FROM subscriptions WHERE id = $1", watched.id)
    mine = await bode.subscribe(await _key_of(bode, owner), types=[DISABLED])
    async with changing(bode.world.engine) as connection:
        await life_cycle.disable(connection, watched.id, "sink-gone")
    async with bode.pool.acquire() as connection:
        [claimed] = await notices.claim(connection, AT_ONCE)  # and dies before it has accepted it
        assert await notices.claim(connection, AT_ONCE) == [], "it is another's"
        await connection.execute("UPDATE notices SET claimed_until = now() - interval '1 second'")
        [again] = await notices.claim(connection, AT_ONCE)
        assert again == claimed
    lines = await bode.pool.fetch("UPDATE notices SET claimed_until = now() - interval '1 second' RETURNING notices.*")
    assert await told(bode) == 1
    columns = ("type", "organisation_id", "subscription_id", "data", "said_at", "event_id", "claimed_until")
    async with bode.pool.acquire() as connection:  # and another, who died before it took the lines away
        await connection.copy_records_to_table(
            "notices", columns=columns, records=[tuple(line[name] for name in columns) for line in lines]
        )
    assert await told(bode) == 1
    [notice] = await received(bode, mine)
    assert notice["id"] == str(claimed.event_id)
    assert await bode.pool.fetchval("SELECT count(*) FROM notices") == 0


async def test_nobody_else_publishes_in_the_name_of_bode(bode: Broker) -> None:
    registry = await bode.publisher()
    [result] = await (await bode.acceptor()).accept([registry.message(type=DISABLED)])
    assert result.code == "type-not-yours"  # type: ignore[union-attr]
    for name in ("nl.bode", "nl.bode.meer"):
        async with changing(bode.world.engine) as connection:
            with pytest.raises(Conflict):
                await organisations.create_domain(connection, organisation_id=registry.id, name=name, by_operator=True)
    assert not is_own("nl.bodega.zoek")


async def test_subscription_to_notices_alone_needs_no_grant_and_one_to_more_does(bode: Broker) -> None:
    _, _, key = await bode.provider()
    for asked, status in (
        ({"types": [DISABLED]}, "validating"),
        ({"domain": "nl.bode"}, "validating"),
        ({"types": [DISABLED, "nl.brp.verhuisd"]}, "requested"),
        ({}, "requested"),
    ):
        body = {"sink": SINK, "protocol": "HTTP"} | asked
        made = await bode.world.call("POST", "/subscriptions", key=key, body=body)
        assert (made.status, made.json["status"]) == (201, status), asked


def test_what_is_said_of_the_same_is_added_up() -> None:
    soon, later = "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"
    one = {"count": 2, "firstSequence": 5, "lastSequence": 9, "reasons": {"a": 2}, "reason": "x"}
    other = {"count": 1, "firstSequence": 3, "lastSequence": 7, "reasons": {"a": 1, "b": 1}, "reason": "y"}
    assert merged(one | {"firstExpiresAt": soon}, other | {"firstExpiresAt": later}) == {
        "count": 3, "firstSequence": 3, "lastSequence": 9, "reasons": {"a": 3, "b": 1}, "reason": "y",
        "firstExpiresAt": soon,
    }  # fmt: skip


async def _key_of(bode: Broker, organisation_id: UUID) -> str:
    async with changing(bode.world.engine) as connection:
        key, _ = await create_key(connection, organisation_id=organisation_id, scopes=[Scope.CONSUME])
    return key
