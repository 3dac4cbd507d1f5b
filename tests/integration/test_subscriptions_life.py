from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from fixtures import api, declared_database
from managing import RING, Party, World, fresh_domain, subscription

from subscriptions import life_cycle
from subscriptions.change_log import changing
from subscriptions.directory import load
from subscriptions.sinks import load_sinks

SINK = "https://afnemer.example/hook"

url = declared_database()
bode = api()


async def waiting_for_consent(bode: World) -> tuple[Party, Any]:
    domain = fresh_domain()
    registry, provider = await bode.registry(domain), await bode.provider()
    await bode.grant(registry, provider, f"{domain}.*")
    made = await bode.subscribe(provider, domain=domain)
    assert (made["status"], made["statusReason"]) == ("validating", None)
    return provider, made


async def active(bode: World) -> tuple[Party, Any]:
    provider, made = await waiting_for_consent(bode)
    assert await consent(bode, made)
    return provider, await read(bode, provider, made)


async def consent(bode: World, made: Any, sink: str = SINK) -> bool:
    async with changing(bode.engine) as connection:
        return await life_cycle.activate(connection, UUID(made["id"]), sink=sink, allowed_rate=120)


async def fail(bode: World, made: Any, retry_at: datetime | None, sink: str = SINK) -> bool:
    async with changing(bode.engine) as connection:
        return await life_cycle.handshake_failed(
            connection, UUID(made["id"]), sink=sink, reason="no consent", retry_at=retry_at
        )


async def disable(bode: World, made: Any) -> bool:
    async with changing(bode.engine) as connection:
        return await life_cycle.disable(connection, UUID(made["id"]), "sink-gone: answered 410")


async def read(bode: World, provider: Party, made: Any) -> Any:
    return (await bode.call("GET", f"/subscriptions/{made['id']}", key=provider.key)).json


async def patch(bode: World, provider: Party, made: Any, **members: Any) -> tuple[int, Any]:
    answer = await bode.call("PATCH", f"/subscriptions/{made['id']}", key=provider.key, body=members)
    return answer.status, answer.json


async def is_matched(bode: World, made: Any) -> bool:
    _, directory = await load(bode.engine)
    return UUID(made["id"]) in {entry.id for entry in directory.subscriptions.values()}


async def test_without_a_grant_it_is_requested_and_a_grant_takes_it_up(bode: World) -> None:
    domain = fresh_domain()
    registry, provider = await bode.registry(domain), await bode.provider()
    made = await bode.subscribe(provider, types=[f"{domain}.moved"])
    assert (made["status"], made["statusReason"].partition(":")[0]) == ("requested", "no-grant")
    await bode.grant(registry, provider, f"{domain}.other")
    assert (await read(bode, provider, made))["status"] == "requested"
    await bode.grant(registry, provider, f"{domain}.moved")
    assert (await read(bode, provider, made))["status"] == "validating"


async def test_a_requested_one_is_taken_up_by_asking_for_what_is_granted(bode: World) -> None:
    domain = fresh_domain()
    registry, provider = await bode.registry(domain), await bode.provider()
    await bode.grant(registry, provider, f"{domain}.moved")
    made = await bode.subscribe(provider, types=[f"{domain}.died"])
    assert made["status"] == "requested"
    assert (await patch(bode, provider, made, types=[f"{domain}.moved"]))[1]["status"] == "validating"


async def test_consent_activates(bode: World) -> None:
    provider, made = await waiting_for_consent(bode)
    assert not await is_matched(bode, made)
    assert await consent(bode, made)
    now = await read(bode, provider, made)
    assert (now["status"], now["allowedRate"]) == ("active", 120)
    assert await is_matched(bode, made)
    assert not await consent(bode, made), "a second consent has nothing to do"


async def test_consent_of_a_sink_that_was_replaced_meanwhile_does_not_count(bode: World) -> None:
    provider, made = await waiting_for_consent(bode)
    await patch(bode, provider, made, sink="https://afnemer.example/other")
    assert not await consent(bode, made, SINK)
    assert not await fail(bode, made, None, SINK)
    assert (await read(bode, provider, made))["status"] == "validating"
    assert await consent(bode, made, "https://afnemer.example/other")


async def test_a_handshake_is_claimed_by_one_process_until_the_lease_ends(bode: World) -> None:
    _, made = await waiting_for_consent(bode)
    async with bode.engine.begin() as connection:
        claimed = await life_cycle.claim_validations(connection, 100, timedelta(0))
        assert UUID(made["id"]) in {due.id for due in claimed}
    async with bode.engine.begin() as connection:
        again = await life_cycle.claim_validations(connection, 100, timedelta(minutes=1))
        assert UUID(made["id"]) in {due.id for due in again}, "the lease of zero has ended"
    async with bode.engine.begin() as connection:
        assert await life_cycle.claim_validations(connection, 100, timedelta(minutes=1)) == []


