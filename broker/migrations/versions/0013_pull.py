"""Subscriptions that are pulled have no sink and no secret.

Revision ID: 0013
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Let both be empty, where nothing is posted."""
    op.alter_column(
        "subscriptions",
        "sink",
        existing_type=sa.Text(),
        nullable=True,
        comment="Empty: notifications are pulled",
    )
    op.alter_column(
        "subscriptions",
        "secret",
        existing_type=sa.LargeBinary(),
        nullable=True,
        comment="Signing secret, encrypted; empty: nothing is signed",
        existing_comment="Signing secret, encrypted",
    )
    op.alter_column(
        "subscriptions",
        "validated_at",
        existing_type=sa.DateTime(timezone=True),
        comment="When this sink consented, or none was needed; empty: it has not",
        existing_comment="When this sink consented; empty: it has not",
    )
    op.create_check_constraint(
        op.f("ck_subscriptions_http_has_a_sink"),
        "subscriptions",
        "protocol <> 'HTTP' OR (sink IS NOT NULL AND secret IS NOT NULL)",
    )
    op.create_check_constraint(
        op.f("ck_subscriptions_pull_has_none"),
        "subscriptions",
        "protocol <> 'PULL' OR (sink IS NULL AND secret IS NULL)",
    )
