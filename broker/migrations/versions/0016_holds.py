"""Holds: what may not leave.

Revision ID: 0016
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

_KINDS = "'organisation', 'domain', 'event-type', 'grant', 'subscription', 'follow-list'"


def upgrade() -> None:
    """Add the table, and a kind of change."""
    op.create_table(
        "holds",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False, comment="source, event-type, organisation or subscription"),
        sa.Column("value", sa.Text(), nullable=False, comment="Which, as the API says it"),
        sa.Column("target_id", sa.Uuid(), comment="The organisation or subscription that value names"),
        sa.Column("owner_id", sa.Uuid(), comment="The registry whose source or type it is"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("placed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("placed_by", sa.Uuid(), comment="Empty: the operator"),
        sa.Column("placed_key", sa.Uuid(), comment="The key that placed it"),
        sa.Column("end_reason", sa.Text(), comment="Why it was released or cancelled"),
        sa.Column("end_asked_at", sa.DateTime(timezone=True)),
        sa.Column("ended_by", sa.Uuid(), comment="Empty: the operator"),
        sa.Column("ended_key", sa.Uuid(), comment="The key that ended it"),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("cancelled", sa.BigInteger(), server_default=sa.text("0"), nullable=False, comment="Deliveries, so far"),
        sa.Column(
            "cursor_subscription",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="Cancelled up to here",
        ),
        sa.Column("cursor_sequence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.CheckConstraint(
            "scope IN ('source', 'event-type', 'organisation', 'subscription')", name=op.f("ck_holds_scope")
        ),
        sa.CheckConstraint(
            "status IN ('active', 'cancelling', 'released', 'cancelled')", name=op.f("ck_holds_status")
        ),
        sa.CheckConstraint(
            "(target_id IS NULL) = (scope IN ('source', 'event-type'))", name=op.f("ck_holds_target")
        ),
        sa.CheckConstraint(
            "(ended_at IS NULL) = (status IN ('active', 'cancelling'))", name=op.f("ck_holds_ended")
        ),
        sa.ForeignKeyConstraint(["owner_id"], ["organisations.id"], name=op.f("fk_holds_owner_id_organisations")),
        sa.ForeignKeyConstraint(["placed_by"], ["organisations.id"], name=op.f("fk_holds_placed_by_organisations")),
        sa.ForeignKeyConstraint(["ended_by"], ["organisations.id"], name=op.f("fk_holds_ended_by_organisations")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_holds")),
        comment="What may not leave, and what became of it: who decided, when and why. Rows stay",
    )
    op.create_index(
        "uq_holds_standing", "holds", ["scope", "value"], unique=True, postgresql_where=sa.text("ended_at IS NULL")
    )
    op.create_index(op.f("ix_holds_placed_at_id"), "holds", ["placed_at", "id"])
    op.drop_constraint(op.f("ck_change_log_kind"), "change_log")
    op.create_check_constraint(op.f("ck_change_log_kind"), "change_log", f"kind IN ({_KINDS}, 'hold', 'everything')")
    op.alter_column(
        "change_log",
        "kind",
        existing_type=sa.Text(),
        existing_nullable=False,
        comment="organisation, domain, event-type, grant, subscription, follow-list, hold or everything",
        existing_comment="organisation, domain, event-type, grant, subscription, follow-list or everything",
    )
