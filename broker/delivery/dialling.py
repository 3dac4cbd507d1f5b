"""Connections to sinks, of whatever protocol: one way out, past the fence or through the proxy; TLS is with the sink.

Names are resolved by the fence, and what it has judged is connected to; TLS verifies the name, and shows it (SNI).
Behind a proxy the fence that counts is the proxy's.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import Protocol, TypeVar

from broker.delivery.exchanges import SendError
from broker.delivery.fence import Fence, FenceError, ResolveError
from broker.delivery.outcomes import Reason
from broker.delivery.proxy import NotAllowed, NotReached, Proxy, ProxyError, Silent
from broker.delivery.tls import Contexts, TlsIdentity

Made = TypeVar("Made", bound=asyncio.Protocol)


class Place(Protocol):
    """Where a connection goes."""

    @property
    def secure(self) -> bool:
        """Whether there is TLS."""

    @property
    def host(self) -> str:
        """A name or an address."""

    @property
    def port(self) -> int:
        """The port."""

    @property
    def tls(self) -> TlsIdentity | None:
        """Trust and identity for this place alone; None: the broker's."""


class Dialler:
    """Makes connections; one for each process."""

    def __init__(self, fence: Fence, *, tls: Contexts | None = None, proxy: Proxy | None = None) -> None:
        """Make one.

        Args:
            fence: judges every address before it is connected to.
            tls: trust and identity; the system's trust alone by default.
            proxy: what everything goes through; then the fence that counts is its.
        """
        self._fence = fence
        self._tls = tls or Contexts()
        self._proxy = proxy
        self.generation = 0
        """Raised when we show ourselves otherwise: connections from before carry nothing more."""

    async def dial(self, place: Place, make: Callable[[], Made]) -> Made:
        """Connect; `make` makes the protocol, which is told by `connection_made`.

        Raises:
            SendError: there is no connection.
        """
        try:
            context = self._tls.of(place.tls) if place.secure else None
        except (ValueError, ssl.SSLError):  # what the API has taken, OpenSSL doesn't
            raise SendError(Reason.TLS) from None
        if self._proxy is None:
            return await self._directly(place, context, make)
        return await self._through(self._proxy, place, context, make)

    async def _directly(self, place: Place, context: ssl.SSLContext | None, make: Callable[[], Made]) -> Made:
        loop = asyncio.get_running_loop()
        last: Exception | None = None
        try:
            addresses = await self._fence.resolve(place.host, place.port)
        except FenceError:
            raise SendError(Reason.FENCED) from None
        except ResolveError:
            raise SendError(Reason.UNRESOLVED) from None
        for address in addresses:
            try:
                _, connection = await loop.create_connection(
                    make,
                    address,
                    place.port,
                    ssl=context,
                    server_hostname=place.host if place.secure else None,
                )
            except (OSError, ssl.SSLError) as error:
                last = error
                continue
            return connection
        raise SendError(Reason.TLS if isinstance(last, ssl.SSLError) else Reason.REFUSED) from last

    async def _through(
        self, proxy: Proxy, place: Place, context: ssl.SSLContext | None, make: Callable[[], Made]
    ) -> Made:
        """Connect through the proxy, whose fence counts: of ours only what can be told from the URL."""
        try:
            self._fence.check_port(place.port)
            self._fence.check_literal(place.host)
            transport = await proxy.tunnel(place.host, place.port)
        except (FenceError, NotAllowed):
            raise SendError(Reason.FENCED) from None
        except NotReached:
            raise SendError(Reason.REFUSED) from None
        except Silent:
            raise SendError(Reason.TIMEOUT) from None
        except ProxyError:
            raise SendError(Reason.PROXY) from None
        connection = make()
        if context is None:
            transport.set_protocol(connection)
            connection.connection_made(transport)
            return connection
        secured = None
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport, connection, context, server_hostname=place.host
            )
        except ssl.SSLError:
            raise SendError(Reason.TLS) from None
        except OSError:
            raise SendError(Reason.REFUSED) from None
        finally:
            if secured is None:
                transport.abort()
        if secured is None:  # closed meanwhile
            raise SendError(Reason.REFUSED)
        connection.connection_made(secured)
        return connection

    def replace_identity(self, own: TlsIdentity | None) -> None:
        """Show another identity of the broker from now on.

        Raises:
            ValueError, ssl.SSLError: it can't be used; nothing changes.
        """
        self._tls.replace(own)
        self.generation += 1
