"""Requests to sinks and their answers: what is asked, of whom, and who is told. No network.

A request is an object that is called back: its sender puts an exchange beside it, which is told of the answer, or why
there is none.
"""

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol
from urllib.parse import urlsplit

from broker.delivery.outcomes import Reason
from broker.delivery.tls import TlsIdentity

MAX_BODY_BYTES: Final = 64 * 1024
EXCERPT_BYTES: Final = 1024


class SendError(Exception):
    """No usable answer; `reason` says why."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Target:
    """A sink's URL, taken apart once."""

    secure: bool
    host: str
    port: int
    path: str
    authority: str
    tls: TlsIdentity | None = None
    """Trust and identity for this target alone; None: the client's."""

    @classmethod
    def of(cls, url: str, tls: TlsIdentity | None = None) -> "Target":
        """Take apart an absolute http(s) URL that the API has accepted.

        Raises:
            ValueError: when it is not one.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise ValueError("not an absolute http(s) URL without credentials")
        secure = parts.scheme == "https"
        port = parts.port or (443 if secure else 80)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not url.isascii() or any(c <= " " for c in url):
            raise ValueError("the URL has characters that must be encoded")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        authority = host if port == (443 if secure else 80) else f"{host}:{port}"
        return cls(secure, parts.hostname, port, path, authority, tls)

    @property
    def origin(self) -> "Origin":
        """What connections can be shared by: never by targets that identify themselves differently."""
        return (self.secure, self.host, self.port, None if self.tls is None else self.tls.digest)

    def head(self, method: str) -> str:
        """A request's first lines, up to the first header that isn't always the same."""
        return f"{method} {self.path} HTTP/1.1\r\nhost: {self.authority}\r\n"


Origin = tuple[bool, str, int, str | None]


@dataclass(slots=True)
class Answer:
    """A sink's answer: status, the few headers that matter (lower case), and the first bytes of its body."""

    status: int = 0
    headers: dict[str, list[str]] = field(default_factory=dict)
    excerpt: bytes = b""

    def header(self, name: str) -> str | None:
        """The header's first value."""
        values = self.headers.get(name)
        return values[0] if values else None


class Carrier(Protocol):
    """What is on its way with a request: a connection, or the task that makes one."""

    def cancel(self) -> object:
        """Give it up; nobody is told."""


class Exchange(ABC):
    """One request and its answer. Exactly one of `answered` and `failed` is called, once, unless it is abandoned."""

    __slots__ = ("_carrier",)

    kept_bytes: ClassVar[int] = EXCERPT_BYTES
    """Of the answer's body."""
    once: ClassVar[bool] = False
    """Whether it must not reach the other side twice: then it has a connection of its own, used for nothing else."""

    def __init__(self) -> None:
        self._carrier: Carrier | None = None

    def may_go(self) -> bool:
        """Asked after a connection was made, which takes time: whether the request may still be sent.

        If not, nothing is told any more, as if it were abandoned.
        """
        return True

    @abstractmethod
    def answered(self, answer: Answer) -> None:
        """The answer has been read to its end."""

    @abstractmethod
    def failed(self, reason: Reason) -> None:
        """There is no usable answer."""

    def abandon(self) -> None:
        """Give it up, with its connection; nothing is told any more."""
        carrier, self._carrier = self._carrier, None
        if carrier is not None:
            carrier.cancel()


class QueueExchange(Exchange):
    """An exchange whose answer may be a publisher confirm."""

    __slots__ = ()

    @abstractmethod
    def confirmed(self) -> None:
        """The queue has it."""


class Waiting(Exchange):
    """An exchange whose end somebody awaits."""

    __slots__ = ("future",)

    def __init__(self, future: "asyncio.Future[Answer]") -> None:
        super().__init__()
        self.future = future

    def answered(self, answer: Answer) -> None:
        """Hand it to who waits."""
        if not self.future.done():
            self.future.set_result(answer)

    def failed(self, reason: Reason) -> None:
        """Raise it where somebody waits."""
        if not self.future.done():
            self.future.set_exception(SendError(reason))


class WaitingOnce(Waiting):
    """One whose whole answer somebody awaits, and that is sent once."""

    __slots__ = ()
    kept_bytes = MAX_BODY_BYTES
    once = True
