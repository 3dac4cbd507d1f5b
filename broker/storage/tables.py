"""The broker's tables: events and deliveries, partitioned by time of acceptance, and the small ones around them.

An event's `key` carries its time of acceptance: milliseconds since 1970 shifted left by `KEY_SHIFT` bits, plus a
counter. One column is thus identity, partition key and clock, and any row that names an event prunes to one partition.

A delivery has three ends and one beginning:

    pending ──► delivered                     a sink answered 200, 201, 202 or 204, or a pull was acknowledged
       │  ▲
       ▼  │ (retry, by number of attempts)
       ├──────► dead                          attempts ran out or were final; kept until someone decides
       └──────► cancelled                     with a reason: grant-ended, subscription-ended, …
"""

from datetime import UTC, datetime, timedelta

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Enum,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Sequence,
    SmallInteger,
    Table,
    Text,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from subscriptions.database import metadata

KEY_SHIFT = 20
PENDING, DELIVERED, DEAD, CANCELLED = "pending", "delivered", "dead", "cancelled"
delivery_state = Enum(PENDING, DELIVERED, DEAD, CANCELLED, name="delivery_state", metadata=metadata)

event_counter = Sequence("event_counter", metadata=metadata)


def key_at(moment: datetime) -> int:
    """The smallest event key that an event accepted at `moment` can have."""
    return int(moment.timestamp() * 1000) << KEY_SHIFT


def accepted_at(event_key: int) -> datetime:
    """When the event with this key was accepted, to the millisecond."""
    return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=event_key >> KEY_SHIFT)


installation = Table(
    "installation",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", LargeBinary, nullable=False),
    comment="What is fixed for the life of this installation, such as the sealed fingerprint key and the queue count.",
)

event_ids = Table(
    "event_ids",
    metadata,
    Column("digest", LargeBinary(16), primary_key=True, comment="keyed digest of source and id"),
    Column("event_key", BigInteger, nullable=False),
    Index("ix_event_ids_event_key", "event_key"),  # to forget the oldest, and to see that each has its event
    comment="Promise 4: source+id is accepted once. Not partitioned by time, so that uniqueness holds.",
)

