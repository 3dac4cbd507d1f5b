"""The run queue against a model: a database of pending rows that is read late, and outcomes that are recorded late."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.delivery import lanes
from broker.delivery.lanes import Delivery, RunQueue

WINDOW = 8
LANES = st.sampled_from([1, 1, 2, None])


@pytest.fixture(autouse=True, scope="module")
def _short_lanes() -> Iterator[None]:
    """So that lanes are left in the database early, and the model gets there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lanes, "LANE_WINDOW", 2)
        yield


@dataclass
class Row:
    sequence: int
    lane: int | None
    due: float = 0.0
    ended: bool = False
    """As recorded, so as a query sees it."""
    held: bool = False

    def read(self) -> Delivery:
        return Delivery(
            1, self.sequence, self.sequence * 10, self.lane, due=self.due, held=self.held, delayed=self.due > 0
        )


class Database:
    """The pending rows of one subscription."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, lane: int | None, due: float = 0.0) -> None:
        self.rows.append(Row(len(self.rows) + 1, lane, due))

    def row(self, sequence: int) -> Row:
        return self.rows[sequence - 1]

    def after(self, cursor: int, limit: int) -> list[Delivery]:
        return [row.read() for row in self.rows[cursor:] if not row.ended][:limit]

    def of_lane(self, lane: int, after: int, cursor: int) -> list[Delivery]:
        found = [row for row in self.rows[after:cursor] if row.lane == lane and not row.ended]
        return [row.read() for row in found[: lanes.LANE_WINDOW]]


def has_room(queue: RunQueue) -> bool:
    return queue.more and queue.buffered <= WINDOW // 2


def feed(queue: RunQueue, database: Database, now: float = 0.0) -> None:
    """What the engine's feed does."""
    for delivery in queue.delayed_to_take():
        queue.taken(delivery)
    for lane, after in queue.lanes_to_fetch():
        rows = database.of_lane(lane, after, queue.cursor)
        queue.offer_lane(lane, rows, after=after, complete=len(rows) < lanes.LANE_WINDOW, now=now)
    if has_room(queue):
        rows = database.after(queue.cursor, WINDOW)
        queue.more = len(rows) == WINDOW
        queue.offer(rows, now)


