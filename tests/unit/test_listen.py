"""A listener keeps its subscription over restarts, and says whether anything is missing."""

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from fake_broker import FakeBroker

from broker.tools.client import Api, ApiProblem, Unreachable
from broker.tools.listen import CannotListen, listen, name_of
from broker.tools.listen_receiver import Behaviour
from broker.tools.listen_subscription import Folder, Wish
from broker.tools.running import Access, NotFound, Running


@pytest.fixture
async def broker() -> AsyncIterator[FakeBroker]:
    async with FakeBroker() as broker:
        yield broker


class Listening:
    """A listener that runs beside the test, and what it told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._told = asyncio.Condition()
        self._notes: set[asyncio.Task[None]] = set()

    def tell(self, line: str) -> None:
        self.lines.append(line)
        note = asyncio.get_running_loop().create_task(self._note())
        self._notes.add(note)
        note.add_done_callback(self._notes.discard)

    async def _note(self) -> None:
        async with self._told:
            self._told.notify_all()

    async def until(self, matches: Callable[[str], bool]) -> None:
        async with asyncio.timeout(20), self._told:
            await self._told.wait_for(lambda: any(map(matches, self.lines)))

    async def said(self, text: str) -> None:
        await self.until(lambda line: text in line)


@asynccontextmanager
async def listening(folder: Path, broker: FakeBroker, **options: Any) -> AsyncIterator[Listening]:
    """Listen until the block ends, which is as if Ctrl-C were pressed."""
    running = Listening()
    options = {"api_url": broker.url, "key": broker.key, "types": ["nl.brp.x"]} | options
    task = asyncio.create_task(listen(data_dir=folder, tell=running.tell, **options))
    said = asyncio.create_task(running.said("listening on"))
    await asyncio.wait({task, said}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        said.cancel()
        task.result()
    yield running
    os.kill(os.getpid(), signal.SIGINT)
    await task


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_listener_makes_a_subscription_and_says_that_nothing_is_missing(
    tmp_path: Path, broker: FakeBroker
) -> None:
    async with listening(tmp_path, broker) as running:
        [(identity, shown)] = broker.subscriptions.items()
        assert await broker.notify(identity, 1, 2) == [204, 204]
        await running.said("complete 1–2, nothing missing")
    assert shown["types"] == ["nl.brp.x"]
    assert running.lines[0] == "✔ granted  ✔ handshake  ✔ active"
    assert [line for line in running.lines if line.startswith("#")] == [
        "#1  nl.brp.x  ✔ signature",
        "#2  nl.brp.x  ✔ signature",
    ]
    assert running.lines[-1].startswith("paused after #2")
    assert shown["status"] == "paused"
    assert "999990342" not in "".join(running.lines)


async def test_listener_goes_on_with_its_subscription_on_the_same_port(tmp_path: Path, broker: FakeBroker) -> None:
    async with listening(tmp_path, broker) as first:
        [(identity, shown)] = broker.subscriptions.items()
        sink = shown["sink"]
        await broker.notify(identity, 1)
        await first.said("complete 1–1")
    async with listening(tmp_path, broker) as second:
        assert list(broker.subscriptions) == [identity]
        assert (shown["sink"], shown["status"]) == (sink, "active")
        assert await broker.notify(identity, 1, 2, 3, 4) == [204] * 4
        await second.said("complete 1–4, nothing missing, 1 duplicate recognised")


async def test_listener_changes_the_sink_when_its_port_is_taken(tmp_path: Path, broker: FakeBroker) -> None:
    async with listening(tmp_path, broker):
        [(identity, shown)] = broker.subscriptions.items()
        sink = shown["sink"]
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", int(sink.rpartition(":")[2].partition("/")[0])))
        squatter.listen()
        async with listening(tmp_path, broker) as second:
            assert shown["sink"] != sink
            assert await broker.notify(identity, 1) == [204]
            await second.said("complete 1–1, nothing missing")


async def test_listener_with_a_name_changes_its_subscription_to_what_it_wants_now(
    tmp_path: Path, broker: FakeBroker
) -> None:
    filters = [{"prefix": {"subject": "9"}}]
    async with listening(tmp_path, broker, name="mine", filters=filters):
        [shown] = broker.subscriptions.values()
        assert shown["filters"] == filters
    async with listening(tmp_path, broker, name="mine", types=["nl.brp.y"]):
        assert list(broker.subscriptions.values()) == [shown]
        assert shown["types"] == ["nl.brp.y"]
        assert "filters" not in shown


async def test_listener_has_batches_while_it_asks_for_them(tmp_path: Path, broker: FakeBroker) -> None:
    async with listening(tmp_path, broker, batch=50) as running:
        [(identity, shown)] = broker.subscriptions.items()
        assert shown["protocolSettings"] == {"batch": {"maxCount": 50}}
        assert await broker.notify(identity, 1, 2, 3) == [204]
        await running.said("complete 1–3, nothing missing")
    shown["protocolSettings"]["batch"] |= {"maxBytes": 1 << 20, "lingerMilliseconds": 100}
    broker.calls.clear()
    async with listening(tmp_path, broker, batch=50):
        assert broker.calls.count(f"PATCH /subscriptions/{identity}") == 1, "resumed, and nothing else changed"
    async with listening(tmp_path, broker) as running:
        assert shown["protocolSettings"] == {"batch": None}
        assert await broker.notify(identity, 3, 4) == [204, 204]
        await running.said("complete 1–4, nothing missing, 1 duplicate recognised")


async def test_listener_makes_another_subscription_when_its_own_was_ended(tmp_path: Path, broker: FakeBroker) -> None:
    async with listening(tmp_path, broker) as first:
        [(identity, _)] = broker.subscriptions.items()
        await broker.notify(identity, 1)
        await first.said("complete 1–1")
    broker.subscriptions.clear()
    async with listening(tmp_path, broker) as second:
        [(other, _)] = broker.subscriptions.items()
        await broker.notify(other, 1)
        await second.said("complete 1–1, nothing missing")
    assert other != identity


async def test_listener_ends_its_subscription_when_asked(tmp_path: Path, broker: FakeBroker) -> None:
    async with listening(tmp_path, broker, end=True) as running:
        assert len(broker.subscriptions) == 1
    assert broker.subscriptions == {}
    assert running.lines[-1] == "subscription ended"
    assert [path.name for path in files(tmp_path)] == ["lock"]


async def test_listener_tells_of_what_the_broker_numbered_and_it_did_not_get(
    tmp_path: Path, broker: FakeBroker
) -> None:
    async with listening(tmp_path, broker) as running:
        [(identity, shown)] = broker.subscriptions.items()
        shown["health"] |= {"lastSequence": 4, "pending": 2}
        await broker.notify(identity, 1, 3)
        await running.said("complete 1–1, not here yet: 2, 4, 2 pending, 0 given up")
        await broker.notify(identity, 2, 4)
        await running.said("complete 1–4, nothing missing")


async def test_listener_waits_for_a_grant_and_says_so(tmp_path: Path, broker: FakeBroker) -> None:
    broker.granted = False
    running = Listening()
    async with asyncio.timeout(20):
        task = asyncio.create_task(listen(data_dir=tmp_path, api_url=broker.url, key=broker.key, tell=running.tell))
        await running.said("waiting: the subscription is requested")
        broker.granted = True
        await running.said("✔ active")
        os.kill(os.getpid(), signal.SIGTERM)
        await task


async def test_misbehaviour_is_told_and_not_noted(tmp_path: Path, broker: FakeBroker) -> None:
    async with listening(tmp_path, broker, behaviour=Behaviour(status=503)) as running:
        [(identity, _)] = broker.subscriptions.items()
        assert await broker.notify(identity, 1) == [503]
        await running.said("#1  · answered 503: as told")


async def test_what_a_listener_keeps_is_for_its_owner_only_and_holds_no_payload(
    tmp_path: Path, broker: FakeBroker
) -> None:
    async with listening(tmp_path, broker) as running:
        [(identity, _)] = broker.subscriptions.items()
        await broker.notify(identity, 1)
        await running.said("complete 1–1")
    kept = files(tmp_path)
    assert len(kept) == 4
    assert {path.stat().st_mode & 0o077 for path in kept} == {0}
    assert not any(b"999990342" in path.read_bytes() for path in kept)


async def test_two_listeners_of_one_name_are_refused(tmp_path: Path, broker: FakeBroker) -> None:
    with (
        Folder.held(tmp_path / "listen" / "mine"),
        pytest.raises(CannotListen, match="another listener of this name"),
    ):
        await listen(data_dir=tmp_path, api_url=broker.url, key=broker.key, name="mine")


async def test_subscription_of_another_is_listened_to_as_it_is(tmp_path: Path, broker: FakeBroker) -> None:
    async with listening(tmp_path, broker):
        [(identity, shown)] = broker.subscriptions.items()
    calls = len(broker.calls)
    port = int(shown["sink"].rpartition(":")[2].partition("/")[0])
    given = {"subscription": UUID(identity), "secret": broker.secrets[identity], "port": port}
    async with listening(tmp_path, broker, **given) as running:
        assert await broker.notify(identity, 1) == [204]
        await running.said("complete 1–1, no gaps")
    assert len(broker.calls) == calls


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key": "bode_wrong"}, "Send a valid key"),
        ({"subscription": UUID(int=1)}, "--subscription needs --secret"),
        ({"api_url": "http://127.0.0.1:9/v1"}, "no answer from"),
        ({"key": None}, "no bode.json"),
    ],
)
async def test_what_cannot_be_listened_to_is_told_in_a_sentence(
    tmp_path: Path, broker: FakeBroker, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(CannotListen, match=message):
        await listen(data_dir=tmp_path, **({"api_url": broker.url, "key": broker.key} | options))


async def test_taken_port_is_told_in_a_sentence(tmp_path: Path, broker: FakeBroker) -> None:
    port = int(broker.url.rpartition(":")[2].partition("/")[0])

    with pytest.raises(CannotListen, match=f"port {port} is taken"):
        await listen(data_dir=tmp_path, api_url=broker.url, key=broker.key, port=port)


def test_name_is_the_same_for_the_same_wish_only() -> None:
    wish = Wish(["nl.brp.x"], [{"exact": {"a": "b", "c": "d"}}])
    same = Wish(["nl.brp.x"], [{"exact": {"c": "d", "a": "b"}}])
    others = [Wish(["nl.brp.y"], wish.filters), Wish(wish.types), Wish(["nl/brp.x"], wish.filters)]

    assert name_of("gemeente", wish) == name_of("gemeente", same)
    assert len({name_of("gemeente", other) for other in [wish, *others]} | {name_of("fonds", wish)}) == 5
    assert "/" not in name_of("gemeente", others[2])


async def test_client_tells_a_problem_from_silence(broker: FakeBroker) -> None:
    async with Api(Access(broker.url, broker.key)) as api:
        with pytest.raises(ApiProblem, match="no such resource") as problem:
            await api.get(f"/subscriptions/{UUID(int=1)}")
        assert problem.value.status == 404
    async with Api(Access("http://127.0.0.1:9/v1", broker.key)) as api:
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
            await api.get("/subscriptions")
    assert broker.key not in repr(Access(broker.url, broker.key))


def test_running_installation_is_read_from_its_file(tmp_path: Path) -> None:
    registry = {"oin": "1", "key": "k1", "amqp": "amqp://brp@h/v", "source": "urn:s"}
    keys = {"registries": {"brp": registry}, "providers": {"gemeente": {"oin": "2", "key": "k2"}}}
    (tmp_path / "bode.json").write_text(json.dumps({"api": "http://h/v1", "keys": keys}))
    running = Running(tmp_path)

    assert running.provider(None) == running.provider("gemeente") == Access("http://h/v1", "k2", "gemeente")
    assert running.registry("brp").amqp_url == "amqp://brp@h/v"
    assert running.registry("brp").access.key == "k1"
    with pytest.raises(NotFound, match="there are gemeente"):
        running.provider("fonds")
    with pytest.raises(NotFound, match="there are brp"):
        running.registry("bag")
    (tmp_path / "bode.json").write_text(json.dumps({"api": "http://h/v1"}))
    with pytest.raises(NotFound, match="has no demo"):
        Running(tmp_path).provider(None)
