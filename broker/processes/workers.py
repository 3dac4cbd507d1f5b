"""Named workers of one process: started together, watched, stopped in order.

A worker that ends or raises is a defect, or trouble that it couldn't survive: the process then stops and whoever
supervises it starts a new one. Nothing is lost by that; everything durable is in PostgreSQL and RabbitMQ.
"""

import asyncio
import signal
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from broker.telemetry import WORKER_UP, log

Check = Callable[[], Awaitable[bool]]
_CHECK_SECONDS = 2.0


class WorkerEnded(Exception):
    """A worker returned, which none may do by itself."""


@dataclass(slots=True)
class Readiness:
    """What `/readyz` asks: conditions that must hold now."""

    checks: Mapping[str, Check]

    async def failing(self) -> list[str]:
        """The names of the conditions that don't hold; a check that takes too long doesn't."""
        names = []
        for name, check in self.checks.items():
            try:
                async with asyncio.timeout(_CHECK_SECONDS):
                    if not await check():
                        names.append(name)
            except Exception as error:
                log().info("readiness-check-failed", check=name, error=type(error).__name__)
                names.append(name)
        return names


async def run_workers(
    workers: Mapping[str, Callable[[], Awaitable[None]]],
    *,
    stop: asyncio.Event,
    drain: Callable[[], Awaitable[None]],
) -> None:
    """Run workers until `stop` is set, then `drain`, then cancel them.

    Raises:
        ExceptionGroup: with what a worker raised, after the others were cancelled.
    """

    async def watched(name: str, run: Callable[[], Awaitable[None]]) -> None:
        WORKER_UP.labels(name).set(1)
        try:
            await run()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            # not the exception's text: it may quote what was being worked on
            frames = traceback.extract_tb(error.__traceback__)[-6:]
            where = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
            log().error("worker-failed", worker=name, error=type(error).__name__, where=where)
            raise
        finally:
            WORKER_UP.labels(name).set(0)
        raise WorkerEnded(name)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(watched(name, run), name=name) for name, run in workers.items()]
        await stop.wait()
        await drain()
        for task in tasks:
            task.cancel()


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    return stop