class Model(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.queue = RunQueue()
        self.database = Database()
        self.now = 1.0
        self.under_way: dict[int, Delivery] = {}
        self.batches: list[list[Delivery]] = []
        self.given_back = 0
        self.finished: list[int] = []
        self.unrecorded: list[int] = []
        self.cancelled: set[int] = set()
        self.asked: list[tuple[int, int, list[Delivery]]] = []

    @rule(new=st.lists(LANES, min_size=1, max_size=WINDOW), wait=st.sampled_from([0.0, 0.0, 0.0, 5.0]))
    def accept(self, new: list[int | None], wait: float) -> None:
        for lane in new:
            self.database.add(lane, self.now + wait if wait else 0.0)
        self.queue.more = True

    @precondition(lambda self: not self.asked and self.queue.wants_lanes)
    @rule()
    def query_lanes(self) -> None:
        cursor = self.queue.cursor
        self.asked = [
            (lane, after, self.database.of_lane(lane, after, cursor)) for lane, after in self.queue.lanes_to_fetch()
        ]

    @precondition(lambda self: not self.asked and self.queue.wants_lanes)
    @rule()
    def query_of_lanes_fails(self) -> None:
        self.queue.ask_again(self.queue.lanes_to_fetch())

    @precondition(lambda self: self.asked)
    @rule()
    def answer_lanes(self) -> None:
        for lane, after, rows in self.asked:
            self.queue.offer_lane(lane, rows, after=after, complete=len(rows) < lanes.LANE_WINDOW, now=self.now)
        self.asked = []

    @precondition(lambda self: has_room(self.queue) and not self.asked)
    @rule()
    def read_on(self) -> None:
        rows = self.database.after(self.queue.cursor, WINDOW)
        self.queue.more = len(rows) == WINDOW
        self.queue.offer(rows, self.now)

    @rule(count=st.integers(1, 6))
    def take(self, count: int) -> None:
        for _ in range(count):
            delivery = self.queue.take(self.now)
            if delivery is None:
                return
            assert delivery.due <= self.now
            assert delivery.sequence not in self.finished, "sent again after it had ended"
            self._not_under_way(delivery)
            if delivery.lane is not None:
                earlier = self.database.rows[: delivery.sequence - 1]
                before = {row.sequence for row in earlier if row.lane == delivery.lane}
                assert before <= {*self.finished, *self.cancelled}, "overtook one of its lane"
            self.under_way[delivery.sequence] = delivery

    @rule(count=st.integers(1, 6), company=st.sampled_from([1, 2, 100]))
    def take_batch(self, count: int, company: int) -> None:
        """Several go together; what has no room is given back, and all of it may come back to go in smaller company."""
        taken = self.queue.take_batch(self.now, count)
        assert len(taken) <= count
        assert all(len(taken) <= delivery.company for delivery in taken)
        assert taken == sorted(taken, key=lambda delivery: delivery.sequence)
        for delivery in taken:
            assert delivery.due <= self.now
            assert delivery.sequence not in self.finished, "sent again after it had ended"
            self._not_under_way(delivery)
            earlier = self.database.rows[: delivery.sequence - 1] if delivery.lane is not None else []
            before = {row.sequence for row in earlier if row.lane == delivery.lane}
            together = {other.sequence for other in taken}
            assert before <= {*self.finished, *self.cancelled, *together}, "overtook one of its lane"
        room = min(len(taken), company)
        self.given_back = max(self.given_back, len(taken))
        self.queue.give_back(taken[room:], {d.lane for d in taken[:room] if d.lane is not None})
        if taken:
            self.batches.append(taken[:room])

    def _not_under_way(self, delivery: Delivery) -> None:
        of_batches = [other for batch in self.batches for other in batch]
        assert delivery.sequence not in {*self.under_way, *(other.sequence for other in of_batches)}, "twice at once"
        if delivery.lane is not None:
            closed = {other.lane for other in (*self.under_way.values(), *of_batches)}
            assert delivery.lane not in closed, "two of a lane at once"

    @precondition(lambda self: self.batches)
    @rule(cancelled=st.integers(0, 6), wait=st.sampled_from([None, None, 0.0, 0.5, 3.0]))
    def settle_batch(self, cancelled: int, wait: float | None) -> None:
        """All are delivered, or all wait, or all go again in half the company; some may have been cancelled."""
        batch = self.batches.pop(0)
        ended = batch if wait is None else [d for d in batch if d.sequence in self.cancelled][:cancelled]
        gone = {delivery.sequence for delivery in ended}
        again = {d.sequence: self.now + wait if wait else 0.0 for d in batch if d.sequence not in gone}
        for delivery in batch:
            if delivery.sequence in gone:
                self.finished.append(delivery.sequence)
                self.unrecorded.append(delivery.sequence)
            elif not wait:
                delivery.company = (len(batch) + 1) // 2
        self.queue.settle(batch, again, self.now)

    @precondition(lambda self: self.under_way)
    @rule(waits=st.lists(st.sampled_from([None, None, None, 0.5, 3.0]), min_size=1, max_size=6))
    def settle(self, waits: list[float | None]) -> None:
        """Attempts end: delivered, or to be made again after a wait."""
        for wait, sequence in zip(waits, list(self.under_way), strict=False):
            delivery = self.under_way.pop(sequence)
            if wait is None:
                self.finished.append(sequence)
                self.unrecorded.append(sequence)
                self.queue.done(delivery, self.now)
            else:
                self.queue.retry(delivery, self.now + wait)

    @rule()
    def take_delayed(self) -> None:
        """What has waited for its delay is taken, or is found to have ended."""
        for delivery in self.queue.delayed_to_take():
            if self.database.row(delivery.sequence).ended:
                self.queue.not_taken(delivery, None, self.now)
            else:
                self.queue.taken(delivery)

    @rule(rounds=st.integers(1, 6))
    def work(self, rounds: int) -> None:
        """Undisturbed for a while."""
        for _ in range(rounds):
            self.take(1)
            self.settle([None])

    @precondition(lambda self: self.database.rows)
    @rule(last=st.integers(1, 6))
    def cancel(self, last: int) -> None:
        """A grant ends: what is in memory may still be taken, and is then not sent."""
        for row in self.database.rows[-last:]:
            row.ended = True
            self.cancelled.add(row.sequence)

    @rule()
    def record(self) -> None:
        for sequence in self.unrecorded:
            self.database.row(sequence).ended = True
        self.unrecorded = []

    @rule(seconds=st.floats(0.1, 6))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def memory_is_bounded(self) -> None:
        # half a window is there when a window is read, and each lane that was left behind may bring its own
        # what was taken for a batch and given back stands there besides
        assert self.queue.buffered <= WINDOW + WINDOW // 2 + 3 * lanes.LANE_WINDOW + self.given_back

    @invariant()
    def nothing_stands_still_by_itself(self) -> None:
        assert not self.queue.stands_still or self.under_way or any(self.batches) or self.asked

    def teardown(self) -> None:
        """With everything taken and delivered, nothing may be left."""
        if self.asked:
            self.answer_lanes()
        self.now += 100
        while self.batches:
            self.settle_batch(0, None)
        for _ in range(20 + 4 * len(self.database.rows)):
            for delivery in list(self.under_way.values()):
                del self.under_way[delivery.sequence]
                self.finished.append(delivery.sequence)
                self.queue.done(delivery, self.now)
            feed(self.queue, self.database, self.now)
            self.take(1)
        everything = {row.sequence for row in self.database.rows}
        assert everything <= {*self.finished, *self.cancelled}, "lost"
        assert len(self.finished) == len(set(self.finished)), "ended twice"
        assert self.queue.idle, "a queue without work can be forgotten"
        assert self.queue.buffered == 0


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)


