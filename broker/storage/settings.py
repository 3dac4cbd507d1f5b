"""Settings of what is kept, for how long, and how often it is accounted for."""

from pydantic import BaseModel, ConfigDict, Field


class RetentionSettings(BaseModel):
    """How long what is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    days: int = Field(
        default=60, ge=8, le=36_500, description="Days that events are kept, where their type says nothing."
    )
    notice_days: int = Field(
        default=5, ge=0, le=365, description="Days ahead that providers are told what they will miss; 0: never."
    )
    deduplication_days: int = Field(
        default=400, ge=400, le=36_500, description="Days during which a source and id are accepted once."
    )
    rejection_days: int = Field(default=90, ge=1, le=36_500, description="Days that rejections are kept.")
    change_days: int = Field(default=30, ge=1, le=3650, description="Days that the change log goes back.")


class AccountingSettings(BaseModel):
    """How often counters and rows are compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    totals_seconds: float = Field(default=60, ge=1, le=3600, description="Totals and rows are compared this often.")
    share: float = Field(default=0.05, gt=0, le=1, description="Share of one connection's time that checks may take.")
