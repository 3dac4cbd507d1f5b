"""Dead letters: read with their attempts, retried and discarded, one or many, and counted right (promises 2, 3, 6)."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from uuid import UUID, uuid4

import pytest
from accepting import Publisher
from delivering import Delivering, RawSink, answer
from fixtures import process_with_api
from managing import Answer
from sqlalchemy import text

from broker.api import dead_letters, reconciliation
from broker.storage import accounting
from broker.storage import dead_letters as storage
from broker.storage.accounting import alone
from subscriptions.change_log import changing
from subscriptions.grants import revoke_grant

REFUSED = answer("400 Bad Request", body="geen BSN te zien")

bode = process_with_api(dead_letters.router, reconciliation.router)


async def call(bode: Delivering, method: str, path: str, body: Any = None, key: str | None = None) -> Answer:
    return await bode.world.call(method, path, key=key or bode.provider_key, body=body)


async def letters(bode: Delivering, sink: RawSink, count: int) -> tuple[Publisher, UUID]:
    """A subscription with so many dead letters, whose sink is well again."""
    registry = await bode.own_types()
    target = f"/{uuid4().hex}"
    sink.answers["POST", target] = lambda _: REFUSED
    identity = await bode.active(registry, sink.url(target), retry={"delays": ["PT0.02S"]})
    for number in range(count):
        await bode.publish(registry, f"s-{number}")
        await until(bode, identity, "dead", number + 1)
        bode.process._engine._runners._paces.clear()  # ten failures in a row would pause the sink
        bode.process._engine.changed((await bode.row(identity))["key"])
    del sink.answers["POST", target]
    return registry, identity


async def until(bode: Delivering, identity: UUID, state: str, count: int) -> None:
    """Wait until so many deliveries of a subscription are in a state."""
    statement = (
        "SELECT count(*) FROM deliveries d JOIN subscriptions s ON s.key = d.subscription "
        "WHERE s.id = $1 AND d.state = $2::delivery_state"
    )
    async with asyncio.timeout(30):
        while await bode.pool.fetchval(statement, identity, state) != count:
            await asyncio.sleep(0.02)


async def counts(bode: Delivering, identity: UUID) -> tuple[int, int, int, int]:
    """Delivered, pending, dead, cancelled, by the totals; and nothing is off."""
    key = (await bode.row(identity))["key"]
    async with bode.pool.acquire() as connection:
        assert await accounting.recount(connection, key) == []
        async with alone(connection):
            assert (await accounting.check_totals(connection, key, datetime.now(UTC)))[0] == []
    row = await bode.pool.fetchrow(
        "SELECT t.*, n.last_sequence FROM delivery_totals t JOIN subscription_numbers n USING (subscription) "
        "WHERE subscription = $1",
        key,
    )
    ended = row["delivered"] + row["dead"] + row["cancelled"]
    return row["delivered"], row["last_sequence"] - ended, row["dead"], row["cancelled"]


def sent(sink: RawSink) -> list[str]:
    return [json.loads(asked.body)["subscriptionsequence"] for asked in sink.asked if asked.method == "POST"]


async def test_dead_letter_is_read_with_its_attempts_and_only_its_provider_sees_what_was_answered(
    bode: Delivering, sink: RawSink
) -> None:
    _, identity = await letters(bode, sink, 3)
    _, other = await letters(bode, sink, 1)
    listed = (await call(bode, "GET", f"/dead-letters?subscription={identity}&limit=2")).json
    assert (listed["count"], len(listed["results"])) == (3, 2)
    rest = (await call(bode, "GET", listed["next"])).json["results"]
    numbers = [each["subscriptionSequence"] for each in [*listed["results"], *rest]]
    assert numbers == [1, 2, 3]
    assert {each["subscription"] for each in listed["results"]} == {str(identity)}
    first = listed["results"][0]
    shown = (await call(bode, "GET", f"/dead-letters/{first['id']}")).json
    assert {name: shown[name] for name in first} == first
    attempts = shown["failedAttempts"]
    assert [(each["attempt"], each["status"], each["reason"]) for each in attempts] == [
        (1, 400, "status"), (2, 400, "status"),
    ]  # fmt: skip
    assert all(each["excerpt"] == "geen BSN te zien" for each in attempts)
    operator = await bode.world.operator()
    told = await call(bode, "GET", f"/dead-letters/{first['id']}", key=operator)
    assert told.status == 200
    assert "geen BSN" not in told.text
    assert len(told.json["failedAttempts"]) == 2
    assert (await call(bode, "GET", "/dead-letters", key=operator)).json["count"] >= 4
    _, _, stranger = await bode.provider()
    for path in (f"/dead-letters/{first['id']}", f"/dead-letters?subscription={identity}"):
        assert (await call(bode, "GET", path, key=stranger)).status == 404
    assert (await call(bode, "GET", "/dead-letters", key=stranger)).json["results"] == []
    assert other != identity


async def test_retried_dead_letter_is_sent_under_its_number_and_keeps_the_history_of_its_attempts(
    bode: Delivering, sink: RawSink
) -> None:
    registry, identity = await letters(bode, sink, 2)
    await bode.publish(registry, "later")
    await until(bode, identity, "delivered", 1)
    place = f"/dead-letters/dlv_{identity.hex}_1"
    before = len(sink.asked)
    done = await call(bode, "POST", f"{place}/retries")
    assert (done.status, done.json["retried"], done.json["more"]) == (200, 1, False)
    await until(bode, identity, "delivered", 2)
    [again] = [asked for asked in sink.asked[before:] if asked.method == "POST"]
    assert again.one("webhook-id") == f"dlv_{identity.hex}_1"
    assert await counts(bode, identity) == (2, 0, 1, 0)
    assert (await call(bode, "GET", place)).status == 404
    assert (await call(bode, "POST", f"{place}/retries")).status == 409, "it is delivered"
    assert await bode.pool.fetchval(
        "SELECT count(*) FROM attempts a JOIN subscriptions s ON s.key = a.subscription "
        "WHERE s.id = $1 AND a.sequence = 1", identity,
    ) == 2  # fmt: skip
    shown = (await call(bode, "GET", f"/subscriptions/{identity}/reconciliation")).json
    assert shown["counts"]["delivered"] == 2
    assert [(stone["from"], stone["state"]) for stone in shown["tombstones"]] == [(2, "dead")]


async def test_many_who_decide_at_once_wait_for_each_other_and_for_no_connection(
    bode: Delivering, sink: RawSink
) -> None:
    _, identity = await letters(bode, sink, 1)
    many = 12
    assert many > bode.world.engine.pool.size() + bode.world.engine.pool._max_overflow  # type: ignore[attr-defined]
    place = f"/dead-letters/dlv_{identity.hex}_1/retries"
    answers = await asyncio.gather(*(call(bode, "POST", place) for _ in range(many)))
    assert sorted(each.status for each in answers) == [200] + [409] * (many - 1)
    await until(bode, identity, "delivered", 1)
    assert await counts(bode, identity) == (1, 0, 0, 0)


async def test_retried_dead_letter_has_all_its_attempts_anew_and_may_die_again(bode: Delivering, sink: RawSink) -> None:
    _, identity = await letters(bode, sink, 1)
    target = (await bode.row(identity))["sink"].rpartition("/")[2]
    sink.answers["POST", f"/{target}"] = lambda _: REFUSED
    assert (await call(bode, "POST", f"/dead-letters/dlv_{identity.hex}_1/retries")).status == 200
    await sink.wait_for("POST", f"/{target}", 4)
    await until(bode, identity, "dead", 1)
    shown = (await call(bode, "GET", f"/dead-letters/dlv_{identity.hex}_1")).json
    assert (shown["attempts"], len(shown["failedAttempts"])) == (2, 4)
    assert await counts(bode, identity) == (0, 0, 1, 0)


async def test_many_are_retried_by_number_reason_or_time_in_order_beside_what_is_new(
    bode: Delivering, sink: RawSink
) -> None:
    registry, identity = await letters(bode, sink, 6)
    place = f"/subscriptions/{identity}/dead-letters/retries"
    future, past = ((datetime.now(UTC) + timedelta(hours=each)).isoformat() for each in (1, -1))
    for selection, retried in (
        ({"reason": "status-500"}, 0),
        ({"endedFrom": future}, 0),
        ({"endedUntil": past}, 0),
        ({"numbers": [100]}, 0),
        ({"numbers": [6, 2, 5], "reason": "status-400"}, 3),
        ({"endedFrom": past, "endedUntil": future}, 3),
        ({}, 0),
    ):
        done = await call(bode, "POST", place, selection)
        assert (done.status, done.json["retried"], done.json["more"]) == (200, retried, False), selection
    await bode.publish(registry, "later")
    await until(bode, identity, "delivered", 7)
    assert await counts(bode, identity) == (7, 0, 0, 0)


async def test_portions_go_on_until_an_answer_has_done_its_share(
    bode: Delivering, sink: RawSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.storage.dead_letters.PORTION", 2)
    monkeypatch.setattr("broker.api.dead_letters.MOST_AT_ONCE", 4)
    _, identity = await letters(bode, sink, 5)
    place = f"/subscriptions/{identity}/dead-letters/retries"
    done = [(await call(bode, "POST", place, {})).json for _ in range(2)]
    assert [(each["retried"], each["more"]) for each in done] == [(4, True), (1, False)]
    await until(bode, identity, "delivered", 5)


async def test_a_portion_looks_at_so_many_dead_letters_and_no_more(
    bode: Delivering, sink: RawSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it looks nobody can change anything, and behind who wants to, acceptance waits."""
    _, identity = await letters(bode, sink, 5)
    key = (await bode.row(identity))["key"]
    await bode.pool.execute("UPDATE deliveries SET reason = 'timeout' WHERE subscription = $1 AND sequence = 5", key)
    monkeypatch.setattr("broker.storage.dead_letters.MOST_WALKED", 2)
    async with bode.world.engine.begin() as connection:
        portion = await storage.choose(connection, key, storage.Selection(reason="timeout"))
        assert (portion.rows, portion.last, portion.complete) == ([], 2, False)
        portion = await storage.choose(connection, key, storage.Selection(reason="timeout"), after=4)
        assert ([row.sequence for row in portion.rows], portion.complete) == ([5], True)
    place = f"/subscriptions/{identity}/dead-letters/retries"
    done = await call(bode, "POST", place, {"reason": "timeout"})
    assert (done.json["retried"], done.json["more"]) == (1, False)