def drain(queue: RunQueue, database: Database) -> tuple[list[int], int]:
    """Delivers everything; the order, and the most that was in memory."""
    order, most = list[int](), 0
    while True:
        feed(queue, database)
        most = max(most, queue.buffered)
        delivery = queue.take(0.0)
        if delivery is None:
            return order, most
        order.append(delivery.sequence)
        database.row(delivery.sequence).ended = True
        queue.done(delivery, 0.0)


@pytest.mark.parametrize("count", [1, 7, 500, None], ids=["one lane", "seven lanes", "a lane each", "no lanes"])
def test_backlog_goes_completely_and_in_order_in_little_memory(count: int | None) -> None:
    queue, database = RunQueue(), Database()
    for number in range(500):
        database.add(None if count is None else number % count)
    order, most = drain(queue, database)
    assert sorted(order) == list(range(1, 501))
    of_lane = defaultdict[int | None, list[int]](list)
    for sequence in order:
        of_lane[database.row(sequence).lane].append(sequence)
    assert all(sequences == sorted(sequences) for sequences in of_lane.values())
    assert most <= 2 * WINDOW
    assert queue.idle


def test_many_failing_lanes_with_backlogs_hold_no_other_lane() -> None:
    queue, database = RunQueue(), Database()
    failing = range(10 * WINDOW)
    for _ in range(lanes.LANE_WINDOW + 3):
        for lane in failing:
            database.add(lane)
    database.add(1000)
    taken = set()
    for _ in range(5 * len(database.rows)):
        feed(queue, database)
        delivery = queue.take(0.0)
        if delivery is None and not queue.more:
            break
        if delivery is not None:
            taken.add(delivery.lane)
            queue.retry(delivery, 1e6)
    assert 1000 in taken


