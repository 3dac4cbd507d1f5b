"""Credentials for sinks, after the CloudEvents Subscriptions API and the Notification API. Written, never read back."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.resources.base import Moment, Resource

Visible = Annotated[str, Field(min_length=1, max_length=8192, pattern=r"^[\x21-\x7e]+$")]


class PlainCredential(Resource):
    """An identifier and a secret."""

    credential_type: Literal["PLAIN"] = Field(description="The kind of credential.", examples=["PLAIN"])
    identifier: Visible = Field(description="An account or user name.", examples=["bode"])
    secret: Visible = Field(description="Its password.", examples=["correct-horse-battery-staple"], repr=False)


class AccessTokenCredential(Resource):
    """A token that was acquired before."""

    credential_type: Literal["ACCESSTOKEN"] = Field(description="The kind of credential.", examples=["ACCESSTOKEN"])
    access_token: Visible = Field(description="The token.", examples=["2YotnFZFEjr1zCsicMWpAA"], repr=False)
    access_token_expires_utc: Moment | None = Field(
        default=None, description="When it expires; absent: it doesn't say.", examples=["2027-01-01T00:00:00Z"]
    )
    access_token_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,40}$")] = Field(
        default="bearer", description="Its type (RFC 6749, 7.1).", examples=["bearer"]
    )


class RefreshTokenCredential(Resource):
    """A token, and one to acquire the next with."""

    credential_type: Literal["REFRESHTOKEN"] = Field(description="The kind of credential.", examples=["REFRESHTOKEN"])
    access_token: Visible = Field(description="The token.", examples=["2YotnFZFEjr1zCsicMWpAA"], repr=False)
    access_token_expires_utc: Moment | None = Field(
        default=None, description="When it expires; absent: it doesn't say.", examples=["2027-01-01T00:00:00Z"]
    )
    access_token_type: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,40}$")] = Field(
        default="bearer", description="Its type (RFC 6749, 7.1).", examples=["bearer"]
    )
    refresh_token: Visible = Field(
        description="The token to acquire others with.", examples=["tGzv3JOkF0XG5Qx2TlKWIA"], repr=False
    )
    refresh_token_endpoint: Annotated[str, Field(max_length=2048, pattern=r"^https://[^\s#]+$")] = Field(
        description="URL at which it is traded.", examples=["https://auth.example.nl/token"]
    )


SinkCredential = Annotated[
    PlainCredential | AccessTokenCredential | RefreshTokenCredential, Field(discriminator="credential_type")
]
