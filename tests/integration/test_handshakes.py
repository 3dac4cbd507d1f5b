"""Consent by callback, its renewal, and sinks that answer nonsense: clear reasons, nothing stuck."""

import asyncio
import hashlib
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from accepting import Publisher
from delivering import CONSENT, SILENT, Asked, Delivering, RawSink, answer
from fixtures import IN_ONE_LOOP, one_process, own_types, raw_sink

pytestmark = IN_ONE_LOOP

ALLOWED = "WebHook-Allowed-Origin: bode.example"
OTHER = answer("200 OK", "WebHook-Allowed-Origin: other.example")

bode = one_process(attempt_seconds=1.5)
publisher = own_types()
sink = raw_sink()


async def withheld(bode: Delivering, publisher: Publisher, sink: RawSink) -> tuple[UUID, str]:
    """A subscription whose sink withholds its answer, and the callback that it was offered."""
    sink.answers["OPTIONS", "/"] = lambda _: SILENT
    identity = await bode.subscribe_to(publisher, sink.url("/"))
    [asked, *_] = await sink.wait_for("OPTIONS", "/", 1)
    return identity, asked.one("webhook-request-callback")


async def call(bode: Delivering, method: str, callback: str, *rates: str) -> tuple[int, Any]:
    found = await bode.world.call(method, callback, headers={"webhook-allowed-rate": rates[0]} if rates else {})
    return found.status, found.json


# by callback


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_callback_activates(bode: Delivering, publisher: Publisher, sink: RawSink, method: str) -> None:
    identity, callback = await withheld(bode, publisher, sink)
    assert await call(bode, method, callback) == (200, {"status": "active", "allowedRate": None})
    shown = await bode.wait_for(identity, status="active")
    assert shown.get("statusReason") is None
    await bode.publish(publisher, "a")
    await sink.wait_for("POST", "/", 1)


@pytest.mark.parametrize(("header", "query", "rate"), [("120", "", 120), ("*", "", None), ("", "?allowedRate=60", 60)])
async def test_callback_may_say_the_rate(
    bode: Delivering, publisher: Publisher, sink: RawSink, header: str, query: str, rate: int | None
) -> None:
    identity, callback = await withheld(bode, publisher, sink)
    assert await call(bode, "POST", callback + query, *([header] if header else [])) == (
        200,
        {"status": "active", "allowedRate": rate},
    )
    assert (await bode.shown(identity))["allowedRate"] == rate


