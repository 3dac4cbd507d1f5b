"""Settings of delivery and of the fence, with their bounds."""

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from broker.delivery.proxy import ProxyAddress


class DeliverySettings(BaseModel):
    """How notifications are sent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: int = Field(default=64, ge=1, le=1024, description="Shards of subscriptions; fixed at first start.")
    concurrency: int = Field(default=16, ge=1, le=256, description="Attempts under way for one sink at most.")
    at_once: int = Field(
        default=512, ge=16, le=10_000, description="Attempts under way in one process, those without answer apart."
    )
    disable_days: float = Field(
        default=5, ge=0, le=365, description="A sink that fails for so long without a success is disabled. 0: never."
    )
    window: int = Field(default=128, ge=8, le=4096, description="Deliveries of one subscription in memory at most.")
    attempt_seconds: float = Field(default=10, gt=0, le=120, description="Limit for one attempt, look-up to answer.")
    lease_seconds: float = Field(default=6, ge=1, le=60, description="How long shards stay with a silent process.")
    sweep_seconds: float = Field(default=5, ge=0.5, le=300, description="Look for pending work this often, unasked.")
    linger_seconds: float = Field(default=0.01, ge=0, le=1, description="Wait to record outcomes together.")
    unrecorded_max: int = Field(default=5000, ge=100, le=100_000, description="No new attempts above this many.")
    body_cache_bytes: int = Field(default=64 << 20, ge=1 << 20, le=1 << 32, description="Event bodies kept in memory.")
    queue_max_length: int = Field(
        default=1_000_000, ge=1, le=1 << 31, description="Messages in a provider's queue; a full one refuses more."
    )
    grace_seconds: float = Field(default=8, ge=0, le=300, description="At shutdown, time for attempts under way.")
    ca_file: Path | None = Field(
        default=None, description="PEM file of certificates that are believed, in place of the system's."
    )
    client_certificate_file: Path | None = Field(
        default=None, description="PEM file of our client certificate, with its intermediates in order."
    )
    client_key_file: Path | None = Field(default=None, description="PEM file of its private key, without password.")
    proxy: SecretStr | None = Field(
        default=None, description="http://[user:password@]host:port of a proxy that everything to sinks goes through."
    )
    origin: str = Field(
        default="bode", min_length=1, max_length=253, description="WebHook-Request-Origin: our DNS name."
    )

    @field_validator("proxy")
    @classmethod
    def _is_proxy(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            ProxyAddress.of(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if (self.client_certificate_file is None) != (self.client_key_file is None):
            raise ValueError("client_certificate_file and client_key_file belong together")
        return self


class FenceSettings(BaseModel):
    """What sinks may make the broker connect to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(), description="Special-purpose networks that sinks may be in, such as 127.0.0.0/8; none by default."
    )
    ports: tuple[int, ...] = Field(default=(), description="Ports that sinks may use; empty allows every port.")
    resolve_seconds: float = Field(default=5, gt=0, le=60, description="Limit for one name look-up.")
