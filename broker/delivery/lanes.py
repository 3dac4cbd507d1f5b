"""The run queue of one subscription: what may go now, what waits for its lane, what waits for its time. Pure.

It holds a bounded window of the deliveries that are pending in the database. Rows are offered in order of their
number; `cursor` is the highest one offered. A lane lets one delivery go at a time; what comes behind it waits in
memory, or, past a few, is only remembered as "the lane goes on in the database" and is fetched when the lane reaches
it. So the memory it takes depends neither on the backlog nor on how the backlog spreads over lanes.

    offer ──► lane free? ──► due? ──► ready ──► take ──► (attempt) ──► done   ──► next of the lane
                 │ no          │ no     ▲                     └──────► retry ──┐
                 ▼             └──► timed ◄──────────────────────────────────────┘
              waiting / in the database

What waits for a delay is taken in the database when its time has come, before it is ready: it may have been cancelled.

What is held is passed over, and with it the rest of its lane: nothing of it is kept in memory but the lane, so the rows
behind it are reached however many are held. When a hold ends, all is read anew.

A lane whose first waits for its time keeps nothing else in memory, so that failing lanes, however many and however
long, leave the window to the others.

A batch takes several at once, also several of one lane, in order; a lane that it took from is closed until `settle`
says what came of the whole batch.
"""

import heapq
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

LANE_WINDOW: Final = 8
_ANY: Final = 1 << 30


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
    delayed: bool = False
    """It was to wait for its time before its first attempt, so it may have been cancelled meanwhile."""
    company: int = _ANY
    """Deliveries that a batch with this one may have, itself included."""
    given_back: bool = False
    """It was taken for a batch before, and waits for nothing any more."""

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


_number = attrgetter("sequence")