async def test_malformed_rate_is_named_and_costs_nothing(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    identity, callback = await withheld(bode, publisher, sink)
    for rate in ("0", "-1", "1.5", "many", "", "9" * 30, "1e3", "+1", "1 2"):
        status, problem = await call(bode, "POST", callback, rate)
        assert (status, problem["invalidParams"][0]["name"]) == (400, "WebHook-Allowed-Rate"), rate
    for query in ("0", "-1", "1.5", "many", "", "9" * 30, "%D9%A1", "9" * 3000):
        status, problem = await call(bode, "GET", f"{callback}?allowedRate={query}")
        assert (status, problem["invalidParams"][0]["name"]) == (400, "allowedRate"), query
    assert (await bode.row(identity))["status"] == "validating"
    assert (await call(bode, "POST", callback, "10"))[0] == 200


async def test_callback_works_once_and_ends_the_others(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    identity, first = await withheld(bode, publisher, sink)
    [_, again, *_] = await sink.wait_for("OPTIONS", "/", 2)
    second = again.one("webhook-request-callback")
    assert second != first
    assert (await call(bode, "GET", second))[0] == 200
    for callback in (first, second):
        assert (await call(bode, "POST", callback))[0] == 404
    count = "SELECT count(*) FROM handshake_tokens WHERE subscription_id = $1"
    assert await bode.pool.fetchval(count, identity) == 0


async def test_only_a_hash_of_the_token_is_kept(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    identity, callback = await withheld(bode, publisher, sink)
    token = callback.rpartition("/")[2]
    rows = await bode.pool.fetch("SELECT * FROM handshake_tokens WHERE subscription_id = $1", identity)
    assert hashlib.sha256(token.encode()).digest() in {row["digest"] for row in rows}
    assert token not in str(rows)


async def test_callback_expires(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    identity, callback = await withheld(bode, publisher, sink)
    row = await bode.pool.fetchrow(
        "SELECT min(expires_at - now()) AS left FROM handshake_tokens WHERE subscription_id = $1", identity
    )
    assert timedelta(hours=23) < row["left"] <= timedelta(days=1)
    await bode.pool.execute("UPDATE handshake_tokens SET expires_at = now() WHERE subscription_id = $1", identity)
    assert (await call(bode, "GET", callback))[0] == 404


async def test_callback_counts_for_the_sink_that_was_asked_only(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    identity, callback = await withheld(bode, publisher, sink)
    sink.answers["OPTIONS", "/new"] = lambda _: SILENT
    new = {"sink": sink.url("/new")}
    await bode.world.call("PATCH", f"/subscriptions/{identity}", key=bode.provider_key, body=new)
    assert (await call(bode, "POST", callback))[0] == 404
    assert (await bode.shown(identity))["status"] == "validating"


async def test_callback_after_the_end_is_unknown(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    identity, callback = await withheld(bode, publisher, sink)
    await bode.world.call("DELETE", f"/subscriptions/{identity}", key=bode.provider_key)
    assert (await call(bode, "POST", callback))[0] == 404


@pytest.mark.parametrize("token", ["x", "A" * 43, "A" * 42 + "%00", "A" * 5000, "..%2f..", "%27%20OR%201=1"])
async def test_token_that_nobody_was_given_is_unknown(bode: Delivering, token: str) -> None:
    found = await bode.world.call("GET", f"/handshakes/{token}")
    assert (found.status, found.json["code"]) == (404, "not-found")


async def test_callback_while_the_handshake_is_under_way_is_not_undone_by_its_answer(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    async def calls_back(asked: Asked) -> bytes:
        assert (await call(bode, "POST", asked.one("webhook-request-callback"), "30"))[0] == 200
        return OTHER

    sink.answers["OPTIONS", "/"] = calls_back
    identity = await bode.subscribe_to(publisher, sink.url("/"))
    await bode.wait_for(identity, status="active")
    await bode.active(publisher, sink.url("/next"))
    shown = await bode.shown(identity)
    assert (shown["status"], shown.get("statusReason"), shown["allowedRate"]) == ("active", None, 30)


# renewal


async def renewed(bode: Delivering, sink: RawSink, identity: UUID, path: str = "/") -> None:
    """Makes the renewal due and waits until it was recorded."""
    before = len(sink.of("OPTIONS", path))
    await bode.alter(identity, "validate_at = now()")
    due = (await bode.row(identity))["validate_at"]
    await sink.wait_for("OPTIONS", path, before + 1)
    async with asyncio.timeout(10):
        while True:
            row = await bode.row(identity)
            # neither due nor claimed any more
            claimed = row["validate_at"] is not None and row["validate_at"] - due < timedelta(minutes=10)
            if not claimed:
                return
            await asyncio.sleep(0.02)


async def test_renewal_is_due_in_a_week_more_or_less(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    waits = []
    for number in range(4):
        identity = await bode.active(publisher, sink.url(f"/{number}"))
        row = await bode.row(identity)
        waits.append(row["validate_at"] - row["validated_at"])
    assert all(timedelta(days=6.2) < wait < timedelta(days=7.8) for wait in waits)
    assert len({wait.days * 24 + wait.seconds // 60 for wait in waits}) > 1, "spread"


async def test_renewal_that_says_nothing_new_is_no_change(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    identity = await bode.active(publisher, sink.url("/"))
    before = await bode.row(identity)
    await renewed(bode, sink, identity)
    after = await bode.row(identity)
    assert after["version"] == before["version"]
    assert after["validated_at"] > before["validated_at"]
    assert after["validate_at"] - after["validated_at"] > timedelta(days=6)


async def test_renewal_brings_a_new_rate(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    identity = await bode.active(publisher, sink.url("/"))
    sink.answers["OPTIONS", "/"] = lambda _: answer("200 OK", ALLOWED, "WebHook-Allowed-Rate: 90")
    await renewed(bode, sink, identity)
    assert (await bode.wait_for(identity, allowedRate=90))["status"] == "active"


async def test_refused_renewal_is_asked_three_times_over_a_day_and_then_disables(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    identity = await bode.active(publisher, sink.url("/"))
    sink.answers["OPTIONS", "/"] = lambda _: OTHER
    await renewed(bode, sink, identity)
    shown = await bode.shown(identity)
    assert (shown["status"], shown["statusReason"].partition(":")[0]) == ("active", "renewal-refused")
    await bode.publish(publisher, "a")
    await sink.wait_for("POST", "/", 1)
    waits = []
    for _ in range(4):
        row = await bode.row(identity)
        if row["validate_at"] is None:
            break
        wait = row["validate_at"] - await bode.pool.fetchval("SELECT now()")
        waits.append(round(wait.total_seconds() / 3600))
        await bode.alter(identity, f"refused_since = refused_since - interval '{wait.total_seconds()} s'")
        await renewed(bode, sink, identity)
    assert waits == [8, 8, 8]
    shown = await bode.shown(identity)
    assert (shown["status"], shown["statusReason"].partition(":")[0]) == ("disabled", "consent-withdrawn")
    await bode.publish(publisher, "b")
    # numbered and kept; a new consent sends it
    sink.answers["OPTIONS", "/"] = lambda _: CONSENT
    await bode.world.call("PATCH", f"/subscriptions/{identity}", key=bode.provider_key, body={"status": "active"})
    await sink.wait_for("POST", "/", 2)
    assert (await bode.shown(identity))["status"] == "active"


async def test_consent_after_a_refused_renewal_clears_it(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    identity = await bode.active(publisher, sink.url("/"))
    sink.answers["OPTIONS", "/"] = lambda _: SILENT
    await renewed(bode, sink, identity)
    sink.answers["OPTIONS", "/"] = lambda _: CONSENT
    await renewed(bode, sink, identity)
    row = await bode.row(identity)
    assert (row["status"], row["status_reason"], row["refused_since"]) == ("active", None, None)


async def test_silence_takes_no_consent_back(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    identity = await bode.active(publisher, sink.url("/"))
    before = await bode.row(identity)
    sink.answers["OPTIONS", "/"] = lambda _: b""
    await renewed(bode, sink, identity)
    after = await bode.row(identity)
    assert (after["status"], after["status_reason"], after["version"]) == ("active", None, before["version"])
    wait = after["validate_at"] - await bode.pool.fetchval("SELECT now()")
    assert timedelta(minutes=50) < wait < timedelta(minutes=70)


async def test_sink_that_consented_by_callback_need_not_answer_renewals_but_may_refuse(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    identity, callback = await withheld(bode, publisher, sink)
    await call(bode, "GET", callback)
    await renewed(bode, sink, identity)
    row = await bode.row(identity)
    assert (row["status"], row["status_reason"]) == ("active", None)
    # it was offered a callback again, by which it can change its rate
    offered = sink.of("OPTIONS", "/")[-1].one("webhook-request-callback")
    assert await call(bode, "POST", offered, "45") == (200, {"status": "active", "allowedRate": 45})
    sink.answers["OPTIONS", "/"] = lambda _: OTHER
    await renewed(bode, sink, identity)
    assert (await bode.row(identity))["status_reason"].startswith("renewal-refused")


async def test_paused_subscription_stays_paused_when_its_consent_is_renewed(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    identity = await bode.active(publisher, sink.url("/"))
    paused = {"status": "paused"}
    await bode.world.call("PATCH", f"/subscriptions/{identity}", key=bode.provider_key, body=paused)
    await renewed(bode, sink, identity)
    assert (await bode.row(identity))["status"] == "paused"


async def test_old_subscription_with_a_new_sink_is_asked_as_patiently_as_a_new_one(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    identity = await bode.active(publisher, sink.url("/"))
    await bode.alter(identity, "created_at = now() - interval '90 days'")
    sink.answers["OPTIONS", "/new"] = lambda _: SILENT if len(sink.of("OPTIONS", "/new")) < 3 else CONSENT
    new = {"sink": sink.url("/new")}
    await bode.world.call("PATCH", f"/subscriptions/{identity}", key=bode.provider_key, body=new)
    await bode.wait_for(identity, status="active")
    assert len(sink.of("OPTIONS", "/new")) == 3


# bad input


async def _hang(_: Asked) -> bytes:
    await asyncio.Event().wait()
    return b""


NONSENSE = {
    "several origins": (answer("200 OK", ALLOWED, ALLOWED), "several WebHook-Allowed-Origin"),
    "two that differ": (answer("200 OK", ALLOWED, "WebHook-Allowed-Origin: *"), "several WebHook-Allowed-Origin"),
    "list of origins": (answer("200 OK", ALLOWED + ", x.example"), "another origin"),
    "empty origin": (answer("200 OK", "WebHook-Allowed-Origin:"), "another origin"),
    "URL for an origin": (answer("200 OK", "WebHook-Allowed-Origin: https://bode.example"), "another origin"),
    "several rates": (
        answer("200 OK", ALLOWED, "WebHook-Allowed-Rate: 1", "WebHook-Allowed-Rate: 2"),
        "several WebHook",
    ),
    "rate of nothing": (answer("200 OK", ALLOWED, "WebHook-Allowed-Rate: 0"), "neither a positive number"),
    "fraction": (answer("200 OK", ALLOWED, "WebHook-Allowed-Rate: 1.5"), "neither a positive number"),
    "rate in words": (answer("200 OK", ALLOWED, "WebHook-Allowed-Rate: many"), "neither a positive number"),
    "rate beyond any": (answer("200 OK", ALLOWED, f"WebHook-Allowed-Rate: 0000000001{'9' * 40}"), "neither a positive"),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", "not-http"),
    "HTTP/9": (b"HTTP/9.9 200 OK\r\n\r\n", "not-http"),
    "endless headers": (b"HTTP/1.1 200 OK\r\n" + b"X-Filler: " + b"x" * 100_000, "answer-too-large"),
    "endless many headers": (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000, "answer-too-large"),
    "endless interim answers": (b"HTTP/1.1 100 Continue\r\n\r\n" * 3_000, "answer-too-large"),
    "hung up": (b"", "connection-closed"),
    "cut short": (b"HTTP/1.1 200 OK\r\nWebHook-Allowed-Orig", None),
    "another protocol": (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", None),
}


async def test_nonsense_is_no_consent_has_a_clear_reason_and_is_asked_again(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    made = {}
    for number, (name, (data, _)) in enumerate(NONSENSE.items()):
        sink.answers["OPTIONS", f"/{number}"] = lambda _, data=data: data
        made[name] = await bode.subscribe_to(publisher, sink.url(f"/{number}"))
    for name, identity in made.items():
        async with asyncio.timeout(10):
            while not (row := await bode.row(identity))["status_reason"]:
                await asyncio.sleep(0.01)
        reason, told = NONSENSE[name][1], row["status_reason"]
        assert told.startswith("handshake-failed: "), name
        assert reason is None or reason in told, name
        assert "x" * 20 not in told, "what the sink said is not repeated"
        assert row["status"] == "validating"
    sink.answers.clear()
    for identity in made.values():
        shown = await bode.wait_for(identity, status="active")
        assert shown.get("statusReason") is None


async def test_answer_that_never_ends_is_given_up_and_asked_again(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    sink.answers["OPTIONS", "/"] = _hang
    identity = await bode.subscribe_to(publisher, sink.url("/"))
    await bode.wait_for(identity, statusReason="handshake-failed: no answer (timed-out)")
    sink.answers["OPTIONS", "/"] = lambda _: CONSENT
    await bode.wait_for(identity, status="active")


async def test_five_hundred_sinks_that_hang_delay_no_new_subscription(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    sink.answers["OPTIONS", "/"] = _hang
    first = await bode.subscribe_to(publisher, sink.url("/"))
    copied = [name for name in (await bode.row(first)).keys() if name not in ("id", "key", "refused_since")]
    columns = ", ".join(copied)
    await bode.pool.execute(
        f"INSERT INTO subscriptions (id, refused_since, {columns}) "
        f"SELECT gen_random_uuid(), now(), {columns} FROM subscriptions, generate_series(1, 500) WHERE id = $1",
        first,
    )
    due = "UPDATE subscriptions SET validate_at = now() WHERE sink = $1 AND id <> $2"
    await bode.pool.execute(due, sink.url("/"), first)
    await sink.wait_for("OPTIONS", "/", 100)
    identity = await bode.subscribe_to(publisher, sink.url("/brisk"))
    await bode.wait_for(identity, status="active", seconds=2.5)
    await bode.pool.execute("UPDATE subscriptions SET validate_at = NULL WHERE sink = $1", sink.url("/"))
