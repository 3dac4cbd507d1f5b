"""The steps of a process's start that need the database, which may start later than we do or be away for a while."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from broker.telemetry import log
from subscriptions.database import passes

_FIRST_SECONDS: Final = 0.1
_LONGEST_SECONDS: Final = 2.0

Result = TypeVar("Result")


async def reached(step: Callable[[], Awaitable[Result]]) -> Result:
    """What a step gives, done again for as long as the database can't be reached; a step may be done twice.

    Raises:
        Exception: what the step raises for another reason, such as a schema that isn't there.
    """
    pause = _FIRST_SECONDS
    while True:
        try:
            return await step()
        except Exception as error:
            if not passes(error):
                raise
            log().warning("database-not-ready", error=type(error).__name__)
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_SECONDS)
