"""What sinks are shown: TLS, tokens that were acquired, when things expire."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "subscriptions",
        sa.Column(
            "sink_tls",
            sa.LargeBinary(),
            nullable=True,
            comment="Client certificate, key and trust for the sink, encrypted; write-only",
        ),
    )
    op.create_table(
        "sink_tokens",
        sa.Column("subscription_id", sa.Uuid(), nullable=False),
        sa.Column("credential_id", sa.Uuid(), nullable=False, comment="Of the credential that it was acquired with"),
        sa.Column("sealed", sa.LargeBinary(), nullable=True, comment="Access token, and refresh token where there is one, encrypted"),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True, comment="Of the access token; empty: it didn't say"),
        sa.Column("claim", sa.Uuid(), nullable=True, comment="Of the process that acquires the next one; empty: none does"),
        sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=True, comment="After that another may"),
        sa.CheckConstraint("(claim IS NULL) = (claimed_until IS NULL)", name=op.f("ck_sink_tokens_claim")),
        sa.ForeignKeyConstraint(["subscription_id"], ["subscriptions.id"], name=op.f("fk_sink_tokens_subscription_id_subscriptions"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("subscription_id", name=op.f("pk_sink_tokens")),
        comment="The token for a sink, shared by all processes: no refresh token may be traded twice",
    )
    op.create_table(
        "sink_expiries",
        sa.Column("subscription_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("told_at", sa.DateTime(timezone=True), nullable=True, comment="When its provider was told that it will; empty: not yet"),
        sa.CheckConstraint("kind IN ('access-token', 'client-secret', 'client-certificate', 'trusted-certificate')", name=op.f("ck_sink_expiries_kind")),
        sa.ForeignKeyConstraint(["subscription_id"], ["subscriptions.id"], name=op.f("fk_sink_expiries_subscription_id_subscriptions"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("subscription_id", "kind", name=op.f("pk_sink_expiries")),
        comment="When what a sink is shown expires, so that it can be told in time",
    )
    op.create_index(op.f("ix_sink_expiries_expires_at"), "sink_expiries", ["expires_at"], unique=False)
