"""Ed25519 keys of the installation."""

import sqlalchemy as sa
from alembic import op

revision = '0004'
down_revision = '0003'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('signing_keys',
    sa.Column('kid', sa.Text(), nullable=False, comment='RFC 7638 thumbprint of the public key'),
    sa.Column('seed', sa.LargeBinary(), nullable=False, comment='Private key, encrypted'),
    sa.Column('public', sa.LargeBinary(length=32), nullable=False),
    sa.Column('signs_from', sa.DateTime(timezone=True), nullable=False, comment='It is published before, so that receivers know it in time'),
    sa.Column('signs_until', sa.DateTime(timezone=True), nullable=True, comment='End of the overlap with its successor; empty: it has none'),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.CheckConstraint('octet_length(public) = 32', name=op.f('ck_signing_keys_public_length')),
    sa.CheckConstraint('signs_until > signs_from', name=op.f('ck_signing_keys_validity')),
    sa.PrimaryKeyConstraint('kid', name=op.f('pk_signing_keys')),
    comment='Ed25519 keys of the installation, for signatures that anyone can verify; one has no successor'
    )
    op.create_index('ix_signing_keys_last', 'signing_keys', [sa.literal_column('(true)')], unique=True, postgresql_where=sa.text('signs_until IS NULL'))
