"""`bode bench follow`: follow lists through PostgreSQL: loading by COPY, arrays, bytes, verification, changes.

Subjects are nine-digit numbers, spread over the lists in turn. Their digests are made as in an installation, under a
key; rows go into the real table with its primary key. PostgreSQL keeps everything durable.
"""

import gc
import json
import random
import shutil
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

import asyncpg
import psutil
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncEngine

from broker.ingest.following import Following
from broker.migrations import migrate
from broker.storage import acceptance, follow_files
from broker.storage.fingerprints import KEY_BYTES, Fingerprints
from broker.tools import bench_resources as resources
from broker.tools.demo_parties import prepare
from broker.tools.identities import PROVIDERS
from broker.tools.local.postgres import Postgres
from subscriptions import follow_lists
from subscriptions.change_log import ChangeKind, changing, record_changes
from subscriptions.database import DatabaseSettings, create_engine
from subscriptions.organisations import find_organisation

_ROW: Final = struct.Struct(">hi16si16s")
_COPY_START: Final = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
_COPY_END: Final = struct.pack(">h", -1)
_PORTION: Final = 20_000
_BATCH: Final = 500
_LOOK_UPS: Final = 100_000
_BATCHES: Final = 40
_CHANGE: Final = 2_000


@dataclass(frozen=True, slots=True)
class Options:
    """How many subjects on how many lists; `rounds` of changes of 2,000 subjects each."""

    subjects: int = 5_000_000
    lists: int = 400
    rounds: int = 5
    progress: Callable[[str], None] = print


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured. Times of the wall clock, unless they are CPU."""

    subjects: int
    lists: int
    copy_in_seconds: float
    copy_in_postgresql_cpu_seconds: float
    table_bytes_each: float
    index_bytes_each: float
    build_seconds: float
    build_cpu_seconds: float
    file_bytes_each: float
    build_peak_megabytes: float
    start_from_file_seconds: float
    look_up_us: float
    verify_us: float
    verify_postgresql_cpu_us: float
    change_us: float
    apply_us: float

    def as_json(self) -> str:
        """For machines."""
        return json.dumps(asdict(self), indent=2)

    def as_table(self) -> str:
        """For people."""
        lines = {
            "followed subjects": f"{self.subjects:,} on {self.lists:,} lists",
            "into PostgreSQL by COPY": f"{self.copy_in_seconds:,.1f} s, {self.subjects / self.copy_in_seconds:,.0f}/s, "
            f"PostgreSQL's CPU {self.copy_in_postgresql_cpu_seconds:,.1f} s",
            "bytes a subject in PostgreSQL": f"{self.table_bytes_each:.1f} + index {self.index_bytes_each:.1f}",
            "arrays made from PostgreSQL": f"{self.build_seconds:,.1f} s, CPU {self.build_cpu_seconds:,.1f} s",
            "bytes a subject in the arrays": f"{self.file_bytes_each:.2f}",
            "memory while making them, more than before": f"{self.build_peak_megabytes:,.0f} MB",
            "start with the file that is there": f"{self.start_from_file_seconds:.3f} s",
            "look-up in the arrays, half of them hits": f"{self.look_up_us:.2f} µs CPU",
            f"verification in batches of {_BATCH}": f"{self.verify_us:.2f} µs each, "
            f"PostgreSQL's CPU {self.verify_postgresql_cpu_us:.2f} µs",
            f"change of a list, {_CHANGE:,} subjects at once": f"{self.change_us:.1f} µs each",
            "… applied by a process": f"{self.apply_us:.1f} µs each",
        }
        return "\n".join(f"{name:<46}{value}" for name, value in lines.items())


async def run(options: Options) -> Report:
    """Measure; takes minutes with millions, and some 200 bytes of disk for each subject."""
    folder = Path(tempfile.mkdtemp(prefix="bode-bench-"))
    try:
        async with Postgres(folder / "postgresql") as postgres:
            engine = create_engine(DatabaseSettings(url=SecretStr(postgres.url)))
            connection = await asyncpg.connect(postgres.url)
            try:
                await migrate(engine)
                await prepare(engine, folder)
                servers = resources.processes_named("postgres", folder)
                return await _Bench(options, folder, engine, connection, servers).measure()
            finally:
                await connection.close()
                await engine.dispose()
    finally:
        shutil.rmtree(folder)


class _Bench:
    def __init__(
        self, options: Options, folder: Path, engine: AsyncEngine, connection: asyncpg.Connection, servers: list[int]
    ) -> None:
        self._options = options
        self._files = folder / "arrays"
        self._engine = engine
        self._connection = connection
        self._servers = servers
        self._fingerprints = Fingerprints(random.Random(1).randbytes(KEY_BYTES))
        self._lists: list[UUID] = []

    async def measure(self) -> Report:
        count = self._options.subjects
        self._files.mkdir()
        async with changing(self._engine) as connection:
            provider = await find_organisation(connection, oin=PROVIDERS["gemeente"])
            assert provider is not None
            self._organisation: UUID = provider.id
            for number in range(self._options.lists):
                made = await follow_lists.create_list(connection, organisation_id=provider.id, name=f"lijst {number}")
                self._lists.append(made.id)
        self._options.progress(f"loading {count:,} subjects")
        started, cpu = time.perf_counter(), resources.cpu_seconds(self._servers)
        await self._connection.copy_to_table(
            "followed_subjects", source=self._rows(), columns=["list_id", "digest"], format="binary", timeout=None
        )
        async with changing(self._engine) as connection:
            await record_changes(connection, [(ChangeKind.EVERYTHING, "")])
        copied, copy_cpu = time.perf_counter() - started, resources.cpu_seconds(self._servers) - cpu
        table, index = await self._connection.fetchrow(
            "SELECT pg_table_size('followed_subjects'), pg_indexes_size('followed_subjects')"
        )
        self._options.progress("making arrays of what PostgreSQL holds")
        gc.collect()
        before = psutil.Process().memory_info().rss / 1e6
        started, cpu = time.perf_counter(), time.process_time()
        following = Following(self._engine, self._fingerprints, self._files)
        await following.load()
        built, build_cpu = time.perf_counter() - started, time.process_time() - cpu
        peak = resources.peak_megabytes(psutil.Process().pid) - before
        [(_, path)] = follow_files.versions(self._files)
        started = time.perf_counter()
        await Following(self._engine, self._fingerprints, self._files).load()
        restarted = time.perf_counter() - started
        self._options.progress("look-ups, verification, changes")
        verify, verify_cpu = await self._verify()
        change, apply = await self._change(following)
        return Report(
            subjects=count,
            lists=self._options.lists,
            copy_in_seconds=copied,
            copy_in_postgresql_cpu_seconds=copy_cpu,
            table_bytes_each=table / count,
            index_bytes_each=index / count,
            build_seconds=built,
            build_cpu_seconds=build_cpu,
            file_bytes_each=path.stat().st_size / count,
            build_peak_megabytes=peak,
            start_from_file_seconds=restarted,
            look_up_us=self._look_up(following),
            verify_us=verify,
            verify_postgresql_cpu_us=verify_cpu,
            change_us=change,
            apply_us=apply,
        )

    async def _rows(self) -> AsyncIterator[bytes]:
        """The rows in COPY's binary form, each subject on one list."""
        yield _COPY_START
        digest, pack = self._fingerprints.subject, _ROW.pack
        ids = [each.bytes for each in self._lists]
        count, lists = self._options.subjects, len(ids)
        for start in range(0, count, _PORTION):
            yield b"".join(
                pack(2, 16, ids[number % lists], 16, digest(_subject(number)))
                for number in range(start, min(start + _PORTION, count))
            )
        yield _COPY_END

    def _look_up(self, following: Following) -> float:
        rng = random.Random(2)
        asked = [_subject(rng.randrange(2 * self._options.subjects)) for _ in range(_LOOK_UPS)]
        found, started = 0, time.thread_time()
        for subject in asked:
            found += bool(following.lists_of(subject))
        spent = time.thread_time() - started
        if not 0.4 < found / len(asked) < 0.6:
            raise AssertionError(f"{found} of {len(asked)} look-ups hit, and half should")
        return spent / len(asked) * 1e6

    async def _verify(self) -> tuple[float, float]:
        """The accepting transaction's query, half of what it asks being true: microseconds each, wall and CPU."""
        rng = random.Random(3)
        spent = cpu = 0.0
        for batch in range(_BATCHES + 5):
            numbers = [rng.randrange(self._options.subjects) for _ in range(_BATCH)]
            lists = [
                str(self._lists[(number + (place % 2)) % len(self._lists)]) for place, number in enumerate(numbers)
            ]
            digests = [self._fingerprints.subject(_subject(number)) for number in numbers]
            started, cpu_before = time.perf_counter(), resources.cpu_seconds(self._servers)
            answers = await acceptance.verify_follows(self._connection, [self._organisation] * _BATCH, lists, digests)
            if batch >= 5:  # the first ones warm up
                spent += time.perf_counter() - started
                cpu += resources.cpu_seconds(self._servers) - cpu_before
            wanted = [place % 2 == 0 or len(self._lists) == 1 for place in range(_BATCH)]
            if answers != wanted:
                raise AssertionError("PostgreSQL confirms what isn't on a list, or denies what is")
        return spent / _BATCHES / _BATCH * 1e6, cpu / _BATCHES / _BATCH * 1e6

    async def _change(self, following: Following) -> tuple[float, float]:
        """Subjects put on a list through the change log, and what applying them costs a process."""
        spent = applied = 0.0
        for number in range(self._options.rounds):
            first = 5 * self._options.subjects + number * _CHANGE
            subjects = [_subject(first + place) for place in range(_CHANGE)]
            started = time.perf_counter()
            async with changing(self._engine) as connection:
                await follow_lists.add_subjects(
                    connection,
                    self._lists[number % len(self._lists)],
                    subjects,
                    organisation_id=self._organisation,
                    digest_of=self._fingerprints.subject,
                )
            spent += time.perf_counter() - started
            started = time.perf_counter()
            await following.catch_up(following.version + 1)
            applied += time.perf_counter() - started
            if not all(following.lists_of(subject) for subject in subjects):
                raise AssertionError("a subject that was put on a list isn't found")
        each = self._options.rounds * _CHANGE
        return spent / each * 1e6, applied / each * 1e6


def _subject(number: int) -> str:
    return f"{number:09d}"
