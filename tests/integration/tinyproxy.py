"""Tinyproxy, as Debian has it: a forward proxy that others made, with its own idea of what to answer."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

_CONFIGURATION = """
Port {port}
Listen 127.0.0.1
Timeout 60
MaxClients 100
LogFile "{folder}/log"
LogLevel Connect
{rules}
"""
USER = "bode"


@dataclass
class Tinyproxy:
    """Runs on one port, with other rules each time if need be."""

    program: Path
    folder: Path
    port: int

    def log(self) -> str:
        """What it wrote, since it was first started here."""
        return (self.folder / "log").read_text()

    @asynccontextmanager
    async def running(self, *ports: int, password: str | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
        """It tunnels to these ports only, for who knows the password if there is one."""
        rules = [f"ConnectPort {port}" for port in ports]
        if password is not None:
            rules.append(f"BasicAuth {USER} {password}")
        configuration = self.folder / "tinyproxy.conf"
        configuration.write_text(_CONFIGURATION.format(port=self.port, folder=self.folder, rules="\n".join(rules)))
        process = await asyncio.create_subprocess_exec(self.program, "-d", "-c", configuration)
        try:
            await self._until_up(process)
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def _until_up(self, process: asyncio.subprocess.Process) -> None:
        async with asyncio.timeout(15):
            while True:
                assert process.returncode is None, self.log()
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.02)
                else:
                    writer.close()
                    return
