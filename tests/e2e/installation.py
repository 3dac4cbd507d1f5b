"""A whole installation, started as a person would start it, and the two hands that tests need on it: API and AMQP."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import aiohttp
import pytest

from broker.tools.local.rabbitmq import NotInstalled, find_installed

START_SECONDS = 90


class Installation:
    """`bode up --demo` in a folder, silent but for what tests publish."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder = folder
        self.environment = {**os.environ, "BODE_DEMO_RATE": "0", **environment}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [str(Path(sys.executable).parent / "bode"), "up", "--demo", "--data-dir", str(self.folder)]
        (self.folder / "bode.json").unlink(missing_ok=True)  # of one that was killed
        with (self.folder.parent / f"{self.folder.name}.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment)
        deadline = time.monotonic() + START_SECONDS
        while not (self.folder / "bode.json").exists():
            assert self._process.poll() is None, "bode up ended; see its log"
            assert time.monotonic() < deadline, "bode up is not ready in time"
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """The exit code, once it has ended."""
        assert self._process is not None
        return self._process.wait(25)

    @property
    def about(self) -> dict[str, Any]:
        """What bode.json says now."""
        for _ in range(200):
            try:
                return json.loads((self.folder / "bode.json").read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                time.sleep(0.05)
        raise AssertionError("no bode.json")

    def kill(self, name: str) -> None:
        """SIGKILL one process, which `bode up` then starts again."""
        os.kill(self.about["processes"][name], signal.SIGKILL)

    def key(self, name: str) -> str:
        keys = self.about["keys"]
        return keys["operator"] if name == "operator" else (keys["registries"] | keys["providers"])[name]["key"]

    def source(self, registry: str) -> str:
        return self.about["keys"]["registries"][registry]["source"]

    async def call(
        self, method: str, path: str, who: str | None, body: Any = None, **options: Any
    ) -> tuple[int, Any, dict[str, str]]:
        """One request to the API: status, parsed body, headers in lower case."""
        headers = {} if who is None else {"Authorization": f"Bearer {self.key(who)}"}
        headers |= options.pop("headers", {})
        if body is not None:
            options["json"] = body
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, self.about["api"] + path, headers=headers, **options) as response,
        ):
            text = await response.text()
            return (
                response.status,
                json.loads(text) if text else None,
                {name.lower(): value for name, value in response.headers.items()},
            )

    async def subscribe(self, provider: str, sink: str, **fields: Any) -> dict[str, Any]:
        """Make a subscription and wait until it is active."""
        status, made, _ = await self.call(
            "POST", "/subscriptions", provider, {"sink": sink, "protocol": "HTTP", **fields}
        )
        assert status == 201, made
        await self.wait_for_status(provider, made["id"], "active")
        return made

    async def wait_for_status(
        self, provider: str, subscription: str, wanted: str, seconds: float = 10
    ) -> dict[str, Any]:
        async with asyncio.timeout(seconds):
            while True:
                _, shown, _ = await self.call("GET", f"/subscriptions/{subscription}", provider)
                if shown["status"] == wanted:
                    return shown
                await asyncio.sleep(0.05)

    async def wait_for_health(self, provider: str, subscription: str, seconds: float = 20, **wanted: Any) -> Any:
        """Wait until the health of a subscription shows these figures."""
        async with asyncio.timeout(seconds):
            while True:
                _, shown, _ = await self.call("GET", f"/subscriptions/{subscription}", provider)
                if all(shown["health"][name] == value for name, value in wanted.items()):
                    return shown["health"]
                await asyncio.sleep(0.05)

    async def publish(self, registry: str, events: Sequence[bytes]) -> None:
        """Publish structured events over AMQP, each confirmed."""
        connection = await aio_pika.connect(self.about["keys"]["registries"][registry]["amqp"])
        async with connection, connection.channel(publisher_confirms=True) as channel:
            exchange = await channel.get_exchange("bode.events", ensure=False)
            for start in range(0, len(events), 200):
                await asyncio.gather(
                    *(exchange.publish(self.message(event, registry), routing_key=json.loads(event).get("type", "none"))
                      for event in events[start : start + 200])
                )  # fmt: skip

    def message(self, event: bytes, registry: str, **changes: Any) -> aio_pika.Message:
        attributes = json.loads(event)
        user = urlsplit(self.about["keys"]["registries"][registry]["amqp"]).username
        properties: dict[str, Any] = {
            "content_type": "application/cloudevents+json; charset=utf-8",
            "delivery_mode": aio_pika.DeliveryMode.PERSISTENT,
            "user_id": user,
            "headers": {"cloudEvents:subject": attributes["subject"]} if attributes.get("subject") else {},
        }
        return aio_pika.Message(event, **(properties | changes))


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder for an installation with a private RabbitMQ; without one the test is skipped."""
    found = find_installed()
    if isinstance(found, NotInstalled):
        pytest.skip(f"no private RabbitMQ: {found.reason}")
    folder = Path(tempfile.mkdtemp(prefix="bode-e2e-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def installed() -> Iterator[Installation]:
    """An installation that runs, and ends in good order."""
    with own_folder() as folder:
        made = Installation(folder / "data")
        made.start()
        yield made
        assert made.stop() == 0
