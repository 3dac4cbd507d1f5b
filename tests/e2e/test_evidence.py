"""What became of it: reconciliation of numbers, and traces of events, for each role."""

import asyncio
import json
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import Callable, Iterable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from broker.tools.listen import listen
from broker.tools.trace import CannotTrace
from broker.tools.trace import trace as print_trace
from tests.e2e.events import event
from tests.e2e.installation import Installation
from tests.e2e.receiver import Received, Receiver

EXAMPLE = Path(__file__).parents[2] / "examples" / "receiver.py"


def digest(ledger: Iterable[Received], first: int, last: int, tombstones: Iterable[dict[str, Any]] = ()) -> str:
    """The digest as the documentation defines it, from what arrived alone."""
    came = {received.sequence: received.event for received in ledger}
    left_out = {number for stone in tombstones for number in range(stone["from"], stone["to"] + 1)}
    hasher = sha256()
    for number in sorted(came.keys() - left_out):
        if first <= number <= last:
            inner = sha256(f"{came[number]['source']}\n{came[number]['id']}".encode()).hexdigest()
            hasher.update(f"{number} {inner}\n".encode())
    return hasher.hexdigest()


async def test_digests_through_kills_are_those_of_what_arrived(installation: Installation, receiver: Receiver) -> None:
    made = await installation.subscribe("gemeente", receiver.url("blocks"), types=["nl.brp.blok"])
    receiver.behaviours["blocks"] = lambda received: 400 if received.event["subject"] == "dead" else 204
    source = installation.source("brp")
    subjects = ["dead" if number in (7, 1001) else str(number % 50) for number in range(1, 2301)]
    publishing = asyncio.create_task(
        installation.publish("brp", [event(source, "nl.brp.blok", subject) for subject in subjects])
    )
    await receiver.wait_for("blocks", 700)
    installation.kill("deliver")
    await publishing
    await receiver.wait_for("blocks", 2300)
    await installation.wait_for_health("gemeente", made["id"], pending=0, deadLetters=2)

    _, answer, _ = await installation.call("GET", f"/subscriptions/{made['id']}/reconciliation?from=1", "gemeente")
    assert (answer["from"], answer["to"], answer["lastSequence"], answer["completeThrough"]) == (1, 2300, 2300, 2300)
    assert answer["counts"] == {"delivered": 2298, "pending": 0, "dead": 2, "cancelled": 0, "expired": 0}
    assert (answer["clipped"], answer["next"]) == (False, None)
    dead = {received.sequence for received in receiver.at("blocks") if received.event["subject"] == "dead"}
    assert {number for stone in answer["tombstones"] for number in range(stone["from"], stone["to"] + 1)} == dead
    assert {(stone["state"], stone["reason"]) for stone in answer["tombstones"]} == {("dead", "status-400")}
    assert [(block["from"], block["to"]) for block in answer["blocks"]] == [(1, 1000), (1001, 2000), (2001, 2300)]
    for block in answer["blocks"]:
        expected = digest(receiver.at("blocks"), block["from"], block["to"], answer["tombstones"])
        assert block["digest"] == expected
        assert block["delivered"] == block["to"] - block["from"] + 1 - len(
            [number for number in dead if block["from"] <= number <= block["to"]]
        )

    _, part, _ = await installation.call(
        "GET", f"/subscriptions/{made['id']}/reconciliation?from=990&to=1010", "operator"
    )
    assert [(block["from"], block["to"]) for block in part["blocks"]] == [(990, 1000), (1001, 1010)]
    for block in part["blocks"]:
        assert block["digest"] == digest(receiver.at("blocks"), block["from"], block["to"], part["tombstones"])


