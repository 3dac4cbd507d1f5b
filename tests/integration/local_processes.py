"""Which processes serve a folder, and where they listen, as the operating system says."""

import asyncio
from pathlib import Path

import psutil

from broker.tools.local.locks import mark


def marked(folder: Path) -> list[psutil.Process]:
    """The processes of the folder's servers and their keepers."""
    sign = mark(folder)
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(sign in argument for argument in process.info["cmdline"] or ())
    ]


def family(processes: list[psutil.Process]) -> list[psutil.Process]:
    """The processes and all their descendants."""
    found = {process.pid: process for parent in processes for process in (parent, *parent.children(recursive=True))}
    return list(found.values())


def listening(folder: Path) -> set[tuple[str, int]]:
    """Addresses and ports that the folder's processes and their descendants listen on."""
    return {
        (connection.laddr.ip, connection.laddr.port)
        for process in family(marked(folder))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


async def until_registered(folder: Path, queue: str) -> None:
    """RabbitMQ writes down where a new quorum queue lives up to a second after it confirms what is in it."""
    (names,) = (folder / "node").glob("*/quorum/*/names.dets")
    async with asyncio.timeout(10):
        while queue.encode() not in names.read_bytes():
            await asyncio.sleep(0.05)