async def test_a_number_is_looked_up_among_dead_letters(bode: Delivering, sink: RawSink) -> None:
    _, identity = await letters(bode, sink, 6)
    key = (await bode.row(identity))["key"]
    fetched = "SELECT sum(idx_tup_fetch)::bigint FROM pg_stat_xact_user_tables WHERE relname LIKE 'deliveries%'"
    async with bode.world.engine.begin() as connection:
        before = (await connection.execute(text(fetched))).scalar_one() or 0
        portion = await storage.choose(connection, key, storage.Selection(sequences=[5]))
        assert [row.sequence for row in portion.rows] == [5]
        assert (await connection.execute(text(fetched))).scalar_one() - before <= 2


async def test_discarded_dead_letter_is_cancelled_with_its_reason_and_stays_so(bode: Delivering, sink: RawSink) -> None:
    _, identity = await letters(bode, sink, 3)
    before = len(sink.asked)
    place = f"/dead-letters/dlv_{identity.hex}_2"
    assert (await call(bode, "POST", f"{place}/discards", {"reason": "met de hand"})).json["discarded"] == 1
    for action in ("retries", "discards"):
        body = None if action == "retries" else {"reason": "nog eens"}
        assert (await call(bode, "POST", f"{place}/{action}", body)).status == 409
    assert await counts(bode, identity) == (0, 0, 2, 1)
    operator = await bode.world.operator()
    many = await call(
        bode, "POST", f"/subscriptions/{identity}/dead-letters/discards", {"because": "opgeruimd"}, key=operator
    )
    assert (many.status, many.json["discarded"]) == (200, 2)
    assert await counts(bode, identity) == (0, 0, 0, 3)
    shown = (await call(bode, "GET", f"/subscriptions/{identity}/reconciliation")).json
    assert [(stone["from"], stone["to"], stone["reason"]) for stone in shown["tombstones"]] == [
        (1, 1, "discarded: opgeruimd"), (2, 2, "discarded: met de hand"), (3, 3, "discarded: opgeruimd"),
    ]  # fmt: skip
    assert len(sink.asked) == before


