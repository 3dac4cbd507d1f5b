"""What was never shown is not taken over by an acknowledgement."""

from datetime import datetime, timedelta
from typing import Any, Self
from uuid import UUID

import pytest
from delivering import Delivering
from fixtures import process_with_api

from broker.api import pulling

bode = process_with_api(pulling.router)


async def pulled(bode: Delivering) -> tuple[Any, UUID, int]:
    registry = await bode.own_types()
    body = {"protocol": "PULL", "types": [f"{registry.domain}.iets"]}
    made = await bode.world.call("POST", "/subscriptions", key=bode.provider_key, body=body)
    assert made.json["status"] == "active", made.text
    identity = UUID(made.json["id"])
    await bode.publish(registry, "a", "b", "c")
    return registry, identity, (await bode.row(identity))["key"]


async def acknowledged(bode: Delivering, identity: UUID, after: int) -> tuple[Any, Any]:
    path = f"/subscriptions/{identity}"
    answer = await bode.world.call("GET", f"{path}/events?after={after}", key=bode.provider_key)
    done = await bode.world.call("PUT", f"{path}/cursor", key=bode.provider_key, body={"cursor": answer.json["cursor"]})
    return answer.json, done


async def test_what_is_a_tombstone_because_its_grant_ran_out_ends_as_cancelled(bode: Delivering) -> None:
    _, identity, key = await pulled(bode)
    await bode.pool.execute("UPDATE grants SET valid_from = now() - interval '2 s', valid_until = now()")
    answer, _ = await acknowledged(bode, identity, 0)
    assert answer["events"] == []
    assert [stone["reason"] for stone in answer["tombstones"]] == ["grant-ended"]
    rows = await bode.deliveries(key)
    assert [(row["state"], row["reason"]) for row in rows] == [("cancelled", "grant-ended")] * 3


class Wrong(datetime):
    """A machine's clock that is ten years fast."""

    @classmethod
    def now(cls, tz: Any = None) -> Self:
        return super().now(tz) + timedelta(days=3653)


async def test_a_process_whose_clock_is_wrong_shows_and_ends_by_that_of_the_database(
    bode: Delivering, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, identity, key = await pulled(bode)
    await bode.pool.execute("UPDATE grants SET valid_until = now() + interval '1 day'")
    monkeypatch.setattr("broker.api.pulling.datetime", Wrong)
    answer, done = await acknowledged(bode, identity, 0)
    assert (len(answer["events"]), answer["tombstones"]) == (3, [])
    assert (done.status, done.json["ended"]) == (200, 3)
    assert [row["state"] for row in await bode.deliveries(key)] == ["delivered"] * 3


async def test_what_is_held_is_not_delivered_by_a_cursor_from_beyond_it(bode: Delivering) -> None:
    registry, identity, key = await pulled(bode)
    operator = await bode.world.operator()
    hold = {"scope": "event-type", "value": f"{registry.domain}.iets", "reason": "fout"}
    placed = await bode.world.call("POST", "/holds", key=operator, body=hold)
    assert placed.status == 201, placed.text
    answer, _ = await acknowledged(bode, identity, 3)
    assert answer["events"] == []
    rows = await bode.deliveries(key)
    assert [row["state"] for row in rows] == ["pending"] * 3


async def test_an_acknowledgement_ends_what_comes_before_the_held_and_says_where_it_stopped(bode: Delivering) -> None:
    registry, identity, key = await pulled(bode)
    path = f"/subscriptions/{identity}"
    answer = await bode.world.call("GET", f"{path}/events?after=0", key=bode.provider_key)
    assert answer.json["through"] == 3
    third = (await bode.deliveries(key))[2]["event_key"]
    await bode.pool.execute("UPDATE events SET type = $2 WHERE key = $1", third, f"{registry.domain}.anders")
    hold = {"scope": "event-type", "value": f"{registry.domain}.anders", "reason": "fout"}
    placed = await bode.world.call("POST", "/holds", key=await bode.world.operator(), body=hold)
    assert placed.status == 201, placed.text
    cursor = {"cursor": answer.json["cursor"]}
    stopped = await bode.world.call("PUT", f"{path}/cursor", key=bode.provider_key, body=cursor)
    assert (stopped.status, "Number 3" in stopped.json["detail"]) == (409, True)
    assert [row["state"] for row in await bode.deliveries(key)] == ["delivered", "delivered", "pending"]
    url = f"/holds/{placed.json['id']}/release"
    released = await bode.world.call("POST", url, key=await bode.world.operator(), body={})
    assert released.status in (200, 202), released.text
    done = await bode.world.call("PUT", f"{path}/cursor", key=bode.provider_key, body=cursor)
    assert (done.status, done.json["ended"], done.json["through"]) == (200, 1, 3)
    assert [row["state"] for row in await bode.deliveries(key)] == ["delivered"] * 3
