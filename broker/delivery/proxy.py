"""The way out through a proxy: a tunnel by CONNECT (RFC 9110, 9.3.6) for every sink, whatever its scheme.

Behind a proxy the fence is the proxy's: it resolves names and connects. What goes wrong on the way says something about
the sink only where the proxy itself says so:

    403                 the proxy doesn't allow the sink: as our own fence
    500, 502, 503, 504  the proxy can't reach the sink: as a connection that is refused (500: Tinyproxy says no more)
    no answer in time   is asked whether it is there at all: if so the sink is silent, else it is the proxy
    anything else       the proxy's own trouble: counts against no sink

After some failures in a row the proxy is left alone for a while, by all sinks together.
"""

import asyncio
import base64
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from broker.telemetry import log

_MOST_HEADER_BYTES: Final = 16 * 1024
_REACH: Final = 0.5
_ANSWER: Final = 0.7
_ALIVE: Final = 0.2
"""Shares of an attempt's time: until the proxy is reached, until it has answered, and to see whether it lives."""
_FAILURES: Final = 3
_LONGEST_REST: Final = 15.0
_NOT_REACHED: Final = frozenset({500, 502, 503, 504})
"""500 is among them because Tinyproxy says nothing else of a sink that is away, or of a name without address: taken for
the proxy's own trouble, one such sink would keep all others waiting."""


class ProxyError(Exception):
    """There is no tunnel, through no fault of the sink."""


class NotAllowed(Exception):
    """The proxy doesn't allow this sink."""


class NotReached(Exception):
    """The proxy says that the sink can't be reached."""


class Silent(Exception):
    """The proxy lives, and waits for the sink."""


@dataclass(frozen=True, slots=True)
class ProxyAddress:
    """Where the proxy is, and what it is shown."""

    host: str
    port: int
    authorization: str | None

    def __repr__(self) -> str:
        """Nothing of the password."""
        return f"ProxyAddress({self.host}:{self.port})"

    @classmethod
    def of(cls, url: str) -> "ProxyAddress":
        """Take apart `http://[user:password@]host:port`.

        Raises:
            ValueError: when it is something else; the text holds nothing of it.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError("must be http://[user:password@]host:port") from None
        if parts.scheme != "http" or not parts.hostname or not port or parts.path not in ("", "/") or parts.query:
            raise ValueError("must be http://[user:password@]host:port")
        authorization = None
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + base64.b64encode(pair.encode()).decode()
        return cls(parts.hostname, port, authorization)


class Proxy:
    """Makes tunnels; one for each process."""

    def __init__(self, address: ProxyAddress, total_seconds: float) -> None:
        """Make it; `total_seconds` is the limit of one attempt."""
        self._address = address
        self._total_seconds = total_seconds
        self._failures = 0
        self._rests_until = 0.0

    async def tunnel(self, host: str, port: int) -> asyncio.Transport:
        """A connection to a sink through the proxy; nothing was sent on it yet.

        Raises:
            ProxyError, NotAllowed, NotReached, Silent: there is none.
        """
        if asyncio.get_running_loop().time() < self._rests_until:
            raise ProxyError("it failed just before")
        try:
            transport = await self._open(self._request(host, port))
        except ProxyError:
            self._failed()
            raise
        except (NotAllowed, NotReached, Silent):
            self._succeeded()
            raise
        self._succeeded()
        return transport

    async def _open(self, request: bytes) -> asyncio.Transport:
        started = asyncio.get_running_loop().time()
        transport, tunnel = await self._reach(self._total_seconds * _REACH)
        try:
            transport.write(request)
            try:
                async with asyncio.timeout_at(started + self._total_seconds * _ANSWER):
                    status = await tunnel.status
            except TimeoutError:
                await self._expect_alive()
                raise Silent from None
            _judge(status)
        finally:
            if not tunnel.open:
                transport.abort()
        return transport

    async def _reach(self, seconds: float) -> tuple[asyncio.Transport, "_Tunnel"]:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                return await loop.create_connection(_Tunnel, self._address.host, self._address.port)
        except (OSError, TimeoutError) as error:
            raise ProxyError("it can't be reached") from error

    async def _expect_alive(self) -> None:
        """Raises `ProxyError` unless the proxy answers a question about itself, however."""
        try:
            async with asyncio.timeout(self._total_seconds * _ALIVE):
                transport, tunnel = await self._reach(self._total_seconds)
                try:
                    transport.write(f"OPTIONS * HTTP/1.1\r\nhost: {self._address.host}\r\n\r\n".encode())
                    await tunnel.status
                finally:
                    transport.abort()
        except TimeoutError:
            raise ProxyError("it doesn't answer") from None

    def _request(self, host: str, port: int) -> bytes:
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        line = self._address.authorization
        given = "" if line is None else f"proxy-authorization: {line}\r\n"
        return f"CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\nuser-agent: Bode\r\n{given}\r\n".encode("latin-1")

    def _failed(self) -> None:
        self._failures += 1
        if self._failures >= _FAILURES:
            seconds = min(2.0 ** (self._failures - _FAILURES), _LONGEST_REST)
            self._rests_until = asyncio.get_running_loop().time() + seconds
        if self._failures == _FAILURES:
            log().error("proxy-failing")

    def _succeeded(self) -> None:
        if self._failures >= _FAILURES:
            log().info("proxy-works")
        self._failures = 0


def _judge(status: int) -> None:
    if 200 <= status < 300:
        return
    if status == 403:
        raise NotAllowed
    if status in _NOT_REACHED:
        raise NotReached
    raise ProxyError(f"it answered {status}")


class _Tunnel(asyncio.Protocol):
    """Reads the proxy's answer, after which the connection is the sink's."""

    def __init__(self) -> None:
        self.status: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.open = False
        self._read = b""

    def data_received(self, data: bytes) -> None:
        """The answer's head, and nothing behind it: a sink speaks only when it is spoken to."""
        if self.status.done():
            self.open = False
            return
        self._read += data
        head, end, rest = self._read.partition(b"\r\n\r\n")
        if not end:
            if len(head) > _MOST_HEADER_BYTES:
                self.status.set_exception(ProxyError("its answer has no end"))
            return
        parts = head.split(b"\r\n", 1)[0].split(b" ", 2)
        if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not (len(parts[1]) == 3 and parts[1].isdigit()):
            self.status.set_exception(ProxyError("its answer isn't HTTP/1.1"))
            return
        status = int(parts[1])
        if 200 <= status < 300:
            self.open = not rest
            if rest:
                self.status.set_exception(ProxyError("something came behind its answer"))
                return
        self.status.set_result(status)

    def connection_lost(self, error: Exception | None) -> None:
        """It hung up, or the connection was given up."""
        self.open = False
        if not self.status.done():
            self.status.set_exception(ProxyError("it hung up"))
            self.status.exception()  # where nobody waits any more
