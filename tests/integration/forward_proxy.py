"""A forward proxy on a real socket: CONNECT, with or without a password, and whatever misbehaviour a test asks for."""

import asyncio
import base64
import contextlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Self

from serving import serving


@dataclass
class ForwardProxy:
    """Tunnels to the loopback address; `answer` gives the bytes to answer with in place of a tunnel, or None."""

    password: str | None = None
    answer: Callable[[str], bytes | None] = lambda _: None
    hangs: Callable[[str], bool] = lambda _: False
    asked: list[str] = field(default_factory=list)
    """First lines of requests."""
    port: int = 0
    _open: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def url(self) -> str:
        who = "" if self.password is None else f"bode:{self.password}@"
        return f"http://{who}127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self.port = await self._open.enter_async_context(serving(self._serve, port=self.port))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self.asked.append(line)
        if self.hangs(line):
            await reader.read()
            return
        given = self.answer(line)
        if given is None and self.password is not None and not self._is_known(fields):
            given = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
        if given is None and not line.startswith("CONNECT "):
            given = b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n"
        if given is not None:
            writer.write(given)
            await writer.drain()
            return
        host, _, port = line.split(" ")[1].rpartition(":")
        assert host in ("127.0.0.1", "sink.example")  # the name that only the proxy knows
        try:
            upstream, downstream = await asyncio.open_connection("127.0.0.1", int(port))
        except OSError:
            writer.write(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()
            return
        writer.write(b"HTTP/1.1 200 Connection established\r\nVia: 1.1 proxy\r\n\r\n")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pass(reader, downstream))
                group.create_task(_pass(upstream, writer))
        finally:
            downstream.transport.abort()

    def _is_known(self, fields: list[str]) -> bool:
        wanted = "Basic " + base64.b64encode(f"bode:{self.password}".encode()).decode()
        return f"proxy-authorization: {wanted}" in fields


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # one side was cut: the other is, too
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
