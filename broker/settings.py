"""Every setting of Bode, read once at start from the environment: `BODE_<GROUP>_<FIELD>`.

One frozen object; its slices are passed inward, and nothing imports a global. docs/settings.md lists them all and a
test compares the two.
"""

from ipaddress import IPv4Address, IPv6Address
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from broker.delivery.settings import DeliverySettings, FenceSettings
from broker.ingest.consumer import IngestSettings
from broker.rabbitmq import AmqpSettings
from broker.storage.settings import AccountingSettings, RetentionSettings
from subscriptions.callers import ApiSettings
from subscriptions.consent import HandshakeSettings
from subscriptions.database import DatabaseSettings
from subscriptions.proxies import ProxySettings
from subscriptions.secrets import SecretsSettings
from subscriptions.tokens import OauthSettings


class EventSettings(BaseModel):
    """Limits of a single event."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = Field(
        default=256 * 1024,
        ge=64 * 1024,
        le=16 << 20,
        description="Largest event, in bytes; NL GOV asks at least 64 KiB.",
    )


class ServeSettings(BaseModel):
    """Where a process listens: the API its requests, the others `/metrics`, `/livez` and `/readyz`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: IPv4Address | IPv6Address = Field(default=IPv4Address("127.0.0.1"), description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port of the API; 0 takes a free one.")
    metrics_port: int = Field(default=9090, ge=0, le=65535, description="Port of the others; 0 takes a free one.")


class LogSettings(BaseModel):
    """What is logged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="Least level written.")


class Settings(BaseSettings):
    """The whole configuration of one process."""

    model_config = SettingsConfigDict(
        env_prefix="BODE_", env_nested_delimiter="_", env_nested_max_split=1, frozen=True, extra="ignore"
    )

    database: DatabaseSettings
    amqp: AmqpSettings = AmqpSettings()
    event: EventSettings = EventSettings()
    ingest: IngestSettings = IngestSettings()
    delivery: DeliverySettings = DeliverySettings()
    fence: FenceSettings = FenceSettings()
    retention: RetentionSettings = RetentionSettings()
    accounting: AccountingSettings = AccountingSettings()
    secrets: SecretsSettings
    api: ApiSettings = ApiSettings()
    oauth: OauthSettings = OauthSettings()
    proxy: ProxySettings = ProxySettings()
    handshake: HandshakeSettings = HandshakeSettings()
    serve: ServeSettings = ServeSettings()
    log: LogSettings = LogSettings()


def load(**overrides: Any) -> Settings:
    """Read the settings from the environment.

    Raises:
        pydantic.ValidationError: naming each setting that is missing or out of bounds.
    """
    return Settings(**overrides)