async def test_what_no_grant_covers_any_more_is_cancelled_and_never_sent(bode: Delivering, sink: RawSink) -> None:
    registry, identity = await letters(bode, sink, 2)
    before = len(sink.asked)
    grant = await bode.pool.fetchval(
        "SELECT g.id FROM grants g JOIN subscriptions s ON s.organisation_id = g.provider_id "
        "WHERE s.id = $1 AND g.revoked_at IS NULL", identity,
    )  # fmt: skip

    async def nothing(*_: Any) -> None:
        """Dead letters are not pending."""

    async with changing(bode.world.engine) as connection:
        await revoke_grant(connection, grant, registry_id=registry.id, cancel_ungranted=nothing)
    try:
        done = await call(bode, "POST", f"/subscriptions/{identity}/dead-letters/retries", {"numbers": [1]})
        assert (done.json["retried"], done.json["cancelled"]) == (0, 1)
        assert await counts(bode, identity) == (0, 0, 1, 1)
        assert len(sink.asked) == before
    finally:
        _, oin = await bode.pool.fetchrow(
            "SELECT o.id, o.oin FROM organisations o JOIN subscriptions s ON s.organisation_id = o.id WHERE s.id = $1",
            identity,
        )
        again = await bode.grant(Publisher(registry.id, "", "", registry.domain.rpartition(".")[0]), oin)
    done = await call(bode, "POST", f"/dead-letters/dlv_{identity.hex}_2/retries")
    assert done.json["retried"] == 1
    await until(bode, identity, "delivered", 1)
    grant_of = "SELECT grant_id FROM deliveries d JOIN subscriptions s ON s.key = d.subscription WHERE s.id = $1"
    assert await bode.pool.fetchval(f"{grant_of} AND sequence = 2", identity) == again


