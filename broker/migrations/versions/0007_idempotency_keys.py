"""Answers to requests with an Idempotency-Key."""

import sqlalchemy as sa
from alembic import op

revision = '0007'
down_revision = '0006'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('idempotency_keys',
    sa.Column('digest', sa.LargeBinary(), nullable=False, comment='Keyed, of whose key it is and the key, which itself is not kept'),
    sa.Column('request_digest', sa.LargeBinary(), nullable=False, comment='Keyed, of the request that came with it'),
    sa.Column('answer', sa.LargeBinary(), nullable=False, comment='Status, headers and body, encrypted'),
    sa.Column('expires_at', sa.DateTime(timezone=True), nullable=False),
    sa.CheckConstraint('octet_length(digest) = 32', name=op.f('ck_idempotency_keys_digest_length')),
    sa.CheckConstraint('octet_length(request_digest) = 32', name=op.f('ck_idempotency_keys_request_digest_length')),
    sa.PrimaryKeyConstraint('digest', name=op.f('pk_idempotency_keys')),
    comment='Answers that are repeated to who asks again; written with what they tell of'
    )
    op.create_index(op.f('ix_idempotency_keys_expires_at'), 'idempotency_keys', ['expires_at'], unique=False)