def test_retried_delivery_goes_when_it_is_due_and_before_the_rest_of_its_lane() -> None:
    queue, database = RunQueue(), Database()
    for lane in (1, 1, 2):
        database.add(lane)
    feed(queue, database)
    first = queue.take(0.0)
    assert first is not None
    first.attempts = 1
    queue.retry(first, 5.0)
    other = queue.take(0.0)
    assert other is not None
    assert other.sequence == 3
    assert queue.take(4.9) is None
    assert queue.next_due() == 5.0
    assert queue.take(5.0) is first
    queue.done(first, 5.0)
    feed(queue, database, 5.0)
    second = queue.take(5.0)
    assert second is not None
    assert second.sequence == 2


def test_delivery_whose_outcome_is_not_recorded_yet_is_not_read_again() -> None:
    queue, database = RunQueue(), Database()
    for _ in range(4):
        database.add(1)
    feed(queue, database)
    for _ in range(3):
        delivery = queue.take(0.0)
        assert delivery is not None
        queue.done(delivery, 0.0)
    [(lane, after)] = queue.lanes_to_fetch()
    assert (lane, after) == (1, 3)
    database.add(1)
    queue.offer(database.after(queue.cursor, WINDOW), 0.0)
    for row in database.rows[3:]:
        row.ended = True  # cancelled; the first three look pending still
    queue.offer_lane(lane, database.of_lane(lane, after, queue.cursor), after=after, complete=True, now=0.0)
    feed(queue, database)
    assert queue.take(0.0) is None
    assert queue.idle or queue.more


@given(st.lists(st.tuples(LANES, st.booleans()), max_size=60))
def test_what_is_held_and_what_is_behind_it_in_its_lane_is_passed_over_and_nothing_else(
    rows: list[tuple[int | None, bool]],
) -> None:
    queue, database = RunQueue(), Database()
    for lane, held in rows:
        database.add(lane)
        database.rows[-1].held = held
    barred, expected = set(), []
    for number, (lane, held) in enumerate(rows, 1):
        if held and lane is not None:
            barred.add(lane)
        if not held and lane not in barred:
            expected.append(number)
    came = list[int]()
    while queue.more or queue.wants_lanes:  # a window that is held as a whole gives nothing, and is not the end
        came += drain(queue, database)[0]
    assert sorted(came) == expected
    for lane in (1, 2):
        in_lane = [number for number in came if database.row(number).lane == lane]
        assert in_lane == sorted(in_lane)
    assert queue.idle == (len(expected) == len(rows)), "who has something held is not forgotten"


def test_what_was_delayed_is_taken_before_it_is_ready_and_what_has_ended_frees_its_lane() -> None:
    queue, database = RunQueue(), Database()
    for due in (5.0, 0.0, 5.0, 5.0):
        database.add(None if due and len(database.rows) > 1 else 1, due)
    queue.offer(database.after(0, WINDOW), 0.0)
    queue.more = False
    assert queue.first(0.0) is None
    assert not queue.wants_taking
    assert queue.first(5.0) is None
    asked = queue.delayed_to_take()
    assert sorted(delivery.sequence for delivery in asked) == [1, 3, 4]
    assert not queue.idle
    queue.take_again(asked)
    first, third, fourth = sorted(queue.delayed_to_take(), key=lambda delivery: delivery.sequence)
    queue.not_taken(first, None, 5.0)
    assert queue.lanes_to_fetch() == [(1, 1)], "the lane of what was cancelled goes on"
    queue.offer_lane(1, database.of_lane(1, 1, queue.cursor), after=1, complete=True, now=5.0)
    queue.not_taken(third, 6.0, 5.0)
    queue.taken(fourth)
    assert [queue.take(5.0), queue.take(5.0)] == [database.row(2).read(), fourth]
    assert queue.take(5.9) is None
    assert queue.next_due() == 6.0
