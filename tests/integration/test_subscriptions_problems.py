from typing import Any

import pytest
from fixtures import api, declared_database
from managing import World, fresh_domain, subscription, world

from schemas.filters import FOLLOWS
from schemas.problems import PROBLEM_JSON

url = declared_database()
bode = api(max_body_bytes=16_384)


EARLY = {"credentialType": "ACCESSTOKEN", "accessToken": "x", "accessTokenExpiresUtc": "0001-01-01T00:00:00+14:00"}
BAD_BODIES: list[tuple[str, Any, str]] = [
    ("unknown dialect", {"filters": [{"regex": {"type": ".*"}}]}, "/filters/0/regex"),
    ("empty all", {"filters": [{"all": []}]}, "/filters/0/all"),
    ("nested empty any", {"filters": [{"all": [{"exact": {"type": "x"}}, {"any": []}]}]}, "/filters/0/all/1/any"),
    ("two dialects in one", {"filters": [{"exact": {"a": "b"}, "prefix": {"a": "b"}}]}, "/filters/0"),
    ("filter that is a string", {"filters": ["x"]}, "/filters/0"),
    ("filters that are an object", {"filters": {"exact": {"a": "b"}}}, "/filters"),
    ("follow list that is not there", {"filters": [{FOLLOWS: {"subject": "x"}}]}, f"/filters/0/{FOLLOWS}/subject"),
    ("relative sink", {"sink": "/hook"}, "/sink"),
    ("sink without a host", {"sink": "https:///hook"}, "/sink"),
    ("sink of another scheme", {"sink": "ftp://afnemer.example/hook"}, "/sink"),
    ("sink with a password", {"sink": "https://u:p@afnemer.example/hook"}, "/sink"),
    ("sink with a fragment", {"sink": "https://afnemer.example/hook#x"}, "/sink"),
    ("sink over http", {"sink": "http://afnemer.example/hook"}, "/sink"),
    ("sink that is too long", {"sink": "https://afnemer.example/" + "x" * 2048}, "/sink"),
    ("sink of a forbidden host", {"sink": "https://forbidden.example/"}, "/sink"),
    ("sink that is a number", {"sink": 7}, "/sink"),
    ("sink missing", {"sink": ...}, "/sink"),
    ("protocol missing", {"protocol": ...}, "/protocol"),
    ("protocol of another kind", {"protocol": "MQTT5"}, "/protocol"),
    ("credential", {"sinkCredential": {"credentialType": "PLAIN"}}, "/sinkCredential/identifier"),
    ("unknown field", {"colour": "red"}, "/colour"),
    ("field in snake case", {"subscriber_reference": "x"}, "/subscriber_reference"),
    ("unknown field within", {"protocolSettings": {"verb": "POST"}}, "/protocolSettings/verb"),
    ("method other than POST", {"protocolSettings": {"method": "PUT"}}, "/protocolSettings/method"),
    ("header of ours", {"protocolSettings": {"headers": {"Webhook-Id": "x"}}}, "/protocolSettings/headers"),
    *[
        (f"header {name}", {"protocolSettings": {"headers": {name: "x"}}}, "/protocolSettings/headers")
        for name in (
            "Authorization",
            "COOKIE",
            "host",
            "Content-Type",
            "content-md5",
            "Transfer-Encoding",
            "Connection",
            "TE",
            "Proxy-Authorization",
            "ce-id",
            "traceparent",
            "X-Forwarded-For",
            "Forwarded",
            "Via",
            "If-Match",
            "Range",
            "Accept-Encoding",
            "Expect",
            "Upgrade",
            "Sec-Fetch-Mode",
            "WebHook-Request-Origin",
            "Date",
            "User-Agent",
            "",
            "a b",
            "naïef",
            "x" * 101,
            "a:b",
            "a\r\nb",
        )
    ],
    ("headers twice", {"protocolSettings": {"headers": {"X-A": "1", "x-a": "2"}}}, "/protocolSettings/headers"),
    (
        "headers too large",
        {"protocolSettings": {"headers": {f"X-{n}": "x" * 1000 for n in range(9)}}},
        "/protocolSettings/headers",
    ),
    (
        "too many headers",
        {"protocolSettings": {"headers": {f"X-{n}": "x" for n in range(21)}}},
        "/protocolSettings/headers",
    ),
    ("header with a line break", {"protocolSettings": {"headers": {"X": "a\r\nb"}}}, "/protocolSettings/headers"),
    ("types of the wrong kind", {"types": "nl.brp.x"}, "/types"),
    ("empty type", {"types": ["nl.brp.x", ""]}, "/types/1"),
    ("ordering that isn't one", {"ordering": "random"}, "/ordering"),
    ("no delays", {"retry": {"delays": []}}, "/retry/delays"),
    ("delay of a year", {"retry": {"delays": ["P1Y"]}}, "/retry/delays/0"),
    ("delays of months together", {"retry": {"delays": ["P7D"] * 5}}, "/retry"),
    ("control character", {"subscriberReference": "a\nb"}, "/subscriberReference"),
    (
        "credential that expires before the calendar begins",
        {"sinkCredential": EARLY},
        "/sinkCredential/accessTokenExpiresUtc",
    ),
    ("secret of one's own", {"secret": "whsec_x"}, "/secret"),
]


