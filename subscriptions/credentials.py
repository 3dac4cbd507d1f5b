"""What a subscription shows to its sink: judged when it is given, stored sealed, opened by delivery processes only.

`sinkCredential` ends in `Authorization` headers or in the log-in to a RabbitMQ, `sinkTls` in TLS handshakes.
Credentials with a token bear an id of their own: a token belongs to the credential that it came with, or was acquired
with, and to no later one.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias
from uuid import UUID, uuid4

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import delete, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.problems import InvalidInput
from schemas.resources import SubscriptionBody
from schemas.resources.credentials import (
    AccessTokenCredential,
    ClientAuthentication,
    ClientCredential,
    PlainCredential,
    RefreshTokenCredential,
    SinkCredential,
    SinkIdentity,
    SinkTls,
)
from subscriptions import certificates
from subscriptions.certificates import CertificateError
from subscriptions.database import AnyRow
from subscriptions.secrets import KeyRing, SealError, credential_purpose, tls_purpose
from subscriptions.sink_tables import sink_expiries, sink_tokens
from subscriptions.sink_urls import SinkRules

Credential: TypeAlias = SinkCredential
_CREDENTIAL: Final[TypeAdapter[Credential]] = TypeAdapter(SinkCredential)
_ID: Final = "id"
FIRST: Final = UUID(int=0)
"""Id of a credential that was stored before credentials had one."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a sink is shown, opened. `credential_id` tells this credential from those that were in its place before."""

    credential: Credential | None
    credential_id: UUID
    tls: SinkTls | None


NOBODY: Final = Identity(None, FIRST, None)


def judged(body: SubscriptionBody, sinks: SinkRules, now: datetime) -> SubscriptionBody:
    """Returns a body with its credential and TLS members as they will be used.

    Raises:
        InvalidInput: a certificate, key or token endpoint isn't acceptable.
    """
    credential, tls = body.sink_credential, body.sink_tls
    match credential:
        case RefreshTokenCredential(refresh_token_endpoint=endpoint):
            sinks.validate(endpoint, "/sinkCredential/refreshTokenEndpoint")
        case ClientCredential(token_endpoint=endpoint):
            sinks.validate(endpoint, "/sinkCredential/tokenEndpoint")
            if credential.private_key is not None:
                with _naming("/sinkCredential/privateKey"):
                    key = certificates.canonical_key(certificates.read_private_key(credential.private_key))
                credential = credential.model_copy(update={"private_key": key})
    if tls is not None:
        if body.sink is None or not body.sink.lower().startswith(("https:", "amqps:")):
            raise InvalidInput.field("/sinkTls", "tls", "needs an https or amqps sink")
        tls = _judged_tls(tls, now)
    changed = {"sink_credential": credential, "sink_tls": tls}
    return body.model_copy(update={name: value for name, value in changed.items() if value is not None})


def check_together(credential: Credential | None, tls: SinkTls | None) -> None:
    """Raises `InvalidInput` where the credential needs a client certificate and there is none."""
    if (
        isinstance(credential, ClientCredential)
        and credential.authentication is ClientAuthentication.TLS
        and (tls is None or tls.certificate is None)
    ):
        raise InvalidInput.field(
            "/sinkCredential/authentication", "client", "tls_client_auth needs the certificate of sinkTls"
        )


def seal(identity: Identity, subscription_id: UUID, keys: KeyRing) -> dict[str, bytes | None]:
    """Returns the columns that hold an identity."""
    credential = tls = None
    if identity.credential is not None:
        members = json.loads(identity.credential.model_dump_json(by_alias=True))
        if not isinstance(identity.credential, PlainCredential):
            members[_ID] = str(identity.credential_id)
        credential = keys.seal(json.dumps(members).encode(), credential_purpose(subscription_id))
    if identity.tls is not None:
        tls = keys.seal(identity.tls.model_dump_json(by_alias=True).encode(), tls_purpose(subscription_id))
    return {"sink_credential": credential, "sink_tls": tls}


