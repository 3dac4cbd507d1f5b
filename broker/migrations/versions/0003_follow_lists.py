"""Follow lists, and what filters cost."""

import sqlalchemy as sa
from alembic import op

revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column('subscriptions', sa.Column('evaluated', sa.Integer(), server_default=sa.text('0'), nullable=False, comment='Alternatives of its filters that are evaluated for every event of their type'))
    op.create_check_constraint(op.f('ck_subscriptions_evaluated'), 'subscriptions', 'evaluated >= 0')
    op.create_unique_constraint(op.f('uq_subscriptions_id_organisation_id'), 'subscriptions', ['id', 'organisation_id'])
    op.create_index('ix_subscriptions_evaluated', 'subscriptions', ['organisation_id'], unique=False, postgresql_where=sa.text('evaluated > 0'))
    op.drop_constraint(op.f('ck_change_log_kind'), 'change_log', type_='check')
    op.create_check_constraint(op.f('ck_change_log_kind'), 'change_log', "kind IN ('organisation', 'domain', 'grant', 'subscription', 'follow-list', 'everything')")
    op.alter_column('change_log', 'kind', comment='organisation, domain, grant, subscription, follow-list or everything', existing_comment='organisation, domain, grant, subscription or everything', existing_type=sa.Text(), existing_nullable=False)
    op.create_table('follow_lists',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('organisation_id', sa.Uuid(), nullable=False),
    sa.Column('name', sa.Text(), nullable=False),
    sa.Column('size', sa.BigInteger(), server_default=sa.text('0'), nullable=False, comment='Subjects on it'),
    sa.Column('created_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('deleted_at', sa.DateTime(timezone=True), nullable=True, comment='From then on nobody sees it; its subjects go in portions, and it with the last'),
    sa.CheckConstraint('length(name) BETWEEN 1 AND 200', name=op.f('ck_follow_lists_name_length')),
    sa.CheckConstraint('size >= 0', name=op.f('ck_follow_lists_size')),
    sa.ForeignKeyConstraint(['organisation_id'], ['organisations.id'], name=op.f('fk_follow_lists_organisation_id_organisations')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_follow_lists')),
    sa.UniqueConstraint('id', 'organisation_id', name=op.f('uq_follow_lists_id_organisation_id'))
    )
    op.create_index(op.f('ix_follow_lists_organisation_id_created_at_id'), 'follow_lists', ['organisation_id', 'created_at', 'id'], unique=False)
    op.create_index('ix_follow_lists_deleted_at', 'follow_lists', ['deleted_at'], unique=False, postgresql_where=sa.text('deleted_at IS NOT NULL'))
    op.create_table('followed_subjects',
    sa.Column('list_id', sa.Uuid(), nullable=False),
    sa.Column('digest', sa.LargeBinary(length=16), nullable=False, comment='Keyed; its first 8 bytes are the fingerprint in memory'),
    sa.CheckConstraint('octet_length(digest) = 16', name=op.f('ck_followed_subjects_digest_length')),
    sa.PrimaryKeyConstraint('list_id', 'digest', name=op.f('pk_followed_subjects')),
    comment='Who is followed. No subject is here: who reads this without the key learns how many, not whom'
    )
    op.create_table('follow_changes',
    sa.Column('version', sa.BigInteger(), autoincrement=False, nullable=False, comment='Of the change log, with which it is pruned'),
    sa.Column('list_id', sa.Uuid(), nullable=False),
    sa.Column('step', sa.SmallInteger(), nullable=False, comment='1: the subjects came onto the list, -1: they left it'),
    sa.Column('fingerprints', sa.LargeBinary(), nullable=False, comment='Those of the subjects, 8 bytes each, big-endian'),
    sa.CheckConstraint('step IN (-1, 1)', name=op.f('ck_follow_changes_step')),
    sa.CheckConstraint('octet_length(fingerprints) % 8 = 0', name=op.f('ck_follow_changes_whole_fingerprints')),
    sa.ForeignKeyConstraint(['version'], ['change_log.version'], name=op.f('fk_follow_changes_version_change_log'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('version', name=op.f('pk_follow_changes')),
    comment='What each process applies to the lists in its memory, in the order of versions'
    )
    op.create_table('subscription_follow_lists',
    sa.Column('subscription_id', sa.Uuid(), nullable=False),
    sa.Column('list_id', sa.Uuid(), nullable=False),
    sa.Column('organisation_id', sa.Uuid(), nullable=False),
    sa.ForeignKeyConstraint(['list_id', 'organisation_id'], ['follow_lists.id', 'follow_lists.organisation_id'], name=op.f('fk_subscription_follow_lists_list_id_follow_lists')),
    sa.ForeignKeyConstraint(['subscription_id', 'organisation_id'], ['subscriptions.id', 'subscriptions.organisation_id'], name=op.f('fk_subscription_follow_lists_subscription_id_subscriptions')),
    sa.PrimaryKeyConstraint('subscription_id', 'list_id', name=op.f('pk_subscription_follow_lists')),
    comment='Lists that filters of subscriptions name: of the same organisation, and there as long as they are named'
    )
    op.create_index(op.f('ix_subscription_follow_lists_list_id'), 'subscription_follow_lists', ['list_id'], unique=False)
