"""TLS towards sinks: whom we believe, and who we say that we are. Contexts are made once for each content.

A context holds keys in memory; OpenSSL reads them from a file, which here is one without a name, in memory too.
"""

import hashlib
import os
import ssl
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from schemas.resources.credentials import SinkTls

_KEPT: Final = 1024
"""Contexts of sinks that are kept; those of established connections live on with them."""
_KEPT_WITH_SYSTEM_TRUST: Final = 64
"""Of those that hold the system's whole bundle, which takes 0.8 MB and 24 ms each."""


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """A client certificate with its chain and key, and certificates that are believed, each in PEM or absent."""

    certificate: str | None
    private_key: str | None
    trusted: str | None
    digest: str
    """Of all of it: connections can be shared by those who have the same."""

    @classmethod
    def of(cls, certificate: str | None, private_key: str | None, trusted: str | None) -> "TlsIdentity | None":
        """Make one; None when there is nothing in it."""
        parts = (certificate, private_key, trusted)
        if not any(parts):
            return None
        content = "\0".join(part or "" for part in parts)
        return cls(certificate, private_key, trusted, hashlib.sha256(content.encode()).hexdigest())

    @classmethod
    def of_sink(cls, tls: SinkTls | None, *, certificate: bool = True) -> "TlsIdentity | None":
        """What a subscription says of its sink, with or without its client certificate."""
        if tls is None:
            return None
        if not certificate:
            return cls.of(None, None, tls.trusted_certificates)
        return cls.of(tls.certificate, tls.private_key, tls.trusted_certificates)


class Contexts:
    """The contexts of one client: that of the broker, and those of sinks, which fall back on the broker's parts."""

    def __init__(self, own: TlsIdentity | None = None, *, default: ssl.SSLContext | None = None) -> None:
        """Make them.

        Args:
            own: the broker's identity and trust; None: none, and the system's trust.
            default: in place of the context that would be made of it.
        """
        self._own = own
        self._default = default or make_context(own)
        self._small: OrderedDict[str, ssl.SSLContext] = OrderedDict()
        self._large: OrderedDict[str, ssl.SSLContext] = OrderedDict()

    def of(self, identity: TlsIdentity | None) -> ssl.SSLContext:
        """The context for a sink; None: the broker's.

        Raises:
            ValueError, ssl.SSLError: what the subscription gave can't be used after all.
        """
        if identity is None:
            return self._default
        small = identity.trusted is not None or (self._own is not None and self._own.trusted is not None)
        made, most = (self._small, _KEPT) if small else (self._large, _KEPT_WITH_SYSTEM_TRUST)
        found = made.get(identity.digest)
        if found is None:
            found = made[identity.digest] = self._make(identity)
            if len(made) > most:
                made.popitem(last=False)
        else:
            made.move_to_end(identity.digest)
        return found

    def replace(self, own: TlsIdentity | None) -> None:
        """The broker has another identity from now on.

        Raises:
            ValueError, ssl.SSLError: it can't be used; the former one stays.
        """
        self._default = make_context(own)
        self._own = own
        self._small.clear()
        self._large.clear()

    def _make(self, identity: TlsIdentity) -> ssl.SSLContext:
        own = self._own
        if own is not None:
            mine = identity.certificate is not None
            identity = TlsIdentity(
                identity.certificate if mine else own.certificate,
                identity.private_key if mine else own.private_key,
                identity.trusted or own.trusted,
                identity.digest,
            )
        return make_context(identity)


def make_context(identity: TlsIdentity | None) -> ssl.SSLContext:
    """A context for connections that we make; it always verifies certificate and name.

    Raises:
        ValueError, ssl.SSLError: the certificates or the key can't be used.
    """
    trusted = None if identity is None else identity.trusted
    context = ssl.create_default_context(cadata=trusted)
    if trusted is not None:  # what is given is believed, be it a root or not
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if identity is not None and identity.certificate is not None and identity.private_key is not None:
        with _as_file(identity.certificate + identity.private_key) as path:
            context.load_cert_chain(path)
    return context


@contextmanager
def _as_file(content: str) -> Iterator[str]:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "w") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{descriptor}"
    else:  # where there is no such thing: readable by us alone, and gone at once
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(content)
            file.flush()
            yield file.name
