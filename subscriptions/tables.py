"""The tables of organisations, keys, domains, grants, follow lists and subscriptions. Invariants are constraints.

States of a subscription:

    requested ──► validating ──► active ◄──► paused
        │             │            │ ▲          (matched: active, paused, disabled)
        └─► refused ◄─┘            ▼ │
                               disabled         any of them ──► ended
"""

from enum import StrEnum
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    String,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from schemas.resources import DataValidation as DataValidation
from schemas.resources import HoldScope as HoldScope
from schemas.resources import HoldStatus as HoldStatus
from schemas.resources import InformationLevel as InformationLevel
from schemas.resources import Ordering as Ordering
from schemas.resources import Protocol as Protocol
from schemas.resources import Status as Status
from subscriptions.database import metadata

MATCHED: Final = (Status.ACTIVE, Status.PAUSED, Status.DISABLED)
"""The states in which events are matched and numbered."""

STANDING: Final = (HoldStatus.ACTIVE, HoldStatus.CANCELLING)
"""The states in which a hold holds."""


def _one_of(column: str, values: type[StrEnum]) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(value.value) for value in values)})", name=column)


def _moment(name: str, *, required: bool = False, **options: Any) -> Column[Any]:
    return Column(name, DateTime(timezone=True), nullable=not required, **options)


def _now(name: str) -> Column[Any]:
    return _moment(name, required=True, server_default=func.now())


def _texts(name: str, **options: Any) -> Column[Any]:
    return Column(name, ARRAY(Text), nullable=False, server_default=text("'{}'"), **options)


organisations = Table(
    "organisations",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("oin", String(20), nullable=False, unique=True),
    Column("name", Text, nullable=False),
    Column("amqp_user", Text, unique=True, comment="RabbitMQ user that speaks for it, verified by RabbitMQ"),
    _texts("sources", comment="Sources it may speak for besides urn:nld:oin:<its OIN>:…"),
    _now("created_at"),
    _now("updated_at"),
    CheckConstraint("length(oin) = 20", name="oin_length"),
    Index(None, "created_at", "id"),
)

domains = Table(
    "domains",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False, unique=True, comment="Namespace of event types, such as nl.bag"),
    Column("organisation_id", Uuid, ForeignKey("organisations.id"), nullable=False),
    Column("description", Text),
    Column("documentation_link", Text),
    _texts("filter_attributes"),
    _now("created_at"),
    _now("updated_at"),
    Index(None, "organisation_id"),
    Index(None, "created_at", "id"),
    comment="An event type belongs to the longest domain that is a prefix of it by labels",
)

event_types = Table(
    "event_types",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("type", Text, nullable=False, unique=True, comment="CloudEvents type, exact"),
    Column(
        "organisation_id",
        Uuid,
        ForeignKey("organisations.id"),
        nullable=False,
        comment="The registry that describes it; what it says counts only while it owns the type",
    ),
    Column("meaning", Text, nullable=False),
    Column("time_meaning", Text, comment="What `time` says of its events"),
    Column("documentation_link", Text),
    Column("information_level", Text, comment="informatiearm or informatierijk"),
    Column("data_schema", JSONB(none_as_null=True), comment="JSON Schema 2020-12 of data; empty: none"),
    Column("validation", Text, nullable=False, server_default=DataValidation.OFF.value),
    Column(
        "filter_attributes",
        ARRAY(Text),
        comment="What may be filtered on: attribute names, and JSON Pointers into data; empty: anything",
    ),
    Column("retention_days", Integer, comment="Days that its events are kept; empty: as the installation says"),
    Column("delay_seconds", Integer, comment="Seconds that its events wait before they are delivered; empty: none"),
    _moment("deprecated_at", comment="From when providers should no longer subscribe to it"),
    _moment("sunset_at", comment="From when it is no longer published"),
    Column("successor", Text, comment="The type that comes in its place"),
    Column("version", BigInteger, nullable=False, server_default=text("1"), comment="Raised by each change"),
    _now("created_at"),
    _now("updated_at"),
    _one_of("validation", DataValidation),
    CheckConstraint("information_level IN ('informatiearm', 'informatierijk')", name="information_level"),
    CheckConstraint("validation = 'off' OR data_schema IS NOT NULL", name="validation_has_a_schema"),
    CheckConstraint("retention_days BETWEEN 1 AND 36500", name="retention_days"),
    CheckConstraint("delay_seconds BETWEEN 1 AND 604800", name="delay_seconds"),
    CheckConstraint("delay_seconds < retention_days * 86400", name="delay_is_shorter"),
    Index(None, "organisation_id"),
    Index(None, "created_at", "id"),
    comment="The catalogue: what registries say of the types that they publish",
)

