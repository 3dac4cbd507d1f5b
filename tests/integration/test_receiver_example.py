"""The example receiver, run as a process; signatures are made by the `standardwebhooks` package."""

import base64
import http.client
import json
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks.webhooks import Webhook

EXAMPLE = Path(__file__).parents[2] / "examples" / "receiver.py"
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(bytes(range(1, 33))).decode()
SUBSCRIPTION = "0f3b8a52-4c1e-4a53-9a55-0c7d0e6f2a11"


@dataclass
class Running:
    process: subprocess.Popen[str]
    port: int
    database: Path

    def request(self, method: str, body: bytes | None, headers: dict[str, str]) -> http.client.HTTPResponse:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            connection.request(method, "/", body, headers)
            response = connection.getresponse()
            response.read()
            return response

    def post(self, body: bytes, headers: dict[str, str]) -> int:
        return self.request("POST", body, headers).status

    def send(self, sequence: int) -> int:
        body = notification(sequence)
        return self.post(body, signed(body, sequence))

    def told(self, sequence: int) -> str:
        """Send, and wait for what is said of it, which is after the answer."""
        assert self.send(sequence) == 204
        return self.said()

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip()

    def stored(self) -> list[int]:
        with closing(sqlite3.connect(self.database)) as database:
            rows = database.execute("SELECT sequence FROM notifications WHERE subscription = ?", (SUBSCRIPTION,))
            return [sequence for (sequence,) in rows]

    def text(self, sequence: int) -> str:
        with closing(sqlite3.connect(self.database)) as database:
            [text] = database.execute("SELECT event FROM notifications WHERE sequence = ?", (sequence,)).fetchone()
            return str(text)


def start(database: Path) -> Running:
    command = [sys.executable, str(EXAMPLE), "--secret", SECRET, "--port", "0", "--database", str(database)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    said = re.search(r":(\d+)/", process.stdout.readline())
    assert said is not None
    return Running(process, int(said[1]), database)


def stop(running: Running) -> None:
    running.process.send_signal(signal.SIGINT)
    output, _ = running.process.communicate(timeout=10)
    assert running.process.returncode in (0, -signal.SIGINT)  # the latter: asked to end before it had begun
    assert "Traceback" not in output


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    started = start(tmp_path / "notifications.db")
    yield started
    stop(started)


def notification(sequence: int, **members: Any) -> bytes:
    event = {
        "specversion": "1.0",
        "id": f"e{sequence}",
        "source": "urn:nld:oin:00000099000000001000:systeem:BRP",
        "type": "nl.brp.persoon-verhuisd",
        "subject": "999990342",
        "subscription": SUBSCRIPTION,
        "subscriptionsequence": str(sequence),
    }
    return json.dumps(event | members).encode()


def signed(
    body: bytes,
    sequence: int,
    *,
    secret: str = SECRET,
    at: datetime | None = None,
    identity: str | None = None,
    form: str = "application/cloudevents+json",
) -> dict[str, str]:
    identity = identity or f"dlv_{SUBSCRIPTION.replace('-', '')}_{sequence}"
    moment = at or datetime.now(UTC)
    return {
        "content-type": f"{form}; charset=utf-8",
        "webhook-id": identity,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": Webhook(secret).sign(identity, moment, body.decode()),
    }


def batch(*items: bytes) -> tuple[bytes, dict[str, str]]:
    """The body of a batch with these notifications, and its headers."""
    body = b"[%s]" % b",".join(items)
    return body, signed(body, 0, identity="bat_1", form="application/cloudevents-batch+json")


def test_receiver_consents_in_the_handshake(running: Running) -> None:
    response = running.request("OPTIONS", None, {"WebHook-Request-Origin": "bode.example"})

    assert response.status == 200
    assert response.headers["WebHook-Allowed-Origin"] == "bode.example"
    assert response.headers["WebHook-Allowed-Rate"] == "*"


def test_receiver_does_not_consent_to_a_request_that_is_no_handshake(running: Running) -> None:
    response = running.request("OPTIONS", None, {})

    assert response.status == 403
    assert "WebHook-Allowed-Origin" not in response.headers


def test_rightly_signed_notification_is_stored_before_it_is_answered(running: Running) -> None:
    assert running.send(1) == 204

    assert running.stored() == [1]
    assert running.said() == "#1 nl.brp.persoon-verhuisd"


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(signed(notification(1), 1, secret=OTHER_SECRET), id="another's secret"),
        pytest.param(signed(notification(2), 1), id="another body"),
        pytest.param(signed(notification(1), 1) | {"webhook-id": "dlv_2"}, id="another id"),
        pytest.param(signed(notification(1), 1) | {"webhook-signature": "v1,AAAA"}, id="too short"),
        pytest.param(signed(notification(1), 1) | {"webhook-signature": "v1,é"}, id="not base64"),
        pytest.param(signed(notification(1), 1) | {"webhook-timestamp": "soon"}, id="no timestamp"),
        pytest.param({"content-type": "application/cloudevents+json"}, id="unsigned"),
        pytest.param(signed(notification(1), 1, at=datetime.now(UTC) - timedelta(hours=1)), id="replayed later"),
        pytest.param(signed(notification(1), 1, at=datetime.now(UTC) + timedelta(hours=1)), id="from the future"),
    ],
)
def test_wrongly_signed_notification_is_refused_and_not_stored(running: Running, headers: dict[str, str]) -> None:
    assert running.post(notification(1), headers) == 401

    assert running.stored() == []


