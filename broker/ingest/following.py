"""The follow lists as an accepting process holds them: arrays from a file or from PostgreSQL, and the changes since.

They are at one version of the change log, which is never behind that of the view they serve. They may be ahead of it:
the log can't move while an acceptance is under way, so none ever sees two versions. A worker merges what has changed
into new arrays, away from acceptance.

A file is used only for the history that it was made in (`mark`): one of another installation, of another key, or of
a database that was set back since would find nothing for who is followed, and that silently.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from broker.matching.follows import Base, Builder, Chunk, FollowLists, NotFollowLists
from broker.storage import follow_files
from broker.storage.fingerprints import Fingerprints
from broker.storage.pool import DATABASE_TROUBLE
from broker.telemetry import FOLLOW_CHANGES, WORKER_ERRORS, log
from schemas.filters import FollowListsMissing
from schemas.problems import Unavailable
from subscriptions import follow_lists
from subscriptions.change_log import ChangeKind, changing, read_changes, read_head
from subscriptions.directory import snapshot
from subscriptions.follow_steps import Step, copy_fingerprints, count_steps, moment_of, read_steps

MERGE_AT: Final = 50_000
"""Changed subjects at which new arrays are made: some 15 MB of memory."""
_TOO_MANY: Final = 20
"""A file that is behind by this many times `MERGE_AT` is made anew instead of being caught up with."""
_TIDY_EVERY: Final = 2.0
_TROUBLE: Final = (*DATABASE_TROUBLE, Unavailable)


class Following:
    """Follow lists at `version`, for one index; a process has one."""

    def __init__(
        self, engine: AsyncEngine, fingerprints: Fingerprints, folder: Path | None, *, merge_at: int = MERGE_AT
    ) -> None:
        """Without a folder the arrays are in this process's own memory, and read from PostgreSQL at each start."""
        self._engine = engine
        self._fingerprints = fingerprints
        self._folder = folder
        self._merge_at = merge_at
        self._lists = FollowLists(fingerprints)
        self._lock = asyncio.Lock()
        self.version = -1

    def lists_of(self, subject: str) -> tuple[str, ...]:
        """The lists that seem to hold a subject.

        Raises:
            FollowListsMissing: they have not been loaded.
        """
        if self.version < 0:
            raise FollowListsMissing("the follow lists have not been loaded")
        return self._lists.lists_of(subject)

    async def load(self) -> None:
        """Take everything anew, from the newest file that is right or else from PostgreSQL."""
        async with self._lock:
            found = await self._from_file()
            self._put(*(found or await self._caught_up(await self._rebuilt())))
        log().info("follow-lists-loaded", subjects=self._lists.base.count, file=found is not None)

    async def catch_up(self, version: int) -> None:
        """Apply what has changed, to `version` of the change log or later; half of a change is never seen.

        Raises:
            SQLAlchemyError: when the database can't be read; the lists are then as they were.
        """
        if self.version >= version:
            return
        async with self._lock:
            if self.version >= version:
                return
            async with snapshot(self._engine) as connection:
                changes = await _steps(connection, self.version)
            if changes is not None:
                head, steps = changes
                _apply(self._lists, steps)
                self._put(self._lists, head)
                return
        await self.load()

    async def nothing_until(self, version: int) -> None:
        """No list has changed up to `version`."""
        async with self._lock:
            self.version = max(self.version, version)

    async def run(self) -> None:
        """The worker: keep up also where nothing is accepted, merge, and take deleted lists away."""
        while True:
            await asyncio.sleep(_TIDY_EVERY)
            try:
                await self.tidy()
                await self.remove_deleted()
            except _TROUBLE as error:
                WORKER_ERRORS.labels("follow-lists").inc()
                log().warning("follow-lists-not-tidied", error=type(error).__name__)

    async def tidy(self) -> None:
        """Catch up, and make new arrays, or take those that another process has made, when much has changed."""
        async with self._engine.connect() as connection:
            head = await read_head(connection)
        await self.catch_up(head)
        if self._lists.changed < self._merge_at:
            return
        base = await self._newer() or await self._merged()
        async with self._lock:
            self._put(*await self._caught_up(base))
        log().info("follow-lists-merged", subjects=self._lists.base.count, unmerged=self._lists.changed)

    async def remove_deleted(self) -> None:
        """Take a portion of subjects off each deleted list."""
        async with self._engine.connect() as connection:
            deleted = await follow_lists.deleted_lists(connection)
        for list_id in deleted:
            async with changing(self._engine) as connection:
                await follow_lists.remove_deleted(connection, list_id)

    def _put(self, lists: FollowLists, version: int) -> None:
        self._lists, self.version = lists, version
        FOLLOW_CHANGES.set(lists.changed)

    async def _caught_up(self, base: Base) -> tuple[FollowLists, int]:
        """Lists on a base, with all that came after it."""
        while True:
            async with snapshot(self._engine) as connection:
                changes = await _steps(connection, base.sequence)
            if changes is not None:
                break
            base = await self._rebuilt()
        return self._on(base, changes[1]), changes[0]

    def _on(self, base: Base, steps: Iterable[Step]) -> FollowLists:
        lists = FollowLists(self._fingerprints, base)
        _apply(lists, steps)
        return lists

    async def _from_file(self) -> tuple[FollowLists, int] | None:
        async with snapshot(self._engine) as connection:
            for base in await self._files(connection, newer_than=-1):
                changes = await _steps(connection, base.sequence)
                if changes is not None:
                    return self._on(base, changes[1]), changes[0]
        return None

    async def _newer(self) -> Base | None:
        """Arrays that another process has made meanwhile."""
        async with snapshot(self._engine) as connection:
            for base in await self._files(connection, newer_than=self._lists.base.sequence):
                if await count_steps(connection, base.sequence) < self._merge_at:
                    return base
        return None

    async def _files(self, connection: AsyncConnection, *, newer_than: int) -> list[Base]:
        """The files that are whole, of this history, and not too far behind; the newest first."""
        found: list[Base] = []
        if self._folder is None:
            return found
        head = await read_head(connection)
        for version, path in reversed(await asyncio.to_thread(follow_files.versions, self._folder)):
            if not newer_than < version <= head:
                continue
            try:
                base = Base(follow_files.map_version(path))
            except FileNotFoundError:
                continue  # another process has replaced it
            except (NotFollowLists, ValueError) as error:
                log().warning("follow-file-refused", reason="damaged", error=type(error).__name__)
                continue
            if base.sequence != version or base.mark != await self._mark(connection, version):
                log().warning("follow-file-refused", reason="another-history")
            elif await count_steps(connection, version) <= _TOO_MANY * self._merge_at:
                found.append(base)
        return found

    async def _mark(self, connection: AsyncConnection, version: int) -> int | None:
        """What a file of this version must bear; None: the log doesn't tell any more."""
        moment = await moment_of(connection, version)
        return None if moment is None else self._fingerprints.history(version, moment.isoformat())

    async def _merged(self) -> Base:
        """New arrays of the present ones with their changes."""
        base = self._lists.base
        async with snapshot(self._engine) as connection:
            changes = await _steps(connection, base.sequence)
            mark = None if changes is None else await self._mark(connection, changes[0])
        if changes is None or self._lists.crowded:
            return await self._rebuilt()
        version, steps = changes
        # the changes are applied anew, because copying those in use would hold up acceptance
        return await asyncio.to_thread(
            self._keep, lambda: self._on(base, steps).merged(version, mark or 0), version, mark
        )

    async def _rebuilt(self) -> Base:
        """New arrays of what PostgreSQL holds."""
        builder = Builder()
        names: dict[bytes, str] = {}

        def take(rows: Iterable[tuple[bytes, int]]) -> None:
            for list_id, fingerprint in rows:
                name = names.get(list_id)
                if name is None:
                    name = names[list_id] = follow_lists.written(list_id)
                builder.add(name, fingerprint)

        async with snapshot(self._engine) as connection:
            version = await read_head(connection)
            mark = await self._mark(connection, version)
            count = await copy_fingerprints(connection, take)
        return await asyncio.to_thread(
            self._keep, lambda: builder.parts(version, mark or 0), version, mark if count else None
        )

    def _keep(self, make: Callable[[], Iterable[Chunk]], version: int, mark: int | None) -> Base:
        """Write a version and map it; without a folder, or without a mark to know it by, keep it in memory."""
        parts = make()
        if self._folder is None or mark is None:
            return _in_memory(parts)
        try:
            path = follow_files.write_version(self._folder, version, parts)
        except FileExistsError:  # another process is writing the same
            return _in_memory(parts)
        base = Base(follow_files.map_version(path))
        follow_files.remove_older(self._folder, version)
        return base


def _in_memory(parts: Iterable[Chunk]) -> Base:
    content = bytearray()  # joining would first hold all of the parts at once
    for part in parts:
        content += part
    return Base(memoryview(content))


async def _steps(connection: AsyncConnection, since: int) -> tuple[int, Sequence[Step]] | None:
    """The head of the log and what changed after a version; None: the log doesn't tell."""
    head, entries = await read_changes(connection, since)
    if any(entry.kind is ChangeKind.EVERYTHING for entry in entries):
        return None
    if not any(entry.kind is ChangeKind.FOLLOW_LIST for entry in entries):
        return head, ()
    return head, [step async for step in read_steps(connection, since, head)]


def _apply(lists: FollowLists, steps: Iterable[Step]) -> None:
    change = lists.change
    for step in steps:
        name = str(step.list_id)
        for fingerprint in step.fingerprints:
            change(name, fingerprint, step.step)
