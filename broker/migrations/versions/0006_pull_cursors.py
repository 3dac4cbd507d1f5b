"""How far a provider that pulls has come."""

import sqlalchemy as sa
from alembic import op

revision = '0006'
down_revision = '0005'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('pull_cursors',
    sa.Column('subscription', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('through', sa.BigInteger(), nullable=False, comment='every number up to this one was acknowledged'),
    sa.Column('acknowledged_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.CheckConstraint('through >= 0', name=op.f('ck_pull_cursors_not_negative')),
    sa.PrimaryKeyConstraint('subscription', name=op.f('pk_pull_cursors')),
    comment='How far a provider that pulls says that it has come.'
    )
