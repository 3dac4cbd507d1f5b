"""The processes of Bode as real processes, which die, stop and come back as the schedule says.

Whoever dies by itself is started again, as any supervisor would, and counted. A process that is killed stays away for
as long as the schedule says. All of them die with the harness.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_READY_SECONDS = 60.0


class Process:
    """One `bode KIND`, with its incarnations."""

    def __init__(
        self,
        name: str,
        environment: Mapping[str, str],
        folder: Path,
        *,
        mutation: str | None,
        born: Callable[["Process"], None],
    ) -> None:
        self.name = name
        self.kind = name.rstrip("0123456789")
        self.incarnation = 0
        self.ended_by_itself: list[int] = []
        self.log = folder / f"{name}.log"
        self._environment = dict(environment)
        self._ready = folder / f"{name}.ready"
        self._mutation = mutation
        self._born = born
        self._process: asyncio.subprocess.Process | None = None
        self._wanted = False
        self._keeper: asyncio.Task[None] | None = None
        self._up = asyncio.Event()

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Start it, and keep it running until it is killed or stopped."""
        if self._wanted:  # it was killed while it was being stopped, and is started already
            return
        self._wanted = True
        await self._start()
        self._keeper = asyncio.create_task(self._keep())

    async def kill(self) -> None:
        """SIGKILL; it stays away until it is started."""
        self._wanted = False
        self.signal(signal.SIGKILL)
        await self._gone()

    async def stop(self, seconds: float = 25) -> int:
        """SIGTERM; the exit code."""
        self._wanted = False
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(seconds):
                await self._gone()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self._gone()
        assert self._process is not None
        return self._process.returncode or 0

    def signal(self, number: int) -> None:
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def ready(self) -> dict[str, Any]:
        """Wait until this incarnation is ready; what it says of itself.

        Raises:
            TimeoutError: it isn't in time.
        """
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if self._ready.exists():
                said: dict[str, Any] = json.loads(self._ready.read_bytes())
                if said["pid"] == self.pid:
                    return said
            await asyncio.sleep(0.05)
        raise TimeoutError(f"{self.name} isn't ready; see {self.log}")

    async def _gone(self) -> None:
        if self._keeper is not None:
            await asyncio.wait({self._keeper})

    async def _start(self) -> None:
        self.incarnation += 1
        self._ready.unlink(missing_ok=True)
        environment = {
            **self._environment,
            "PYTHONPATH": str(ROOT),
            "BODE_READY_FILE": str(self._ready),
            "BODE_DELIVERY_ORIGIN": f"{self.name}.{self.incarnation}",
        }
        command = [
            sys.executable, "-P", "-m", "broker.tools.local.leash", str(os.getpid()), "tests.chaos.watched",
            self._mutation or "-", self.kind,
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment, start_new_session=True,
            )  # fmt: skip
        self._born(self)

    async def _keep(self) -> None:
        while True:
            assert self._process is not None
            code = await self._process.wait()
            if not self._wanted:
                return
            self.ended_by_itself.append(code)
            await asyncio.sleep(0.3)
            if not self._wanted:
                return
            await self._start()