class RunQueue:
    """Deliveries of one subscription, in the order in which they may go."""

    def __init__(self, lane_window: int = 0) -> None:
        """Make an empty one; of a lane that is closed it holds `lane_window` deliveries (0: the usual number)."""
        self.lane_window = lane_window or LANE_WINDOW
        self.cursor = 0
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
        self._to_take: list[Delivery] = []
        self._taking = 0

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
        return not (
            self.more or self._ready or self._timed or self._lanes or self.passed_over or self._to_take or self._taking
        )

    @property
    def stands_still(self) -> bool:
        """Lanes are closed, and nothing is here that will open them: so it must be under way, or being read."""
        return bool(self._lanes) and not (self._ready or self._timed or self._to_fetch or self._to_take or self._taking)

    @property
    def barred(self) -> int:
        """Lanes that are remembered because something in them is held."""
        return len(self._barred)

    def offer(self, rows: Sequence[Delivery], now: float) -> None:
        """Take rows from the database, in order of number and beyond the cursor."""
        for row in rows:
            if row.sequence <= self.cursor:
                continue
            self.cursor = row.sequence
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
            elif lane.held or lane.goes_on or lane.fetching or len(lane.waiting) >= self.lane_window:
                lane.goes_on = True
            else:
                lane.waiting.append(row)
                self._waiting += 1

    def first(self, now: float) -> Delivery | None:
        """What `take` would give."""
        while self._timed and self._timed[0].due <= now:
            self._place(heapq.heappop(self._timed), now)
        return self._ready[0] if self._ready else None

    def take(self, now: float) -> Delivery | None:
        """The next delivery that may go at `now`; its lane is closed until `done` or `retry`."""
        if self.first(now) is None:
            return None
        return self._ready.popleft()

    def take_batch(self, now: float, count: int) -> list[Delivery]:
        """Up to `count` deliveries that may go together at `now`, in order of number.

        Of each lane they are the next ones, and the lane is closed until `settle`, or `give_back` of all of them.
        """
        self.first(now)
        taken: list[Delivery] = []
        ready = self._ready
        while ready and len(taken) < min(count, ready[0].company):
            delivery = ready.popleft()
            count = min(count, delivery.company)
            taken.append(delivery)
            if delivery.lane is None:
                continue
            waiting = self._lanes[delivery.lane].waiting
            while waiting and waiting[0].due <= now and len(taken) < min(count, waiting[0].company):
                if waiting[0].delayed:
                    break  # it is taken in the database first, when its lane comes to it
                delivery = waiting.popleft()
                count = min(count, delivery.company)
                taken.append(delivery)
                self._waiting -= 1
        taken.sort(key=_number)
        return taken

    def fills(self, count: int, now: float) -> bool:
        """Whether a batch of so many could be taken now, or there is one that was given back."""
        self.first(now)
        there = len(self._ready)
        if there >= count or any(delivery.given_back for delivery in self._ready):
            return True
        if self._waiting + there < count:
            return False
        for delivery in self._ready:
            if delivery.lane is not None:
                there += len(self._lanes[delivery.lane].waiting)
        return there >= count

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

    def settle(self, deliveries: Sequence[Delivery], again: Mapping[int, float], now: float) -> None:
        """A batch is over, whose deliveries come in order of number.

        Those whose number is in `again` go again at that time (0: at once); the others have ended. Whoever comes behind
        one that waits for its time waits with it, whatever `again` says, and is read anew when its lane comes to it.
        """
        of_lane: dict[int, list[Delivery]] = {}
        at_once: list[Delivery] = []
        for delivery in deliveries:
            if delivery.lane is not None:
                of_lane.setdefault(delivery.lane, []).append(delivery)
            elif (due := again.get(delivery.sequence)) == 0:
                at_once.append(delivery)
            elif due is not None:
                self.retry(delivery, due)
        for lane, those in of_lane.items():
            left = [delivery for delivery in those if delivery.sequence in again]
            if not left:
                self.done(those[-1], now)
            elif due := again[left[0].sequence]:
                if len(left) > 1:
                    self._lanes[lane].goes_on = True
                self.retry(left[0], due)
            else:
                at_once.extend(left)
        self.give_back(at_once)

    def give_back(self, deliveries: Sequence[Delivery], closed: Collection[int] = ()) -> None:
        """These were taken for a batch and may go again at once, before all others, in order of number.

        `closed`: lanes of which others are still under way.
        """
        of_lane: dict[int, list[Delivery]] = {}
        ready: list[Delivery] = []
        for delivery in sorted(deliveries, key=_number):
            delivery.given_back = True
            if delivery.lane is None:
                ready.append(delivery)
            elif delivery.lane in closed or delivery.lane in of_lane:
                of_lane.setdefault(delivery.lane, []).append(delivery)
            else:
                of_lane[delivery.lane] = []
                ready.append(delivery)
        for lane, those in of_lane.items():
            self._lanes[lane].waiting.extendleft(reversed(those))
            self._waiting += len(those)
        self._ready.extendleft(reversed(ready))

    @property
    def wants_taking(self) -> bool:
        """Whether `delayed_to_take` has something to say."""
        return bool(self._to_take)

    def delayed_to_take(self) -> list[Delivery]:
        """Deliveries whose delay is over; each is to be taken in the database, asked for once."""
        asked, self._to_take = self._to_take, []
        self._taking += len(asked)
        return asked

    def take_again(self, asked: Sequence[Delivery]) -> None:
        """These could not be asked for: `delayed_to_take` names them again."""
        self._taking -= len(asked)
        self._to_take.extend(asked)

    def taken(self, delivery: Delivery) -> None:
        """It was taken: it may go."""
        self._taking -= 1
        delivery.delayed = False
        self._ready.append(delivery)

    def not_taken(self, delivery: Delivery, due: float | None, now: float) -> None:
        """Its time comes at `due`; None: it has ended, and its lane goes on."""
        self._taking -= 1
        if due is None:
            self.done(delivery, now)
        else:
            self.retry(delivery, due)

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
        elif delivery.delayed:
            self._to_take.append(delivery)
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
