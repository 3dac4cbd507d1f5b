"""The listener's receiver, spoken to over HTTP; signatures are made by the `standardwebhooks` package."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import aiohttp
import pytest
from standardwebhooks.webhooks import Webhook

from broker.storage.tables import key_at
from broker.tools.listen_ledger import Ledger
from broker.tools.listen_receiver import Behaviour, Fault, Heartbeat, Inbox, Notification, Receiver, Refusal, verify

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(bytes(range(1, 33))).decode()
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def notification(number: int, **members: Any) -> bytes:
    event = {"specversion": "1.0", "type": "nl.brp.x", "subject": "999990342", "subscriptionsequence": str(number)}
    return json.dumps(event | members).encode()


def signed(
    body: bytes,
    *,
    secret: str = SECRET,
    at: datetime = NOW,
    identity: str = "dlv_1",
    form: str = "application/cloudevents+json",
) -> dict[str, str]:
    return {
        "content-type": f"{form}; charset=utf-8",
        "webhook-id": identity,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign(identity, at, body.decode()),
    }


class Told:
    """What an inbox told, and a session to speak to its receiver with."""

    def __init__(self, receiver: Receiver, session: aiohttp.ClientSession) -> None:
        self.receiver = receiver
        self.session = session
        self.taken: list[Notification] = []
        self.refused: list[Refusal] = []
        self.inbox = Inbox(self.taken.append, self.refused.append)
        self.url = receiver.url + "/here"
        receiver.add("/here", self.inbox)

    async def post(self, body: bytes | BytesIO, headers: dict[str, str] | None = None) -> int:
        if headers is None:
            content = body if isinstance(body, bytes) else body.getvalue()
            headers = signed(content, at=datetime.now(UTC))
        async with self.session.post(self.url, data=body, headers=headers) as response:
            return response.status

    async def post_batch(self, *items: bytes, **headers: str) -> int:
        return await self.post_as_batch(b"[%s]" % b",".join(items), **headers)

    async def post_as_batch(self, body: bytes, **headers: str) -> int:
        form = "application/cloudevents-batch+json"
        return await self.post(body, signed(body, at=datetime.now(UTC), identity="bat_1", form=form) | headers)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def told(session: aiohttp.ClientSession) -> AsyncIterator[Told]:
    async with Receiver() as receiver:
        await receiver.listen(0)
        told = Told(receiver, session)
        told.inbox.open(SECRET, Ledger())
        yield told


async def behaving(session: aiohttp.ClientSession, behaviour: Behaviour, *numbers: int) -> tuple[list[int], Told]:
    async with Receiver(behaviour=behaviour) as receiver:
        await receiver.listen(0)
        told = Told(receiver, session)
        told.inbox.open(SECRET, Ledger())
        return [await told.post(notification(number)) for number in numbers], told


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({}, None),
        ({"webhook-id": "dlv_2"}, Fault.SIGNATURE),
        ({"webhook-signature": "v1,AAAA"}, Fault.SIGNATURE),
        ({"webhook-signature": "v1,é"}, Fault.SIGNATURE),
        ({"webhook-signature": ""}, Fault.SIGNATURE),
        ({"webhook-timestamp": str(int(NOW.timestamp()) + 1)}, Fault.SIGNATURE),
        ({"webhook-timestamp": str(int(NOW.timestamp()) - 301)}, Fault.STALE),
        ({"webhook-timestamp": str(int(NOW.timestamp()) + 301)}, Fault.STALE),
        ({"webhook-timestamp": "9" * 400}, Fault.STALE),
        ({"webhook-timestamp": "²"}, Fault.STALE),
        ({"webhook-timestamp": "now"}, Fault.STALE),
    ],
)
def test_signature_is_verified_over_id_time_and_body(changes: dict[str, str], fault: Fault | None) -> None:
    body = notification(1)

    assert verify(SECRET, signed(body) | changes, body, NOW.timestamp()) is fault


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_missing_header_is_no_signature(name: str) -> None:
    headers = signed(notification(1))
    del headers[name]

    assert verify(SECRET, headers, notification(1), NOW.timestamp()) is Fault.UNSIGNED


def test_another_secret_and_another_byte_are_wrong_and_one_right_signature_is_enough() -> None:
    body = notification(1)
    wrong = signed(body, secret=OTHER_SECRET)
    both = signed(body) | {"webhook-signature": f"v1a,AA {wrong['webhook-signature']} "}

    assert verify(SECRET, wrong, body, NOW.timestamp()) is Fault.SIGNATURE
    assert verify(SECRET, signed(body), body + b" ", NOW.timestamp()) is Fault.SIGNATURE
    assert verify(SECRET, both, body, NOW.timestamp()) is Fault.SIGNATURE
    both["webhook-signature"] += signed(body)["webhook-signature"]
    assert verify(SECRET, both, body, NOW.timestamp()) is None


async def test_handshake_is_answered_with_consent(told: Told) -> None:
    async with told.session.options(told.url, headers={"WebHook-Request-Origin": "bode"}) as response:
        assert response.status == 200
        assert response.headers["WebHook-Allowed-Origin"] == "bode"
        assert response.headers["WebHook-Allowed-Rate"] == "*"
    assert told.inbox.greeted.is_set()


async def test_notification_is_noted_and_told(told: Told) -> None:
    body = notification(7)
    accepted = datetime.now(UTC) - timedelta(seconds=3)
    headers = signed(body, at=datetime.now(UTC)) | {"traceparent": f"00-{key_at(accepted):032x}-00000000000000ff-01"}

    assert await told.post(body, headers) == 204

    [taken] = told.taken
    assert (taken.number, taken.type, taken.duplicate) == (7, "nl.brp.x", False)
    assert taken.latency is not None
    assert timedelta(seconds=2.9) < taken.latency < timedelta(seconds=13)
    assert 7 in told.inbox.ledger


@pytest.mark.parametrize("traceparent", ["", "00-xyz", "00", f"00-{'f' * 32}-00000000000000ff-01", f"00-{1:032x}-0-1"])
async def test_latency_is_not_told_where_the_trace_does_not_hold_the_moment(told: Told, traceparent: str) -> None:
    body = notification(1)

    assert await told.post(body, signed(body, at=datetime.now(UTC)) | {"traceparent": traceparent}) == 204

    assert told.taken[0].latency is None


async def test_notification_that_comes_again_is_confirmed_and_recognised(told: Told) -> None:
    assert [await told.post(notification(1)) for _ in range(2)] == [204, 204]

    assert [taken.duplicate for taken in told.taken] == [False, True]


async def test_wrong_signature_is_refused_and_not_noted(told: Told) -> None:
    body = notification(1)

    assert await told.post(body, signed(body, secret=OTHER_SECRET, at=datetime.now(UTC))) == 401

    assert told.refused == [Refusal(Fault.SIGNATURE, 401, None)]
    assert 1 not in told.inbox.ledger


@pytest.mark.parametrize("body", [b"no", b"[]", b"{}", *(notification(1, subscriptionsequence=n) for n in ("x", "0"))])
async def test_signed_nonsense_is_refused(told: Told, body: bytes) -> None:
    assert await told.post(body) == 400

    assert [refusal.fault for refusal in told.refused] == [Fault.NOT_UNDERSTOOD]


async def test_requests_that_are_no_notification_are_refused(told: Told) -> None:
    body = notification(1)
    plain = signed(body, at=datetime.now(UTC)) | {"content-type": "application/json"}

    assert await told.post(body, plain) == 415
    assert await told.post(BytesIO(b" " * (5 << 20))) == 413
    async with told.session.get(told.url) as response:
        assert response.status == 405
    async with told.session.post(told.receiver.url + "/elsewhere") as response:
        assert response.status == 404
    async with told.session.options(told.url) as response:
        assert response.status == 400
    assert told.taken == []


async def test_inbox_that_is_not_open_yet_or_no_more_asks_for_patience(session: aiohttp.ClientSession) -> None:
    async with Receiver() as receiver:
        await receiver.listen(0)
        told = Told(receiver, session)
        assert await told.post(notification(1)) == 503
        ledger = Ledger()
        told.inbox.open(SECRET, ledger)
        assert await told.post(notification(1)) == 204
        ledger.close()
        assert await told.post(notification(2)) == 503
    assert [taken.number for taken in told.taken] == [1]


async def test_told_status_is_answered_and_a_refused_notification_is_not_noted(session: aiohttp.ClientSession) -> None:
    statuses, told = await behaving(session, Behaviour(status=410), 1, 2)

    assert statuses == [410, 410]
    assert told.refused == [Refusal(Fault.ON_PURPOSE, 410, number) for number in (1, 2)]
    assert told.inbox.ledger.highest == 0


async def test_told_status_that_means_success_takes_the_notification(session: aiohttp.ClientSession) -> None:
    statuses, told = await behaving(session, Behaviour(status=202), 1)

    assert statuses == [202]
    assert told.inbox.ledger.complete_through == 1


async def test_fail_rate_of_one_fails_always(session: aiohttp.ClientSession) -> None:
    statuses, told = await behaving(session, Behaviour(fail_rate=1.0), 1, 2)

    assert statuses == [500, 500]
    assert told.taken == []


async def test_latency_delays_the_answer_after_the_notification_was_noted(session: aiohttp.ClientSession) -> None:
    async with Receiver(behaviour=Behaviour(latency=timedelta(hours=1))) as receiver:
        await receiver.listen(0)
        noted = asyncio.Event()
        inbox = Inbox(lambda _: noted.set(), lambda _: None)
        inbox.open(SECRET, Ledger())
        receiver.add("/", inbox)
        body = notification(1)
        async with asyncio.TaskGroup() as group:
            headers = signed(body, at=datetime.now(UTC))
            answer = group.create_task(session.post(receiver.url + "/", data=body, headers=headers).__aenter__())
            await noted.wait()
            assert not answer.done()
            answer.cancel()


async def test_receiver_takes_another_port_where_the_preferred_one_is_taken() -> None:
    async with Receiver() as first, Receiver() as second:
        await first.listen(0)
        await second.listen_preferably(first.port)
        assert second.port not in (0, first.port)


async def test_heartbeat_is_understood_and_is_no_notification(told: Told) -> None:
    beaten: list[Heartbeat] = []
    told.inbox = Inbox(told.taken.append, told.refused.append, beaten.append)
    told.inbox.open(SECRET, Ledger())
    told.receiver.add("/here", told.inbox)
    event = {"specversion": "1.0", "type": "nl.bode.heartbeat", "data": {"lastSequence": 7, "completeThrough": 5}}

    assert await told.post(json.dumps(event).encode()) == 204
    assert await told.post(json.dumps(event | {"data": {}}).encode()) == 400
    assert await told.post(json.dumps(event | {"subscriptionsequence": "3"}).encode()) == 204

    assert beaten == [Heartbeat(7, 5)]
    assert [taken.number for taken in told.taken] == [3], "what has a number is a notification, whatever its type"


async def test_batch_is_noted_item_by_item_and_its_duplicates_are_recognised(told: Told) -> None:
    accepted = datetime.now(UTC) - timedelta(seconds=3)
    trace = f"00-{key_at(accepted):032x}-00000000000000ff-01"
    assert await told.post(notification(2)) == 204

    assert await told.post_batch(*map(notification, (1, 2, 4)), traceparent=trace) == 204

    assert [(taken.number, taken.duplicate) for taken in told.taken[1:]] == [(1, False), (2, True), (4, False)]
    assert [taken.latency is None for taken in told.taken[1:]] == [False, True, True], "the trace is that of the first"
    assert told.inbox.ledger.missing() == [(3, 3)]


async def test_batch_of_which_a_byte_was_changed_is_refused_and_not_noted(told: Told) -> None:
    signature = signed(b"[%s]" % notification(1), at=datetime.now(UTC), identity="bat_1")["webhook-signature"]

    assert await told.post_batch(notification(2), **{"webhook-signature": signature}) == 401

    assert told.refused == [Refusal(Fault.SIGNATURE, 401, None)]


@pytest.mark.parametrize(
    "body",
    [b"[]", b"{}", b"null", b'"text"', notification(1), b"[%s,5]" % notification(1),
     b"[%s,%s]" % (notification(1), notification(2, subscriptionsequence="x")), b"[%s" % notification(1)],
)  # fmt: skip
async def test_batch_with_nonsense_in_it_is_refused_as_a_whole(told: Told, body: bytes) -> None:
    assert await told.post_as_batch(body) == 400

    assert told.refused == [Refusal(Fault.NOT_UNDERSTOOD, 400, None)]
    assert told.taken == []


async def test_batch_is_refused_on_purpose_with_each_of_its_numbers(session: aiohttp.ClientSession) -> None:
    async with Receiver(behaviour=Behaviour(status=503)) as receiver:
        await receiver.listen(0)
        told = Told(receiver, session)
        told.inbox.open(SECRET, Ledger())
        assert await told.post_batch(notification(1), notification(2)) == 503
    assert told.refused == [Refusal(Fault.ON_PURPOSE, 503, number) for number in (1, 2)]
    assert told.inbox.ledger.highest == 0


async def test_test_notification_is_understood_alone_and_in_a_batch(told: Told) -> None:
    tests: list[None] = []
    told.inbox = Inbox(told.taken.append, told.refused.append, tested=lambda: tests.append(None))
    told.inbox.open(SECRET, Ledger())
    told.receiver.add("/here", told.inbox)
    body = json.dumps({"specversion": "1.0", "type": "nl.bode.test-notification", "data": {}}).encode()

    assert [await told.post(body), await told.post_batch(body)] == [204, 204]

    assert len(tests) == 2
    assert (told.taken, told.refused) == ([], [])
