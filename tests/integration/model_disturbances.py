"""What befalls the processes of the model: they die, stand still, come and go, lose the database and RabbitMQ."""

import signal
import time

from delivery_processes import DeliverProcess
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from model_example import LEASE_SECONDS, MOST_PROCESSES, Example

from broker.storage import leases
from tests.chaos.proxy import State


class Disturbances(Example):
    """Time, signals, and connections that end."""

    @rule(milliseconds=st.sampled_from([5, 30, 100]))
    def work(self, milliseconds: int) -> None:
        time.sleep(milliseconds / 1000)

    @rule(seconds=st.sampled_from([0.5, 2.0, 6.0, 45.0]))
    def move_the_clock(self, seconds: float) -> None:
        self.move(seconds)

    @precondition(lambda self: len(self.alive) < MOST_PROCESSES)
    @rule()
    def add(self) -> None:
        self.start()

    @precondition(lambda self: self.alive)
    @rule(place=st.integers(0, 2))
    def kill(self, place: int) -> None:
        process = self.alive.pop(place % len(self.alive))
        process.kill()
        assert self.host.ended(process) == -signal.SIGKILL

    @precondition(lambda self: any(not process.stopped for process in self.alive))
    @rule(place=st.integers(0, 2))
    def end_in_good_order(self, place: int) -> None:
        able = [process for process in self.alive if not process.stopped]
        process = able[place % len(able)]
        process.signal(signal.SIGTERM)
        self.alive.remove(process)
        assert self.host.ended(process) == 0

    @precondition(lambda self: any(not process.stopped for process in self.alive))
    @rule(place=st.integers(0, 2))
    def stop(self, place: int) -> None:
        able = [process for process in self.alive if not process.stopped]
        process = able[place % len(able)]
        process.stop()
        process.until = time.monotonic() + 1.2 * LEASE_SECONDS

    @precondition(lambda self: any(process.stopped for process in self.alive))
    @rule(past_its_lease=st.booleans())
    def go_on(self, past_its_lease: bool) -> None:
        process = next(process for process in self.alive if process.stopped)
        if past_its_lease:
            time.sleep(max(process.until - time.monotonic(), 0))
        process.go_on()

    @precondition(lambda self: self.alive)
    @rule(place=st.integers(0, 2))
    def cut_off_from_the_database(self, place: int) -> None:
        process = self.alive[place % len(self.alive)]
        process.disturbed.append(time.time())
        self.stage.call(self._cut(process))

    async def _cut(self, process: DeliverProcess) -> None:
        await self.stage.bode.pool.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1",
            leases.application_name(process.owner),
        )

    @precondition(lambda self: self.listeners)
    @rule(state=st.sampled_from([None, State.CUT, State.STALLED, State.DEAF]))
    def cut_off_from_rabbitmq(self, state: State | None) -> None:
        """All its connections end; or it can't be reached, says nothing, or isn't heard, until that happens again."""
        self.stage.call(self._cut_link(state))

    def reach_rabbitmq(self) -> None:
        """It can be reached again."""
        self.stage.call(self._cut_link(None))

    async def _cut_link(self, state: State | None) -> None:
        link = self.stage.link
        self.links_lost += 1
        if state is None or link.state is not State.OPEN:
            link.reset()
            link.become(State.OPEN)
        else:
            link.become(state)
