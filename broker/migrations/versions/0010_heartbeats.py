"""Heartbeats of quiet subscriptions.

Revision ID: 0010
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and their index."""
    op.add_column(
        "subscriptions",
        sa.Column(
            "heartbeat_seconds",
            sa.Integer(),
            nullable=True,
            comment="When quiet for so long, its sink is told how far numbers go",
        ),
    )
    op.add_column(
        "subscriptions",
        sa.Column(
            "heartbeat_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="When the next heartbeat is due; empty: that must be decided",
        ),
    )
    op.create_check_constraint(op.f("ck_subscriptions_heartbeat_seconds"), "subscriptions", "heartbeat_seconds > 0")
    op.create_index(
        "ix_subscriptions_heartbeat_at",
        "subscriptions",
        ["heartbeat_at"],
        postgresql_where=sa.text("heartbeat_seconds IS NOT NULL AND status = 'active'"),
    )
