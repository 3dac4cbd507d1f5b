"""The outbox of notices: what Bode has to tell, written in the transaction that makes it true.

A line is turned into an event by a worker of acceptance (`broker.ingest.notices`) and then taken away. Lines of one
type about the same subscription of the same organisation are told together.
"""

from typing import Final
from uuid import UUID

from sqlalchemy import BigInteger, Column, DateTime, Identity, Index, Table, Text, Uuid, func, insert, literal, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.notices import NoticeType
from subscriptions.database import metadata
from subscriptions.tables import subscriptions

NO_GRANT_NEEDED: Final = UUID(int=0)
"""In the place of a grant: what is Bode's own and about oneself may always be received."""

notices = Table(
    "notices",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("type", Text, nullable=False),
    Column("organisation_id", Uuid, nullable=False, comment="whom it is for, and nobody else"),
    Column("subscription_id", Uuid, nullable=True, comment="what it is about; null: no subscription"),
    Column("data", JSONB, nullable=False, comment="codes, numbers and counts only"),
    Column("said_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("event_id", Uuid, nullable=True, comment="of the event that it is told in; null: not decided yet"),
    Column("claimed_until", DateTime(timezone=True), nullable=True, comment="by who is telling it; null: by nobody"),
    Index("ix_notices_event_id", "event_id"),
    comment="What Bode has to tell and has not told yet: written with what it tells of, and gone once it is an event.",
)


async def say_disabled(connection: AsyncConnection, subscription_id: UUID, reason: str) -> None:
    """Tell the provider of a subscription, when this transaction commits, that it was disabled."""
    data = func.jsonb_build_object(
        literal("subscription"), subscriptions.c.id, literal("reason"), literal(reason.partition(":")[0])
    )
    told = select(
        literal(NoticeType.SUBSCRIPTION_DISABLED.value), subscriptions.c.organisation_id, subscriptions.c.id, data
    )
    await connection.execute(
        insert(notices).from_select(
            ["type", "organisation_id", "subscription_id", "data"], told.where(subscriptions.c.id == subscription_id)
        )
    )
