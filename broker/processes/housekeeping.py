"""Housekeeping of the installation: accounts are kept, days retired, what is old is forgotten.

Every delivery process runs it; a job is done by whoever finds it due (`storage.jobs`), so each is done once however
many processes there are. Checks yield to traffic: after each step they pause so long that they take no more than
their share of one connection's time, and steps are short.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from broker.storage import accounting, drift, event_checks, expiring, jobs, leases, pruning, retention, retirement
from broker.storage.drift import Finding
from broker.storage.pool import DATABASE_TROUBLE
from broker.storage.retention import Day
from broker.storage.settings import AccountingSettings, RetentionSettings
from broker.storage.tables import key_at
from broker.telemetry import DAYS_OVERDUE, DRIFT, ROUND_FINISHED, ROUND_SECONDS, WORKER_ERRORS, log
from subscriptions.change_log import prune_changes

TOTALS: Final = "totals"
NUMBERS: Final = "numbers"
EVENTS: Final = "events"
RETAIN: Final = "retain"
PRUNE: Final = "prune"
EXPIRING: Final = "expiring"

_LOOK_SECONDS: Final = 1.0
_FIGURES_SECONDS: Final = 15.0
_STEP_SECONDS: Final = 0.25
_HOURLY: Final = timedelta(hours=1)
_SUBSCRIPTIONS: Final = 200
_UNCHANGED: Final = timedelta(minutes=10)
"""A subscription in which nothing happens is compared this often all the same."""

Cursor = dict[str, Any]
Step = Callable[[asyncpg.Connection, Cursor, datetime], Awaitable[tuple[Cursor, bool]]]
"""Does a step from a cursor; the next cursor, and whether the round is over."""


class Housekeeper:
    """The keeping of accounts and the retiring of what is old; `run` is its worker."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        engine: AsyncEngine,
        accounts: AccountingSettings,
        retention: RetentionSettings,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._pool = pool
        self._engine = engine
        self._accounts = accounts
        self._retention = retention
        self._clock = clock
        every = timedelta(seconds=accounts.totals_seconds)
        self._jobs: dict[str, tuple[Step, timedelta]] = {
            TOTALS: (self._check_totals, every),
            NUMBERS: (self._check_numbers, every),
            EVENTS: (self._check_events, every),
            RETAIN: (self._retain, _HOURLY),
            PRUNE: (self._prune, _HOURLY),
            EXPIRING: (self._tell_expiring, _HOURLY),
        }
        """Each with the least time from the end of a round to the next."""

    async def run(self) -> None:
        """Do what is due until cancelled."""
        created, figures_at = False, 0.0
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                if not created:
                    async with self._pool.acquire() as connection:
                        await jobs.create(connection, list(self._jobs), self._clock())
                    created = True
                await self.step()
                if time.monotonic() >= figures_at:
                    await self.tell()
                    figures_at = time.monotonic() + _FIGURES_SECONDS
            except DATABASE_TROUBLE as error:
                WORKER_ERRORS.labels("housekeeping").inc()
                log().warning("housekeeping-failed", error=type(error).__name__)

    async def step(self) -> str | None:
        """Do one step of the job that has been due for longest; its name, or None when none is due."""
        now = self._clock()
        async with self._pool.acquire() as connection:
            job = await jobs.claim(connection, list(self._jobs), now)
            if job is None:
                return None
            work, pause = self._jobs[job.name]
            started = time.perf_counter()
            cursor, over = await work(connection, job.cursor, now)
            # as long as it took, divided by the share that it may take
            rest = timedelta(seconds=(time.perf_counter() - started) * (1 / self._accounts.share - 1))
            if over:
                await jobs.finish(connection, job.name, cursor, now + max(pause, rest), now)
            else:
                await jobs.go_on(connection, job.name, cursor, now + rest)
        return job.name

    async def tell(self) -> None:
        """Set the figures; every process tells the same, whoever did the work."""
        async with self._pool.acquire() as connection:
            for kind, count in (await drift.counts(connection)).items():
                DRIFT.labels(kind).set(count)
            for name, (finished, seconds) in (await jobs.rounds(connection)).items():
                ROUND_FINISHED.labels(name).set(finished)
                ROUND_SECONDS.labels(name).set(seconds)
            longest = (await retention.retentions(connection, self._retention.days))[-1]
            ages = [day.age(self._clock()) for day in await retention.days(connection)]
            DAYS_OVERDUE.set(sum(age > longest for age in ages))

    # the jobs

    async def _check_totals(self, connection: asyncpg.Connection, cursor: Cursor, now: datetime) -> tuple[Cursor, bool]:
        """Compare totals with rows of the subscriptions that something happened to, or that were not for a while."""
        key = int(cursor.get("key", 0))
        end = time.perf_counter() + _STEP_SECONDS
        async with accounting.alone(connection) as ours:
            if not ours:
                return cursor, False
            dues = await accounting.subscriptions_after(connection, key, _SUBSCRIPTIONS)
            for due in dues:
                if time.perf_counter() >= end:
                    return {"key": key}, False
                age = now - due.checked_at if due.checked_at is not None else None
                # one that has much pending costs more, and is compared less often
                patience = timedelta(milliseconds=due.took_ms / self._accounts.share)
                if age is None or (age >= patience and (due.changed or age >= _UNCHANGED)):
                    findings, caught_up = await accounting.check_totals(connection, due.key, now)
                    _report(findings)
                    if not caught_up:
                        return {"key": key}, False  # this one again
                key = due.key
            over = len(dues) < _SUBSCRIPTIONS
            return {} if over else {"key": key}, over

    async def _check_numbers(
        self, connection: asyncpg.Connection, cursor: Cursor, now: datetime
    ) -> tuple[Cursor, bool]:
        """The slow round over every number that is kept."""
        key, first = int(cursor.get("key", 0)), cursor.get("first")
        end = time.perf_counter() + _STEP_SECONDS
        async with accounting.alone(connection) as ours:
            if not ours:
                return cursor, False
            while time.perf_counter() < end:
                if first is None:
                    following = await accounting.subscriptions_after(connection, key, 1)
                    if not following:
                        return {}, True
                    key, first = following[0].key, 1
                findings, first = await accounting.check_numbers(connection, key, first, now)
                _report(findings)
            return {"key": key, "first": first}, False

    async def _check_events(self, connection: asyncpg.Connection, cursor: Cursor, now: datetime) -> tuple[Cursor, bool]:
        """The slow round over every event that is kept."""
        after: int | None = int(cursor.get("after", 0))
        end = time.perf_counter() + _STEP_SECONDS
        bounds = await event_checks.bounds_of(connection)
        while after is not None and time.perf_counter() < end:
            findings, after = await event_checks.check(connection, after, now, bounds=bounds)
            _report(findings)
        return {} if after is None else {"after": after}, after is None

    async def _retain(self, connection: asyncpg.Connection, cursor: Cursor, now: datetime) -> tuple[Cursor, bool]:
        """Erase and retire what is past its retention: a bounded step of the first day that has something to do."""
        for name in await retirement.drop_taken_out(connection):
            log().info("partition-dropped", partition=name)
        default = self._retention.days
        terms = await retention.retentions(connection, default)
        stays: list[str] = cursor.get("stays", [])
        erased: dict[str, int] = cursor.get("erased", {}) if cursor.get("terms") == terms else {}
        cursor = {"terms": terms, "stays": stays, "erased": erased, "after": cursor.get("after", 0)}
        days = await retention.days(connection)
        cursor["erased"] = erased = {day: age for day, age in erased.items() if day in {str(d.day) for d in days}}
        end = time.perf_counter() + _STEP_SECONDS
        for day in days:
            age, name = day.age(now), str(day.day)
            if age < terms[0]:
                break
            if name not in stays:
                if await retention.may_go(connection, day, default, now):
                    if await self._retire(connection, day, now, end) is False:
                        stays.append(name)
                    return cursor, False
                stays.append(name)
            if any(erased.get(name, -1) < term <= age for term in terms):
                while time.perf_counter() < end:
                    count, after = await retention.erase(connection, day, cursor["after"], default, now)
                    if count:
                        log().info("payloads-erased", day=name, events=count)
                    cursor["after"] = after or 0
                    if after is None:
                        erased[name] = age
                        break
                return cursor, False
        before = now - timedelta(days=default)
        over = await retirement.settle_kept(connection, before) == 0
        return cursor | {"stays": [] if over else stays}, over

    async def _retire(self, connection: asyncpg.Connection, day: Day, now: datetime, end: float) -> bool | None:
        """A step of retiring a day: True when it is gone, False when it has to stay for now, None when not done."""
        try:
            await retirement.close(connection, day)
            while time.perf_counter() < end:
                cancelled = await retention.cancel_pending(connection, day, now)
                if cancelled:
                    log().info("pending-expired", day=str(day.day), deliveries=cancelled)
                elif await retirement.explain(connection, day, now):
                    moved = await retirement.retire(connection, day, now)
                    log().info("day-retired", day=str(day.day), kept=moved)
                    return True
        except retirement.TooMuchToKeep as error:
            log().warning("day-stays", day=str(day.day), reason=str(error))
            return False
        except asyncpg.LockNotAvailableError:
            log().info("day-in-use", day=str(day.day))
        return None

    async def _tell_expiring(
        self, connection: asyncpg.Connection, cursor: Cursor, now: datetime
    ) -> tuple[Cursor, bool]:
        """Tell providers what retention will take: a day and a retention at a time, each once."""
        default, ahead = self._retention.days, self._retention.notice_days
        told: list[list[Any]] = cursor.get("told", [])
        days = await retention.days(connection)
        for day in days if ahead else ():
            age = day.age(now)
            for term in await retention.retentions(connection, default):
                place = [str(day.day), term]
                if max(term - ahead, 0) <= age < term and place not in told:
                    count = await expiring.tell(connection, day, term, default, now, timedelta(days=ahead))
                    if count:
                        log().info("expiry-told", day=str(day.day), subscriptions=count)
                    return {"told": [*told, place]}, False
        there = {str(day.day) for day in days}
        return {"told": [place for place in told if place[0] in there]}, True

    async def _prune(self, connection: asyncpg.Connection, cursor: Cursor, now: datetime) -> tuple[Cursor, bool]:
        """Forget what is older than anybody needs."""
        until = key_at(now - timedelta(days=self._retention.deduplication_days))
        if "forgotten" not in cursor or cursor.get("hour") != f"{now:%Y%m%d%H}":
            # said before it is done, so that accounting doesn't miss what goes
            return {"forgotten": until, "hour": f"{now:%Y%m%d%H}"}, False
        count = await pruning.forget_ids(connection, cursor["forgotten"])
        count += await pruning.forget_rejections(connection, now - timedelta(days=self._retention.rejection_days))
        if count == 0:
            await leases.forget(connection)
            async with self._engine.begin() as transaction:
                await prune_changes(transaction, now - timedelta(days=self._retention.change_days))
        return cursor, count == 0


def _report(findings: list[Finding]) -> None:
    for finding in findings:
        log().error(
            "drift-found",
            kind=finding.kind,
            subscription=finding.subscription,
            number=finding.number,
            event_key=finding.event_key,
            detail=finding.detail,
        )
