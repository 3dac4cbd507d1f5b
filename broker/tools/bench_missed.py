"""`bode bench missed`: a provider that was down for long fetches what it missed, by pull and then by replay.

The sink hangs while events are accepted: the receiver is stopped, so its connections are taken and never answered. The
provider then pulls every number and acknowledges page by page; the receiver goes on, and everything is replayed to it.
Each way is proven complete by reconciliation, from the digests of what came.
"""

import asyncio
import os
import shutil
import signal
import tempfile
import time
from array import array
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg
import orjson
from rich.console import Console
from rich.table import Table

from broker.tools.bench_installation import FULL, Installation, Workload
from broker.tools.bench_publisher import publisher
from broker.tools.bench_sink import Sink, clocked_sink
from broker.tools.client import Api
from broker.tools.listen_reconcile import Marks, Reconciler
from broker.tools.local.definitions import Registry
from broker.tools.local.postgres import Postgres
from broker.tools.local.rabbitmq import RabbitMQ
from broker.tools.running import Access

_PAGE: Final = 1_000
_FASTEST: Final = 5_000
_WAIT_SECONDS: Final = 1800.0
_REGISTRY: Final = "bag"
_ACCEPTED: Final = "SELECT coalesce(sum(last_sequence), 0) FROM subscription_numbers"


@dataclass(frozen=True, slots=True)
class Way:
    """How the missed notifications were fetched, and what reconciliation said of it."""

    seconds: float
    per_second: float
    out_of_order: int
    """Numbers, in the case of a replay within their subject, that came after a higher one."""
    missing: int
    reconciled: str


@dataclass(frozen=True, slots=True)
class Report:
    """Both ways, with the time that acceptance took."""

    missed: int
    accepted_per_second: float
    pull: Way
    replay: Way

    def as_json(self) -> dict[str, Any]:
        """The report as JSON types."""
        return asdict(self)

    def as_table(self) -> Table:
        """The report for people."""
        made = Table(
            title=f"{self.missed:,} notifications missed; accepted at {self.accepted_per_second:,.0f} a second"
        )
        for column in ("way", "seconds", "notifications/s", "out of order", "missing", "reconciliation"):
            made.add_column(column, justify="left" if column in ("way", "reconciliation") else "right")
        for name, way in (("pull", self.pull), ("replay", self.replay)):
            made.add_row(
                name, f"{way.seconds:,.1f}", f"{way.per_second:,.0f}", f"{way.out_of_order:,}", f"{way.missing:,}",
                way.reconciled,
            )  # fmt: skip
        return made


async def run(missed: int, console: Console) -> Report:
    """Measure, once."""
    folder = Path(tempfile.mkdtemp(prefix="bode-bench-"))
    try:
        async with (
            clocked_sink(folder / "sink", 1) as sink,
            RabbitMQ(folder / "rabbitmq", [Registry(_REGISTRY, f"nl.{_REGISTRY}.")]) as rabbit,
            Postgres(folder / "postgres") as postgres,
        ):
            installation = Installation(folder / "bode", Workload(1), postgres, rabbit)
            await installation.prepare({FULL: sink})
            async with installation.processes("deliver", "missed"), _api(installation) as api:
                with _Hanging(sink):
                    started = time.perf_counter()
                    await _accept(installation, missed)
                    accepted = missed / (time.perf_counter() - started)
                    console.print(f"{missed:,} accepted at {accepted:,.0f} a second, while the sink hangs")
                    [subscription] = (await api.get("/subscriptions"))["results"]
                    pull = await _pull(api, subscription["id"], folder / "pulled", missed)
                    console.print(f"pulled at {pull.per_second:,.0f} a second: {pull.reconciled}")
                await sink.arrivals()  # what was on its way when the receiver stopped
                replay = await _replay(api, subscription["id"], folder / "replayed", missed, sink, postgres.url)
                return Report(missed, accepted, pull, replay)
    finally:
        shutil.rmtree(folder)


class _Hanging:
    """The receiver is stopped inside the block."""

    def __init__(self, sink: Sink) -> None:
        self._pids = sink.pids

    def __enter__(self) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        for pid in self._pids:
            os.kill(pid, signal.SIGCONT)


@asynccontextmanager
async def _api(installation: Installation) -> AsyncIterator[Api]:
    async with installation.api("missed") as url, Api(Access(url, installation.provider_key)) as api:
        yield api


async def _accept(installation: Installation, count: int) -> None:
    events = installation.events(FULL, count)
    async with (
        installation.processes("ingest", "missed"),
        publisher(installation.rabbit.url(), _REGISTRY) as publishing,
    ):
        await publishing.all_at_once(events)
        connection = await asyncpg.connect(installation.postgres.url)
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                while (await connection.fetchval(_ACCEPTED)) < count:  # noqa: ASYNC110  # by another process
                    await asyncio.sleep(0.1)
        finally:
            await connection.close()


async def _pull(api: Api, subscription: str, file: Path, missed: int) -> Way:
    came, disorder, path = 0, 0, f"/subscriptions/{subscription}/events"
    started = time.perf_counter()
    with Marks(file) as marks:
        while came < missed:
            page = await api.get(f"{path}?limit={_PAGE}&wait=1")
            for item in page["events"]:
                number = int(item["subscriptionsequence"])
                disorder += number != came + 1
                came += 1
                marks.put(number, item["source"], item["id"])
            await api.call("PUT", f"/subscriptions/{subscription}/cursor", orjson.dumps({"cursor": page["cursor"]}))
        seconds = time.perf_counter() - started
        said = await Reconciler(api, subscription, marks).run()
    return Way(seconds, missed / seconds, disorder, missed - came, said or "")


async def _replay(api: Api, subscription: str, file: Path, missed: int, sink: Sink, url: str) -> Way:
    numbers = await _numbers(url)
    body = {"firstSequence": 1, "lastSequence": missed, "perSecond": _FASTEST}
    started = time.perf_counter()
    made = await api.post(f"/subscriptions/{subscription}/replays", body)
    came: array[int] = array("q")
    async with asyncio.timeout(_WAIT_SECONDS):
        while (await api.get(f"/subscriptions/{subscription}/replays/{made['id']}"))["state"] == "running":
            came.extend(await sink.arrivals())
            await asyncio.sleep(0.5)
    came.extend(await sink.arrivals())
    seconds = time.perf_counter() - started
    latest: dict[str, int] = {}
    disorder = 0
    with Marks(file) as marks:
        for event in came[::2]:
            number, source, identity, subject = numbers[event]
            disorder += number < latest.get(subject, 0)
            latest[subject] = max(number, latest.get(subject, 0))
            marks.put(number, source, identity)
        said = await Reconciler(api, subscription, marks).run()
    return Way(seconds, missed / seconds, disorder, missed - len(set(came[::2])), said or "")


async def _numbers(url: str) -> Mapping[int, tuple[int, str, str, str]]:
    """Number in the subscription, source, id and lane of each event, by the number in its id."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch(
            "SELECT sequence, source, id, deliveries.lane FROM deliveries JOIN events ON events.key = event_key"
        )
    finally:
        await connection.close()
    return {int(row["id"][-12:], 16): (row["sequence"], row["source"], row["id"], str(row["lane"])) for row in rows}