async def test_receiver_example_and_listener_prove_completeness(
    installation: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "notifications.db"
    source = installation.source("brp")
    lines: list[str] = []
    listening = asyncio.create_task(
        listen(data_dir=tmp_path, api_url=installation.about["api"], key=installation.key("pensioenfonds"),
               types=["nl.brp.bewijs"], tell=lines.append)
    )  # fmt: skip
    await until(lambda: any("listening on" in line for line in lines))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    made, running = await start_example(installation, database, port)
    try:
        await installation.publish("brp", [event(source, "nl.brp.bewijs", str(number)) for number in range(40)])
        await installation.wait_for_health("gemeente", made["id"], deliveredThrough=40)
        await until(lambda: any(line == "✔ reconciled 1–40" for line in lines))
    finally:
        running.terminate()
        await running.wait()
    os.kill(os.getpid(), signal.SIGINT)
    await listening
    assert lines[-2] == "✔ reconciled 1–40"

    url = f"{installation.about['api']}/subscriptions/{made['id']}"
    command = [sys.executable, str(EXAMPLE), "--reconcile", url, "--database", str(database)]
    monkeypatch.setenv("RECEIVER_KEY", installation.key("gemeente"))
    assert await output_of(command) == (0, "complete: 1-40\n")
    with closing(sqlite3.connect(database)) as opened, opened:
        opened.execute("DELETE FROM notifications WHERE sequence IN (3, 17)")
    assert await output_of(command) == (1, "missing: 3, 17\n")
    with closing(sqlite3.connect(database)) as opened, opened:
        opened.execute("INSERT INTO notifications SELECT subscription, 3, event, 0 FROM notifications WHERE sequence=4")
        opened.execute(
            "INSERT INTO notifications SELECT subscription, 17, event, 0 FROM notifications WHERE sequence=5"
        )
    assert await output_of(command) == (1, "not what was sent: something from 1 to 40\n")


async def start_example(
    installation: Installation, database: Path, port: int
) -> tuple[dict[str, Any], asyncio.subprocess.Process]:
    """A subscription with the example receiver at its sink, which is started as soon as its secret is known."""
    status, made, _ = await installation.call(
        "POST",
        "/subscriptions",
        "gemeente",
        {"sink": f"http://127.0.0.1:{port}/", "protocol": "HTTP", "types": ["nl.brp.bewijs"]},
    )
    assert status == 201
    arguments = [str(EXAMPLE), "--secret", made["secret"], "--port", str(port), "--database", str(database)]
    running = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.DEVNULL)
    await installation.wait_for_status("gemeente", made["id"], "active")
    return made, running


async def output_of(command: list[str]) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.02)


async def test_what_is_pending_is_named_and_holds_back_completeness(
    installation: Installation, receiver: Receiver
) -> None:
    receiver.behaviours["held"] = lambda received: 500 if received.event["subject"] == "stuck" else 204
    made = await installation.subscribe(
        "gemeente", receiver.url("held"), types=["nl.brp.vast"], retry={"delays": ["PT1H"]}
    )
    path = f"/subscriptions/{made['id']}/reconciliation"
    _, nothing, _ = await installation.call("GET", path, "gemeente")
    assert (nothing["from"], nothing["to"], nothing["blocks"], nothing["tombstones"]) == (1, 0, [], [])

    source = installation.source("brp")
    for number, subject in enumerate(("a", "stuck", "b", "stuck", "stuck", "c"), 1):
        await installation.publish("brp", [event(source, "nl.brp.vast", subject)])
        await installation.wait_for_health("gemeente", made["id"], lastSequence=number)
    await installation.wait_for_health("gemeente", made["id"], pending=3)
    _, answer, _ = await installation.call("GET", path, "gemeente")
    assert answer["completeThrough"] == 1
    assert answer["counts"]["pending"] == 3
    assert answer["tombstones"] == [
        {"from": 2, "to": 2, "state": "pending", "reason": None},
        {"from": 4, "to": 5, "state": "pending", "reason": None},
    ]
    [block] = answer["blocks"]
    assert block["delivered"] == 3
    assert block["digest"] == digest(receiver.at("held"), 1, 6, answer["tombstones"])


@pytest.fixture(scope="module")
def of_five(installation: Installation) -> str:
    """The id of a subscription that was given five numbers."""

    async def make() -> str:
        async with Receiver() as receiver:
            made = await installation.subscribe("gemeente", receiver.url("five"), types=["nl.brp.vijf"])
            source = installation.source("brp")
            await installation.publish("brp", [event(source, "nl.brp.vijf", str(number)) for number in range(5)])
            await installation.wait_for_health("gemeente", made["id"], deliveredThrough=5)
        return str(made["id"])

    return asyncio.run(make())


