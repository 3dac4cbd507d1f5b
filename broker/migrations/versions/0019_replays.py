"""Replays."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0019'
down_revision = '0018'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('replays',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('subscription', sa.BigInteger(), nullable=False),
    sa.Column('requested_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('first', sa.BigInteger(), nullable=False),
    sa.Column('last', sa.BigInteger(), nullable=False),
    sa.Column('numbers', postgresql.ARRAY(sa.BigInteger()), nullable=True, comment='ascending; null: all from first to last'),
    sa.Column('per_second', sa.Integer(), nullable=False),
    sa.Column('state', sa.Text(), server_default=sa.text("'running'"), nullable=False),
    sa.Column('reason', sa.Text(), nullable=True, comment='why it was cancelled'),
    sa.Column('cursor', sa.BigInteger(), server_default=sa.text('0'), nullable=False, comment='numbers up to this one are settled'),
    sa.Column('sent', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('failed', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('skipped', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False, comment='how many for each reason'),
    sa.Column('last_failure', sa.Text(), nullable=True, comment='why an attempt failed last'),
    sa.Column('ended_at', sa.DateTime(timezone=True), nullable=True),
    sa.CheckConstraint("(state = 'running') = (ended_at IS NULL)", name=op.f('ck_replays_ended_has_a_time')),
    sa.CheckConstraint('last >= first AND first >= 1', name=op.f('ck_replays_forward')),
    sa.CheckConstraint("state IN ('running', 'done', 'cancelled')", name=op.f('ck_replays_state')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_replays')),
    comment='Numbers of a subscription that are sent again on request, and how far that is.'
    )
    op.create_index('ix_replays_running', 'replays', ['subscription'], unique=True, postgresql_where=sa.text("state = 'running'"))
    op.create_index('ix_replays_subscription', 'replays', ['subscription', 'requested_at', 'id'], unique=False)
