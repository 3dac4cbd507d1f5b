"""Filters that are evaluated for every event are counted, and limited for each organisation."""

from typing import Any

from fixtures import api, declared_database
from managing import World, subscription

UNEQUAL = {"not": {"exact": {"subject": "x"}}}
NEVER_MATTERS = {"exact": {"subject": "x"}}

url = declared_database()
bode = api(max_evaluated_filters=3)


def evaluated(count: int, *, type: str = "nl.brp.x") -> dict[str, Any]:
    return {"types": [type], "filters": [{"any": [{"not": {"exact": {f"a{n}": "x"}}} for n in range(count)]}]}


async def test_an_organisation_has_a_limited_number_of_them_in_all_its_subscriptions(bode: World) -> None:
    provider = await bode.provider()
    made = await bode.subscribe(provider, **evaluated(2))
    await bode.subscribe(provider, **evaluated(1))
    for _ in range(5):
        await bode.subscribe(provider, filters=[NEVER_MATTERS])
    answer = await bode.call("POST", "/subscriptions", key=provider.key, body=subscription(**evaluated(1)))
    assert answer.status == 400
    [problem] = answer.json["invalidParams"]
    assert (problem["name"], problem["code"]) == ("/filters", "filter-limit")
    assert "may have 3 together" in problem["reason"]
    other = await bode.provider()
    await bode.subscribe(other, **evaluated(3))
    path = f"/subscriptions/{made['id']}"
    assert (await bode.call("DELETE", path, key=provider.key)).status == 204
    await bode.subscribe(provider, **evaluated(2))


async def test_a_change_is_judged_without_what_it_replaces(bode: World) -> None:
    provider = await bode.provider()
    made = await bode.subscribe(provider, **evaluated(2))
    path = f"/subscriptions/{made['id']}"
    for method, count, status in (("PUT", 3, 200), ("PATCH", 1, 200), ("PUT", 4, 400), ("PATCH", 4, 400)):
        body = subscription(**evaluated(count)) if method == "PUT" else evaluated(count)
        answer = await bode.call(method, path, key=provider.key, body=body)
        assert (answer.status, method, count) == (status, method, count)
    await bode.subscribe(provider, **evaluated(2))


async def test_what_stands_beside_something_to_look_up_does_not_count(bode: World) -> None:
    provider = await bode.provider()
    for _ in range(5):
        await bode.subscribe(provider, types=["nl.brp.x"], filters=[UNEQUAL, NEVER_MATTERS])