events = Table(
    "events",
    metadata,
    Column("key", BigInteger, nullable=False),
    Column(
        "organisation_id", Uuid, nullable=False, comment="the registry that published it; of a notice: its recipient"
    ),
    Column("source", Text, nullable=False),
    Column("id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("bytes", Integer, nullable=False, comment="of the body before it was sealed"),
    Column("lane", BigInteger, nullable=True, comment="keyed fingerprint of source and subject; null without subject"),
    Column("body", LargeBinary, nullable=False, comment="sealed canonical CloudEvent"),
    PrimaryKeyConstraint("key"),
    Index("ix_events_id", text("hashtextextended(id, 0)")),  # ids have no bound that an index on them could hold
    postgresql_partition_by="RANGE (key)",
)

subscription_numbers = Table(
    "subscription_numbers",
    metadata,
    Column("subscription", BigInteger, primary_key=True, autoincrement=False),
    Column("last_sequence", BigInteger, nullable=False),
    CheckConstraint("last_sequence >= 0", name="contiguous_from_one"),
    postgresql_with={"fillfactor": "50"},
    comment="Promise 5: numbers are taken under this row's lock, held to commit, so commit order is number order.",
)

deliveries = Table(
    "deliveries",
    metadata,
    Column("subscription", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("event_key", BigInteger, nullable=False),
    Column("lane", BigInteger, nullable=True, comment="deliveries that keep their order; null keeps none"),
    Column("grant_id", Uuid, nullable=False, comment="the grant it was matched on"),
    Column("state", delivery_state, nullable=False, server_default=text("'pending'")),
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    Column("next_attempt_at", DateTime(timezone=True), nullable=True, comment="retry time; null: at once"),
    Column("ended_at", DateTime(timezone=True), nullable=True),
    Column("status", SmallInteger, nullable=True, comment="HTTP status of the last attempt; null: no answer"),
    Column("reason", Text, nullable=True, comment="why it is dead or cancelled, or why the last attempt failed"),
    PrimaryKeyConstraint("subscription", "sequence", "event_key"),
    CheckConstraint("(state = 'pending') = (ended_at IS NULL)", name="ended_has_a_time"),
    CheckConstraint("state NOT IN ('dead', 'cancelled') OR reason IS NOT NULL", name="end_has_a_reason"),
    Index("ix_deliveries_pending", "subscription", "sequence", postgresql_where=text("state = 'pending'")),
    Index(
        "ix_deliveries_pending_lane",
        "subscription",
        "lane",
        "sequence",
        postgresql_where=text("state = 'pending' AND lane IS NOT NULL"),
    ),
    Index("ix_deliveries_dead", "subscription", "sequence", postgresql_where=text("state = 'dead'")),
    Index("ix_deliveries_event", "event_key"),
    postgresql_partition_by="RANGE (event_key)",
)

attempts = Table(
    "attempts",
    metadata,
    Column("subscription", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("event_key", BigInteger, nullable=False),
    Column("attempt", SmallInteger, nullable=False),
    Column("started_at", DateTime(timezone=True), nullable=False),
    Column("milliseconds", Integer, nullable=False, comment="until the answer was read, or given up"),
    Column("status", SmallInteger, nullable=True, comment="HTTP status; null: no answer"),
    Column("reason", Text, nullable=True, comment="why it failed: a code of delivery.outcomes"),
    Column("excerpt", LargeBinary, nullable=True, comment="sealed first bytes of the answer, for the provider only"),
    Index("ix_attempts_delivery", "subscription", "sequence"),
    postgresql_partition_by="RANGE (event_key)",
    comment="Attempts that did not succeed. The one that did stands on its delivery.",
)

delivery_totals = Table(
    "delivery_totals",
    metadata,
    Column("subscription", BigInteger, primary_key=True, autoincrement=False),
    Column("delivered", BigInteger, nullable=False, server_default=text("0")),
    Column("dead", BigInteger, nullable=False, server_default=text("0")),
    Column("cancelled", BigInteger, nullable=False, server_default=text("0")),
    postgresql_with={"fillfactor": "50"},
    comment="Promise 2: matched (last_sequence) minus these is what must be pending.",
)

pull_cursors = Table(
    "pull_cursors",
    metadata,
    Column("subscription", BigInteger, primary_key=True, autoincrement=False),
    Column("through", BigInteger, nullable=False, comment="every number up to this one was acknowledged"),
    Column("acknowledged_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint("through >= 0", name="not_negative"),
    comment="How far a provider that pulls says that it has come.",
)

rejections = Table(
    "rejections",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("digest", LargeBinary(16), nullable=False, unique=True, comment="keyed digest of publisher and message"),
    Column("rejected_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("times", Integer, nullable=False, server_default=text("1"), comment="how often this message came"),
    Column("organisation_id", Uuid, nullable=True, comment="the publisher; null when unknown: the operator's to read"),
    Column("code", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("attribute", Text, nullable=True),
    Column("source", Text, nullable=True),
    Column("event_id", Text, nullable=True),
    Column("event_type", Text, nullable=True),
    Column("bytes", Integer, nullable=False),
    Index("ix_rejections_organisation", "organisation_id", "id"),
)

leases = Table(
    "leases",
    metadata,
    Column("kind", Text, nullable=False, comment="shard or queue"),
    Column("number", Integer, nullable=False),
    Column("owner", Uuid, nullable=True),
    Column("epoch", BigInteger, nullable=False, server_default=text("0"), comment="grows with every change of owner"),
    Column("expires_at", DateTime(timezone=True), nullable=True),
    PrimaryKeyConstraint("kind", "number"),
    postgresql_with={"fillfactor": "50"},
)

lease_holders = Table(
    "lease_holders",
    metadata,
    Column("owner", Uuid, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("seen_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("applied_version", BigInteger, nullable=False, server_default=text("0"), comment="of the change log"),
)

ingest_queues = Table(
    "ingest_queues",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False, comment="that of its lease"),
    Column("name", Text, nullable=False, unique=True, comment="in RabbitMQ"),
    Column("organisation_id", Uuid, ForeignKey("organisations.id"), nullable=True, comment="whose; null: shared"),
    Index("ix_ingest_queues_organisation_id", "organisation_id"),
    comment="The queues that events come in by. How many a registry has is decided once: order rests on it.",
)

domain_routes = Table(
    "domain_routes",
    metadata,
    Column("name", Text, primary_key=True, comment="of a domain, which may not be there yet"),
    Column("organisation_id", Uuid, ForeignKey("organisations.id"), nullable=False),
    Column("made_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Index("ix_domain_routes_organisation_id", "organisation_id"),
    comment="Domains whose events go to their registry's own queues: one registry for each name, ever.",
)

accounts = Table(
    "accounts",
    metadata,
    Column("subscription", BigInteger, primary_key=True, autoincrement=False),
    Column("through", BigInteger, nullable=False, server_default=text("0"), comment="numbers up to here are in blocks"),
    Column("delivered", BigInteger, nullable=False, server_default=text("0"), comment="of the closed blocks"),
    Column("cancelled", BigInteger, nullable=False, server_default=text("0"), comment="of the closed blocks"),
    Column("matched", BigInteger, nullable=False, server_default=text("0"), comment="last number at the last check"),
    Column("ended", BigInteger, nullable=False, server_default=text("0"), comment="sum of totals at the last check"),
    Column("checked_at", DateTime(timezone=True), nullable=True, comment="when rows and totals were last compared"),
    Column("took_ms", Integer, nullable=False, server_default=text("0"), comment="what that cost"),
    postgresql_with={"fillfactor": "50"},
    comment="How far the rows of a subscription have been counted, so that no check counts its past again.",
)

account_blocks = Table(
    "account_blocks",
    metadata,
    Column("subscription", BigInteger, nullable=False),
    Column("block", BigInteger, nullable=False, comment="numbers from 1,000 × block + 1, a thousand of them"),
    Column("delivered", BigInteger, nullable=False),
    Column("cancelled", BigInteger, nullable=False),
    Column("closed", Boolean, nullable=False, comment="nothing in it is pending or dead: it changes no more"),
    PrimaryKeyConstraint("subscription", "block"),
    Index("ix_account_blocks_open", "subscription", "block", postgresql_where=text("NOT closed")),
    comment="What was counted in each block of numbers when it was last looked at.",
)

drift = Table(
    "drift",
    metadata,
    Column("kind", Text, nullable=False, comment="a kind of storage.accounting"),
    Column("subscription", BigInteger, nullable=False, server_default=text("0"), comment="0: about an event"),
    Column("number", BigInteger, nullable=False, server_default=text("0"), comment="0: about the subscription"),
    Column("event_key", BigInteger, nullable=False, server_default=text("0")),
    Column("detail", Text, nullable=False, server_default="", comment="codes and amounts only"),
    Column("found_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("seen_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    PrimaryKeyConstraint("kind", "subscription", "number", "event_key"),
    comment="Promise 2: what does not add up now. Empty, or an alert. A row goes when a later look finds it well.",
)

house_jobs = Table(
    "house_jobs",
    metadata,
    Column("name", Text, primary_key=True),
    Column("due_at", DateTime(timezone=True), nullable=False),
    Column("cursor", JSONB, nullable=False, server_default=text("'{}'"), comment="how far the round under way is"),
    Column("round_started_at", DateTime(timezone=True), nullable=True),
    Column("round_finished_at", DateTime(timezone=True), nullable=True),
    Column("round_seconds", Integer, nullable=True, comment="how long the last whole round took"),
    comment="Housekeeping of the installation: whoever moves due_at on does the next step.",
)

expiring_told = Table(
    "expiring_told",
    metadata,
    Column("subscription", BigInteger, primary_key=True, autoincrement=False),
    Column("told_at", DateTime(timezone=True), nullable=False),
    comment="When a provider was told last that what it has not received will expire.",
)

retirements = Table(
    "retirements",
    metadata,
    Column("day", Date, primary_key=True),
    Column("cursor_subscription", BigInteger, nullable=False, server_default=text("0")),
    Column("cursor_sequence", BigInteger, nullable=False, server_default=text("0")),
    Column("explained_at", DateTime(timezone=True), nullable=True, comment="its numbers stand in retired_numbers"),
    Column("retired_at", DateTime(timezone=True), nullable=True, comment="its partitions are gone: those count now"),
    comment="Days of acceptance that are being retired, or were.",
)

retired_numbers = Table(
    "retired_numbers",
    metadata,
    Column("subscription", BigInteger, nullable=False),
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("day", Date, nullable=True, comment="counts once this day is retired; null: at once"),
    Column("state", delivery_state, nullable=False),
    Column("reason", Text, nullable=True),
    Column("digest", LargeBinary(32), nullable=True, comment="of the delivered, as in docs/completeness.md"),
    PrimaryKeyConstraint("subscription", "first"),
    CheckConstraint("last >= first", name="forward"),
    CheckConstraint("(first - 1) / 1000 = (last - 1) / 1000", name="within_a_block"),
    CheckConstraint("(state = 'delivered') = (digest IS NOT NULL)", name="delivered_has_a_digest"),
    Index("ix_retired_numbers_moving", "day", postgresql_where=text("state IN ('pending', 'dead')")),
    comment="Promise 5: what became of numbers whose rows are gone; adjacent ones of one state and reason together.",
)

replays = Table(
    "replays",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("subscription", BigInteger, nullable=False),
    Column("requested_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("numbers", ARRAY(BigInteger), nullable=True, comment="ascending; null: all from first to last"),
    Column("per_second", Integer, nullable=False),
    Column("state", Text, nullable=False, server_default=text("'running'")),
    Column("reason", Text, nullable=True, comment="why it was cancelled"),
    Column(
        "cursor",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="numbers up to this one are settled",
    ),
    Column("sent", BigInteger, nullable=False, server_default=text("0")),
    Column("failed", BigInteger, nullable=False, server_default=text("0")),
    Column("skipped", JSONB, nullable=False, server_default=text("'{}'"), comment="how many for each reason"),
    Column("last_failure", Text, nullable=True, comment="why an attempt failed last"),
    Column("ended_at", DateTime(timezone=True), nullable=True),
    CheckConstraint("state IN ('running', 'done', 'cancelled')", name="state"),
    CheckConstraint("(state = 'running') = (ended_at IS NULL)", name="ended_has_a_time"),
    CheckConstraint("last >= first AND first >= 1", name="forward"),
    Index("ix_replays_running", "subscription", unique=True, postgresql_where=text("state = 'running'")),
    Index("ix_replays_subscription", "subscription", "requested_at", "id"),
    comment="Numbers of a subscription that are sent again on request, and how far that is.",
)

PARTITIONED = (events, deliveries, attempts)
