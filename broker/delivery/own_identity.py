"""The broker's own client certificate and trust, from files that may be replaced at any time.

Files are looked at every few seconds. What can't be used is told once and leaves the former in place; so a certificate
and its key may be replaced one after the other.
"""

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Final

from broker.delivery.client import Client
from broker.delivery.settings import DeliverySettings
from broker.delivery.tls import TlsIdentity
from broker.telemetry import log
from subscriptions import certificates
from subscriptions.certificates import CertificateError

_LOOK_SECONDS: Final = 5.0
_MOST_BYTES: Final = 4 << 20

State = tuple[tuple[int, int, int] | None, ...]
"""Of the files: what changes when one of them does."""


class UnusableFile(Exception):
    """A file that a setting names can't be used; `str` names the setting."""


class OwnIdentity:
    """What the files hold; `run` is the worker that follows their changes."""

    def __init__(self, settings: DeliverySettings) -> None:
        self._trust = settings.ca_file
        self._certificate = settings.client_certificate_file
        self._key = settings.client_key_file
        self._state: State = ()
        self._identity: TlsIdentity | None = None

    @property
    def identity(self) -> TlsIdentity | None:
        """What was read last that could be used."""
        return self._identity

    def read(self) -> TlsIdentity | None:
        """Read the files.

        Raises:
            UnusableFile: one of them can't be read or used.
        """
        self._state = self._look()
        self._identity = self._read()
        return self._identity

    def expiries(self) -> dict[str, datetime]:
        """When what expires, by kind."""
        found = {}
        if self._identity is not None and self._identity.certificate is not None:
            found["broker-certificate"] = certificates.expiry(self._identity.certificate)
        if self._identity is not None and self._identity.trusted is not None:
            found["broker-trust"] = certificates.expiry(self._identity.trusted)
        return found

    async def run(self, client: Client) -> None:
        """Have the client use what the files hold, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await self.follow(client)

    async def follow(self, client: Client) -> None:
        """Look once, and have the client use what is new."""
        if await asyncio.to_thread(self._look) == self._state:
            return
        try:
            identity = await asyncio.to_thread(self.read)
            client.replace_identity(identity)
        except (UnusableFile, ValueError, OSError) as error:  # OpenSSL's errors are OSErrors
            log().error(
                "own-certificate-unusable",
                error=str(error) if isinstance(error, UnusableFile) else type(error).__name__,
            )
        else:
            log().info("own-certificate-replaced")

    def _look(self) -> State:
        return tuple(_state_of(path) for path in (self._trust, self._certificate, self._key))

    def _read(self) -> TlsIdentity | None:
        trusted = certificate = key = None
        if self._trust is not None:
            trusted = _content("BODE_DELIVERY_CA_FILE", self._trust)
            try:
                trusted = certificates.check_trusted(trusted, None)
            except CertificateError as error:
                raise UnusableFile(f"BODE_DELIVERY_CA_FILE {error.args[0]}") from None
        if self._certificate is not None and self._key is not None:
            certificate = _content("BODE_DELIVERY_CLIENT_CERTIFICATE_FILE", self._certificate)
            key = _content("BODE_DELIVERY_CLIENT_KEY_FILE", self._key)
            try:
                certificate, key = certificates.check_identity(certificate, key, None)
            except CertificateError as error:
                name = "CERTIFICATE" if error.args[1] == "certificate" else "KEY"
                raise UnusableFile(f"BODE_DELIVERY_CLIENT_{name}_FILE {error.args[0]}") from None
        return TlsIdentity.of(certificate, key, trusted)


def _state_of(path: Path | None) -> tuple[int, int, int] | None:
    try:
        found = None if path is None else path.stat()
    except OSError:
        return None
    return None if found is None else (found.st_ino, found.st_mtime_ns, found.st_size)


def _content(setting: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode("ascii")
    except (OSError, UnicodeDecodeError):
        raise UnusableFile(f"{setting} can't be read") from None