def test_any_of_several_signatures_will_do(running: Running) -> None:
    body = notification(1)
    headers = signed(body, 1)
    other = signed(body, 1, secret=OTHER_SECRET)["webhook-signature"]
    headers["webhook-signature"] = f"v1a,AAAA {other} {headers['webhook-signature']}"

    assert running.post(body, headers) == 204


def test_replayed_notification_is_confirmed_and_stored_once(running: Running) -> None:
    body = notification(1)
    headers = signed(body, 1)

    said = []
    for _ in range(3):
        assert running.post(body, headers) == 204
        said.append(running.said())

    assert running.stored() == [1]
    assert said == [
        "#1 nl.brp.persoon-verhuisd",
        "#1 nl.brp.persoon-verhuisd (again)",
        "#1 nl.brp.persoon-verhuisd (again)",
    ]


def test_gap_is_seen_until_it_closes(running: Running) -> None:
    assert [running.told(sequence).partition(", ")[2] for sequence in (2, 5, 1, 3, 4)] == [
        "missing 1-1",
        "missing 1-1, 3-4",
        "missing 3-4",
        "missing 4-4",
        "",
    ]


def test_what_was_stored_is_known_after_a_kill(tmp_path: Path) -> None:
    first = start(tmp_path / "notifications.db")
    assert first.send(1) == 204
    first.process.kill()
    first.process.communicate(timeout=10)

    second = start(tmp_path / "notifications.db")
    assert [second.told(1), second.told(3)] == [
        "#1 nl.brp.persoon-verhuisd (again)",
        "#3 nl.brp.persoon-verhuisd, missing 2-2",
    ]
    stop(second)


@pytest.mark.parametrize("body", [b"not json", b"[]", b'{"type":"a"}', notification(1, subscriptionsequence="one")])
def test_signed_nonsense_is_refused(running: Running, body: bytes) -> None:
    assert running.post(body, signed(body, 1)) == 400

    assert running.stored() == []


def test_body_that_is_too_large_is_refused_unread(running: Running) -> None:
    assert running.post(b"", {"Content-Length": str(10**9)}) == 413


def test_nothing_that_is_printed_names_the_subject(running: Running) -> None:
    running.send(1)

    assert "999990342" not in running.said()


def test_store_is_for_its_owner_only(running: Running) -> None:
    assert running.database.stat().st_mode & 0o077 == 0


def test_heartbeat_tells_of_a_missing_tail_and_is_not_stored(running: Running) -> None:
    assert running.send(1) == 204
    running.said()
    for last, text in ((1, "nothing missing"), (4, "missing 2-4")):
        event = {"specversion": "1.0", "type": "nl.bode.heartbeat", "id": f"beat-{last}", "source": "urn:uuid:1",
                 "subscription": SUBSCRIPTION, "data": {"lastSequence": last, "completeThrough": last}}  # fmt: skip
        body = json.dumps(event).encode()
        assert running.post(body, signed(body, 1)) == 204
        assert running.said() == f"heartbeat: last {last}, {text}"
    assert running.stored() == [1]


def test_test_notification_is_confirmed_and_not_stored(running: Running) -> None:
    event = {"specversion": "1.0", "type": "nl.bode.test-notification", "id": "test_1", "source": "urn:uuid:1",
             "subscription": SUBSCRIPTION, "data": {}}  # fmt: skip
    body = json.dumps(event).encode()
    assert running.post(body, signed(body, 1)) == 204
    assert running.post(*batch(body)) == 204
    assert [running.said(), running.said()] == ["test notification"] * 2
    assert running.stored() == []


def test_batch_is_stored_item_by_item_and_its_duplicates_are_recognised(running: Running) -> None:
    assert running.told(2) == "#2 nl.brp.persoon-verhuisd, missing 1-1"

    assert running.post(*batch(*(notification(n, data={"é": f"ë\\ {n}"}) for n in (1, 2, 4)))) == 204
    assert [running.said() for _ in range(3)] == [
        "#1 nl.brp.persoon-verhuisd",
        "#2 nl.brp.persoon-verhuisd (again)",
        "#4 nl.brp.persoon-verhuisd, missing 3-3",
    ]
    assert running.post(*batch(notification(3))) == 204
    assert running.said() == "#3 nl.brp.persoon-verhuisd"
    assert running.stored() == [1, 2, 3, 4]
    assert json.loads(running.text(4)) == json.loads(notification(4, data={"é": "ë\\ 4"}))


def test_batch_of_which_a_byte_was_changed_is_not_believed(running: Running) -> None:
    body, headers = batch(notification(1), notification(2))

    assert running.post(body.replace(b"e2", b"e3"), headers) == 401

    assert running.stored() == []


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"null",
        b'"text"',
        notification(1),
        b"[%s,5]" % notification(1),
        b"[%s,%s]" % (notification(1), notification(2, subscriptionsequence="two")),
        b"[%s,%s]" % (notification(1), notification(2, subscriptionsequence="0")),
        b"[%s" % notification(1),
    ],
)
def test_batch_with_nonsense_in_it_is_refused_as_a_whole(running: Running, body: bytes) -> None:
    headers = signed(body, 0, identity="bat_1", form="application/cloudevents-batch+json")

    assert running.post(body, headers) == 400

    assert running.stored() == []


def test_heartbeat_comes_as_a_batch_of_one(running: Running) -> None:
    event = {"specversion": "1.0", "type": "nl.bode.heartbeat", "id": "beat", "source": "urn:uuid:1",
             "subscription": SUBSCRIPTION, "data": {"lastSequence": 2, "completeThrough": 2}}  # fmt: skip

    assert running.post(*batch(json.dumps(event).encode())) == 204

    assert running.said() == "heartbeat: last 2, missing 1-2"
    assert running.stored() == []
