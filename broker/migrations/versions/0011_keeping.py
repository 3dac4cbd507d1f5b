"""Accounting and retention."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0011'
down_revision = '0010'
branch_labels = None
depends_on = None

_STATE = postgresql.ENUM('pending', 'delivered', 'dead', 'cancelled', name='delivery_state', create_type=False)


def upgrade() -> None:
    op.create_index('ix_event_ids_event_key', 'event_ids', ['event_key'], unique=False)
    op.create_table('accounts',
    sa.Column('subscription', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('through', sa.BigInteger(), server_default=sa.text('0'), nullable=False, comment='numbers up to here are in blocks'),
    sa.Column('delivered', sa.BigInteger(), server_default=sa.text('0'), nullable=False, comment='of the closed blocks'),
    sa.Column('cancelled', sa.BigInteger(), server_default=sa.text('0'), nullable=False, comment='of the closed blocks'),
    sa.Column('matched', sa.BigInteger(), server_default=sa.text('0'), nullable=False, comment='last number at the last check'),
    sa.Column('ended', sa.BigInteger(), server_default=sa.text('0'), nullable=False, comment='sum of totals at the last check'),
    sa.Column('checked_at', sa.DateTime(timezone=True), nullable=True, comment='when rows and totals were last compared'),
    sa.Column('took_ms', sa.Integer(), server_default=sa.text('0'), nullable=False, comment='what that cost'),
    sa.PrimaryKeyConstraint('subscription', name=op.f('pk_accounts')),
    comment='How far the rows of a subscription have been counted, so that no check counts its past again.',
    postgresql_with={'fillfactor': '50'}
    )
    op.create_table('account_blocks',
    sa.Column('subscription', sa.BigInteger(), nullable=False),
    sa.Column('block', sa.BigInteger(), nullable=False, comment='numbers from 1,000 × block + 1, a thousand of them'),
    sa.Column('delivered', sa.BigInteger(), nullable=False),
    sa.Column('cancelled', sa.BigInteger(), nullable=False),
    sa.Column('closed', sa.Boolean(), nullable=False, comment='nothing in it is pending or dead: it changes no more'),
    sa.PrimaryKeyConstraint('subscription', 'block', name=op.f('pk_account_blocks')),
    comment='What was counted in each block of numbers when it was last looked at.'
    )
    op.create_index('ix_account_blocks_open', 'account_blocks', ['subscription', 'block'], unique=False, postgresql_where=sa.text('NOT closed'))
    op.create_table('drift',
    sa.Column('kind', sa.Text(), nullable=False, comment='a kind of storage.accounting'),
    sa.Column('subscription', sa.BigInteger(), server_default=sa.text('0'), nullable=False, comment='0: about an event'),
    sa.Column('number', sa.BigInteger(), server_default=sa.text('0'), nullable=False, comment='0: about the subscription'),
    sa.Column('event_key', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('detail', sa.Text(), server_default='', nullable=False, comment='codes and amounts only'),
    sa.Column('found_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('seen_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.PrimaryKeyConstraint('kind', 'subscription', 'number', 'event_key', name=op.f('pk_drift')),
    comment='Promise 2: what does not add up now. Empty, or an alert. A row goes when a later look finds it well.'
    )
    op.create_table('house_jobs',
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('due_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('cursor', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False, comment='how far the round under way is'),
    sa.Column('round_started_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('round_finished_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('round_seconds', sa.Integer(), nullable=True, comment='how long the last whole round took'),
    sa.PrimaryKeyConstraint('name', name=op.f('pk_house_jobs')),
    comment='Housekeeping of the installation: whoever moves due_at on does the next step.'
    )
    op.create_table('retirements',
    sa.Column('day', sa.Date(), nullable=False),
    sa.Column('cursor_subscription', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('cursor_sequence', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('explained_at', sa.DateTime(timezone=True), nullable=True, comment='its numbers stand in retired_numbers'),
    sa.Column('retired_at', sa.DateTime(timezone=True), nullable=True, comment='its partitions are gone: those count now'),
    sa.PrimaryKeyConstraint('day', name=op.f('pk_retirements')),
    comment='Days of acceptance that are being retired, or were.'
    )
    op.create_table('retired_numbers',
    sa.Column('subscription', sa.BigInteger(), nullable=False),
    sa.Column('first', sa.BigInteger(), nullable=False),
    sa.Column('last', sa.BigInteger(), nullable=False),
    sa.Column('day', sa.Date(), nullable=True, comment='counts once this day is retired; null: at once'),
    sa.Column('state', _STATE, nullable=False),
    sa.Column('reason', sa.Text(), nullable=True),
    sa.Column('digest', sa.LargeBinary(length=32), nullable=True, comment='of the delivered, as in docs/completeness.md'),
    sa.CheckConstraint("(state = 'delivered') = (digest IS NOT NULL)", name=op.f('ck_retired_numbers_delivered_has_a_digest')),
    sa.CheckConstraint('(first - 1) / 1000 = (last - 1) / 1000', name=op.f('ck_retired_numbers_within_a_block')),
    sa.CheckConstraint('last >= first', name=op.f('ck_retired_numbers_forward')),
    sa.PrimaryKeyConstraint('subscription', 'first', name=op.f('pk_retired_numbers')),
    comment='Promise 5: what became of numbers whose rows are gone; adjacent ones of one state and reason together.'
    )
    op.create_index('ix_retired_numbers_moving', 'retired_numbers', ['day'], unique=False, postgresql_where=sa.text("state IN ('pending', 'dead')"))
