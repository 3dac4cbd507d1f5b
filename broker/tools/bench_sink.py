"""The receiver of the benchmarks: nginx where it is installed, which answers 204 and reads nothing into it.

It consents to every handshake, so that subscriptions become active in the ordinary way.
"""

import asyncio
import shutil
import signal
from pathlib import Path
from typing import Final, Self

from broker.tools.local.keeper import Order
from broker.tools.local.server import Program, free_port

_CONFIGURATION: Final = """\
worker_processes 1;
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  client_max_body_size 1m;
  client_body_buffer_size 64k;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ add_header WebHook-Allowed-Origin *; return 204; }}
  }}
}}
"""


class NoReceiver(Exception):
    """nginx isn't installed."""


class Sink:
    """nginx on a free port; `async with` starts and ends it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = 0

    async def __aenter__(self) -> Self:
        """Start it and wait until it answers.

        Raises:
            NoReceiver: nginx isn't installed.
        """
        nginx = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
        if nginx is None:
            raise NoReceiver("the benchmark's receiver is nginx: install it (Debian: apt-get install nginx-light)")
        self._folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        configuration = self._folder / "nginx.conf"
        configuration.write_text(_CONFIGURATION.format(folder=self._folder, port=self.port))
        order = Order([nginx, "-c", str(configuration), "-p", str(self._folder)], [(signal.SIGTERM, 3.0)], [])
        self._program = await Program.start(order, folder=self._folder, log=self._folder / "nginx.log")
        async with asyncio.timeout(5):
            while not await self._answers():  # noqa: ASYNC110  # another process: it sets no event of ours
                await asyncio.sleep(0.05)
        return self

    async def __aexit__(self, *_: object) -> None:
        """End it."""
        await self._program.stop()

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True
