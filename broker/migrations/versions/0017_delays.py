"""Event types whose events wait before they are delivered.

Revision ID: 0017
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the delay, with its bounds."""
    op.add_column(
        "event_types",
        sa.Column(
            "delay_seconds",
            sa.Integer(),
            nullable=True,
            comment="Seconds that its events wait before they are delivered; empty: none",
        ),
    )
    op.create_check_constraint(
        op.f("ck_event_types_delay_seconds"), "event_types", "delay_seconds BETWEEN 1 AND 604800"
    )
    op.create_check_constraint(
        op.f("ck_event_types_delay_is_shorter"), "event_types", "delay_seconds < retention_days * 86400"
    )
