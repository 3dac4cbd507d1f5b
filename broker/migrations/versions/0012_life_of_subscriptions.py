"""History, refusals and credentials of subscriptions; test notifications."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = '0012'
down_revision = '0011'
branch_labels = None
depends_on = None

FUNCTION = """
CREATE FUNCTION record_subscription_history() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    who text[] := string_to_array(coalesce(nullif(current_setting('bode.actor', true), ''), 'broker//'), '/');
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO subscription_history
            (subscription_id, version, status, status_reason, changed, role, organisation_id, key_id)
        SELECT id, version, status, status_reason, ARRAY['created'], who[1], nullif(who[2], '')::uuid,
               nullif(who[3], '')::uuid
        FROM made ORDER BY key;
    ELSE
        INSERT INTO subscription_history
            (subscription_id, version, status, status_reason, changed, role, organisation_id, key_id)
        SELECT made.id, made.version, made.status, made.status_reason,
               ARRAY(
                   SELECT member.key FROM jsonb_each(to_jsonb(made)) AS member
                   WHERE member.value IS DISTINCT FROM to_jsonb(former) -> member.key
                     AND member.key NOT IN ('version', 'updated_at', 'ended_at', 'validate_at', 'validated_at',
                         'refused_since', 'failing_since', 'heartbeat_at', 'consented_by_callback', 'evaluated',
                         'previous_secret', 'previous_secret_expires_at', 'status_reason')
                   ORDER BY member.key
               ),
               who[1], nullif(who[2], '')::uuid, nullif(who[3], '')::uuid
        FROM made JOIN former ON former.id = made.id
        WHERE made.version <> former.version ORDER BY made.key;
    END IF;
    RETURN NULL;
END
$$
"""


def upgrade() -> None:
    op.add_column('subscriptions', sa.Column('sink_credential', sa.LargeBinary(), nullable=True, comment='What the sink asks to see, encrypted; write-only'))
    op.create_table('subscription_history',
    sa.Column('id', sa.BigInteger(), sa.Identity(always=True), nullable=False),
    sa.Column('subscription_id', sa.Uuid(), nullable=False),
    sa.Column('at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('version', sa.BigInteger(), nullable=False),
    sa.Column('status', sa.Text(), nullable=False),
    sa.Column('status_reason', sa.Text(), nullable=True),
    sa.Column('changed', postgresql.ARRAY(sa.Text()), nullable=False, comment="Columns that changed; 'created' for the first line"),
    sa.Column('role', sa.Text(), nullable=False, comment='provider, registry, operator, sink or broker'),
    sa.Column('organisation_id', sa.Uuid(), nullable=True, comment="Whose caller changed it; empty: nobody's, or the operator's"),
    sa.Column('key_id', sa.Uuid(), nullable=True, comment='Of the API key, where there was one'),
    sa.CheckConstraint("role IN ('provider', 'registry', 'operator', 'sink', 'broker')", name=op.f('ck_subscription_history_role')),
    sa.ForeignKeyConstraint(['subscription_id'], ['subscriptions.id'], name=op.f('fk_subscription_history_subscription_id_subscriptions'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_subscription_history')),
    comment='Every change of a subscription, written by a trigger'
    )
    op.create_index(op.f('ix_subscription_history_subscription_id_id'), 'subscription_history', ['subscription_id', 'id'], unique=False)
    op.create_table('subscription_refusals',
    sa.Column('subscription_id', sa.Uuid(), nullable=False),
    sa.Column('registry_id', sa.Uuid(), nullable=False),
    sa.Column('reason', sa.Text(), nullable=False),
    sa.Column('refused_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.ForeignKeyConstraint(['registry_id'], ['organisations.id'], name=op.f('fk_subscription_refusals_registry_id_organisations')),
    sa.ForeignKeyConstraint(['subscription_id'], ['subscriptions.id'], name=op.f('fk_subscription_refusals_subscription_id_subscriptions'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('subscription_id', 'registry_id', name=op.f('pk_subscription_refusals')),
    comment='What registries said no to; a subscription is refused when all that it asks have'
    )
    op.create_table('test_notifications',
    sa.Column('id', sa.Uuid(), nullable=False),
    sa.Column('subscription_id', sa.Uuid(), nullable=False),
    sa.Column('requested_at', sa.DateTime(timezone=True), server_default=sa.text('now()'), nullable=False),
    sa.Column('claimed_until', sa.DateTime(timezone=True), nullable=True, comment='By a delivery process; empty: by none'),
    sa.Column('sent_at', sa.DateTime(timezone=True), nullable=True),
    sa.Column('milliseconds', sa.Integer(), nullable=True, comment='Until the answer was read, or given up'),
    sa.Column('status', sa.SmallInteger(), nullable=True, comment='HTTP status; empty: no answer, or not sent yet'),
    sa.Column('reason', sa.Text(), nullable=True, comment='Why there was no answer, or why it would count as a failure'),
    sa.Column('excerpt', sa.LargeBinary(), nullable=True, comment='First bytes of the answer, encrypted'),
    sa.ForeignKeyConstraint(['subscription_id'], ['subscriptions.id'], name=op.f('fk_test_notifications_subscription_id_subscriptions'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_test_notifications')),
    comment='Test notifications that were asked for, with what the sink answered; kept for a day'
    )
    op.create_index(op.f('ix_test_notifications_subscription_id_requested_at'), 'test_notifications', ['subscription_id', 'requested_at'], unique=False)
    op.create_index('ix_test_notifications_waiting', 'test_notifications', ['requested_at'], unique=False, postgresql_where=sa.text('sent_at IS NULL'))
    op.execute(FUNCTION)
    op.execute("CREATE TRIGGER subscription_made AFTER INSERT ON subscriptions REFERENCING NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION record_subscription_history()")
    op.execute("CREATE TRIGGER subscription_changed AFTER UPDATE ON subscriptions REFERENCING OLD TABLE AS former NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION record_subscription_history()")
