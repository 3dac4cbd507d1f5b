"""Subscriptions that are delivered to a queue have no sink, and a secret.

Revision ID: 0020
"""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Hold what such a subscription needs against the table."""
    op.alter_column(
        "subscriptions",
        "sink",
        existing_type=sa.Text(),
        comment="Empty: notifications are pulled, or go into a queue",
        existing_comment="Empty: notifications are pulled",
    )
    op.create_check_constraint(
        op.f("ck_subscriptions_amqp_has_a_secret"),
        "subscriptions",
        "protocol <> 'AMQP' OR (sink IS NULL AND secret IS NOT NULL)",
    )
