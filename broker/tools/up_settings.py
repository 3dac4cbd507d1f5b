"""The settings that `bode up` reads for itself, apart from those of the processes, which take long to import."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class DemoSettings(BaseModel):
    """The demo of `bode up --demo`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rate: float = Field(default=2, ge=0, le=1000, description="Demo events per second; 0 for silence.")


class DataSettings(BaseModel):
    """Where `bode up` keeps what it writes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dir: Path = Field(default=Path(".bode"), description="Data directory of `bode up`.")


class UpSettings(BaseSettings):
    """What `bode up` reads for itself; it makes the rest for its children."""

    model_config = SettingsConfigDict(
        env_prefix="BODE_", env_nested_delimiter="_", env_nested_max_split=1, frozen=True, extra="ignore"
    )

    data: DataSettings = DataSettings()
    demo: DemoSettings = DemoSettings()
