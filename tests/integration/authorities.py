"""Real certificates: a root, an intermediate below it, servers and clients, good and bad; contexts made of them."""

import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


def key_pem(key: Any) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


@dataclass
class Issued:
    """A certificate with its key; `chain` is what TLS sends: itself and its intermediates."""

    certificate: x509.Certificate
    key: Any
    issuers: list[x509.Certificate] = field(default_factory=list)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def chain(self) -> str:
        return "".join(each.public_bytes(Encoding.PEM).decode() for each in (self.certificate, *self.issuers))

    @property
    def key_pem(self) -> str:
        return key_pem(self.key)

    @property
    def members(self) -> dict[str, str]:
        """As `sinkTls` has them."""
        return {"certificate": self.chain, "privateKey": self.key_pem}


@dataclass
class Authority:
    """A root and an intermediate that issues."""

    name: str
    root: Issued = field(init=False)
    intermediate: Issued = field(init=False)

    def __post_init__(self) -> None:
        self.root = issue(f"{self.name} root", None, authority=True, days=3650)
        self.intermediate = issue(f"{self.name} intermediate", self.root, authority=True, days=3650)

    def client(self, name: str = "bode", **given: Any) -> Issued:
        return self._below(issue(name, self.intermediate, uses=[CLIENT], **given))

    def server(self, name: str = "sink", **given: Any) -> Issued:
        return self._below(issue(name, self.intermediate, uses=[SERVER], **given))

    def _below(self, issued: Issued) -> Issued:
        issued.issuers = [self.intermediate.certificate]
        return issued

    def server_context(self, server: Issued | None = None, clients: "Authority | None" = None) -> ssl.SSLContext:
        """That of a server, which asks for certificates of this authority's clients when it is given."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server = server or self.server()
        with TemporaryDirectory() as folder:
            path = Path(folder) / "server.pem"
            path.write_text(server.chain + server.key_pem)
            context.load_cert_chain(path)
        if clients is not None:
            context.load_verify_locations(cadata=clients.root.pem)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def issue(
    name: str,
    issuer: Issued | None,
    *,
    authority: bool = False,
    uses: list[Any] | None = None,
    days: float = 30,
    since_days: float = 1,
    key: Any = None,
) -> Issued:
    """A certificate from `since_days` ago until `days` from now; without issuer, signed by itself."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    parts = ((NameOID.ORGANIZATION_NAME, "Voorbeeld"), (NameOID.COMMON_NAME, name))
    subject = x509.Name([x509.NameAttribute(kind, value) for kind, value in parts])
    hosts = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    signer = issuer.key if issuer is not None else key
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer is not None else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=since_days))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(authority, None), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
        .add_extension(x509.SubjectAlternativeName(hosts), False)
    )
    if uses is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(uses), False)
    return Issued(builder.sign(signer, hashes.SHA256()), key)