@pytest.mark.parametrize(("members", "name"), [case[1:] for case in BAD_BODIES], ids=[case[0] for case in BAD_BODIES])
async def test_bad_input_names_the_field_and_stores_nothing(bode: World, members: dict[str, Any], name: str) -> None:
    provider = await bode.provider()
    answer = await bode.call("POST", "/subscriptions", key=provider.key, body=subscription(**members))
    assert answer.status == 400, answer.text
    assert answer.headers["content-type"] == PROBLEM_JSON
    problem = answer.json
    assert problem["invalidParams"][0]["name"] == name
    assert problem["invalidParams"][0]["reason"]
    assert (problem["type"], problem["status"]) == ("urn:bode:problem:invalid-input", 400)
    assert problem["instance"] == f"urn:uuid:{answer.headers['x-request-id']}"
    assert (await bode.call("GET", "/subscriptions", key=provider.key)).json["count"] == 0


@pytest.mark.parametrize(("members", "name"), [case[1:] for case in BAD_BODIES[:15]])
async def test_a_bad_change_changes_nothing(bode: World, members: dict[str, Any], name: str) -> None:
    provider = await bode.provider()
    made = await bode.subscribe(provider)
    path = f"/subscriptions/{made['id']}"
    put = await bode.call("PUT", path, key=provider.key, body=subscription(**members))
    patch = await bode.call("PATCH", path, key=provider.key, body=members)
    assert [(answer.status, answer.json["invalidParams"][0]["name"]) for answer in (put, patch)] == [(400, name)] * 2
    assert (await bode.call("GET", path, key=provider.key)).json["version"] == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"",
        b"[]",
        b'"x"',
        b"null",
        b'{"sink": NaN}',
        b'{"sink": "\xff"}',
        b'{"sink": "\\ud800", "protocol": "HTTP"}',
        b'{"sink": "https://a.example", "protocol": "HTTP", "filters": [{"exact": {"a": "\\u0000"}}]}',
        b"[" * 5000,
    ],
)
async def test_a_malformed_body_is_a_problem(bode: World, raw: bytes) -> None:
    provider = await bode.provider()
    headers = {"content-type": "application/json"}
    answer = await bode.call("POST", "/subscriptions", key=provider.key, raw=raw, headers=headers)
    assert (answer.status, answer.json["code"]) == (400, "invalid-input")


async def test_a_query_that_cannot_be_kept_as_text_is_a_problem(bode: World) -> None:
    provider = await bode.provider()
    answer = await bode.call("GET", "/domains?name=%00", key=provider.key)
    assert (answer.status, answer.json["code"]) == (400, "invalid-input")


async def test_values_are_not_repeated_in_problems(bode: World) -> None:
    provider = await bode.provider()
    body = subscription(ordering="999990019", types=["999990019\n"], filters=[{"exact": {"subject": 999990019}}])
    answer = await bode.call("POST", "/subscriptions", key=provider.key, body=body)
    assert answer.status == 400
    assert "999990019" not in answer.text


async def test_a_large_body_is_refused_before_it_is_read(bode: World) -> None:
    provider = await bode.provider()
    raw = b"x" * 16_385
    headers = {"content-type": "application/json"}
    assert (await bode.call("POST", "/subscriptions", key=provider.key, raw=raw, headers=headers)).status == 413


