"""The rules of CloudEvents HTTP webhook 1.0.2, one test a rule: a delivery process, and sinks on real sockets."""

import asyncio
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_network

import pytest
from accepting import Publisher
from delivering import ORIGIN, PUBLIC_URL, SILENT, Asked, Delivering, RawSink, answer
from fixtures import IN_ONE_LOOP, one_process, own_types, raw_sink

from broker.delivery.client import Client
from broker.delivery.fence import Fence
from broker.delivery.handshake import Consent, Handshaker
from subscriptions.consent import HandshakeSettings

pytestmark = IN_ONE_LOOP

REDIRECTS = ("301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect", "308 Permanent Redirect")

bode = one_process()
publisher = own_types()
sink = raw_sink()


async def outcomes(
    bode: Delivering,
    publisher: Publisher,
    sink: RawSink,
    statuses: Sequence[str],
    *headers: str,
    body: str = "",
    wanted: str = "",
) -> dict[str, tuple[str, str | None]]:
    """State and reason of a delivery to sinks that answer so, once tried, or when in the state that is wanted."""
    made = {}
    for status in statuses:
        target = f"/{status[:3]}"
        given = answer(status, *headers, body=body)
        sink.answers["POST", target] = lambda _, given=given: given
        made[status] = await bode.active(publisher, sink.url(target))
    await bode.publish(publisher, "a")
    found = {}
    for status, identity in made.items():
        row = await bode.tried(identity, wanted)
        found[status] = (row["state"], row["reason"])
    return found


# 2.1 Delivery request


