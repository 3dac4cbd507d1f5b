"""The receivers of the benchmarks, which answer 204 and read nothing into it: nginx, or one of our own.

They consent to every handshake. A receiver is many hosts, because a sink's connections are its own: sink `n` is an
address of the loopback network of its own, all on one port.
"""

import asyncio
import os
import shutil
import signal
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Final

import psutil

from broker.tools.local.children import Children, Command
from broker.tools.local.keeper import Order
from broker.tools.local.locks import mark
from broker.tools.local.server import Program, free_port

NETWORK: Final = ip_network("127.0.0.0/8")
_FIRST: Final = IPv4Address("127.0.1.1")
_START_SECONDS: Final = 60.0
_NGINX_PLACES: Final = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
_CONFIGURATION: Final = """\
worker_processes 1;
worker_rlimit_nofile 16384;
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 16000; }}
http {{
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 600;
  client_max_body_size 8m;
  client_body_buffer_size 64k;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
{listen}
    location / {{ add_header WebHook-Allowed-Origin *; return 204; }}
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Sink:
    """A receiver that runs."""

    kind: str
    port: int
    hosts: int
    pids: tuple[int, ...]

    def url(self, number: int) -> str:
        """The URL of sink `number`; beyond `hosts` they start again at the first host."""
        return f"http://{_address(number % self.hosts)}:{self.port}/sink/{number}"

    async def arrivals(self) -> "array[int]":
        """What our own receiver noted since it was asked last: numbers of events, each followed by its nanosecond."""
        reader, writer = await asyncio.open_connection(_address(0), self.port)
        try:
            writer.write(b"GET /arrivals HTTP/1.1\r\nhost: localhost\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            found: array[int] = array("q")
            found.frombytes(await reader.readexactly(int(head.split(b"content-length:")[1])))
            return found
        finally:
            writer.close()


def nginx_path() -> str | None:
    """Where nginx is, if it is installed."""
    return shutil.which("nginx", path=_NGINX_PLACES)


@asynccontextmanager
async def fast_sink(folder: Path, hosts: int) -> AsyncIterator[Sink]:
    """The receiver for full speed: nginx where it is installed, else ours."""
    nginx = nginx_path()
    if nginx is None:
        async with clocked_sink(folder, hosts) as sink:
            yield sink
        return
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240  # nothing else waits
    port = free_port()
    listen = "\n".join(f"    listen {_address(number)}:{port} backlog=4096;" for number in range(hosts))
    configuration = folder / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(folder=folder, listen=listen))
    order = Order([nginx, "-c", str(configuration), "-p", str(folder)], [(signal.SIGTERM, 3.0)], [])
    program = await Program.start(order, folder=folder, log=folder / "nginx.log")
    try:
        async with asyncio.timeout(_START_SECONDS):
            while not await _answers(port):  # noqa: ASYNC110  # another process: it sets no event of ours
                await asyncio.sleep(0.05)
        pids = [process.pid for process in psutil.process_iter(["cmdline"]) if _serves(process, folder)]
        yield Sink("nginx", port, hosts, tuple(pids))
    finally:
        await program.stop()


@asynccontextmanager
async def clocked_sink(folder: Path, hosts: int) -> AsyncIterator[Sink]:
    """Our own receiver, which notes when each event came."""
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240  # nothing else waits
    ready = folder / "receiver.ready"
    addresses = [str(_address(number)) for number in range(hosts)]
    command = Command(
        "receiver",
        [str(ready), *addresses],
        {name: value for name, value in os.environ.items() if not name.startswith("BODE_")},
        folder / "receiver.log",
        ready,
        "broker.tools.bench_receiver",
    )
    async with Children([command], changed=lambda _: None) as children:
        content = await children.ready("receiver", _START_SECONDS)
        yield Sink("bode bench's own", content["port"], hosts, (content["pid"],))


def _address(number: int) -> str:
    return str(_FIRST + number)


def _serves(process: psutil.Process, folder: Path) -> bool:
    command: list[str] = process.info["cmdline"] or []
    return any(str(folder) in part for part in command) and not any(mark(folder) in part for part in command)


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(_address(0), port)
    except OSError:
        return False
    writer.close()
    return True
