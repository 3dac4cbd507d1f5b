"""The odd ways in which the AMQP library tells that a connection was lost become one that everybody expects."""

import asyncio

import aiormq
import pytest

from broker.rabbitmq import hang_ups


@pytest.mark.parametrize(
    "odd",
    [
        Exception(),
        StopAsyncIteration(),
        RuntimeError('<Connection: "amqp://bode:******@127.0.0.1:5672/bode" at 0x7f669eb68460> closed'),
        RuntimeError("Can't initialize closed channel"),
        RuntimeError("Connection was not opened"),
        aiormq.exceptions.ChannelInvalidStateError("closed"),
        asyncio.CancelledError(),
    ],
    ids=lambda odd: type(odd).__name__,
)
async def test_what_the_library_raises_is_a_connection_that_was_lost(odd: BaseException) -> None:
    with pytest.raises(ConnectionError), hang_ups():
        raise odd


@pytest.mark.parametrize(
    "error",
    [ValueError(), TimeoutError(), KeyError("a"), RuntimeError("Getter is None")],
    ids=lambda error: type(error).__name__,
)
async def test_anything_else_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)), hang_ups():
        raise error


async def test_who_is_cancelled_is_cancelled() -> None:
    async def wait() -> None:
        with hang_ups():
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_time_limit_around_it_is_a_time_limit() -> None:
    async def wait() -> None:
        async with asyncio.timeout(0.01):
            with hang_ups():
                await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await wait()
