"""`bode publish`: publishes events from a file, or samples, and tells how many are safe.

The registry follows from the type of each event, unless it is named; where nothing runs on the data directory, from
the URL and key that are given. Order is kept for each registry.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from pathlib import Path
from random import Random
from typing import Final, TypeAlias

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from broker.tools import bag, samples
from broker.tools.identities import SOURCES
from broker.tools.publish_doors import AmqpDoor, Door, DoorClosed, HttpDoor, OpenDoor, Outgoing, Told
from broker.tools.running import Access, NotFound, Running

_NAMED_FAULTS: Final = 10
_PLAIN_SECONDS: Final = 5.0
_BEHIND_SECONDS: Final = 1.0


class Format(StrEnum):
    """What a file holds: CloudEvents, one on each line, or one of Kadaster's formats."""

    NDJSON = "ndjson"
    BAG_EXTRACT = "bag-extract"
    BAG_MUTATIES = "bag-mutaties"


class CannotPublish(Exception):
    """Nothing, or not everything, was published; the message says why and what to do."""


@dataclass(slots=True)
class Tally:
    """What became of the events of a run. `watch` is called at each change, `on_confirmed` for each safe event."""

    watch: "Watch | None" = None
    on_confirmed: Callable[[Outgoing], None] | None = None
    taken: int = 0
    safe: int = 0
    faults: int = 0
    named: list[str] = field(default_factory=list)

    def confirmed(self, event: Outgoing) -> None:
        """An event is safe."""
        self.safe += 1
        if self.on_confirmed is not None:
            self.on_confirmed(event)
        self._changed()

    def refused(self, event: Outgoing, reason: str) -> None:
        """An event will never be taken as it is."""
        self.fault(event.place, reason)

    def fault(self, place: int, reason: str) -> None:
        """An event was not published; the first few are named."""
        self.faults += 1
        if len(self.named) < _NAMED_FAULTS:
            self.named.append(f"event {place}: {reason}")
        self._changed()

    def _changed(self) -> None:
        if self.watch is not None:
            self.watch(self)


Watch: TypeAlias = Callable[[Tally], None]


async def publish(
    *,
    data_dir: Path,
    file: Path | None = None,
    format: Format = Format.NDJSON,
    sample: str | None = None,
    registry: str | None = None,
    source: str | None = None,
    amqp_url: str | None = None,
    api_url: str | None = None,
    key: str | None = None,
    rate: float | None = None,
    count: int | None = None,
    console: Console | None = None,
) -> None:
    """Publish, and return once each event is confirmed.

    Args:
        data_dir: where `bode.json` tells of registries.
        file: a file of events, or of Kadaster; or else `sample`.
        format: what the file holds.
        sample: an event type to make samples of.
        registry: the registry of `bode.json` to publish as; by default that of each event's type, `nl.<registry>.…`.
        source: `source` of samples and BAG events; by default the registry's.
        amqp_url: RabbitMQ as the registry's user, instead of what `bode.json` says.
        api_url: base URL of the API that `key` is for; by default that of `bode.json`.
        key: the registry's API key: publishes over HTTP.
        rate: events a second at most; None: as fast as it goes.
        count: how many; by default all of a file, one sample.
        console: where progress and the result are shown.

    Raises:
        CannotPublish: not each event was confirmed.
    """
    console = console or Console()
    tally = Tally()
    try:
        doors = _Doors(data_dir, registry, amqp_url, api_url, key, tally)
        events, total = _events(file, format, sample, count, source, doors)
        with _shown(console, total) as tally.watch:
            await send(events, doors.open, tally, rate=rate)
    except (NotFound, DoorClosed, bag.BagFileError, OSError) as error:
        lost = tally.taken - tally.safe - tally.faults
        known = f" ({tally.safe} confirmed, {lost} not: publish again, duplicates do no harm)" if tally.taken else ""
        raise CannotPublish(f"{error}{known}") from error
    if tally.faults:
        more = [f"and {tally.faults - len(tally.named)} more"] if tally.faults > len(tally.named) else []
        lines = "".join(f"\n  {line}" for line in [*tally.named, *more])
        raise CannotPublish(f"{tally.safe} confirmed, {tally.faults} not published:{lines}")
    console.print(f"✔ {tally.safe} confirmed", highlight=False)


async def send(events: Iterable[bytes], open_door: OpenDoor, tally: Tally, *, rate: float | None) -> None:
    """Publish events in order, each through the door of its type, and wait until all are confirmed or refused.

    Raises:
        DoorClosed: a door can't go on.
    """
    working: dict[Door, asyncio.Task[None]] = {}
    pace = _Pace(rate)
    try:
        async with asyncio.TaskGroup() as group:
            for body in events:
                await pace.wait()
                tally.taken += 1
                event = read(tally.taken, body)
                if isinstance(event, str):
                    tally.fault(tally.taken, event)
                    continue
                door = open_door(event.type)
                if door not in working:
                    working[door] = group.create_task(door.run())
                await door.put(event)
            for door in working:
                await door.drained()
            for task in working.values():
                task.cancel()
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def read(place: int, body: bytes) -> Outgoing | str:
    """Find type and subject of an event, valid or not (judging is the broker's); or tell why it can't be sent."""
    try:
        event = orjson.loads(body)
    except ValueError:
        return "is not JSON"
    if not isinstance(event, dict):
        return "is not a JSON object"
    kind, subject = event.get("type"), event.get("subject")
    if not isinstance(kind, str) or not kind:
        return "has no type, so there is no routing key for it"
    return Outgoing(place, kind, subject if isinstance(subject, str) else None, body)


