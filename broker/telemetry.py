"""What every process tells: metrics, and one structured log line for each unit of work.

Labels are bounded sets; no label and no log line ever holds a subject, a secret or a URL (promise 10). The catalogue of
both stands in docs/telemetry.md, and a test compares it with this file.
"""

import logging
import sys
from typing import Final

import structlog
from prometheus_client import Counter, Gauge, Histogram

_LATENCY: Final = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 15, 60, 300, 1800, 7200, 86400)
_SIZES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500)

RECEIVED = Counter("bode_events_received", "Messages taken from an ingest queue or from the API.", ["door"])
ACCEPTED = Counter("bode_events_accepted", "Events committed with all their deliveries.")
DUPLICATES = Counter("bode_events_duplicate", "Events whose source and id were accepted before.")
REJECTED = Counter("bode_events_rejected", "Messages committed as a rejection, by reason.", ["reason"])
REPLAYED = Counter("bode_replayed", "Numbers that replays settled, by what became of them.", ["result"])
NOTICES = Counter("bode_notices", "Notices of Bode's own that were accepted, by type.", ["type"])
WARNINGS = Counter("bode_events_warned", "SHOULDs of the NL GOV profile that accepted events did not meet.", ["rule"])
DATA_FINDINGS = Counter(
    "bode_events_data_reported", "Accepted events whose data did not meet the schema of their type."
)
MATCHED = Counter("bode_deliveries_matched", "Deliveries committed: events times matching subscriptions.")
CORRECTED = Counter("bode_deliveries_corrected", "Deliveries cancelled by a correction before their delay was over.")
BATCH_EVENTS = Histogram(
    "bode_ingest_batch_events", "Messages in one commit.", buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500)
)
COMMIT_SECONDS = Histogram("bode_ingest_commit_seconds", "From a batch in memory to its commit.", buckets=_LATENCY)
INGEST_QUEUES = Gauge("bode_ingest_queues_held", "Ingest queues that this process consumes.")
QUEUE_MESSAGES = Gauge("bode_ingest_queue_messages", "Messages that wait in RabbitMQ, by queue.", ["queue"])
UNROUTED = Gauge("bode_unrouted_messages", "Messages that no queue was bound for; any is an alarm.")
UNHEADED = Counter("bode_events_without_subject_header", "Events with a subject that came without the header.")

APPLIED_VERSION = Gauge("bode_applied_version", "Version of the change log that this process has applied.")
INDEXED_SUBSCRIPTIONS = Gauge("bode_indexed_subscriptions", "Subscriptions in this process's index.")
FOLLOW_HITS = Counter("bode_follow_hits", "Hits on follow lists by fingerprint, verified or refused.", ["result"])
FOLLOW_CHANGES = Gauge("bode_follow_changes_unmerged", "Changed subjects of follow lists that aren't in the arrays.")

DELIVERIES = Counter("bode_deliveries", "Deliveries that ended, by how.", ["outcome"])
ATTEMPTS = Counter("bode_attempts", "Attempts, by result: success or the reason of failure.", ["result"])
BATCHES = Counter(
    "bode_batches", "Batches that were answered: accepted, refused (and taken apart) or failed.", ["result"]
)
LATENCY = Histogram("bode_delivery_latency_seconds", "From acceptance to the sink's success.", buckets=_LATENCY)
ATTEMPT_SECONDS = Histogram("bode_attempt_seconds", "One attempt, look-up to answer.", buckets=_LATENCY)
HOLDS = Gauge("bode_holds", "Holds that stand.")
HELD = Gauge("bode_deliveries_held", "Deliveries of this process passed over because of a hold of a source or type.")
PENDING = Gauge("bode_deliveries_pending", "Deliveries that have not ended, of the shards of this process.")
OLDEST_PENDING = Gauge("bode_deliveries_oldest_pending_seconds", "Age of the oldest pending delivery of these shards.")
BREAKERS_OPEN = Gauge("bode_breakers_open", "Sinks of this process whose circuit breaker is open or half-open.")
IN_FLIGHT = Gauge("bode_attempts_in_flight", "Attempts under way in this process.")
UNRECORDED = Gauge("bode_outcomes_unrecorded", "Outcomes waiting for their commit.")
SHARDS = Gauge("bode_shards_held", "Shards that this process owns.")
HEARTBEATS = Counter("bode_heartbeats", "Heartbeats, by result: success or the reason of failure.", ["result"])
TOKEN_REQUESTS = Counter("bode_sink_token_requests", "Requests for tokens for sinks, by result.", ["result"])
EXPIRY_SECONDS = Gauge("bode_expiry_seconds", "Until the next of a kind expires that sinks are shown.", ["kind"])
EXPIRING = Gauge("bode_expiring", "What sinks are shown and expires within 30 days, or has.", ["kind", "state"])
HANDSHAKES = Counter("bode_handshakes", "Webhook handshakes, by result.", ["result"])

DRIFT = Gauge("bode_drift", "What does not add up now, by kind. Every process tells the same number.", ["kind"])
ROUND_FINISHED = Gauge("bode_house_round_timestamp_seconds", "When a job of housekeeping last ended a round.", ["job"])
ROUND_SECONDS = Gauge("bode_house_round_seconds", "How long that round took.", ["job"])
DAYS_OVERDUE = Gauge("bode_days_overdue", "Days of acceptance that are kept for longer than any type asks.")

WORKER_UP = Gauge("bode_worker_up", "1 while the worker runs as it should.", ["worker"])
WORKER_ERRORS = Counter("bode_worker_errors", "Errors of infrastructure that a worker met and survived.", ["worker"])


def configure_logging(process: str, level: str = "INFO") -> None:
    """Write one JSON object a line to standard error, with the process's name in each."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(name)s: %(message)s", force=True)


def log() -> structlog.stdlib.BoundLogger:
    """The logger; event names are kebab-case nouns and are listed in docs/telemetry.md."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger()
    return logger