class Wrong(datetime):
    """A machine's clock that is ten years fast."""

    @classmethod
    def now(cls, tz: Any = None) -> Self:
        return super().now(tz) + timedelta(days=3653)


async def test_a_process_whose_clock_is_wrong_retries_by_that_of_the_database(
    bode: Delivering, sink: RawSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, identity = await letters(bode, sink, 1)
    await bode.pool.execute("UPDATE grants SET valid_until = now() + interval '1 day'")
    monkeypatch.setattr("broker.api.dead_letters.datetime", Wrong, raising=False)
    done = await call(bode, "POST", f"/subscriptions/{identity}/dead-letters/retries", {})
    assert (done.json["retried"], done.json["cancelled"]) == (1, 0)


async def test_nothing_of_a_subscription_that_ends_meanwhile_is_pending_for_ever(
    bode: Delivering, sink: RawSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, identity = await letters(bode, sink, 2)
    keep_changes_out = storage.keep_changes_out

    async def after_it_ended(connection: Any) -> None:
        ended = await call(bode, "DELETE", f"/subscriptions/{identity}")
        assert ended.status in (204, 404), ended.text  # 404: this is not the first try
        await keep_changes_out(connection)

    monkeypatch.setattr(storage, "keep_changes_out", after_it_ended)
    done = await call(bode, "POST", f"/subscriptions/{identity}/dead-letters/retries", {})
    assert (done.status, "has ended" in done.json["detail"]) == (409, True)
    assert await counts(bode, identity) == (0, 0, 2, 0)


async def test_what_is_not_there_or_anothers_or_malformed_is_refused(bode: Delivering, sink: RawSink) -> None:
    _, identity = await letters(bode, sink, 1)
    _, _, stranger = await bode.provider()
    own = f"dlv_{identity.hex}_1"
    for id in (f"dlv_{identity.hex}_7", f"dlv_{uuid4().hex}_1", "dlv_nonsense", f"dlv_{identity.hex}_{2**63}", "x"):
        assert (await call(bode, "GET", f"/dead-letters/{id}")).status == 404, id
        assert (await call(bode, "POST", f"/dead-letters/{id}/retries")).status == 404, id
        assert (await call(bode, "POST", f"/dead-letters/{id}/discards", {"reason": "x"})).status == 404, id
    place = f"/subscriptions/{identity}/dead-letters"
    assert (await call(bode, "POST", f"/dead-letters/{own}/retries", key=stranger)).status == 404
    assert (await call(bode, "POST", f"/dead-letters/{own}/discards", {"reason": "x"}, key=stranger)).status == 404
    assert (await call(bode, "POST", f"{place}/retries", {}, key=stranger)).status == 404
    assert (await call(bode, "POST", f"{place}/discards", {"because": "x"}, key=stranger)).status == 404
    now = datetime.now(UTC).isoformat()
    for action, body, field in (
        ("retries", {"endedFrom": now, "endedUntil": now}, "/endedUntil"),
        ("retries", {"numbers": []}, "/numbers"),
        ("retries", {"numbers": [0]}, "/numbers/0"),
        ("retries", {"number": [1]}, "/number"),
        ("discards", {}, "/because"),
        ("discards", {"because": "x" * 201}, "/because"),
        ("discards", {"because": "a\nb"}, "/because"),
    ):
        refused = await call(bode, "POST", f"{place}/{action}", body)
        assert refused.status == 400, body
        assert refused.json["invalidParams"][0]["name"] == field, body
    assert await counts(bode, identity) == (0, 0, 1, 0)
    ended = await bode.world.call("DELETE", f"/subscriptions/{identity}", key=bode.provider_key)
    assert ended.status == 204
    for path in (f"/dead-letters/{own}/retries", f"{place}/retries"):
        assert (await call(bode, "POST", path, {} if path.startswith(place) else None)).status == 409
    assert (await call(bode, "POST", f"/dead-letters/{own}/discards", {"reason": "einde"})).json["discarded"] == 1
    assert await counts(bode, identity) == (0, 0, 0, 1)
