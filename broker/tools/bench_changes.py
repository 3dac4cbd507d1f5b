"""`bode bench changes`: subscriptions changed through the change log while events are matched (promise 8).

Each round some hundreds of subscriptions change in one transaction, as people's changes do; an accepting process then
brings its view to the head of the log, as it does inside each accepting transaction, and matches a batch of events. One
event in each batch shows that the change is seen.
"""

import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pydantic import SecretStr
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine

from broker.ingest.view import View
from broker.matching.index import cost
from broker.migrations import migrate
from broker.tools.demo_parties import prepare
from broker.tools.identities import PROVIDERS
from broker.tools.local.postgres import Postgres
from schemas import cloudevents
from schemas.cloudevents import Event
from schemas.resources import SubscriptionBody
from subscriptions import life_cycle
from subscriptions import subscriptions as service
from subscriptions.change_log import ChangeKind, changing, record_changes
from subscriptions.database import DatabaseSettings, create_engine
from subscriptions.filter_rules import FilterRules
from subscriptions.organisations import find_organisation
from subscriptions.secrets import KeyRing, generate_encryption_key
from subscriptions.sink_urls import SinkRules
from subscriptions.tables import subscriptions

_TYPE: Final = "nl.bag.bench-gewijzigd"


@dataclass(frozen=True, slots=True)
class Options:
    """Subscriptions there are, how many of them change at once, how often, and how many events follow each time."""

    subscriptions: int = 2_000
    at_once: int = 200
    rounds: int = 20
    events: int = 500


@dataclass(frozen=True, slots=True)
class Report:
    """Rates are of the wall clock, medians over the rounds."""

    subscriptions: int
    at_once: int
    rounds: int
    applied_per_second: float
    applied_us: float
    applied_cpu_us: float
    """Of the process that applies them, PostgreSQL not included."""
    events_per_second_meanwhile: float
    applied_version: int

    def as_json(self) -> str:
        """For machines."""
        return json.dumps(asdict(self), indent=2)

    def as_table(self) -> str:
        """For people."""
        return (
            f"{self.rounds} rounds of {self.at_once} changes among {self.subscriptions:,} subscriptions: a process "
            f"applies {self.applied_per_second:,.0f} changes/s ({self.applied_us:.0f} µs each, of them "
            f"{self.applied_cpu_us:.0f} its own CPU), and matches "
            f"{self.events_per_second_meanwhile:,.0f} events/s between them; applied version {self.applied_version:,}"
        )


async def run(options: Options) -> Report:
    """Measure on a fresh database."""
    folder = Path(tempfile.mkdtemp(prefix="bode-bench-"))
    try:
        async with Postgres(folder / "postgresql") as postgres:
            engine = create_engine(DatabaseSettings(url=SecretStr(postgres.url)))
            try:
                await migrate(engine)
                await prepare(engine, folder)
                await _subscribe(engine, options.subscriptions)
                return await _measure(engine, options)
            finally:
                await engine.dispose()
    finally:
        shutil.rmtree(folder)


async def _subscribe(engine: AsyncEngine, count: int) -> None:
    keys = KeyRing([generate_encryption_key()])
    rules = SinkRules(allow_http=True, check=lambda _: None)
    filters = FilterRules(lambda condition: cost(condition).evaluated_always, most_evaluated=0)
    async with changing(engine) as connection:
        provider = await find_organisation(connection, oin=PROVIDERS["gemeente"])
        assert provider is not None
        for number in range(count):
            body = SubscriptionBody.model_validate(
                {
                    "sink": "http://127.0.0.1:9/",
                    "protocol": "HTTP",
                    "types": [_TYPE],
                    "filters": [{"exact": {"subject": f"begin-{number}"}}],
                }
            )
            made, _ = await service.create(
                connection, body, organisation_id=provider.id, keys=keys, sinks=rules, filters=filters
            )
            await life_cycle.activate(connection, made.id, sink=str(made.sink))


async def _measure(engine: AsyncEngine, options: Options) -> Report:
    view = View(engine)
    await view.load()
    entries = list(view.directory.subscriptions.values())
    spans, cpu, rates = [], [], []
    for number in range(options.rounds):
        start = number * options.at_once % len(entries)
        changed = [entries[(start + place) % len(entries)] for place in range(options.at_once)]
        async with changing(engine) as connection:
            for entry in changed:
                filters = [{"exact": {"subject": f"ronde-{number}-{entry.key}"}}]
                await connection.execute(
                    update(subscriptions).where(subscriptions.c.id == entry.id).values(filters=filters)
                )
            await record_changes(connection, [(ChangeKind.SUBSCRIPTION, str(entry.id)) for entry in changed])
        events = [_event(f"ronde-{number}-{changed[place % len(changed)].key}") for place in range(options.events)]
        started, cpu_before = time.perf_counter(), time.process_time()
        await view.freshen()
        spans.append((time.perf_counter() - started) / options.at_once)
        cpu.append((time.process_time() - cpu_before) / options.at_once)
        started = time.perf_counter()
        found = _match(view, events)
        rates.append(len(events) / (time.perf_counter() - started))
        if found != len(events):
            raise AssertionError(f"{len(events) - found} events didn't find the subscription as it was changed")
    span = statistics.median(spans)
    return Report(
        subscriptions=len(entries),
        at_once=options.at_once,
        rounds=options.rounds,
        applied_per_second=1 / span,
        applied_us=span * 1e6,
        applied_cpu_us=statistics.median(cpu) * 1e6,
        events_per_second_meanwhile=statistics.median(rates),
        applied_version=view.version,
    )


def _match(view: View, events: Sequence[Event]) -> int:
    return sum(len(view.index.match(event)) for event in events)


def _event(subject: str) -> Event:
    attributes = {"specversion": "1.0", "id": subject, "source": "urn:bench", "type": _TYPE, "subject": subject}
    return cloudevents.from_structured(cloudevents.to_structured(attributes, {}))
