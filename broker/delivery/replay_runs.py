"""A replay under way in this process: which number may go now, and how far all is settled. Pure.

It holds a bounded window of the numbers that were asked for. They are settled in order: a number counts once it and
all before it were sent, failed or were skipped, so that who goes on after a crash knows where. Until then several are
under way side by side; within a lane one at a time, in order of number.

    offer ──► lane free? ──► ready ──► take ──► (attempt) ──► sent · failed · skipped ──► settled, in order
                 │ no          ▲                     └──────► retry, returned
                 ▼             └─────────────────────────────────┘
              waiting

Replays share the sink with what is fresh, its pace and its breaker; the run queue of a subscription goes first.
"""

import heapq
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from broker.delivery.lanes import Delivery
from broker.delivery.retries import Schedule
from broker.storage.replays import Letter, Running
from broker.storage.tables import CANCELLED, DEAD, PENDING

WINDOW: Final = 500
SCHEDULE: Final = Schedule.of_seconds((1, 5, 15, 60))
"""A number that a sink refuses for longer than this has failed; the replay goes on without it."""
EXPIRED: Final = "payload-expired"
_BURST_SECONDS: Final = 0.05
_WHOLE: Final = 1 - 1e-6
"""Of a token: sums of fractions never quite make one."""


class Result(StrEnum):
    """What became of a number."""

    SENT = "sent"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(slots=True)
class _Step:
    """A number, or adjacent ones that are all skipped."""

    through: int
    count: int = 1
    result: Result | None = None
    reason: str | None = None
    letter: Letter | None = None


@dataclass(slots=True, kw_only=True)
class Replayed(Delivery):
    """A delivery that is sent again because somebody asked; what comes of it is the replay's."""

    run: "ReplayRun"
    step: _Step
    dead: bool
    """It was a dead letter when it was read."""
    source: str | None
    type: str | None
    """Of the event, by which it may be held; None: it is gone."""


@dataclass(slots=True)
class Row:
    """A delivery as it stands in the database."""

    sequence: int
    event_key: int
    lane: int | None
    state: str
    reason: str | None
    source: str | None = None
    type: str | None = None


