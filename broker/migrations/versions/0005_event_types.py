"""The catalogue of event types."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0005'
down_revision = '0004'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_constraint(op.f('ck_change_log_kind'), 'change_log', type_='check')
    op.create_check_constraint(op.f('ck_change_log_kind'), 'change_log', "kind IN ('organisation', 'domain', 'event-type', 'grant', 'subscription', 'follow-list', 'everything')")
    op.alter_column('change_log', 'kind', comment='organisation, domain, event-type, grant, subscription, follow-list or everything', existing_comment='organisation, domain, grant, subscription, follow-list or everything', existing_type=sa.Text(), existing_nullable=False)
    op.create_table('event_types',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('type', sa.Text(), nullable=False, comment='CloudEvents type, exact'),
    sa.Column('organisation_id', sa.Uuid(), nullable=False, comment='The registry that describes it; what it says counts only while it owns the type'),
    sa.Column('meaning', sa.Text(), nullable=False),
    sa.Column('time_meaning', sa.Text(), nullable=True, comment='What `time` says of its events'),
    sa.Column('documentation_link', sa.Text(), nullable=True),
    sa.Column('information_level', sa.Text(), nullable=True, comment='informatiearm or informatierijk'),
    sa.Column('data_schema', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True, comment='JSON Schema 2020-12 of data; empty: none'),
    sa.Column('validation', sa.Text(), server_default='off', nullable=False),
    sa.Column('filter_attributes', postgresql.ARRAY(sa.Text()), nullable=True, comment='What may be filtered on: attribute names, and JSON Pointers into data; empty: anything'),
    sa.Column('retention_days', sa.Integer(), nullable=True, comment='Days that its events are kept; empty: as the installation says'),
    sa.Column('deprecated_at', sa.DateTime(timezone=True), nullable=True, comment='From when providers should no longer subscribe to it'),
    sa.Column('sunset_at', sa.DateTime(timezone=True), nullable=True, comment='From when it is no longer published'),
    sa.Column('successor', sa.Text(), nullable=True, comment='The type that comes in its place'),
    sa.Column('version', sa.BigInteger(), server_default=sa.text('1'), nullable=False, comment='Raised by each change'),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.CheckConstraint("validation IN ('off', 'report', 'reject')", name=op.f('ck_event_types_validation')),
    sa.CheckConstraint("information_level IN ('informatiearm', 'informatierijk')", name=op.f('ck_event_types_information_level')),
    sa.CheckConstraint("validation = 'off' OR data_schema IS NOT NULL", name=op.f('ck_event_types_validation_has_a_schema')),
    sa.CheckConstraint('retention_days BETWEEN 1 AND 36500', name=op.f('ck_event_types_retention_days')),
    sa.ForeignKeyConstraint(['organisation_id'], ['organisations.id'], name=op.f('fk_event_types_organisation_id_organisations')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_event_types')),
    sa.UniqueConstraint('type', name=op.f('uq_event_types_type')),
    comment='The catalogue: what registries say of the types that they publish'
    )
    op.create_index(op.f('ix_event_types_organisation_id'), 'event_types', ['organisation_id'], unique=False)
    op.create_index(op.f('ix_event_types_created_at_id'), 'event_types', ['created_at', 'id'], unique=False)
    op.create_table('event_type_versions',
    sa.Column('event_type_id', sa.Uuid(), nullable=False),
    sa.Column('version', sa.BigInteger(), nullable=False),
    sa.Column('description', postgresql.JSONB(astext_type=sa.Text()), nullable=False, comment='All that was said of the type, as the API says it'),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.ForeignKeyConstraint(['event_type_id'], ['event_types.id'], name=op.f('fk_event_type_versions_event_type_id_event_types'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('event_type_id', 'version', name=op.f('pk_event_type_versions')),
    comment='Each version of a description, as it was; never changed'
    )
    op.create_table('data_findings',
    sa.Column('event_type_id', sa.Uuid(), nullable=False),
    sa.Column('pointer', sa.Text(), nullable=False, comment="JSON Pointer into data; names that the schema doesn't know are *"),
    sa.Column('keyword', sa.Text(), nullable=False, comment='The keyword of JSON Schema that was not met'),
    sa.Column('times', sa.BigInteger(), nullable=False),
    sa.Column('first_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('last_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['event_type_id'], ['event_types.id'], name=op.f('fk_data_findings_event_type_id_event_types'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('event_type_id', 'pointer', 'keyword', name=op.f('pk_data_findings')),
    comment='The report of types that validate with `report`: a hundred rows for each at most, and no values'
    )
