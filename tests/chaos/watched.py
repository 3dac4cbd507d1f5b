"""Bode as it is, but asked by SIGUSR2 it writes what it is doing: `python -m tests.chaos.watched MUTATION|- COMMAND`.

For whoever looks for the cause when a run doesn't become quiet: where every task stands, and what delivery has in
memory of each subscription.
"""

import asyncio
import dataclasses
import gc
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from tests.chaos.mutant import MUTATIONS

ASK = signal.SIGUSR2
_WORDS_MAX = 300


def tell(*_: object) -> None:
    """Write it to where errors go."""
    for line in [*_tasks(), *_engines()]:
        print(line[:_WORDS_MAX], file=sys.stderr)
    sys.stderr.flush()


def _tasks() -> Iterator[str]:
    for task in list(asyncio.tasks._all_tasks):  # type: ignore[attr-defined]  # the loop may be between two callbacks
        if not task.done():
            waits = " < ".join(f"{code.co_qualname}:{line}" for code, line in _stack(task.get_coro()))
            yield f"task {task.get_name()}: {waits}"


def _stack(awaited: Any) -> Iterator[tuple[Any, int]]:
    """From the outermost coroutine to the innermost that is written in Python."""
    while awaited is not None:
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            yield frame.f_code, frame.f_lineno
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)


def _engines() -> Iterator[str]:
    from broker.delivery.engine import Engine

    for engine in (each for each in gc.get_objects() if type(each) is Engine):
        runners, turns, recorder = engine._runners, engine._turns, engine._recorder
        owned: Any = engine._ownership
        yield (
            f"engine: clock {engine._clock() - time.time():+.3f} s; leases {owned.epochs} sure until "
            f"{owned._safe_until - time.monotonic():+.1f} s; {len(engine._attempts)} attempts, "
            f"{recorder.unrecorded} unrecorded; turns young {turns.young} late {turns.late}; "
            f"hungry {list(engine.feeder._hungry)}, opening {runners._opening}, leaving {dict(runners._leaving)}, "
            f"barred {runners._barred}, feeding {runners._feeding}, replays {list(runners._replays)}"
        )
        for key, runner in runners._runners.items():
            queue, replay = runner.queue, runner.replay
            yield (
                f"runner {key}: in flight {runner.in_flight} of {runner.pace.limit}, in line {runner.in_line}, timer "
                f"{runner.timer is not None}, late {runner.late}, suspect {runner.suspect}; cursor {queue.cursor}, "
                f"more {queue.more}, ready {len(queue._ready)}, timed {queue.timed}, waiting {queue._waiting}, lanes "
                f"{len(queue._lanes)}, passed over {queue.passed_over}, to fetch {len(queue._to_fetch)}, to take "
                f"{len(queue._to_take)}, taking {queue._taking}"
            )
            for lane in queue._lanes.values():
                yield f"    lane {dataclasses.asdict(lane)}"
            yield f"    pace wait {runner.pace.wait(engine._clock()):.1f} {runner.pace}"
            if replay is not None:
                yield f"    replay at {replay.cursor}, {len(replay._steps)} steps, {len(replay._under_way)} under way"
        for attempt in engine._attempts:
            carrier = getattr(attempt, "_carrier", None)
            delivery: Any = getattr(attempt, "delivery", None) or getattr(attempt, "deliveries", None)
            age = engine._clock() - attempt.begun_at
            yield f"attempt of {attempt.runner.key}, {age:.1f} s old, {type(carrier).__name__}, {delivery!r}"


if __name__ == "__main__":
    signal.signal(ASK, tell)
    if sys.argv[1] != "-":
        MUTATIONS[sys.argv[1]]()
    sys.argv = ["bode", *sys.argv[2:]]
    from broker.cli import main

    main()
