"""The run queue of one subscription: what may go now, what waits for its lane, what waits for its time. Pure.

It holds a bounded window of the deliveries that are pending in the database. Rows are offered in order of their
number; `cursor` is the highest one offered. A lane lets one delivery go at a time; what comes behind it waits in
memory, or, past a few, is only remembered as "the lane goes on in the database" and is fetched when the lane reaches
it. So the memory it takes depends neither on the backlog nor on how the backlog spreads over lanes.

    offer ──► lane free? ──► due? ──► ready ──► take ──► (attempt) ──► done   ──► next of the lane
                 │ no          │ no     ▲                     └──────► retry ──┐
                 ▼             └──► timed ◄──────────────────────────────────────┘
              waiting / in the database

What is held is passed over, and with it the rest of its lane: nothing of it is kept in memory but the lane, so the rows
behind it are reached however many are held. When a hold ends, all is read anew.

A lane whose first waits for its time keeps nothing else in memory, so that failing lanes, however many and however
long, leave the window to the others.
"""

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

LANE_WINDOW: Final = 8


@dataclass(slots=True)
class Delivery:
    """A pending delivery in memory. Times are seconds since 1970."""

    subscription: int
    sequence: int
    event_key: int
    lane: int | None
    attempts: int = 0
    due: float = 0.0
    held: bool = False
    """It may not go, and so may nothing behind it in its lane."""

    def __lt__(self, other: "Delivery") -> bool:
        return (self.due, self.sequence) < (other.due, other.sequence)


@dataclass(slots=True)
class _Lane:
    """A lane with one delivery under way or timed."""

    waiting: deque[Delivery] = field(default_factory=deque)
    goes_on: bool = False
    """Rows of this lane up to the cursor were left in the database."""
    fetching: bool = False
    held: bool = False
    """Its first waits for its time."""


class RunQueue:
    """Deliveries of one subscription, in the order in which they may go."""

    def __init__(self) -> None:
        self.cursor = 0
        self.cursor_key = 0
        """The event key at the cursor."""
        self.more = True
        """The database may hold pending rows beyond the cursor."""
        self.behind = False
        """It held more than were read at once when it was read last."""
        self._ready: deque[Delivery] = deque()
        self._timed: list[Delivery] = []
        self._lanes: dict[int, _Lane] = {}
        self._waiting = 0
        self.passed_over = 0
        """Deliveries that are held, or behind such a one; they are read anew when a hold ends."""
        self._barred: set[int] = set()
        """Lanes in which something is held."""
        self._to_fetch: dict[int, int] = {}

    @property
    def buffered(self) -> int:
        """Deliveries in memory that are not under way and not waiting for their time."""
        return len(self._ready) + self._waiting

    @property
    def timed(self) -> int:
        """Deliveries that wait for their time."""
        return len(self._timed)

    @property
    def idle(self) -> bool:
        """Nothing is here, under way or known to be in the database."""
        return not (self.more or self._ready or self._timed or self._lanes or self.passed_over)

    @property
    def barred(self) -> int:
        """Lanes that are remembered because something in them is held."""
        return len(self._barred)

    def offer(self, rows: Sequence[Delivery], now: float) -> None:
        """Take rows from the database, in order of number and beyond the cursor."""
        for row in rows:
            if row.sequence <= self.cursor:
                continue
            self.cursor, self.cursor_key = row.sequence, row.event_key
            if row.held or row.lane in self._barred:
                self._pass_over(row)
                continue
            if row.lane is None:
                self._place(row, now)
                continue
            lane = self._lanes.get(row.lane)
            if lane is None:
                self._lanes[row.lane] = _Lane()
                self._place(row, now)
            elif lane.held or lane.goes_on or lane.fetching or len(lane.waiting) >= LANE_WINDOW:
                lane.goes_on = True
            else:
                lane.waiting.append(row)
                self._waiting += 1

    def first(self, now: float) -> Delivery | None:
        """What `take` would give."""
        while self._timed and self._timed[0].due <= now:
            self._ready.append(heapq.heappop(self._timed))
        return self._ready[0] if self._ready else None

    def take(self, now: float) -> Delivery | None:
        """The next delivery that may go at `now`; its lane is closed until `done` or `retry`."""
        if self.first(now) is None:
            return None
        return self._ready.popleft()

    def next_due(self) -> float | None:
        """When the earliest timed delivery may go."""
        return self._timed[0].due if self._timed else None

    def done(self, delivery: Delivery, now: float) -> None:
        """The delivery has ended: its lane goes on."""
        if delivery.lane is None:
            return
        lane = self._lanes[delivery.lane]
        lane.held = False
        if lane.waiting:
            self._waiting -= 1
            self._place(lane.waiting.popleft(), now)
        elif lane.goes_on:
            self._fetch(delivery.lane, lane, delivery.sequence)
        else:
            del self._lanes[delivery.lane]

    def retry(self, delivery: Delivery, due: float) -> None:
        """The delivery goes again at `due`; only its own lane waits for it."""
        delivery.due = due
        self._hold(delivery)

    @property
    def wants_lanes(self) -> bool:
        """Whether `lanes_to_fetch` has something to say."""
        return bool(self._to_fetch)

    def lanes_to_fetch(self) -> list[tuple[int, int]]:
        """Lanes that go on in the database, each with the number after which; asked for once."""
        asked, self._to_fetch = self._to_fetch, {}
        return list(asked.items())

    def ask_again(self, asked: Sequence[tuple[int, int]]) -> None:
        """These lanes could not be fetched: `lanes_to_fetch` names them again."""
        self._to_fetch.update(asked)

    def offer_lane(self, lane_key: int, rows: Sequence[Delivery], *, after: int, complete: bool, now: float) -> None:
        """Take the rows of a lane that `lanes_to_fetch` asked for, beyond `after`, up to the cursor of that moment.

        `complete`: there were no more than these.
        """
        lane = self._lanes[lane_key]
        lane.fetching = False
        if not complete:
            lane.goes_on = True
        held = next((position for position, row in enumerate(rows) if row.held), None)
        if held is not None:
            self._pass_over(rows[held])
            rows, lane.goes_on = rows[:held], False
        if not rows:
            if lane.goes_on:  # rows came by while we asked; what is not beyond `after` may have gone already
                self._fetch(lane_key, lane, after)
            else:
                del self._lanes[lane_key]
            return
        lane.waiting.extend(rows[1:])
        self._waiting += len(rows) - 1
        self._place(rows[0], now)

    def _pass_over(self, delivery: Delivery) -> None:
        self.passed_over += 1
        if delivery.lane is not None:
            self._barred.add(delivery.lane)

    def _place(self, delivery: Delivery, now: float) -> None:
        if delivery.due > now:
            self._hold(delivery)
        else:
            self._ready.append(delivery)

    def _hold(self, delivery: Delivery) -> None:
        heapq.heappush(self._timed, delivery)
        if delivery.lane is None:
            return
        lane = self._lanes[delivery.lane]
        lane.held = True
        if lane.waiting:
            self._waiting -= len(lane.waiting)
            lane.waiting.clear()
            lane.goes_on = True

    def _fetch(self, lane_key: int, lane: _Lane, after: int) -> None:
        lane.goes_on = False
        lane.fetching = True
        self._to_fetch[lane_key] = after
