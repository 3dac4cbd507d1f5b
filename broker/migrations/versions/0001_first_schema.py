"""The first schema."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0001'
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(sa.schema.CreateSequence(sa.Sequence('event_counter')))
    op.create_table('attempts',
    sa.Column('subscription', sa.BigInteger(), nullable=False),
    sa.Column('sequence', sa.BigInteger(), nullable=False),
    sa.Column('event_key', sa.BigInteger(), nullable=False),
    sa.Column('attempt', sa.SmallInteger(), nullable=False),
    sa.Column('started_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('milliseconds', sa.Integer(), nullable=False, comment='until the answer was read, or given up'),
    sa.Column('status', sa.SmallInteger(), nullable=True, comment='HTTP status; null: no answer'),
    sa.Column('reason', sa.Text(), nullable=True, comment='why it failed: a code of delivery.outcomes'),
    sa.Column('excerpt', sa.LargeBinary(), nullable=True, comment='sealed first bytes of the answer, for the provider only'),
    comment='Attempts that did not succeed. The one that did stands on its delivery.',
    postgresql_partition_by='RANGE (event_key)'
    )
    op.create_index('ix_attempts_delivery', 'attempts', ['subscription', 'sequence'], unique=False)
    op.create_table('change_log',
    sa.Column('version', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('changed_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('kind', sa.Text(), nullable=False, comment='organisation, domain, grant, subscription or everything'),
    sa.Column('entity', sa.Text(), nullable=False, comment='id of the row that changed; empty for everything'),
    sa.CheckConstraint("kind IN ('organisation', 'domain', 'grant', 'subscription', 'everything')", name=op.f('ck_change_log_kind')),
    sa.PrimaryKeyConstraint('version', name=op.f('pk_change_log')),
    comment='Changes that matching must see, contiguous in commit order'
    )
    op.create_table('change_log_head',
    sa.Column('single', sa.Boolean(), server_default=sa.text('true'), nullable=False),
    sa.Column('version', sa.BigInteger(), nullable=False),
    sa.CheckConstraint('single', name=op.f('ck_change_log_head_single_row')),
    sa.PrimaryKeyConstraint('single', name=op.f('pk_change_log_head')),
    comment='Version of the last change; one row, absent before the first'
    )
    op.create_table('deliveries',
    sa.Column('subscription', sa.BigInteger(), nullable=False),
    sa.Column('sequence', sa.BigInteger(), nullable=False),
    sa.Column('event_key', sa.BigInteger(), nullable=False),
    sa.Column('lane', sa.BigInteger(), nullable=True, comment='deliveries that keep their order; null keeps none'),
    sa.Column('grant_id', sa.Uuid(), nullable=False, comment='the grant it was matched on'),
    sa.Column('state', sa.Enum('pending', 'delivered', 'dead', 'cancelled', name='delivery_state'), server_default=sa.text("'pending'"), nullable=False),
    sa.Column('attempts', sa.SmallInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('next_attempt_at', sa.DateTime(timezone=True), nullable=True, comment='retry time; null: at once'),
    sa.Column('ended_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('status', sa.SmallInteger(), nullable=True, comment='HTTP status of the last attempt; null: no answer'),
    sa.Column('reason', sa.Text(), nullable=True, comment='why it is dead or cancelled, or why the last attempt failed'),
    sa.CheckConstraint("(state = 'pending') = (ended_at IS NULL)", name=op.f('ck_deliveries_ended_has_a_time')),
    sa.CheckConstraint("state NOT IN ('dead', 'cancelled') OR reason IS NOT NULL", name=op.f('ck_deliveries_end_has_a_reason')),
    sa.PrimaryKeyConstraint('subscription', 'sequence', 'event_key', name=op.f('pk_deliveries')),
    postgresql_partition_by='RANGE (event_key)'
    )
    op.create_index('ix_deliveries_dead', 'deliveries', ['subscription', 'sequence'], unique=False, postgresql_where=sa.text("state = 'dead'"))
    op.create_index('ix_deliveries_event', 'deliveries', ['event_key'], unique=False)
    op.create_index('ix_deliveries_pending', 'deliveries', ['subscription', 'sequence'], unique=False, postgresql_where=sa.text("state = 'pending'"))
    op.create_index('ix_deliveries_pending_lane', 'deliveries', ['subscription', 'lane', 'sequence'], unique=False, postgresql_where=sa.text("state = 'pending' AND lane IS NOT NULL"))
    op.create_table('delivery_totals',
    sa.Column('subscription', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('delivered', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('dead', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.Column('cancelled', sa.BigInteger(), server_default=sa.text('0'), nullable=False),
    sa.PrimaryKeyConstraint('subscription', name=op.f('pk_delivery_totals')),
    comment='Promise 2: matched (last_sequence) minus these is what must be pending.',
    postgresql_with={'fillfactor': '50'}
    )
    op.create_table('event_ids',
    sa.Column('digest', sa.LargeBinary(length=16), nullable=False, comment='keyed digest of source and id'),
    sa.Column('event_key', sa.BigInteger(), nullable=False),
    sa.PrimaryKeyConstraint('digest', name=op.f('pk_event_ids')),
    comment='Promise 4: source+id is accepted once. Not partitioned by time, so that uniqueness holds.'
    )
    op.create_table('events',
    sa.Column('key', sa.BigInteger(), nullable=False),
    sa.Column('organisation_id', sa.Uuid(), nullable=False, comment='the registry that published it'),
    sa.Column('source', sa.Text(), nullable=False),
    sa.Column('id', sa.Text(), nullable=False),
    sa.Column('type', sa.Text(), nullable=False),
    sa.Column('bytes', sa.Integer(), nullable=False, comment='of the body before it was sealed'),
    sa.Column('lane', sa.BigInteger(), nullable=True, comment='keyed fingerprint of source and subject; null without subject'),
    sa.Column('body', sa.LargeBinary(), nullable=False, comment='sealed canonical CloudEvent'),
    sa.PrimaryKeyConstraint('key', name=op.f('pk_events')),
    postgresql_partition_by='RANGE (key)'
    )
    op.create_index('ix_events_id', 'events', [sa.literal_column('hashtextextended(id, 0)')], unique=False)
    op.create_table('installation',
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('value', sa.LargeBinary(), nullable=False),
    sa.PrimaryKeyConstraint('name', name=op.f('pk_installation')),
    comment='What is fixed for the life of this installation, such as the sealed fingerprint key and the queue count.'
    )
    op.create_table('lease_holders',
    sa.Column('owner', sa.Uuid(), nullable=False),
    sa.Column('kind', sa.Text(), nullable=False),
    sa.Column('seen_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('applied_version', sa.BigInteger(), server_default=sa.text('0'), nullable=False, comment='of the change log'),
    sa.PrimaryKeyConstraint('owner', name=op.f('pk_lease_holders'))
    )
    op.create_table('leases',
    sa.Column('kind', sa.Text(), nullable=False, comment='shard or queue'),
    sa.Column('number', sa.SmallInteger(), nullable=False),
    sa.Column('owner', sa.Uuid(), nullable=True),
    sa.Column('epoch', sa.BigInteger(), server_default=sa.text('0'), nullable=False, comment='grows with every change of owner'),
    sa.Column('expires_at', sa.DateTime(timezone=True), nullable=True),
    sa.PrimaryKeyConstraint('kind', 'number', name=op.f('pk_leases')),
    postgresql_with={'fillfactor': '50'}
    )
    op.create_table('organisations',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('oin', sa.String(length=20), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('amqp_user', sa.Text(), nullable=True, comment='RabbitMQ user that speaks for it, verified by RabbitMQ'),
    sa.Column('sources', postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False, comment='Sources it may speak for besides urn:nld:oin:<its OIN>:…'),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.CheckConstraint('length(oin) = 20', name=op.f('ck_organisations_oin_length')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_organisations')),
    sa.UniqueConstraint('amqp_user', name=op.f('uq_organisations_amqp_user')),
    sa.UniqueConstraint('oin', name=op.f('uq_organisations_oin'))
    )
    op.create_index(op.f('ix_organisations_created_at_id'), 'organisations', ['created_at', 'id'], unique=False)
    op.create_table('rejections',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('digest', sa.LargeBinary(length=16), nullable=False, comment='keyed digest of publisher and message'),
    sa.Column('rejected_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('times', sa.Integer(), server_default=sa.text('1'), nullable=False, comment='how often this message came'),
    sa.Column('organisation_id', sa.Uuid(), nullable=True, comment="the publisher; null when unknown: the operator's to read"),
    sa.Column('code', sa.Text(), nullable=False),
    sa.Column('detail', sa.Text(), nullable=False),
    sa.Column('attribute', sa.Text(), nullable=True),
    sa.Column('source', sa.Text(), nullable=True),
    sa.Column('event_id', sa.Text(), nullable=True),
    sa.Column('event_type', sa.Text(), nullable=True),
    sa.Column('bytes', sa.Integer(), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_rejections')),
    sa.UniqueConstraint('digest', name=op.f('uq_rejections_digest'))
    )
    op.create_index('ix_rejections_organisation', 'rejections', ['organisation_id', 'id'], unique=False)
    op.create_table('subscription_numbers',
    sa.Column('subscription', sa.BigInteger(), autoincrement=False, nullable=False),
    sa.Column('last_sequence', sa.BigInteger(), nullable=False),
    sa.CheckConstraint('last_sequence >= 0', name=op.f('ck_subscription_numbers_contiguous_from_one')),
    sa.PrimaryKeyConstraint('subscription', name=op.f('pk_subscription_numbers')),
    comment="Promise 5: numbers are taken under this row's lock, held to commit, so commit order is number order.",
    postgresql_with={'fillfactor': '50'}
    )
    op.create_table('api_keys',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('organisation_id', sa.Uuid(), nullable=True, comment='Empty: a key of the operator'),
    sa.Column('digest', sa.LargeBinary(), nullable=False, comment='SHA-256 of the key, which itself is not kept'),
    sa.Column('hint', sa.String(length=4), nullable=False, comment='Last characters of the key, to recognise it by'),
    sa.Column('scopes', postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    sa.Column('label', sa.Text(), server_default='', nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('expires_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('last_used_at', sa.DateTime(timezone=True), nullable=True, comment='Written at most once a minute'),
    sa.Column('revoked_at', sa.DateTime(timezone=True), nullable=True),
    sa.CheckConstraint('octet_length(digest) = 32', name=op.f('ck_api_keys_digest_length')),
    sa.ForeignKeyConstraint(['organisation_id'], ['organisations.id'], name=op.f('fk_api_keys_organisation_id_organisations')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_api_keys')),
    sa.UniqueConstraint('digest', name=op.f('uq_api_keys_digest'))
    )
    op.create_index(op.f('ix_api_keys_organisation_id_created_at_id'), 'api_keys', ['organisation_id', 'created_at', 'id'], unique=False)
    op.create_table('domains',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False, comment='Namespace of event types, such as nl.bag'),
    sa.Column('organisation_id', sa.Uuid(), nullable=False),
    sa.Column('description', sa.Text(), nullable=True),
    sa.Column('documentation_link', sa.Text(), nullable=True),
    sa.Column('filter_attributes', postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.ForeignKeyConstraint(['organisation_id'], ['organisations.id'], name=op.f('fk_domains_organisation_id_organisations')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_domains')),
    sa.UniqueConstraint('name', name=op.f('uq_domains_name')),
    comment='An event type belongs to the longest domain that is a prefix of it by labels'
    )
    op.create_index(op.f('ix_domains_created_at_id'), 'domains', ['created_at', 'id'], unique=False)
    op.create_index(op.f('ix_domains_organisation_id'), 'domains', ['organisation_id'], unique=False)
    op.create_table('grants',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('registry_id', sa.Uuid(), nullable=False),
    sa.Column('provider_id', sa.Uuid(), nullable=False),
    sa.Column('types', postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False, comment='Event types, exact (nl.bag.pand-gewijzigd) or all within a domain (nl.bag.*)'),
    sa.Column('legal_basis', sa.Text(), nullable=False),
    sa.Column('valid_from', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('valid_until', sa.DateTime(timezone=True), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('revoked_at', sa.DateTime(timezone=True), nullable=True),
    sa.CheckConstraint('cardinality(types) > 0', name=op.f('ck_grants_types_not_empty')),
    sa.CheckConstraint('valid_until > valid_from', name=op.f('ck_grants_validity')),
    sa.ForeignKeyConstraint(['provider_id'], ['organisations.id'], name=op.f('fk_grants_provider_id_organisations')),
    sa.ForeignKeyConstraint(['registry_id'], ['organisations.id'], name=op.f('fk_grants_registry_id_organisations')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_grants'))
    )
    op.create_index(op.f('ix_grants_created_at_id'), 'grants', ['created_at', 'id'], unique=False)
    op.create_index(op.f('ix_grants_provider_id_created_at_id'), 'grants', ['provider_id', 'created_at', 'id'], unique=False)
    op.create_index(op.f('ix_grants_registry_id_created_at_id'), 'grants', ['registry_id', 'created_at', 'id'], unique=False)
    op.create_table('subscriptions',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('key', sa.BigInteger(), sa.Identity(always=False), nullable=False, comment='Internal short id'),
    sa.Column('organisation_id', sa.Uuid(), nullable=False),
    sa.Column('protocol', sa.Text(), server_default='HTTP', nullable=False),
    sa.Column('protocol_settings', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    sa.Column('sink', sa.Text(), nullable=False),
    sa.Column('source', sa.Text(), nullable=True),
    sa.Column('domain', sa.Text(), nullable=True),
    sa.Column('types', postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    sa.Column('filters', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False, comment='As given; AND of its elements'),
    sa.Column('config', postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'"), nullable=False),
    sa.Column('subscriber_reference', sa.Text(), nullable=True),
    sa.Column('ordering', sa.Text(), server_default='subject', nullable=False),
    sa.Column('retry', postgresql.JSONB(none_as_null=True, astext_type=sa.Text()), nullable=True, comment='Seconds before each next attempt; empty: the default schedule'),
    sa.Column('status', sa.Text(), nullable=False, comment='See the states above the tables'),
    sa.Column('status_reason', sa.Text(), nullable=True, comment='A code, and after a colon what more there is to say'),
    sa.Column('secret', sa.LargeBinary(), nullable=False, comment='Signing secret, encrypted'),
    sa.Column('previous_secret', sa.LargeBinary(), nullable=True, comment='The one before, encrypted; signs too until it expires'),
    sa.Column('previous_secret_expires_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('allowed_rate', sa.Integer(), nullable=True, comment='Notifications a minute that the sink allows; empty: any'),
    sa.Column('validate_at', sa.DateTime(timezone=True), nullable=True, comment='When the handshake with the sink is due; empty: none is'),
    sa.Column('validated_at', sa.DateTime(timezone=True), nullable=True, comment='When this sink consented; empty: it has not'),
    sa.Column('version', sa.BigInteger(), server_default=sa.text('1'), nullable=False, comment='Raised by each change'),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('updated_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('ended_at', sa.DateTime(timezone=True), nullable=True),
    sa.CheckConstraint("(status = 'ended') = (ended_at IS NOT NULL)", name=op.f('ck_subscriptions_ended')),
    sa.CheckConstraint("ordering IN ('subject', 'subscription', 'none')", name=op.f('ck_subscriptions_ordering')),
    sa.CheckConstraint("status <> 'active' OR validated_at IS NOT NULL", name=op.f('ck_subscriptions_active_consented')),
    sa.CheckConstraint("status IN ('requested', 'validating', 'active', 'paused', 'disabled', 'refused', 'ended')", name=op.f('ck_subscriptions_status')),
    sa.CheckConstraint('(previous_secret IS NULL) = (previous_secret_expires_at IS NULL)', name=op.f('ck_subscriptions_previous_secret')),
    sa.CheckConstraint('allowed_rate > 0', name=op.f('ck_subscriptions_allowed_rate')),
    sa.ForeignKeyConstraint(['organisation_id'], ['organisations.id'], name=op.f('fk_subscriptions_organisation_id_organisations')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_subscriptions')),
    sa.UniqueConstraint('key', name=op.f('uq_subscriptions_key'))
    )
    op.create_index(op.f('ix_subscriptions_organisation_id_key'), 'subscriptions', ['organisation_id', 'key'], unique=False)
    op.create_index('ix_subscriptions_requested', 'subscriptions', ['organisation_id'], unique=False, postgresql_where=sa.text("status = 'requested'"))
    op.create_index('ix_subscriptions_validate_at', 'subscriptions', ['validate_at'], unique=False, postgresql_where=sa.text('validate_at IS NOT NULL'))
