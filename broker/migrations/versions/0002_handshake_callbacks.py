"""Handshakes by callback and their renewal."""

import sqlalchemy as sa
from alembic import op

revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('subscriptions', sa.Column('refused_since', sa.DateTime(timezone=True), nullable=True, comment='Since when its handshakes fail; empty: the last one did not'))
    op.add_column('subscriptions', sa.Column('consented_by_callback', sa.Boolean(), server_default=sa.text('false'), nullable=False, comment='The sink calls back instead of answering the handshake, so its silence there says nothing'))
    op.create_table('handshake_tokens',
    sa.Column('digest', sa.LargeBinary(), nullable=False, comment='SHA-256 of the token, which itself is not kept'),
    sa.Column('subscription_id', sa.Uuid(), nullable=False),
    sa.Column('sink', sa.Text(), nullable=False, comment='The sink that was asked; consent counts for no other'),
    sa.Column('expires_at', sa.DateTime(timezone=True), nullable=False),
    sa.CheckConstraint('octet_length(digest) = 32', name=op.f('ck_handshake_tokens_digest_length')),
    sa.ForeignKeyConstraint(['subscription_id'], ['subscriptions.id'], name=op.f('fk_handshake_tokens_subscription_id_subscriptions')),
    sa.PrimaryKeyConstraint('digest', name=op.f('pk_handshake_tokens')),
    comment='Callbacks by which a sink can consent; all of a subscription go when one is used'
    )
    op.create_index(op.f('ix_handshake_tokens_expires_at'), 'handshake_tokens', ['expires_at'], unique=False)
    op.create_index(op.f('ix_handshake_tokens_subscription_id'), 'handshake_tokens', ['subscription_id'], unique=False)
    # consent that was given before there was renewal: asked again within a week, spread over it
    op.execute("UPDATE subscriptions SET validate_at = now() + random() * interval '7 days' WHERE status IN ('active', 'paused') AND validated_at IS NOT NULL AND validate_at IS NULL")
