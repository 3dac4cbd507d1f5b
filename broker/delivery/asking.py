"""Looking when asked, and now and then all the same: what workers do whose work is in the database."""

import asyncio


class Asking:
    """Whether a worker has been asked to look."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Something may be to be done: look now instead of at the next poll."""
        self._asked.set()

    async def wait(self, seconds: float) -> None:
        """Until it is asked, or for so many seconds; what was asked up to then is answered by looking once."""
        try:
            async with asyncio.timeout(seconds):
                await self._asked.wait()
        except TimeoutError:
            pass
        self._asked.clear()