async def test_delivery_is_a_post_to_exactly_the_sink_with_a_payload_of_the_content_type_it_names(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    target = "/hook/a%2Fb/?access_token=mF_9.B5f-4.1JqM&x=%20"
    await bode.active(publisher, sink.url(target))
    await bode.publish(publisher, "a")
    [got] = await sink.wait_for("POST", target, 1)
    assert got.one("content-type") == "application/cloudevents+json; charset=utf-8"
    assert int(got.one("content-length")) == len(got.body)
    assert json.loads(got.body)["specversion"] == "1.0"
    assert got.one("host") == f"127.0.0.1:{sink.port}"


async def test_each_attempt_carries_the_origin_that_asked_for_consent(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    sink.answers["POST", "/"] = lambda _: answer("500 Oops" if len(sink.of("POST", "/")) < 2 else "200 OK")
    await bode.active(publisher, sink.url("/"))
    await bode.publish(publisher, "a", "b", None)
    requests = await sink.wait_for("POST", "/", 4)
    assert {request.one("webhook-request-origin") for request in [*requests, *sink.of("OPTIONS", "/")]} == {ORIGIN}


# 2.2 Delivery response


async def test_redirect_is_not_followed_and_is_no_success(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    reasons = await outcomes(bode, publisher, sink, REDIRECTS, f"Location: {sink.url('/elsewhere')}")
    assert reasons == {status: ("pending", f"redirect-{status[:3]}") for status in REDIRECTS}
    assert sink.of("POST", "/elsewhere") == sink.of("GET", "/elsewhere") == []


@pytest.mark.parametrize("body", ["", '{"done": true}'])
async def test_200_201_202_and_204_are_success_with_or_without_payload(
    body: str, bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    statuses = ["200 OK", "201 Created", "202 Accepted"] + ([] if body else ["204 No Content"])
    reasons = await outcomes(bode, publisher, sink, statuses, "Content-Type: application/json", body=body)
    assert reasons == {status: ("delivered", None) for status in statuses}
    assert len([asked for asked in sink.asked if asked.method == "POST"]) == len(statuses)


async def test_no_other_status_is_a_success(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    statuses = ["203 Changed", "205 Reset", "206 Partial", "226 Used", "299 New", "404 Not Found", "500 Oops"]
    reasons = await outcomes(bode, publisher, sink, statuses)
    assert reasons == {status: ("pending", f"status-{status[:3]}") for status in statuses}


async def test_gone_sink_gets_no_further_notification_and_no_handshake(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    sink.answers["POST", "/"] = lambda _: answer("410 Gone")
    identity = await bode.active(publisher, sink.url("/"))
    await bode.publish(publisher, "a")
    shown = await bode.wait_for(identity, status="disabled")
    assert shown["statusReason"].startswith("sink-gone")
    asked = len(sink.asked)
    await bode.publish(publisher, "b", "c")
    assert (await bode.row(identity))["validate_at"] is None
    # another sink is served meanwhile, so there was time to send
    await bode.active(publisher, sink.url("/other"))
    await bode.publish(publisher, "d")
    await sink.wait_for("POST", "/other", 1)
    assert [request for request in sink.asked[asked:] if request.target == "/"] == []


async def test_retry_after_is_obeyed_by_everything_to_the_sink(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    until = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=5)
    cases = [
        (status, value)
        for status in ("429 Too Many Requests", "503 Service Unavailable")
        for value in ("3", format_datetime(until, usegmt=True))
    ]
    made = []
    for number, (status, value) in enumerate(cases):
        given = answer(status, f"Retry-After: {value}")

        def throttle(asked: Asked, given: bytes = given) -> bytes:
            return given if len(sink.of("POST", asked.target)) == 1 else answer("200 OK")

        sink.answers["POST", f"/{number}"] = throttle
        made.append(await bode.active(publisher, sink.url(f"/{number}")))
    await bode.publish(publisher, "a")
    for identity in made:
        await bode.tried(identity)
    await bode.publish(publisher, "b", "c")
    offset = datetime.now(UTC).timestamp() - asyncio.get_running_loop().time()
    for number, (_, value) in enumerate(cases):
        first, *others = await sink.wait_for("POST", f"/{number}", 4)
        earliest = first.at + 3 if value == "3" else until.timestamp() - offset
        assert min(other.at for other in others) > earliest - 0.05


async def test_format_that_is_not_understood_is_final_after_one_retry(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    statuses = ("415 Unsupported Media Type", "413 Too Large", "400 Bad Request")
    reasons = await outcomes(bode, publisher, sink, statuses, wanted="dead")
    assert reasons == {status: ("dead", f"status-{status[:3]}") for status in statuses}
    assert len([asked for asked in sink.asked if asked.method == "POST"]) == 2 * len(statuses)


# 3 Authorization


async def test_challenge_is_a_failure_and_is_not_answered(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    sink.answers["POST", "/"] = lambda _: answer("401 Unauthorized", 'WWW-Authenticate: Basic realm="x"')
    identity = await bode.active(publisher, sink.url("/"))
    await bode.publish(publisher, "a")
    assert (await bode.tried(identity, "pending"))["reason"] == "status-401"
    assert sink.of("POST", "/")[0].all("authorization") == []


# 4.1 Validation request


async def test_consent_is_asked_by_options_of_exactly_the_sink_before_anything_is_sent(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    await bode.active(publisher, sink.url("/hook?x=1"))
    await bode.publish(publisher, "a")
    await sink.wait_for("POST", "/hook?x=1", 1)
    assert [request.method for request in sink.asked] == ["OPTIONS", "POST"]
    asked = sink.asked[0]
    assert asked.target == "/hook?x=1"
    assert asked.one("webhook-request-origin") == ORIGIN
    assert asked.body == b""


async def test_callback_is_offered_that_nobody_can_guess(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    for target in ("/one", "/two"):
        await bode.active(publisher, sink.url(target))
    offered = [request.one("webhook-request-callback") for request in sink.asked]
    assert len(set(offered)) == 2
    assert all(re.fullmatch(re.escape(f"{PUBLIC_URL}/handshakes/") + "[A-Za-z0-9_-]{43}", url) for url in offered)


@pytest.mark.parametrize(("rate", "sent"), [(None, []), (120, ["120"])])
async def test_rate_that_is_asked_for_is_a_positive_number_or_not_named(
    rate: int | None, sent: list[str], bode: Delivering, sink: RawSink
) -> None:
    fence = Fence(allow=[ip_network("127.0.0.0/8")])
    client = Client(fence, total_seconds=5)
    asking = Handshaker(bode.world.engine, client, ORIGIN, HandshakeSettings(request_rate=rate))
    assert await asking.shake_hands(sink.url("/")) == Consent(None)
    assert sink.asked[0].all("webhook-request-rate") == sent
    client.close()
    fence.close()


# 4.2 Validation response


@pytest.mark.parametrize("status", ["200 OK", "405 Method Not Allowed", "302 Found", "500 Oops"])
async def test_consent_is_in_the_headers_whatever_the_status(
    status: str, bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    origins = (ORIGIN, ORIGIN.upper(), "*")
    for number, origin in enumerate(origins):
        given = answer(status, f"WebHook-Allowed-Origin: {origin}", "Location: /x")
        sink.answers["OPTIONS", f"/{number}"] = lambda _, given=given: given
        await bode.active(publisher, sink.url(f"/{number}"))
    assert sink.of("OPTIONS", "/x") == []


async def test_without_consent_nothing_is_ever_sent_though_the_status_is_a_success(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    answers = [(), ("Allow: POST",), ("WebHook-Allowed-Origin: other.example",), ("WebHook-Allowed-Rate: *",),
               ("Access-Control-Allow-Origin: *",)]  # fmt: skip
    made = []
    for number, headers in enumerate(answers):
        given = answer("200 OK", *headers)
        sink.answers["OPTIONS", f"/{number}"] = lambda _, given=given: given
        made.append(await bode.subscribe_to(publisher, sink.url(f"/{number}")))
    for number in range(len(answers)):
        await sink.wait_for("OPTIONS", f"/{number}", 1)
    await bode.active(publisher, sink.url("/other"))
    await bode.publish(publisher, "a")
    await sink.wait_for("POST", "/other", 1)
    assert {asked.target for asked in sink.asked if asked.method == "POST"} == {"/other"}
    assert {(await bode.row(identity))["status"] for identity in made} == {"validating"}


async def test_new_sink_of_an_active_subscription_gets_nothing_before_it_consents(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    sink.answers["OPTIONS", "/new"] = lambda _: SILENT
    identity = await bode.active(publisher, sink.url("/old"))
    changed = {"sink": sink.url("/new")}
    await bode.world.call("PATCH", f"/subscriptions/{identity}", key=bode.provider_key, body=changed)
    await bode.publish(publisher, "a")
    await sink.wait_for("OPTIONS", "/new", 1)
    assert sink.of("POST", "/new") == sink.of("POST", "/old") == []
    del sink.answers["OPTIONS", "/new"]
    await sink.wait_for("POST", "/new", 1)
    assert sink.of("POST", "/old") == []


async def test_allowed_rate_is_kept(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    rate = 300
    sink.answers["OPTIONS", "/"] = lambda _: answer(
        "200 OK", f"WebHook-Allowed-Origin: {ORIGIN}", f"WebHook-Allowed-Rate: {rate}"
    )
    identity = await bode.active(publisher, sink.url("/"))
    assert (await bode.shown(identity))["allowedRate"] == rate
    before = asyncio.get_running_loop().time()
    await bode.publish(publisher, *(str(number) for number in range(11)))
    requests = await sink.wait_for("POST", "/", 11)
    # not from the first arrival on, which may come in late
    assert [asked for number, asked in enumerate(requests) if asked.at - before < number * 60 / rate * 0.95] == []


async def test_asterisk_allows_any_rate(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    sink.answers["OPTIONS", "/"] = lambda _: answer(
        "200 OK", f"WebHook-Allowed-Origin: {ORIGIN}", "WebHook-Allowed-Rate: *"
    )
    identity = await bode.active(publisher, sink.url("/"))
    assert (await bode.shown(identity))["allowedRate"] is None
    await bode.publish(publisher, *(str(number) for number in range(50)))
    await sink.wait_for("POST", "/", 50, seconds=5)
