"""Tables beside `subscriptions` about what sinks are shown: tokens that were acquired, and when things expire."""

from sqlalchemy import (
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Index,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
)

from subscriptions.database import metadata

sink_tokens = Table(
    "sink_tokens",
    metadata,
    Column("subscription_id", Uuid, ForeignKey("subscriptions.id", ondelete="CASCADE"), primary_key=True),
    Column("credential_id", Uuid, nullable=False, comment="Of the credential that it was acquired with"),
    Column("sealed", LargeBinary, comment="Access token, and refresh token where there is one, encrypted"),
    Column("expires_at", DateTime(timezone=True), comment="Of the access token; empty: it didn't say"),
    Column("claim", Uuid, comment="Of the process that acquires the next one; empty: none does"),
    Column("claimed_until", DateTime(timezone=True), comment="After that another may"),
    CheckConstraint("(claim IS NULL) = (claimed_until IS NULL)", name="claim"),
    comment="The token for a sink, shared by all processes: no refresh token may be traded twice",
)

sink_expiries = Table(
    "sink_expiries",
    metadata,
    Column("subscription_id", Uuid, ForeignKey("subscriptions.id", ondelete="CASCADE"), nullable=False),
    Column(
        "kind",
        Text,
        CheckConstraint(
            "kind IN ('access-token', 'client-secret', 'client-certificate', 'trusted-certificate')", name="kind"
        ),
        nullable=False,
    ),
    Column("expires_at", DateTime(timezone=True), nullable=False),
    Column("told_at", DateTime(timezone=True), comment="When its provider was told that it will; empty: not yet"),
    PrimaryKeyConstraint("subscription_id", "kind"),
    Index(None, "expires_at"),
    comment="When what a sink is shown expires, so that it can be told in time",
)
