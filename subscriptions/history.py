"""The history of subscriptions: who changed which members when, and what the status was then.

A trigger writes it, so that no way to change a subscription can be without: each statement that raises the version of a
subscription adds a line for it. Who changes is said at the start of the transaction (`change_log.changing`); nobody
said means that the broker did it by itself. Lines hold names of members, never values: filters may name persons.
"""

from typing import Final, NamedTuple
from uuid import UUID

from sqlalchemy import (
    DDL,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Table,
    Text,
    Uuid,
    event,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncConnection

from subscriptions.database import metadata
from subscriptions.tables import subscriptions

ROLES: Final = ("provider", "registry", "operator", "sink", "broker")

subscription_history = Table(
    "subscription_history",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("subscription_id", Uuid, ForeignKey("subscriptions.id", ondelete="CASCADE"), nullable=False),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("version", BigInteger, nullable=False),
    Column("status", Text, nullable=False),
    Column("status_reason", Text),
    Column("changed", ARRAY(Text), nullable=False, comment="Columns that changed; 'created' for the first line"),
    Column("role", Text, nullable=False, comment="provider, registry, operator, sink or broker"),
    Column("organisation_id", Uuid, comment="Whose caller changed it; empty: nobody's, or the operator's"),
    Column("key_id", Uuid, comment="Of the API key, where there was one"),
    CheckConstraint("role IN ('provider', 'registry', 'operator', 'sink', 'broker')", name="role"),
    Index(None, "subscription_id", "id"),
    comment="Every change of a subscription, written by a trigger",
)

FUNCTION: Final = """
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
TRIGGERS: Final = (
    "CREATE TRIGGER subscription_made AFTER INSERT ON subscriptions REFERENCING NEW TABLE AS made "
    "FOR EACH STATEMENT EXECUTE FUNCTION record_subscription_history()",
    "CREATE TRIGGER subscription_changed AFTER UPDATE ON subscriptions REFERENCING OLD TABLE AS former "
    "NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION record_subscription_history()",
)
for _statement in (FUNCTION, *TRIGGERS):
    event.listen(subscription_history, "after_create", DDL(_statement))  # type: ignore[no-untyped-call]
assert subscriptions.metadata is metadata  # the triggers' table is made before: the foreign key says so


class Actor(NamedTuple):
    """Who makes a change."""

    role: str
    organisation_id: UUID | None = None
    key_id: UUID | None = None


async def say_who(connection: AsyncConnection, actor: Actor) -> None:
    """Says, until the transaction ends, who makes the changes in it."""
    who = f"{actor.role}/{actor.organisation_id or ''}/{actor.key_id or ''}"
    await connection.execute(text("SELECT set_config('bode.actor', :who, true)").bindparams(who=who))