class _Doors:
    """Which door an event goes in by: the one that was given, or that of the registry of its type."""

    def __init__(
        self,
        data_dir: Path,
        registry: str | None,
        amqp_url: str | None,
        api_url: str | None,
        key: str | None,
        told: Told,
    ) -> None:
        self._registry = registry
        self._told = told
        self._opened: dict[str, Door] = {}
        self._given: Door | None = None
        self._running: Running | None = None
        if amqp_url is not None:
            self._given = AmqpDoor(amqp_url, told)
        elif key is not None:
            self._given = HttpDoor(Access(api_url or Running(data_dir).api_url, key), told)
        else:
            self._running = Running(data_dir)

    def open(self, type_: str) -> Door:
        """The door for an event type, the same for the same registry."""
        if self._running is None:
            assert self._given is not None, "without a running installation a door was given"
            return self._given
        name = self._registry or registry_of(type_)
        if name not in self._opened:
            known = self._running.registry(name)
            self._opened[name] = (
                AmqpDoor(known.amqp_url, self._told) if known.amqp_url else HttpDoor(known.access, self._told)
            )
        return self._opened[name]

    def source(self, type_: str) -> str:
        """The source of events of a type."""
        name = self._registry or registry_of(type_)
        if self._running is not None:
            return self._running.registry(name).source
        if name not in SOURCES:
            raise NotFound(f"there is no source for {type_}: give --source")
        return SOURCES[name]


def registry_of(type_: str) -> str:
    """The name of the registry in an event type: `nl.<registry>.…`."""
    labels = type_.split(".")
    return labels[1] if len(labels) > 2 else type_


def _events(
    file: Path | None, format: Format, sample: str | None, count: int | None, source: str | None, doors: _Doors
) -> tuple[Iterator[bytes], int | None]:
    """The events, and how many they are, where that is known before."""
    if (file is None) == (sample is None):
        raise NotFound("give a FILE or --sample TYPE")
    if sample is not None:
        if not any(kind.type == sample for kind in samples.CATALOGUE):
            known = ", ".join(kind.type for kind in samples.CATALOGUE)
            raise NotFound(f"there is no sample of {sample}; there are {known}")
        count = 1 if count is None else count
        return _samples(sample, source or doors.source(sample), count), count
    assert file is not None
    match format:
        case Format.NDJSON:
            events = _lines(file)
        case Format.BAG_EXTRACT:
            events = (draft.encode() for draft in bag.read_extract(file, source or doors.source("nl.bag.*")))
        case Format.BAG_MUTATIES:
            events = (draft.encode() for draft in bag.read_mutations(file, source or doors.source("nl.bag.*")))
    return islice(events, count), count


def _samples(type_: str, source: str, count: int) -> Iterator[bytes]:
    random = Random()
    for _ in range(count):
        yield samples.sample(type_, source, random, lambda: datetime.now(UTC)).encode()


def _lines(file: Path) -> Iterator[bytes]:
    with file.open("rb") as lines:
        for line in lines:
            if stripped := line.strip():
                yield stripped


class _Pace:
    """Holds to a rate; of what was missed in a stall, a second's worth is made up for."""

    def __init__(self, rate: float | None) -> None:
        self._step = None if rate is None else 1 / rate
        self._next: float | None = None

    async def wait(self) -> None:
        """Wait until the next event is due."""
        if self._step is None:
            return
        now = asyncio.get_running_loop().time()
        due = now if self._next is None else max(self._next, now - _BEHIND_SECONDS)
        if due > now:
            await asyncio.sleep(due - now)
        self._next = due + self._step


@contextmanager
def _shown(console: Console, total: int | None) -> Iterator[Watch]:
    """A progress bar on a terminal; elsewhere a line every few seconds."""
    if not console.is_terminal:
        yield _plain(console)
        return
    columns = (TextColumn("publishing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("publishing", total=total)
        yield lambda tally: progress.update(task, completed=tally.safe + tally.faults)


def _plain(console: Console) -> Watch:
    loop = asyncio.get_running_loop()
    next_at = loop.time() + _PLAIN_SECONDS

    def watch(tally: Tally) -> None:
        nonlocal next_at
        if loop.time() >= next_at:
            next_at = loop.time() + _PLAIN_SECONDS
            console.print(f"{tally.safe} confirmed so far", highlight=False)

    return watch
