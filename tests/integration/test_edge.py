"""What every answer has, whatever was asked: headers, methods, origins, ids, and a line in the log."""

import re
from uuid import UUID

import pytest
from fixtures import api, declared_database
from managing import Answer, World, subscription
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from subscriptions.trace_context import trace_id_of

ORIGIN = "https://portaal.example.nl"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
MANDATORY = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "strict-transport-security": "max-age=31536000",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

url = declared_database()
bode = api(cors_origins=(ORIGIN,), max_body_bytes=16_384)


async def answers_of_every_kind(bode: World) -> list[Answer]:
    key, json_type = (await bode.provider()).key, {"content-type": "application/json"}
    return [
        await bode.call("GET", "/openapi.json"),
        await bode.call("GET", "/subscriptions"),
        await bode.call("GET", "/subscriptions", key=key),
        await bode.call("POST", "/subscriptions", key=key, body=subscription()),
        await bode.call("POST", "/subscriptions", key=key, body={}),
        await bode.call("POST", "/subscriptions", key=key, raw=b"x" * 20_000, headers=json_type),
        await bode.call("GET", "/nothing"),
        await bode.call("TRACE", "/subscriptions"),
        await bode.call("OPTIONS", "/subscriptions"),
        await bode.call("HEAD", "/subscriptions", key=key),
    ]


async def test_every_answer_has_version_request_id_and_security_headers(bode: World) -> None:
    answers = await answers_of_every_kind(bode)
    assert {answer.status for answer in answers} == {200, 201, 400, 401, 404, 405, 413}
    for answer in answers:
        assert answer.headers["api-version"] == "0.1.0"
        assert UUID(answer.headers["x-request-id"])
        assert MANDATORY.items() <= answer.headers.items()
        assert answer.status in (200, 405) or "application/" in answer.headers["content-type"]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)


async def test_head_is_get_without_a_body(bode: World) -> None:
    provider = await bode.provider()
    made = await bode.subscribe(provider)
    for path in ("/openapi.json", f"/subscriptions/{made['id']}"):
        got, head = [await bode.call(method, path, key=provider.key) for method in ("GET", "HEAD")]
        assert (head.status, head.text) == (200, "")
        assert head.headers["content-length"] == got.headers["content-length"] != "0"
        assert head.headers.get("etag") == got.headers.get("etag")
    missing = await bode.call("HEAD", "/subscriptions/none", key=provider.key)
    assert (missing.status, missing.text) == (404, "")


async def test_a_method_that_is_not_known_is_told_all_that_are(bode: World) -> None:
    key = (await bode.provider()).key
    for method in ("PUT", "DELETE", "TRACE", "PROPFIND"):
        answer = await bode.call(method, "/subscriptions", key=key)
        assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD, POST, OPTIONS"), method
    assert (await bode.call("OPTIONS", "/nothing")).status == 404


async def test_a_page_of_an_origin_on_the_list_may_read_and_no_other(bode: World) -> None:
    key = (await bode.provider()).key
    for origin, allowed in (
        (ORIGIN, True),
        ("https://evil.example", False),
        ("null", False),
        (ORIGIN + ".evil", False),
    ):
        answer = await bode.call("GET", "/subscriptions", key=key, headers={"origin": origin})
        assert answer.status == 200
        assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
        assert "access-control-allow-credentials" not in answer.headers
        assert answer.headers["vary"] == "Origin"
        asked = {"origin": origin, "access-control-request-method": "POST"}
        preflight = await bode.call("OPTIONS", "/subscriptions", headers=asked)
        assert preflight.status == 200
        assert ("access-control-allow-methods" in preflight.headers) is allowed
        assert ("access-control-allow-origin" in preflight.headers) is allowed
        assert ("Idempotency-Key" in preflight.headers.get("access-control-allow-headers", "")) is allowed
    document = await bode.call("GET", "/openapi.json", headers={"origin": "https://evil.example"})
    assert document.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize(
    ("traceparent", "known"),
    [
        (f"00-{TRACE}-00f067aa0ba902b7-01", True),
        (f"cc-{TRACE}-00f067aa0ba902b7-01-later", True),
        (f"00-{TRACE}-00f067aa0ba902b7-01-more", False),
        (f"ff-{TRACE}-00f067aa0ba902b7-01", False),
        (f"00-{TRACE.upper()}-00f067aa0ba902b7-01", False),
        (f"00-{'0' * 32}-00f067aa0ba902b7-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        ("999990019", False),
        (None, False),
    ],
)
def test_a_trace_is_taken_up_when_it_is_valid_and_begun_when_not(traceparent: str | None, known: bool) -> None:
    trace = trace_id_of(traceparent)
    assert (trace == TRACE) is known
    assert re.fullmatch("[0-9a-f]{32}", trace)


async def test_each_request_is_one_line_with_operation_status_trace_and_no_path(bode: World) -> None:
    provider = await bode.provider()
    made = await bode.subscribe(provider)
    headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
    with capture_logs(processors=[merge_contextvars]) as lines:
        answer = await bode.call("GET", f"/subscriptions/{made['id']}?x=secret", key=provider.key, headers=headers)
        await bode.call("GET", "/nothing/here", headers=headers)
    read, lost = [line for line in lines if line["event"] == "request-answered"]
    assert (read["operation"], read["status"], read["organisation"]) == ("getSubscription", 200, str(provider.id))
    assert (read["request_id"], read["trace_id"]) == (answer.headers["x-request-id"], TRACE)
    assert (lost["operation"], lost["status"], lost["organisation"]) == (None, 404, None)
    assert "secret" not in str(lines)
    assert made["id"] not in str(lines)