@pytest.mark.parametrize(
    ("query", "first", "last", "clipped"),
    [
        ("", 1, 5, False),
        ("?from=2", 2, 5, False),
        ("?to=3", 1, 3, False),
        ("?from=5&to=5", 5, 5, False),
        ("?from=1&to=100000", 1, 5, True),
        ("?to=9223372036854775807", 1, 5, True),
        ("?from=6", 6, 5, True),
        ("?from=9223372036854775807", 9223372036854775807, 5, True),
    ],
)
async def test_range_is_answered_as_far_as_there_are_numbers(
    installation: Installation, of_five: str, query: str, first: int, last: int, clipped: bool
) -> None:
    status, answer, _ = await installation.call("GET", f"/subscriptions/{of_five}/reconciliation{query}", "gemeente")
    assert status == 200
    assert (answer["from"], answer["to"], answer["clipped"]) == (first, last, clipped)
    assert answer["counts"]["delivered"] == max(last - first + 1, 0)
    assert answer["next"] is None


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("?from=0", "from"),
        ("?from=-1", "from"),
        ("?from=one", "from"),
        ("?from=1.5", "from"),
        ("?from=9223372036854775808", "from"),
        ("?to=0", "to"),
        ("?from=3&to=2", "to"),
        ("?from=1&to=100001", "to"),
        ("?from=1&from=", "from"),
    ],
)
async def test_range_that_can_not_be_is_refused_by_name(
    installation: Installation, of_five: str, query: str, name: str
) -> None:
    status, problem, headers = await installation.call(
        "GET", f"/subscriptions/{of_five}/reconciliation{query}", "gemeente"
    )
    assert status == 400, problem
    assert headers["content-type"] == "application/problem+json"
    assert [(param["in"], param["name"]) for param in problem["invalidParams"]] == [("query", name)]


@pytest.mark.parametrize(("who", "status"), [("pensioenfonds", 404), ("brp", 403), ("operator", 200), (None, 401)])
async def test_reconciliation_is_for_its_provider_and_the_operator(
    installation: Installation, of_five: str, who: str | None, status: int
) -> None:
    answered, _, _ = await installation.call("GET", f"/subscriptions/{of_five}/reconciliation", who)
    assert answered == status


async def trace(installation: Installation, identity: str, who: str, query: str = "") -> tuple[int, Any]:
    status, answer, _ = await installation.call("GET", f"/traces/{identity}{query}", who)
    return status, answer


async def test_each_role_sees_its_own_part_of_an_event(installation: Installation, receiver: Receiver) -> None:
    receiver.behaviours["gets"] = lambda received: 503 if received.attempt == 1 else 204
    secretive = "999990342"
    gets = await installation.subscribe("gemeente", receiver.url("gets"), types=["nl.brp.spoor"])
    other = await installation.subscribe(
        "gemeente", receiver.url("other"), filters=[{"exact": {"type": "nl.brp.spoor"}}, {"prefix": {"subject": "1"}}]
    )
    theirs = await installation.subscribe(
        "pensioenfonds", receiver.url("theirs"), filters=[{"exact": {"type": "nl.brp.spoor"}}]
    )
    sent = event(installation.source("brp"), "nl.brp.spoor", secretive, data={"naam": "Geheim"})
    await installation.publish("brp", [sent])
    await installation.wait_for_health("gemeente", gets["id"], deliveredThrough=1)
    await installation.wait_for_health("pensioenfonds", theirs["id"], deliveredThrough=1)
    identity = json.loads(sent)["id"]

    status, seen = await trace(installation, identity, "gemeente")
    assert status == 200
    [traced] = seen["events"]
    assert (traced["type"], traced["matched"], traced["counts"]["delivered"]) == ("nl.brp.spoor", 1, 1)
    assert "providers" not in traced
    [delivery] = traced["deliveries"]
    assert (delivery["subscription"], delivery["subscriptionSequence"]) == (gets["id"], 1)
    assert (delivery["state"], delivery["attempts"], delivery["status"]) == ("delivered", 2, 204)
    [failed] = delivery["failedAttempts"]
    assert (failed["attempt"], failed["status"], failed["reason"]) == (1, 503, "throttled")
    assert traced["acceptedAt"] < failed["startedAt"] < delivery["endedAt"]
    assert delivery["explanation"]["matches"]
    [missed] = [item for item in traced["notDelivered"] if item["subscription"] == other["id"]]
    assert (missed["why"], missed["changedSince"], missed["explanation"]["matches"]) == ("filter", False, False)
    [conditions] = missed["explanation"]["alternatives"]
    assert {condition["text"]: condition["holds"] for condition in conditions} == {
        "type is 'nl.brp.spoor'": True,
        "subject starts with '1'": False,
    }
    assert secretive not in json.dumps(seen)
    assert "rejections" not in seen

    status, seen = await trace(installation, identity, "brp")
    [traced] = seen["events"]
    assert traced["matched"] == 2
    assert [(each["subscriptions"], each["counts"]["delivered"]) for each in traced["providers"]] == [(1, 1), (1, 1)]
    assert not {"deliveries", "notDelivered"} & traced.keys()
    assert seen["rejections"] == []

    status, seen = await trace(installation, identity, "operator")
    [traced] = seen["events"]
    assert {item["subscription"] for item in traced["deliveries"]} == {gets["id"], theirs["id"]}
    assert all("explanation" not in item for item in traced["deliveries"])
    assert secretive not in json.dumps(seen)
    assert "Geheim" not in json.dumps(seen)

    printed: dict[str, list[str]] = {}
    for role in ("gemeente", "brp", "operator"):
        await print_trace(identity, data_dir=installation.folder, as_=role, tell=printed.setdefault(role, []).append)
    assert any("#1" in line and "attempt 1 failed: status 503" in line for line in printed["gemeente"])
    assert "    ✖ subject starts with '1'" in printed["gemeente"]
    assert sum("1 delivered" in line for line in printed["brp"]) == 2
    assert sum("delivered at attempt" in line for line in printed["operator"]) == 2
    assert not any("starts with" in line for line in printed["brp"] + printed["operator"])
    with pytest.raises(CannotTrace, match="404"):
        await print_trace(identity, data_dir=installation.folder, as_="bag")

    assert (await trace(installation, identity, "bag"))[0] == 404
    assert (await trace(installation, identity, "gemeente", "?source=urn:another"))[0] == 404
    status, seen = await trace(installation, identity, "gemeente", f"?source={installation.source('brp')}")
    assert (status, len(seen["events"])) == (200, 1)


