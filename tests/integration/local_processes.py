"""Which processes serve a folder, and where they listen, as the operating system says."""

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
