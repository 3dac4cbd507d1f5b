"""Certificates and private keys as they are given for sinks: what is acceptable, and what may be told of them.

A chain is the client's own certificate followed by its intermediates, each the issuer of the one before, as TLS sends
it (RFC 8446, 4.4.2). The root may be left out. What passes here is stored as it was understood, in canonical PEM.
"""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.hashes import MD5, SHA1, SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from schemas.resources.credentials import CertificateShown

_LEAST_RSA_BITS: Final = 2048
_LONGEST_CHAIN: Final = 10
_MOST_TRUSTED: Final = 100
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


class CertificateError(Exception):
    """Why it can't be used, in words that hold nothing of what was given."""


def read_certificates(pem: str, most: int) -> list[x509.Certificate]:
    """Returns the certificates in a PEM text, in order.

    Raises:
        CertificateError: there is none, one of them is damaged, or there are more than `most`.
    """
    try:
        found = x509.load_pem_x509_certificates(pem.encode("ascii"))
    except (ValueError, UnicodeEncodeError, UnsupportedAlgorithm):
        raise CertificateError("must hold certificates in PEM") from None
    if len(found) > most:
        raise CertificateError(f"must hold {most} certificates at most")
    return found


def read_private_key(pem: str) -> PrivateKeyTypes:
    """Returns the private key in a PEM text.

    Raises:
        CertificateError: there is none, it needs a password, or it is of a kind or size that isn't taken.
    """
    try:
        key = load_pem_private_key(pem.encode("ascii"), None)
    except TypeError:
        raise CertificateError("must be a private key without password") from None
    except (ValueError, UnicodeEncodeError, UnsupportedAlgorithm):
        raise CertificateError("must be a private key in PEM") from None
    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < _LEAST_RSA_BITS:
            raise CertificateError(f"must have {_LEAST_RSA_BITS} bits or more")
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        if not isinstance(key.curve, _CURVES):
            raise CertificateError("must be on the curve P-256, P-384 or P-521")
    elif not isinstance(key, ed25519.Ed25519PrivateKey):
        raise CertificateError("must be an RSA, elliptic curve or Ed25519 key")
    return key


def check_chain(chain: Sequence[x509.Certificate], now: datetime | None) -> None:
    """Judges a client's chain; without `now`, not when it is valid.

    Raises:
        CertificateError: not valid now, not for clients, or not in order.
    """
    for number, certificate in enumerate(chain, 1):
        which = "the certificate" if number == 1 else f"certificate {number} of the chain"
        if now is not None and now < certificate.not_valid_before_utc:
            raise CertificateError(f"{which} is not valid yet")
        if now is not None and now >= certificate.not_valid_after_utc:
            raise CertificateError(f"{which} has expired")
        if isinstance(certificate.signature_hash_algorithm, (MD5, SHA1)):
            raise CertificateError(f"{which} is signed with a digest that is no longer trusted")
        alone = len(chain) == 1 and certificate.issuer == certificate.subject  # whoever knows it believes it
        if not alone and _is_authority(certificate) != (number > 1):
            said = "must not be that of an authority" if number == 1 else "must be that of an authority"
            raise CertificateError(f"{which} {said}: the client's own comes first, then its issuers")
    for number, (one, issuer) in enumerate(pairwise(chain), 2):
        try:
            one.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
            raise CertificateError(f"certificate {number} of the chain is not the issuer of the one before") from None
    _check_use(chain[0])


def check_identity(certificate: str, private_key: str, now: datetime | None) -> tuple[str, str]:
    """Judges a client certificate with its chain and key; returns both in canonical PEM.

    Raises:
        CertificateError: its `args[1]` is the member at fault, `certificate` or `privateKey`.
    """
    try:
        chain = read_certificates(certificate, _LONGEST_CHAIN)
        check_chain(chain, now)
    except CertificateError as error:
        raise CertificateError(*error.args, "certificate") from None
    try:
        key = read_private_key(private_key)
        if isinstance(key, ed25519.Ed25519PrivateKey):
            raise CertificateError("must be an RSA or elliptic curve key: receivers don't know Ed25519 in TLS")
        if _public(key) != _public(chain[0]):
            raise CertificateError("must belong to the certificate")
    except CertificateError as error:
        raise CertificateError(*error.args, "privateKey") from None
    return _pem(chain), canonical_key(key)


def check_trusted(pem: str, now: datetime | None) -> str:
    """Judges certificates that are to be believed; returns them in canonical PEM.

    Raises:
        CertificateError: there is none, or one has expired.
    """
    trusted = read_certificates(pem, _MOST_TRUSTED)
    for number, certificate in enumerate(trusted, 1):
        if now is not None and now >= certificate.not_valid_after_utc:
            raise CertificateError(f"certificate {number} has expired")
    return _pem(trusted)


def canonical_key(key: PrivateKeyTypes) -> str:
    """Returns a private key in PKCS #8."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def expiry(pem: str) -> datetime:
    """Returns when the first of these certificates expires that does."""
    return min(certificate.not_valid_after_utc for certificate in x509.load_pem_x509_certificates(pem.encode()))


def shown(pem: str) -> list[CertificateShown]:
    """Returns what may be told of certificates that were judged before."""
    return [
        CertificateShown(
            subject=certificate.subject.rfc4514_string(),
            issuer=certificate.issuer.rfc4514_string(),
            serial_number=f"{certificate.serial_number:x}",
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
            fingerprint=certificate.fingerprint(SHA256()).hex(),
        )
        for certificate in x509.load_pem_x509_certificates(pem.encode())
    ]


def _pem(certificates: Sequence[x509.Certificate]) -> str:
    return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in certificates)


def _public(holder: PrivateKeyTypes | x509.Certificate) -> bytes:
    return holder.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
    except ValueError:
        raise CertificateError("must hold certificates with well-formed extensions") from None


def _check_use(certificate: x509.Certificate) -> None:
    # RFC 5280, 4.2.1.12: a certificate that says what it is for is for nothing else.
    try:
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(uses):
        raise CertificateError("the certificate is not for TLS clients (extended key usage)")