def open_identity(row: AnyRow, keys: KeyRing) -> Identity:
    """Returns what the sink of a stored subscription is shown.

    Raises:
        SealError: no key opens it, or it can't be read.
    """
    if row.sink_credential is None and row.sink_tls is None:
        return NOBODY
    credential, credential_id, tls = None, FIRST, None
    try:
        if row.sink_credential is not None:
            members = json.loads(keys.open(row.sink_credential, credential_purpose(row.id)))
            credential_id = UUID(members.pop(_ID, str(FIRST)))
            credential = _CREDENTIAL.validate_python(members)
        if row.sink_tls is not None:
            tls = SinkTls.model_validate_json(keys.open(row.sink_tls, tls_purpose(row.id)))
    except (ValidationError, ValueError):
        raise SealError("what was sealed can't be read") from None
    return Identity(credential, credential_id, tls)


def given(body: SubscriptionBody, former: Identity = NOBODY, *, same_sink: bool = False) -> Identity:
    """Returns the identity after a body: what it leaves out stays as it was, unless the sink is another.

    It is `former` itself when nothing was said.
    """
    identity = former if same_sink else NOBODY
    if "sink_credential" in body.model_fields_set:
        identity = Identity(body.sink_credential, uuid4(), identity.tls)
    if "sink_tls" in body.model_fields_set:
        identity = Identity(identity.credential, identity.credential_id, body.sink_tls)
    check_together(identity.credential, identity.tls)
    return identity


def show(identity: Identity) -> SinkIdentity | None:
    """Returns what may be shown of it; None: there is nothing."""
    credential, tls = identity.credential, identity.tls
    if credential is None and tls is None:
        return None
    own = tls.certificate if tls is not None else None
    trusted = tls.trusted_certificates if tls is not None else None
    members = {
        "credential_type": None if credential is None else credential.credential_type,
        "credential_expires_at": _expiry_of(credential)[1],
        "certificate": None if own is None else certificates.shown(own)[0],
        "trusted_certificates": None if trusted is None else certificates.shown(trusted),
    }
    return SinkIdentity.model_validate({name: value for name, value in members.items() if value is not None})


def expiries(identity: Identity) -> dict[str, datetime]:
    """Returns when which part of an identity expires, by kind."""
    found: dict[str, datetime] = {}
    kind, moment = _expiry_of(identity.credential)
    if moment is not None:
        found[kind] = moment
    if identity.tls is not None and identity.tls.certificate is not None:
        found["client-certificate"] = certificates.expiry(identity.tls.certificate)
    if identity.tls is not None and identity.tls.trusted_certificates is not None:
        found["trusted-certificate"] = certificates.expiry(identity.tls.trusted_certificates)
    return found


async def keep_track(connection: AsyncConnection, subscription_id: UUID, identity: Identity, *, renewed: bool) -> None:
    """Writes down when an identity expires; forgets tokens of a former credential when it is `renewed`."""
    await connection.execute(delete(sink_expiries).where(sink_expiries.c.subscription_id == subscription_id))
    rows = [
        {"subscription_id": subscription_id, "kind": kind, "expires_at": moment}
        for kind, moment in expiries(identity).items()
    ]
    if rows:
        await connection.execute(insert(sink_expiries), rows)
    if renewed:
        await connection.execute(delete(sink_tokens).where(sink_tokens.c.subscription_id == subscription_id))


def _expiry_of(credential: Credential | None) -> tuple[str, datetime | None]:
    match credential:
        case AccessTokenCredential(access_token_expires_utc=moment):
            return "access-token", moment
        case ClientCredential(client_secret_expires_utc=moment):
            return "client-secret", moment
        case _:
            return "", None


def _judged_tls(tls: SinkTls, now: datetime) -> SinkTls:
    certificate, private_key, trusted = tls.certificate, tls.private_key, tls.trusted_certificates
    if certificate is not None and private_key is not None:
        with _naming("/sinkTls"):
            certificate, private_key = certificates.check_identity(certificate, private_key, now)
    if trusted is not None:
        with _naming("/sinkTls/trustedCertificates"):
            trusted = certificates.check_trusted(trusted, now)
    return SinkTls.model_validate(
        {"certificate": certificate, "privateKey": private_key, "trustedCertificates": trusted}
    )


@contextmanager
def _naming(pointer: str) -> Iterator[None]:
    """Turns an error about a certificate into a problem that names the member."""
    try:
        yield
    except CertificateError as error:
        member = f"/{error.args[1]}" if len(error.args) > 1 else ""
        raise InvalidInput.field(f"{pointer}{member}", "certificate", error.args[0]) from None