async def test_a_failed_handshake_is_tried_again_until_the_last_word(bode: World) -> None:
    provider, made = await waiting_for_consent(bode)
    assert await fail(bode, made, datetime.now(UTC) + timedelta(minutes=1))
    now = await read(bode, provider, made)
    assert (now["status"], now["statusReason"]) == ("validating", "handshake-failed: no consent")
    assert await fail(bode, made, None)
    assert (await read(bode, provider, made))["status"] == "refused"
    status, resumed = await patch(bode, provider, made, status="active")
    assert (status, resumed["status"]) == (200, "validating")


async def test_pause_and_resume(bode: World) -> None:
    provider, made = await active(bode)
    assert (await patch(bode, provider, made, status="paused"))[1]["status"] == "paused"
    assert await is_matched(bode, made)
    assert (await patch(bode, provider, made, status="paused"))[1]["version"] == made["version"] + 1, "no change"
    assert (await patch(bode, provider, made, status="active"))[1]["status"] == "active"


async def test_a_gone_sink_disables_and_keeps_matching_until_resumed(bode: World) -> None:
    provider, made = await active(bode)
    assert await disable(bode, made)
    assert not await disable(bode, made)
    now = await read(bode, provider, made)
    assert (now["status"], now["statusReason"]) == ("disabled", "sink-gone: answered 410")
    assert await is_matched(bode, made)
    assert (await patch(bode, provider, made, status="paused"))[0] == 409
    resumed = (await patch(bode, provider, made, status="active"))[1]
    assert (resumed["status"], resumed["statusReason"]) == ("active", None)


async def test_a_new_sink_is_not_sent_to_before_it_consents_and_nothing_is_missed(bode: World) -> None:
    provider, made = await active(bode)
    sink = "https://afnemer.example/new"
    changed = (await patch(bode, provider, made, sink=sink))[1]
    assert (changed["status"], changed["statusReason"].partition(":")[0]) == ("disabled", "sink-changed")
    assert changed["allowedRate"] is None
    assert await is_matched(bode, made)
    resumed = (await patch(bode, provider, made, status="active"))[1]
    assert resumed["status"] == "disabled", "resuming doesn't replace consent"
    assert await consent(bode, made, sink)
    assert (await read(bode, provider, made))["status"] == "active"


async def test_a_paused_one_with_a_new_sink_stays_paused_and_needs_consent(bode: World) -> None:
    provider, made = await active(bode)
    await patch(bode, provider, made, status="paused")
    sink = "https://afnemer.example/new"
    assert (await patch(bode, provider, made, sink=sink))[1]["status"] == "paused"
    assert (await patch(bode, provider, made, status="active"))[1]["status"] == "disabled"
    assert await consent(bode, made, sink)
    assert (await read(bode, provider, made))["status"] == "active"


@pytest.mark.parametrize("status", ["active", "paused"])
async def test_what_waits_can_neither_be_paused_nor_resumed(bode: World, status: str) -> None:
    provider, made = await waiting_for_consent(bode)
    answer = await patch(bode, provider, made, status=status)
    assert (answer[0], answer[1]["code"]) == (409, "conflict")


async def test_only_active_and_paused_can_be_asked_for(bode: World) -> None:
    provider, made = await active(bode)
    status, problem = await patch(bode, provider, made, status="ended")
    assert (status, problem["invalidParams"][0]["name"]) == (400, "/status")


async def test_a_change_and_a_pause_in_one_request_happen_both_or_not_at_all(bode: World) -> None:
    provider, made = await waiting_for_consent(bode)
    status, _ = await patch(bode, provider, made, status="paused", ordering="none")
    assert status == 409
    assert (await read(bode, provider, made))["ordering"] == "subject"


async def test_an_ended_subscription_takes_no_transition(bode: World) -> None:
    provider, made = await active(bode)
    await bode.call("DELETE", f"/subscriptions/{made['id']}", key=provider.key)
    assert not await is_matched(bode, made)
    assert not await disable(bode, made)
    assert not await consent(bode, made)


async def test_a_sender_reads_both_secrets_during_a_rotation(bode: World) -> None:
    provider, made = await waiting_for_consent(bode)
    rotated = await bode.call(
        "POST", f"/subscriptions/{made['id']}/secret", key=provider.key, body={"overlapSeconds": 60}
    )
    async with bode.engine.connect() as connection:
        key = (
            await connection.exec_driver_sql(f"SELECT key FROM subscriptions WHERE id = '{made['id']}'")
        ).scalar_one()
    (sink,) = await load_sinks(bode.engine, RING, [key])
    assert sink.secrets == (rotated.json["secret"], made["secret"])
    stored = subscription()["sink"]
    assert sink.sink == stored