event_type_versions = Table(
    "event_type_versions",
    metadata,
    Column("event_type_id", Uuid, ForeignKey("event_types.id", ondelete="CASCADE"), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("description", JSONB, nullable=False, comment="All that was said of the type, as the API says it"),
    _now("created_at"),
    PrimaryKeyConstraint("event_type_id", "version"),
    comment="Each version of a description, as it was; never changed",
)

data_findings = Table(
    "data_findings",
    metadata,
    Column("event_type_id", Uuid, ForeignKey("event_types.id", ondelete="CASCADE"), nullable=False),
    Column("pointer", Text, nullable=False, comment="JSON Pointer into data; names that the schema doesn't know are *"),
    Column("keyword", Text, nullable=False, comment="The keyword of JSON Schema that was not met"),
    Column("times", BigInteger, nullable=False),
    _moment("first_at", required=True),
    _moment("last_at", required=True),
    PrimaryKeyConstraint("event_type_id", "pointer", "keyword"),
    comment="The report of types that validate with `report`: a hundred rows for each at most, and no values",
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("organisation_id", Uuid, ForeignKey("organisations.id"), comment="Empty: a key of the operator"),
    Column("digest", LargeBinary, nullable=False, unique=True, comment="SHA-256 of the key, which itself is not kept"),
    Column("hint", String(4), nullable=False, comment="Last characters of the key, to recognise it by"),
    _texts("scopes"),
    Column("label", Text, nullable=False, server_default=""),
    _now("created_at"),
    _moment("expires_at"),
    _moment("last_used_at", comment="Written at most once a minute"),
    _moment("revoked_at"),
    CheckConstraint("octet_length(digest) = 32", name="digest_length"),
    Index(None, "organisation_id", "created_at", "id"),
)

signing_keys = Table(
    "signing_keys",
    metadata,
    Column("kid", Text, primary_key=True, comment="RFC 7638 thumbprint of the public key"),
    Column("seed", LargeBinary, nullable=False, comment="Private key, encrypted"),
    Column("public", LargeBinary(32), nullable=False),
    _moment("signs_from", required=True, comment="It is published before, so that receivers know it in time"),
    _moment("signs_until", comment="End of the overlap with its successor; empty: it has none"),
    _now("created_at"),
    CheckConstraint("octet_length(public) = 32", name="public_length"),
    CheckConstraint("signs_until > signs_from", name="validity"),
    Index("ix_signing_keys_last", text("(true)"), unique=True, postgresql_where=text("signs_until IS NULL")),
    comment="Ed25519 keys of the installation, for signatures that anyone can verify; one has no successor",
)

grants = Table(
    "grants",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("registry_id", Uuid, ForeignKey("organisations.id"), nullable=False),
    Column("provider_id", Uuid, ForeignKey("organisations.id"), nullable=False),
    _texts("types", comment="Event types, exact (nl.bag.pand-gewijzigd) or all within a domain (nl.bag.*)"),
    Column("legal_basis", Text, nullable=False),
    _moment("valid_from", required=True, server_default=func.now()),
    _moment("valid_until"),
    _now("created_at"),
    _moment("revoked_at"),
    CheckConstraint("cardinality(types) > 0", name="types_not_empty"),
    CheckConstraint("valid_until > valid_from", name="validity"),
    Index(None, "registry_id", "created_at", "id"),
    Index(None, "provider_id", "created_at", "id"),
    Index(None, "created_at", "id"),
)

subscriptions = Table(
    "subscriptions",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("key", BigInteger, Identity(always=False), nullable=False, unique=True, comment="Internal short id"),
    Column("organisation_id", Uuid, ForeignKey("organisations.id"), nullable=False),
    Column("protocol", Text, nullable=False, server_default="HTTP"),
    Column("protocol_settings", JSONB, nullable=False, server_default=text("'{}'")),
    Column("sink", Text, comment="Empty: notifications are pulled, or go into a queue of the broker's"),
    Column("source", Text),
    Column("domain", Text),
    _texts("types"),
    Column("filters", JSONB, nullable=False, server_default=text("'[]'"), comment="As given; AND of its elements"),
    Column("config", JSONB, nullable=False, server_default=text("'{}'")),
    Column("subscriber_reference", Text),
    Column("ordering", Text, nullable=False, server_default=Ordering.SUBJECT.value),
    Column("retry", JSONB(none_as_null=True), comment="Seconds before each next attempt; empty: the default schedule"),
    Column("status", Text, nullable=False, comment="See the states above the tables"),
    Column("status_reason", Text, comment="A code, and after a colon what more there is to say"),
    Column("secret", LargeBinary, comment="Signing secret, encrypted; empty: nothing is signed"),
    Column("sink_credential", LargeBinary, comment="What the sink asks to see, encrypted; write-only"),
    Column("sink_tls", LargeBinary, comment="Client certificate, key and trust for the sink, encrypted; write-only"),
    Column("previous_secret", LargeBinary, comment="The one before, encrypted; signs too until it expires"),
    _moment("previous_secret_expires_at"),
    Column("allowed_rate", Integer, comment="Notifications a minute that the sink allows; empty: any"),
    Column("heartbeat_seconds", Integer, comment="When quiet for so long, its sink is told how far numbers go"),
    _moment("heartbeat_at", comment="When the next heartbeat is due; empty: that must be decided"),
    _moment("failing_since", comment="Since when the sink has accepted nothing that was sent; empty: it has"),
    _moment("validate_at", comment="When the handshake with the sink is due; empty: none is"),
    _moment("validated_at", comment="When this sink consented, or none was needed; empty: it has not"),
    _moment("refused_since", comment="Since when its handshakes fail; empty: the last one did not"),
    Column(
        "consented_by_callback",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="The sink calls back instead of answering the handshake, so its silence there says nothing",
    ),
    Column(
        "evaluated",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="Alternatives of its filters that are evaluated for every event of their type",
    ),
    Column("version", BigInteger, nullable=False, server_default=text("1"), comment="Raised by each change"),
    _now("created_at"),
    _now("updated_at"),
    _moment("ended_at"),
    _one_of("status", Status),
    _one_of("ordering", Ordering),
    CheckConstraint("(status = 'ended') = (ended_at IS NOT NULL)", name="ended"),
    CheckConstraint("status <> 'active' OR validated_at IS NOT NULL", name="active_consented"),
    CheckConstraint("(previous_secret IS NULL) = (previous_secret_expires_at IS NULL)", name="previous_secret"),
    CheckConstraint("protocol <> 'HTTP' OR (sink IS NOT NULL AND secret IS NOT NULL)", name="http_has_a_sink"),
    CheckConstraint("protocol <> 'PULL' OR (sink IS NULL AND secret IS NULL)", name="pull_has_none"),
    CheckConstraint("protocol <> 'AMQP' OR secret IS NOT NULL", name="amqp_has_a_secret"),
    CheckConstraint("allowed_rate > 0", name="allowed_rate"),
    CheckConstraint("evaluated >= 0", name="evaluated"),
    CheckConstraint("heartbeat_seconds > 0", name="heartbeat_seconds"),
    UniqueConstraint("id", "organisation_id", name="uq_subscriptions_id_organisation_id"),
    Index(None, "organisation_id", "key"),
    Index("ix_subscriptions_evaluated", "organisation_id", postgresql_where=text("evaluated > 0")),
    Index(
        "ix_subscriptions_heartbeat_at",
        "heartbeat_at",
        postgresql_where=text("heartbeat_seconds IS NOT NULL AND status = 'active'"),
    ),
    Index("ix_subscriptions_validate_at", "validate_at", postgresql_where=text("validate_at IS NOT NULL")),
    Index("ix_subscriptions_requested", "organisation_id", postgresql_where=text("status = 'requested'")),
)

subscription_refusals = Table(
    "subscription_refusals",
    metadata,
    Column("subscription_id", Uuid, ForeignKey("subscriptions.id", ondelete="CASCADE"), nullable=False),
    Column("registry_id", Uuid, ForeignKey("organisations.id"), nullable=False),
    Column("reason", Text, nullable=False),
    _now("refused_at"),
    PrimaryKeyConstraint("subscription_id", "registry_id"),
    comment="What registries said no to; a subscription is refused when all that it asks have",
)

test_notifications = Table(
    "test_notifications",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("subscription_id", Uuid, ForeignKey("subscriptions.id", ondelete="CASCADE"), nullable=False),
    _now("requested_at"),
    _moment("claimed_until", comment="By a delivery process; empty: by none"),
    _moment("sent_at"),
    Column("milliseconds", Integer, comment="Until the answer was read, or given up"),
    Column("status", SmallInteger, comment="HTTP status; empty: no answer, or not sent yet"),
    Column("reason", Text, comment="Why there was no answer, or why it would count as a failure"),
    Column("excerpt", LargeBinary, comment="First bytes of the answer, encrypted"),
    Index(None, "subscription_id", "requested_at"),
    Index("ix_test_notifications_waiting", "requested_at", postgresql_where=text("sent_at IS NULL")),
    comment="Test notifications that were asked for, with what the sink answered; kept for a day",
)

handshake_tokens = Table(
    "handshake_tokens",
    metadata,
    Column("digest", LargeBinary, primary_key=True, comment="SHA-256 of the token, which itself is not kept"),
    Column("subscription_id", Uuid, ForeignKey("subscriptions.id"), nullable=False),
    Column("sink", Text, nullable=False, comment="The sink that was asked; consent counts for no other"),
    _moment("expires_at", required=True),
    CheckConstraint("octet_length(digest) = 32", name="digest_length"),
    Index(None, "subscription_id"),
    Index(None, "expires_at"),
    comment="Callbacks by which a sink can consent; all of a subscription go when one is used",
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column(
        "digest",
        LargeBinary,
        primary_key=True,
        comment="Keyed, of whose key it is and the key, which itself is not kept",
    ),
    Column("request_digest", LargeBinary, nullable=False, comment="Keyed, of the request that came with it"),
    Column("answer", LargeBinary, nullable=False, comment="Status, headers and body, encrypted"),
    _moment("expires_at", required=True),
    CheckConstraint("octet_length(digest) = 32", name="digest_length"),
    CheckConstraint("octet_length(request_digest) = 32", name="request_digest_length"),
    Index(None, "expires_at"),
    comment="Answers that are repeated to who asks again; written with what they tell of",
)

follow_lists = Table(
    "follow_lists",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("organisation_id", Uuid, ForeignKey("organisations.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("size", BigInteger, nullable=False, server_default=text("0"), comment="Subjects on it"),
    _now("created_at"),
    _moment("deleted_at", comment="From then on nobody sees it; its subjects go in portions, and it with the last"),
    CheckConstraint("length(name) BETWEEN 1 AND 200", name="name_length"),
    CheckConstraint("size >= 0", name="size"),
    UniqueConstraint("id", "organisation_id", name="uq_follow_lists_id_organisation_id"),
    Index(None, "organisation_id", "created_at", "id"),
    Index("ix_follow_lists_deleted_at", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
)

followed_subjects = Table(
    "followed_subjects",
    metadata,
    Column("list_id", Uuid, nullable=False),  # no foreign key: to check it took twice as long as to insert
    Column("digest", LargeBinary(16), nullable=False, comment="Keyed; its first 8 bytes are the fingerprint in memory"),
    PrimaryKeyConstraint("list_id", "digest"),
    CheckConstraint("octet_length(digest) = 16", name="digest_length"),
    comment="Who is followed. No subject is here: who reads this without the key learns how many, not whom",
)

follow_changes = Table(
    "follow_changes",
    metadata,
    Column(
        "version",
        BigInteger,
        ForeignKey("change_log.version", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
        comment="Of the change log, with which it is pruned",
    ),
    Column("list_id", Uuid, nullable=False),
    Column("step", SmallInteger, nullable=False, comment="1: the subjects came onto the list, -1: they left it"),
    Column("fingerprints", LargeBinary, nullable=False, comment="Those of the subjects, 8 bytes each, big-endian"),
    CheckConstraint("step IN (-1, 1)", name="step"),
    CheckConstraint("octet_length(fingerprints) % 8 = 0", name="whole_fingerprints"),
    comment="What each process applies to the lists in its memory, in the order of versions",
)

subscription_follow_lists = Table(
    "subscription_follow_lists",
    metadata,
    Column("subscription_id", Uuid, nullable=False),
    Column("list_id", Uuid, nullable=False),
    Column("organisation_id", Uuid, nullable=False),
    PrimaryKeyConstraint("subscription_id", "list_id"),
    ForeignKeyConstraint(
        ["subscription_id", "organisation_id"],
        ["subscriptions.id", "subscriptions.organisation_id"],
        name="fk_subscription_follow_lists_subscription_id_subscriptions",
    ),
    ForeignKeyConstraint(
        ["list_id", "organisation_id"],
        ["follow_lists.id", "follow_lists.organisation_id"],
        name="fk_subscription_follow_lists_list_id_follow_lists",
    ),
    Index(None, "list_id"),
    comment="Lists that filters of subscriptions name: of the same organisation, and there as long as they are named",
)

holds = Table(
    "holds",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("scope", Text, nullable=False, comment="source, event-type, organisation or subscription"),
    Column("value", Text, nullable=False, comment="Which, as the API says it"),
    Column("target_id", Uuid, comment="The organisation or subscription that value names"),
    Column("owner_id", Uuid, ForeignKey("organisations.id"), comment="The registry whose source or type it is"),
    Column("reason", Text, nullable=False),
    Column("status", Text, nullable=False),
    _now("placed_at"),
    Column("placed_by", Uuid, ForeignKey("organisations.id"), comment="Empty: the operator"),
    Column("placed_key", Uuid, comment="The key that placed it"),
    Column("end_reason", Text, comment="Why it was released or cancelled"),
    _moment("end_asked_at"),
    Column("ended_by", Uuid, ForeignKey("organisations.id"), comment="Empty: the operator"),
    Column("ended_key", Uuid, comment="The key that ended it"),
    _moment("ended_at"),
    Column("cancelled", BigInteger, nullable=False, server_default=text("0"), comment="Deliveries, so far"),
    Column("cursor_subscription", BigInteger, nullable=False, server_default=text("0"), comment="Cancelled up to here"),
    Column("cursor_sequence", BigInteger, nullable=False, server_default=text("0")),
    _one_of("scope", HoldScope),
    _one_of("status", HoldStatus),
    CheckConstraint("(target_id IS NULL) = (scope IN ('source', 'event-type'))", name="target"),
    CheckConstraint("(ended_at IS NULL) = (status IN ('active', 'cancelling'))", name="ended"),
    Index("uq_holds_standing", "scope", "value", unique=True, postgresql_where=text("ended_at IS NULL")),
    Index(None, "placed_at", "id"),
    comment="What may not leave, and what became of it: who decided, when and why. Rows stay",
)
