"""Ingest queues of each registry, and the routes of domains to them."""

import sqlalchemy as sa
from alembic import op

revision = '0008'
down_revision = '0007'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column('leases', 'number', type_=sa.Integer(), existing_type=sa.SmallInteger(), existing_nullable=False)
    op.execute("UPDATE leases SET number = number * 10000 WHERE kind = 'queue'")
    op.create_table('ingest_queues',
    sa.Column('number', sa.Integer(), autoincrement=False, nullable=False, comment='that of its lease'),
    sa.Column('name', sa.Text(), nullable=False, comment='in RabbitMQ'),
    sa.Column('organisation_id', sa.Uuid(), nullable=True, comment='whose; null: shared'),
    sa.ForeignKeyConstraint(['organisation_id'], ['organisations.id'], name=op.f('fk_ingest_queues_organisation_id_organisations')),
    sa.PrimaryKeyConstraint('number', name=op.f('pk_ingest_queues')),
    sa.UniqueConstraint('name', name=op.f('uq_ingest_queues_name')),
    comment='The queues that events come in by. How many a registry has is decided once: order rests on it.'
    )
    op.create_index('ix_ingest_queues_organisation_id', 'ingest_queues', ['organisation_id'], unique=False)
    op.create_table('domain_routes',
    sa.Column('name', sa.Text(), nullable=False, comment='of a domain, which may not be there yet'),
    sa.Column('organisation_id', sa.Uuid(), nullable=False),
    sa.Column('made_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.ForeignKeyConstraint(['organisation_id'], ['organisations.id'], name=op.f('fk_domain_routes_organisation_id_organisations')),
    sa.PrimaryKeyConstraint('name', name=op.f('pk_domain_routes')),
    comment='Domains whose events go to their registry\'s own queues: one registry for each name, ever.'
    )
    op.create_index('ix_domain_routes_organisation_id', 'domain_routes', ['organisation_id'], unique=False)