async def test_subscription_that_is_younger_or_inactive_is_told_so(
    installation: Installation, receiver: Receiver
) -> None:
    before = event(installation.source("brp"), "nl.brp.eerder", "a")
    await installation.publish("brp", [before])
    _, accepted = await wait_for_trace(installation, json.loads(before)["id"], "operator")
    assert accepted["events"][0]["matched"] == 0
    receiver.consents = False
    _, waiting, _ = await installation.call(
        "POST",
        "/subscriptions",
        "gemeente",
        {"sink": receiver.url("w"), "protocol": "HTTP", "types": ["nl.brp.eerder"]},
    )
    after = event(installation.source("brp"), "nl.brp.eerder", "a")
    await installation.publish("brp", [after])
    await wait_for_trace(installation, json.loads(after)["id"], "operator")

    for sent, why in ((before, "younger"), (after, "inactive")):
        _, seen = await trace(installation, json.loads(sent)["id"], "gemeente")
        [event_seen] = seen["events"]
        assert [item["why"] for item in event_seen["notDelivered"] if item["subscription"] == waiting["id"]] == [why]


async def wait_for_trace(installation: Installation, identity: str, who: str) -> tuple[int, Any]:
    async with asyncio.timeout(20):
        while True:
            status, seen = await trace(installation, identity, who)
            if status == 200:
                return status, seen
            await asyncio.sleep(0.05)


async def test_rejection_is_found_by_its_registry_under_the_event_id(installation: Installation) -> None:
    identity = f"fout/{uuid4()} é?"  # an id is any text
    wrong = {"specversion": "1.0", "id": identity, "source": installation.source("bag"), "type": "nl.brp.vreemd"}
    await installation.publish("brp", [json.dumps(wrong).encode()])
    quoted = identity.replace("/", "%2F").replace(" ", "%20").replace("?", "%3F").replace("é", "%C3%A9")
    _, seen = await wait_for_trace(installation, quoted, "brp")
    assert (seen["id"], seen["events"]) == (identity, [])
    assert [rejected["code"] for rejected in seen["rejections"]] == ["source-not-yours"]
    assert (await trace(installation, quoted, "operator"))[0] == 200
    assert (await trace(installation, quoted, "bag"))[0] == 404
    assert (await trace(installation, quoted, "gemeente"))[0] == 404


@pytest.mark.parametrize(
    ("identity", "expected"), [("unknown", 404), ("%FF%FE", 404), ("a" * 6000, 404), ("a/b", 404), ("%00", 400)]
)
@pytest.mark.parametrize("who", ["gemeente", "brp", "operator"])
async def test_id_that_nobody_knows_is_not_found(
    installation: Installation, identity: str, expected: int, who: str
) -> None:
    assert (await trace(installation, identity, who))[0] == expected
