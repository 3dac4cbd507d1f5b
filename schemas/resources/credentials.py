"""Credentials for sinks, after the CloudEvents Subscriptions API and the Notification API. Written, never read back.

`CLIENTCREDENTIALS` (RFC 6749, 4.4) and TLS are ours: those APIs know no way to have a token renewed without a token.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from schemas.resources.base import Answer, Moment, Resource

Visible = Annotated[str, Field(min_length=1, max_length=8192, pattern=r"^[\x21-\x7e]+$")]
Phrase = Annotated[str, Field(min_length=1, max_length=8192, pattern=r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$")]
"""As RFC 6749 has clients and their secrets (appendix A), but for spaces at the ends: those came along by mistake."""
Endpoint = Annotated[str, Field(max_length=2048, pattern=r"^https://[^\s#]+$")]
_ENDPOINT: Final = "https://auth.example.nl/token"


def _without_colon(text: str) -> str:
    if ":" in text:
        raise PydanticCustomError("identifier", "must not hold a colon (RFC 7617)")
    return text


class PlainCredential(Resource):
    """An identifier and a secret, sent as `Authorization: Basic` (RFC 7617), or to a RabbitMQ by SASL (RFC 4616)."""

    credential_type: Literal["PLAIN"] = Field(description="The kind of credential.", examples=["PLAIN"])
    identifier: Annotated[Visible, AfterValidator(_without_colon)] = Field(
        description="An account or user name; no colon.", examples=["bode"]
    )
    secret: Phrase = Field(description="Its password.", examples=["correct-horse-battery-staple"], repr=False)


def _bearer(text: str) -> str:
    if text.lower() != "bearer":
        raise PydanticCustomError("token_type", "must be bearer: other types need more than a token")
    return text


TokenType = Annotated[str, AfterValidator(_bearer)]


class AccessTokenCredential(Resource):
    """A token that was acquired before, sent as `Authorization: Bearer` (RFC 6750)."""

    credential_type: Literal["ACCESSTOKEN"] = Field(description="The kind of credential.", examples=["ACCESSTOKEN"])
    access_token: Visible = Field(description="The token.", examples=["2YotnFZFEjr1zCsicMWpAA"], repr=False)
    access_token_expires_utc: Moment | None = Field(
        default=None,
        description="When it expires, after which it isn't sent any more; absent: it doesn't say.",
        examples=["2027-01-01T00:00:00Z"],
    )
    access_token_type: TokenType = Field(
        default="bearer", description="Its type (RFC 6749, 7.1): bearer.", examples=["bearer"]
    )


class RefreshTokenCredential(Resource):
    """A token, and one to acquire the next with (RFC 6749, 6)."""

    credential_type: Literal["REFRESHTOKEN"] = Field(description="The kind of credential.", examples=["REFRESHTOKEN"])
    access_token: Visible = Field(description="The token.", examples=["2YotnFZFEjr1zCsicMWpAA"], repr=False)
    access_token_expires_utc: Moment | None = Field(
        default=None,
        description="When it expires; absent: it is sent until the sink answers 401.",
        examples=["2027-01-01T00:00:00Z"],
    )
    access_token_type: TokenType = Field(
        default="bearer", description="Its type (RFC 6749, 7.1): bearer.", examples=["bearer"]
    )
    refresh_token: Visible = Field(
        description="The token to acquire others with.", examples=["tGzv3JOkF0XG5Qx2TlKWIA"], repr=False
    )
    refresh_token_endpoint: Endpoint = Field(description="URL at which it is traded.", examples=[_ENDPOINT])
    client_id: Phrase | None = Field(
        default=None, description="The client that the tokens were issued to; absent: not named.", examples=["bode"]
    )
    client_secret: Phrase | None = Field(
        default=None,
        description="Its secret, sent as `Authorization: Basic`; absent: a client without.",
        examples=["correct-horse-battery-staple"],
        repr=False,
    )

    @model_validator(mode="after")
    def _secret_of_somebody(self) -> "RefreshTokenCredential":
        if self.client_secret is not None and self.client_id is None:
            raise PydanticCustomError("client", "must name the client (clientId) whose secret it gives")
        return self


class ClientAuthentication(StrEnum):
    """How a client makes itself known at a token endpoint (RFC 7591, 2; RFC 8705, 2.1)."""

    BASIC = "client_secret_basic"
    POST = "client_secret_post"
    PRIVATE_KEY_JWT = "private_key_jwt"
    TLS = "tls_client_auth"


class ClientCredential(Resource):
    """A client with which tokens are acquired (client credentials: RFC 6749, 4.4)."""

    credential_type: Literal["CLIENTCREDENTIALS"] = Field(
        description="The kind of credential.", examples=["CLIENTCREDENTIALS"]
    )
    token_endpoint: Endpoint = Field(description="URL at which tokens are issued.", examples=[_ENDPOINT])
    client_id: Phrase = Field(description="Identifier of the client.", examples=["bode"])
    authentication: ClientAuthentication = Field(
        default=ClientAuthentication.BASIC,
        description="How the client makes itself known: by its secret in a header or in the body, by a JWT under its "
        "private key (RFC 7523), or by the client certificate of `sinkTls` (RFC 8705).",
    )
    client_secret: Phrase | None = Field(
        default=None,
        description="Its secret, for `client_secret_basic` and `client_secret_post`.",
        examples=["correct-horse-battery-staple"],
        repr=False,
    )
    client_secret_expires_utc: Moment | None = Field(
        default=None,
        description="When the secret expires, so that it can be told in time; absent: it doesn't.",
        examples=["2027-01-01T00:00:00Z"],
    )
    private_key: Annotated[str, Field(max_length=16_384)] | None = Field(
        default=None,
        description="Its private key in PEM, for `private_key_jwt`: RSA (RS256), P-256 (ES256) or Ed25519 (EdDSA).",
        examples=["-----BEGIN PRIVATE KEY-----\n…\n-----END PRIVATE KEY-----\n"],
        repr=False,
    )
    key_id: Visible | None = Field(
        default=None, description="`kid` of that key, as the token endpoint knows it.", examples=["2026-1"]
    )
    scope: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[\x21\x23-\x5b\x5d-\x7e ]+$")] | None = Field(
        default=None, description="Scopes to ask for, parted by spaces.", examples=["notificaties.ontvangen"]
    )
    audience: Visible | None = Field(
        default=None,
        description="`audience` to ask for, where the server wants one.",
        examples=["https://afnemer.example.nl"],
    )

    @model_validator(mode="after")
    def _complete(self) -> "ClientCredential":
        by_secret = self.authentication in (ClientAuthentication.BASIC, ClientAuthentication.POST)
        if by_secret != (self.client_secret is not None):
            raise PydanticCustomError(
                "client", "must give clientSecret for client_secret_basic and client_secret_post, and only for these"
            )
        if (self.authentication is ClientAuthentication.PRIVATE_KEY_JWT) != (self.private_key is not None):
            raise PydanticCustomError("client", "must give privateKey for private_key_jwt, and only for it")
        if self.client_secret_expires_utc is not None and not by_secret:
            raise PydanticCustomError("client", "must not say when a secret expires that it doesn't give")
        return self


SinkCredential = Annotated[
    PlainCredential | AccessTokenCredential | RefreshTokenCredential | ClientCredential,
    Field(discriminator="credential_type"),
]

_CERTIFICATE: Final = "-----BEGIN CERTIFICATE-----\n…\n-----END CERTIFICATE-----\n"


class SinkTls(Resource):
    """How we show ourselves to a sink in TLS, and whom we believe. Written, never read back."""

    certificate: Annotated[str, Field(min_length=1, max_length=65_536)] | None = Field(
        default=None,
        description="Client certificate in PEM, followed by its intermediate certificates, each the issuer of the one "
        "before; absent: the broker's own, if it has one.",
        examples=[_CERTIFICATE],
    )
    private_key: Annotated[str, Field(min_length=1, max_length=16_384)] | None = Field(
        default=None,
        description="Private key of that certificate in PEM, without password: RSA of 2048 bits or more, P-256, P-384 "
        "or P-521.",
        examples=["-----BEGIN PRIVATE KEY-----\n…\n-----END PRIVATE KEY-----\n"],
        repr=False,
    )
    trusted_certificates: Annotated[str, Field(min_length=1, max_length=262_144)] | None = Field(
        default=None,
        description="Certificates in PEM, in place of those that the broker trusts: one of them must stand above the "
        "sink's own, and above that of its token endpoint. Absent: those that the broker trusts.",
        examples=[_CERTIFICATE],
    )

    @model_validator(mode="after")
    def _whole(self) -> "SinkTls":
        if (self.certificate is None) != (self.private_key is None):
            raise PydanticCustomError("tls", "must give certificate and privateKey together")
        if self.certificate is None and self.trusted_certificates is None:
            raise PydanticCustomError("tls", "must give certificate and privateKey, or trustedCertificates")
        return self


class CertificateShown(Answer):
    """What can be known of a certificate."""

    subject: str = Field(description="Whose it is (RFC 4514).", examples=["CN=bode.example.nl,O=Voorbeeld,C=NL"])
    issuer: str = Field(description="Who issued it (RFC 4514).", examples=["CN=Voorbeeld CA,C=NL"])
    serial_number: str = Field(description="Its number, hexadecimal.", examples=["0a1b2c"])
    not_before: datetime = Field(description="From when it is valid.")
    not_after: datetime = Field(description="Until when it is valid.")
    fingerprint: str = Field(description="SHA-256 over it, hexadecimal.", examples=["3f" * 32])


class SinkIdentity(Answer):
    """What the sink is shown of us, without any secret."""

    credential_type: str | None = Field(
        default=None, description="Kind of `sinkCredential`; absent: there is none.", examples=["CLIENTCREDENTIALS"]
    )
    credential_expires_at: datetime | None = Field(
        default=None,
        description="When the access token or the client's secret expires, as was said with it; absent: not known. Of "
        "tokens that are renewed nothing is said.",
    )
    certificate: CertificateShown | None = Field(
        default=None, description="The client certificate of this subscription; absent: the broker's own, if any."
    )
    trusted_certificates: list[CertificateShown] | None = Field(
        default=None, description="Who is believed; absent: whom the broker trusts."
    )