@pytest.mark.parametrize("media_type", ["text/plain", "application/xml", "application/merge-patch+json", ""])
async def test_another_media_type_is_refused(bode: World, media_type: str) -> None:
    provider = await bode.provider()
    headers = {"content-type": media_type} if media_type else {}
    answer = await bode.call("POST", "/subscriptions", key=provider.key, raw=b"{}", headers=headers)
    assert (answer.status, answer.json["code"]) == (415, "unsupported-media-type")


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("application/xml", 406),
        ("application/json;q=0", 406),
        ("application/json", 200),
        ("text/html, */*;q=0.1", 200),
        ("application/problem+json", 200),
    ],
)
async def test_an_answer_comes_only_as_json(bode: World, accept: str, status: int) -> None:
    provider = await bode.provider()
    answer = await bode.call("GET", "/subscriptions", key=provider.key, headers={"accept": accept})
    assert answer.status == status


async def test_unknown_places_and_methods_are_problems(bode: World) -> None:
    provider = await bode.provider()
    nowhere = await bode.call("GET", "/nothing", key=provider.key)
    assert (nowhere.status, nowhere.json["code"]) == (404, "not-found")
    method = await bode.call("PUT", "/subscriptions", key=provider.key, body={})
    assert (method.status, method.json["code"]) == (405, "method-not-allowed")
    assert "allow" in method.headers
    slash = await bode.call("GET", "/subscriptions/", key=provider.key)
    assert slash.status == 404


async def test_an_unexpected_failure_tells_nothing_of_the_inside(bode: World) -> None:
    @bode.app.get("/v1/broken")
    async def broken() -> None:
        raise RuntimeError("the password is swordfish")

    answer = await bode.call("GET", "/broken")
    assert (answer.status, answer.json["code"]) == (500, "internal-error")
    assert answer.headers["content-type"] == PROBLEM_JSON
    assert "swordfish" not in answer.text


async def test_an_unreachable_database_is_a_problem_that_passes() -> None:
    async with world("postgresql://nobody@127.0.0.1:1/none") as bode:
        answer = await bode.call("GET", "/subscriptions", key="bode_" + "x" * 43)
        assert (answer.status, answer.json["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"] == "1"


async def test_a_moment_that_its_offset_leads_out_of_the_calendar_is_bad_input(bode: World) -> None:
    registry, provider = await bode.registry(domain := fresh_domain()), await bode.provider()
    late = "9999-12-31T23:59:59-14:00"
    grant = {"provider": provider.oin, "types": [f"{domain}.x"], "legalBasis": "wet"}
    described = {"type": f"{domain}.x", "meaning": "x", "timeMeaning": "x", "informationLevel": "informatiearm"}
    for path, key, body, name in (
        ("/grants", registry.key, {**grant, "validFrom": late}, "validFrom"),
        ("/grants", registry.key, {**grant, "validUntil": late}, "validUntil"),
        ("/event-types", registry.key, {**described, "deprecatedAt": late}, "deprecatedAt"),
        ("/event-types", registry.key, {**described, "sunsetAt": late}, "sunsetAt"),
        (f"/organisations/{provider.id}/keys", await bode.operator(), {"scopes": [], "expiresAt": late}, "expiresAt"),
    ):
        answer = await bode.call("POST", path, key=key, body=body)
        assert answer.status == 400, (path, answer.text)
        assert f"/{name}" in [param["name"] for param in answer.json["invalidParams"]], answer.text


async def test_a_secret_cannot_be_set_by_a_patch(bode: World) -> None:
    provider = await bode.provider()
    made = await bode.subscribe(provider)
    other = await bode.call("PATCH", made["url"], key=provider.key, body={"secret": "whsec_x"})
    assert (other.status, other.json["invalidParams"][0]["name"]) == (400, "/secret")
    same = await bode.call("PATCH", made["url"], key=provider.key, body={"secret": made["secret"]})
    assert same.status == 200


async def test_a_body_where_none_is_asked_for_is_bounded_too(bode: World) -> None:
    provider = await bode.provider()
    path = f"/subscriptions/{(await bode.subscribe(provider))['id']}/test-notifications"
    answer = await bode.call(
        "POST", path, key=provider.key, raw=b" " * 16_385, headers={"idempotency-key": "too-large"}
    )
    assert answer.status == 413
