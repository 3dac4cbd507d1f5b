"""Subscriptions that are delivered by AMQP may have a sink: a RabbitMQ of the provider's.

Revision ID: 0021
"""

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Hold no longer against the table that there is none."""
    op.alter_column(
        "subscriptions",
        "sink",
        existing_type=sa.Text(),
        comment="Empty: notifications are pulled, or go into a queue of the broker's",
        existing_comment="Empty: notifications are pulled, or go into a queue",
    )
    name = op.f("ck_subscriptions_amqp_has_a_secret")
    op.drop_constraint(name, "subscriptions")
    op.create_check_constraint(name, "subscriptions", "protocol <> 'AMQP' OR secret IS NOT NULL")
