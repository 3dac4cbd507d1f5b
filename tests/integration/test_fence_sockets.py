"""Promise 11 with real sockets and a name server of our own: what is refused is not even connected to."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path
from socket import getaddrinfo
from typing import Any

import pytest
from dns_server import DnsServer, ask
from hostile_sinks import GOOD, GOOD_6, HOSTILE, SOMEWHERE, URL, ZONE, Canary, Hostile

from broker.delivery.client import Client
from broker.delivery.exchanges import SendError, Target
from broker.delivery.fence import Fence, FenceError, ResolveError
from broker.delivery.handshake import Consent, Handshaker
from subscriptions.database import DatabaseSettings, create_engine

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EACH = pytest.mark.parametrize("hostile", HOSTILE, ids=lambda hostile: hostile.url or "empty")


def test_the_table_is_long() -> None:
    assert len({hostile.url for hostile in HOSTILE}) == len(HOSTILE) >= 150


# with the system's resolver, on a machine that has every address


@pytest.fixture(scope="module")
def tried() -> dict[str, Any]:
    """What came of every hostile sink in a namespace where all addresses lead to a canary."""
    flags = "-mn" if os.geteuid() == 0 else "-Urmn"
    run = partial(subprocess.run, capture_output=True, text=True, timeout=60)
    probe = run(["unshare", flags, "ip", "link", "set", "lo", "up"]) if _has("unshare", "ip") else None
    if probe is None or probe.returncode != 0:
        pytest.skip(f"no namespace of our own: {'unshare or ip is missing' if probe is None else probe.stderr.strip()}")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}"}
    command = ["unshare", flags, sys.executable, str(HERE / "fence_namespace.py")]
    done = run(command, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def _has(*programs: str) -> bool:
    return all(any(os.access(f"{folder}/{name}", os.X_OK) for folder in os.get_exec_path()) for name in programs)


@EACH
def test_no_connection_is_made_for_a_hostile_sink(hostile: Hostile, tried: dict[str, Any]) -> None:
    found = tried["sinks"][hostile.url]
    assert found["post"] == hostile.at
    assert found["heard"] == []


@EACH
def test_nor_for_its_handshake(hostile: Hostile, tried: dict[str, Any]) -> None:
    told = tried["sinks"][hostile.url]["options"]
    expected = "Refusal: " if hostile.at == URL else "Silence: no answer (address-not-allowed)"
    assert told.startswith(expected)


@EACH
def test_without_the_fence_the_canary_would_have_heard_it(hostile: Hostile, tried: dict[str, Any]) -> None:
    heard = tried["sinks"][hostile.url]["without"]
    if hostile.reaches == SOMEWHERE:
        assert len(heard) == 1
    else:
        expected = [] if hostile.reaches is None else [ip_address(hostile.reaches)]
        assert [ip_address(address) for address in heard] == expected


def test_good_names_are_connected_to_by_what_they_resolve_to(tried: dict[str, Any]) -> None:
    assert tried["good"] == {"good.test": ["204", [GOOD]], "good6.test": ["204", [GOOD_6]]}
    assert tried["asked"] > 100, "it was our name server that the system asked"


def test_name_that_turns_bad_is_connected_to_where_it_was_good_and_then_no_more(tried: dict[str, Any]) -> None:
    assert tried["flips"] == [["204", [GOOD]], ["address-not-allowed", []], ["address-not-allowed", []]]


def test_redirect_to_metadata_is_not_followed_by_notification_or_handshake(tried: dict[str, Any]) -> None:
    posted, shaken, heard = tried["redirects"]
    assert (posted, heard) == ("302", [GOOD, GOOD])
    assert shaken.startswith("Consent"), "consent is in the headers, whatever the status"


def test_only_allowed_ports_are_connected_to(tried: dict[str, Any]) -> None:
    assert tried["ports"].pop("443") == ["204", [GOOD]]
    assert len(tried["ports"]) >= 6
    assert all(found == ["address-not-allowed", []] for found in tried["ports"].values())


# anywhere, with a resolver that asks our name server: not one call to connect

_watched = threading.local()


def _watch(event: str, args: tuple[Any, ...]) -> None:
    calls = getattr(_watched, "calls", None)
    if event == "socket.connect" and calls is not None:
        calls.append(args[1])


sys.addaudithook(_watch)


@contextmanager
def connects() -> Iterator[list[Any]]:
    """What this thread asks the kernel to connect to."""
    _watched.calls = calls = []
    try:
        yield calls
    finally:
        _watched.calls = None


@pytest.fixture
async def server() -> AsyncIterator[DnsServer]:
    running = await DnsServer(ZONE).start()
    yield running
    running.close()


@pytest.fixture
async def canary() -> AsyncIterator[Canary]:
    singing = await Canary().start(("127.0.0.1",))
    yield singing
    await singing.stop()


def fence(server: DnsServer, *allow: Any, **options: Any) -> Fence:
    def look_up(name: str) -> list[str]:
        if name.lower() == "localhost":
            return [str(found[4][0]) for found in getaddrinfo(name, None)]
        return ask(server.address, name)

    return Fence(allow=allow, look_up=look_up, **options)


async def test_nothing_is_connected_to_for_any_hostile_sink(server: DnsServer, canary: Canary) -> None:
    judge = fence(server)
    client = Client(judge, total_seconds=5)
    wrong = []
    with connects() as calls:
        for hostile in HOSTILE:
            try:
                await client.request("POST", Target.of(hostile.url.format(port=canary.port)), {}, b"x")
            except SendError as error:
                told = error.reason.value
            except ValueError:
                told = URL
            else:
                told = "answered"
            if told != hostile.at:
                wrong.append((hostile.url, told))
        judge.close()
    assert wrong == []
    assert calls == []
    assert canary.take() == []


async def test_connections_that_are_allowed_are_seen_so_the_watch_is_awake(server: DnsServer, canary: Canary) -> None:
    judge = fence(server, ip_network("127.0.0.0/8"))
    client = Client(judge, total_seconds=5)
    with connects() as calls:
        answer = await client.request("POST", Target.of(f"http://loop.test:{canary.port}/"), {}, b"x")
    assert answer.status == 204
    assert calls == [("127.0.0.1", canary.port)]
    assert canary.take() == ["127.0.0.1"]
    engine = create_engine(DatabaseSettings.model_validate({"url": "postgresql://nobody@127.0.0.1:1/none"}))
    shaken = await Handshaker(engine, client, "bode.example").shake_hands(f"http://loop.test:{canary.port}/")
    assert shaken == Consent(None)
    client.close()
    judge.close()


async def test_answer_that_changes_between_check_and_connect_changes_nothing(canary: Canary) -> None:
    zone = {"two-faced.test": lambda before: ("127.0.0.1",) if before == 0 else ("10.0.0.1",)}
    running = await DnsServer(zone).start()
    judge = fence(running, ip_network("127.0.0.0/8"))
    client = Client(judge, total_seconds=5)
    url = f"http://two-faced.test:{canary.port}/"
    with connects() as calls:
        assert (await client.request("POST", Target.of(url), {}, b"x")).status == 204
        with pytest.raises(SendError, match="address-not-allowed"):
            await client.request("POST", Target.of(url), {}, b"x")
    assert calls == [("127.0.0.1", canary.port)]
    assert running.asked["two-faced.test"] == 4, "one look-up, of A and AAAA, for each connection"
    client.close()
    judge.close()
    running.close()


async def test_name_that_nobody_has_is_for_a_later_attempt(server: DnsServer) -> None:
    judge = fence(server)
    with pytest.raises(ResolveError):
        await judge.resolve("nobody.test", 80)
    judge.close()


async def test_slow_name_takes_one_thread_however_many_wait_for_it() -> None:
    released = threading.Event()
    begun: list[str] = []

    def look_up(name: str) -> list[str]:
        begun.append(name)
        if name == "slow.test":
            released.wait(20)
        return ["127.0.0.1"]

    judge = Fence(look_up=look_up, resolve_seconds=0.2)
    waiting = await asyncio.gather(*(judge.resolve("slow.test", 80) for _ in range(100)), return_exceptions=True)
    assert all(isinstance(result, ResolveError) for result in waiting)
    with pytest.raises(FenceError):
        await judge.resolve("brisk.test", 80)
    assert begun == ["slow.test", "brisk.test"]
    released.set()
    judge.close()