@dataclass(slots=True)
class ReplayRun:
    """One replay. Times are seconds since 1970."""

    asked: Running
    epoch: int
    """Of the shard, when it was read: what is written counts under this one alone."""
    read_through: int = 0
    exhausted: bool = False
    """All numbers were read."""
    cursor: int = 0
    sent_count: int = 0
    failed_count: int = 0
    skipped_counts: Counter[str] = field(default_factory=Counter)
    last_failure: str | None = None
    results: Counter[Result] = field(default_factory=Counter)
    """Settled since `settled` was called."""
    _letters: list[Letter] = field(default_factory=list)
    _steps: deque[_Step] = field(default_factory=deque)
    _ready: deque[Replayed] = field(default_factory=deque)
    _timed: list[Replayed] = field(default_factory=list)
    _lanes: dict[int, deque[Replayed]] = field(default_factory=dict)
    _under_way: dict[int, Replayed] = field(default_factory=dict)
    _tokens: float = 1.0
    _tokens_at: float = 0.0

    @classmethod
    def of(cls, asked: Running, epoch: int) -> "ReplayRun":
        """Go on where a replay was."""
        return cls(
            asked, epoch, asked.cursor, False, asked.cursor, asked.sent, asked.failed, Counter(asked.skipped),
            asked.last_failure,
        )  # fmt: skip

    @property
    def wants_more(self) -> bool:
        """Whether more numbers are to be read."""
        return not self.exhausted and len(self._steps) <= WINDOW // 2

    @property
    def over(self) -> bool:
        """Everything that was asked for is settled."""
        return self.exhausted and not self._steps

    def next_numbers(self) -> list[int] | None:
        """Which numbers to read next, beyond `read_through`; None: all that there are, up to the last."""
        if self.asked.numbers is None:
            return None
        return [number for number in self.asked.numbers if number > self.read_through][:WINDOW]

    def offer(self, rows: list[Row], numbers: list[int] | None, *, complete: bool) -> None:
        """Take what was read beyond `read_through`: `rows` are those that there are of `numbers`, or of all.

        `complete`: there are no more.
        """
        last = self.asked.last
        if numbers is not None:
            there = {row.sequence: row for row in rows}
            for number in numbers:
                row = there.get(number)
                if row is None:
                    self._skip(number, 1, EXPIRED)
                else:
                    self._take_in(row)
            through = numbers[-1] if numbers else last
            complete = not numbers or number_is_last(numbers, self.asked.numbers)
        else:
            through = self.read_through
            for row in rows:
                if row.sequence > through + 1:
                    self._skip(row.sequence - 1, row.sequence - 1 - through, EXPIRED)
                self._take_in(row)
                through = row.sequence
            if complete and through < last:
                self._skip(last, last - through, EXPIRED)
                through = last
        self.read_through = through
        self.exhausted = complete or through >= last
        self._settle()

    def wait(self, now: float) -> float | None:
        """Seconds until something may go, 0: now; None: nothing is waiting."""
        self._wake(now)
        if self._ready:
            return self._token_wait(now)
        return None if not self._timed else max(self._timed[0].due - now, 0.001)

    def take(self, now: float) -> Replayed | None:
        """The next that may go now."""
        if self.wait(now) != 0:
            return None
        self._tokens -= 1
        delivery = self._ready.popleft()
        self._under_way[delivery.sequence] = delivery
        return delivery

    def sent(self, delivery: Replayed, status: int | None, now: float) -> None:
        """The sink has accepted it."""
        step = self._end(delivery, Result.SENT, None)
        if step is not None and delivery.dead:
            step.letter = Letter(delivery.sequence, delivery.event_key, status, now)
        self._settle()

    def failed(self, delivery: Replayed, reason: str | None) -> None:
        """The sink refused it for good, or for too long; its state stays as it is."""
        self.last_failure = reason
        self._end(delivery, Result.FAILED, reason)
        self._settle()

    def skipped(self, delivery: Replayed, reason: str) -> None:
        """It may not be sent, or can't be."""
        self._end(delivery, Result.SKIPPED, reason)
        self._settle()

    def retry(self, delivery: Replayed, due: float, reason: str | None = None) -> None:
        """Again at `due`; its lane waits for it."""
        self.last_failure = reason or self.last_failure
        if self._under_way.pop(delivery.sequence, None) is not None:
            delivery.due = due
            heapq.heappush(self._timed, delivery)

    def returned(self, delivery: Replayed) -> None:
        """It was not sent, or nobody knows: it goes first when it can. Does nothing for one that has ended."""
        if self._under_way.pop(delivery.sequence, None) is not None:
            self._ready.appendleft(delivery)

    def letters(self) -> list[Letter]:
        """The dead letters that are settled as sent and are not written yet."""
        return list(self._letters)

    def written(self, letters: int) -> None:
        """The first so many letters, and all that was settled before, are in the database."""
        del self._letters[:letters]

    def progress(self) -> Running:
        """How far it is."""
        asked = self.asked
        return Running(
            asked.id, asked.subscription, asked.first, asked.last, None, asked.per_second, self.cursor,
            self.sent_count, self.failed_count, dict(self.skipped_counts), self.last_failure, asked.over,
        )  # fmt: skip

    def _take_in(self, row: Row) -> None:
        if row.state == PENDING:
            self._skip(row.sequence, 1, PENDING)  # it is sent anyway, in its time
            return
        if row.state == CANCELLED:
            self._skip(row.sequence, 1, (row.reason or CANCELLED).partition(":")[0])
            return
        step = _Step(row.sequence)
        self._steps.append(step)
        delivery = Replayed(
            self.asked.subscription, row.sequence, row.event_key, row.lane, run=self, step=step,
            dead=row.state == DEAD, source=row.source, type=row.type,
        )  # fmt: skip
        if row.lane is None:
            self._ready.append(delivery)
        elif row.lane in self._lanes:
            self._lanes[row.lane].append(delivery)
        else:
            self._lanes[row.lane] = deque()
            self._ready.append(delivery)

    def _skip(self, through: int, count: int, reason: str) -> None:
        self._steps.append(_Step(through, count, Result.SKIPPED, reason))

    def _end(self, delivery: Replayed, result: Result, reason: str | None) -> _Step | None:
        if self._under_way.pop(delivery.sequence, None) is None:
            return None
        delivery.step.result, delivery.step.reason = result, reason
        if delivery.lane is not None:
            waiting = self._lanes[delivery.lane]
            if waiting:
                self._ready.append(waiting.popleft())
            else:
                del self._lanes[delivery.lane]
        return delivery.step

    def _settle(self) -> None:
        while self._steps and (result := self._steps[0].result) is not None:
            step = self._steps.popleft()
            self.cursor = step.through
            self.results[result] += step.count
            match result:
                case Result.SENT:
                    self.sent_count += 1
                case Result.FAILED:
                    self.failed_count += 1
                case Result.SKIPPED:
                    self.skipped_counts[step.reason or ""] += step.count
            if step.letter is not None:
                self._letters.append(step.letter)

    def _wake(self, now: float) -> None:
        while self._timed and self._timed[0].due <= now:
            self._ready.appendleft(heapq.heappop(self._timed))

    def _token_wait(self, now: float) -> float:
        rate = self.asked.per_second
        most = max(1.0, rate * _BURST_SECONDS)
        self._tokens = min(most, self._tokens + max(now - self._tokens_at, 0.0) * rate)
        self._tokens_at = now
        return 0 if self._tokens >= _WHOLE else (1 - self._tokens) / rate


def number_is_last(numbers: list[int], asked: tuple[int, ...] | None) -> bool:
    """Whether the last of some numbers is the last that was asked for."""
    return asked is None or numbers[-1] == asked[-1]
