"""The outbox of notices."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0014'
down_revision = '0013'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('notices',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('type', sa.Text(), nullable=False),
    sa.Column('organisation_id', sa.Uuid(), nullable=False, comment='whom it is for, and nobody else'),
    sa.Column('subscription_id', sa.Uuid(), nullable=True, comment='what it is about; null: no subscription'),
    sa.Column('data', postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment='codes, numbers and counts only'),
    sa.Column('said_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('event_id', sa.Uuid(), nullable=True, comment='of the event that it is told in; null: not decided yet'),
    sa.Column('claimed_until', sa.DateTime(timezone=True), nullable=True, comment='by who is telling it; null: by nobody'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_notices')),
    comment='What Bode has to tell and has not told yet: written with what it tells of, and gone once it is an event.'
    )
    op.create_index('ix_notices_event_id', 'notices', ['event_id'], unique=False)
    op.execute("COMMENT ON COLUMN events.organisation_id IS 'the registry that published it; of a notice: its recipient'")
