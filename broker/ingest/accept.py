"""Acceptance: a batch of messages becomes events, deliveries and rejections in one commit. Both doors end here.

    message ──► parsed? ──► publisher known, may speak for the source, owns the type? ──► matched ──► new? ──► commit
                  │no                          │no                                                 │no
                  └──────────► rejection ◄─────┘                                   known duplicate ◄┘

Nothing is poison: whatever a message holds, it ends as one of the three, and is acknowledged after the commit.
"""

import asyncio
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg

from broker.ingest import corrections
from broker.ingest.corrections import Correction, InvalidCorrection, Kind
from broker.ingest.findings import Findings
from broker.ingest.verification import verify
from broker.ingest.view import View
from broker.storage import acceptance
from broker.storage.acceptance import DELAYED_COLUMNS, DELIVERY_COLUMNS, EVENT_COLUMNS, Rejection
from broker.storage.corrections import CorrectionRow, correct
from broker.storage.fingerprints import Fingerprints
from broker.storage.sealing import seal_body
from broker.telemetry import ACCEPTED, CORRECTED, DATA_FINDINGS, DUPLICATES, MATCHED, REJECTED, UNHEADED, WARNINGS
from schemas.cloudevents import Event, InvalidEvent
from schemas.data_schemas import Finding
from subscriptions.directory import Directory
from subscriptions.secrets import KeyRing
from subscriptions.tables import DataValidation, Ordering

_RETRIES: Final = 8
_AT_A_STRETCH: Final = 0.003
"""Seconds that judging keeps everything else in the process waiting."""


@dataclass(frozen=True, slots=True)
class Unstorable:
    """In place of an event that holds what the database can't keep."""


@dataclass(frozen=True, slots=True)
class Message:
    """Something a publisher sent: an event, or the reason why it is none.

    `publisher` is the user that RabbitMQ (or the API) vouches for; None when nobody does.
    """

    publisher: str | None
    content: Event | InvalidEvent | Unstorable
    raw: bytes
    routing_key: str | None = None
    subject_header: str | None = None
    content_type: str | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)
    unheaded: bool = False
    """It has a subject and came without the header that RabbitMQ partitions by."""
    recipient: UUID | None = None
    """Of a notice of Bode's own: the organisation that it is for. Nobody else ever gets it."""

    @property
    def identity(self) -> bytes:
        """What makes it this message: in binary mode the attributes are beside the body, which may be the same."""
        beside = sorted((name, repr(value)) for name, value in self.headers.items() if name.startswith("cloudEvents"))
        return repr((self.content_type, self.routing_key, beside)).encode("utf-8", "surrogatepass") + self.raw


@dataclass(frozen=True, slots=True)
class Accepted:
    """Committed with all its deliveries; `subscriptions` have something new to send.

    Negative ones had something cancelled (`corrections.subscriptions_told`).
    """

    event_key: int
    subscriptions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Duplicate:
    """`source` and `id` were accepted before."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Committed as a rejection."""

    code: str
    detail: str
    attribute: str | None


Result = Accepted | Duplicate | Rejected


@dataclass(slots=True)
class _Candidate:
    event: Event
    organisation_id: UUID
    digest: bytes
    lane: int | None
    unheaded: bool
    matches: list[tuple[int, int | None, UUID]]
    """(subscription, lane, grant)"""
    due_at: datetime | None = None
    """From when it may be delivered; None: at once."""
    correction: Correction | None = None
    corrected: tuple[int, ...] = ()
    """Subscriptions in which something was cancelled by it."""
    finding: tuple[UUID, Finding] | None = None
    """What its data has against the schema of its type, where that is reported."""

    @property
    def subscriptions(self) -> list[int]:
        return [match[0] for match in self.matches]

    def drop(self, subscriptions: Collection[int]) -> None:
        self.matches = [match for match in self.matches if match[0] not in subscriptions]


class Acceptor:
    """Accepts batches. One at a time for each ingest queue keeps the queue's order."""

    def __init__(self, pool: asyncpg.Pool, view: View, keys: KeyRing, fingerprints: Fingerprints) -> None:
        self._pool = pool
        self._view = view
        self._keys = keys
        self._fingerprints = fingerprints
        self.findings = Findings(pool)

    async def accept(self, batch: Sequence[Message]) -> list[Result]:
        """Commit a batch; the results stand in its order.

        Deadlocks and serialization failures are retried; the limit only bounds a bug.

        Raises:
            asyncpg.PostgresError, OSError: when the database can't commit; nothing was accepted then.
        """
        for attempt in range(_RETRIES):
            try:
                return await self._commit(batch)
            except asyncpg.DataError:
                return await self._accept_one_by_one(batch)
            except (asyncpg.DeadlockDetectedError, asyncpg.SerializationError, asyncpg.UniqueViolationError):
                if attempt == _RETRIES - 1:
                    raise
        raise AssertionError("unreachable")

    async def _accept_one_by_one(self, batch: Sequence[Message]) -> list[Result]:
        """One holds what the database can't keep: it is rejected, and doesn't stand in the way of the others."""
        if len(batch) > 1:
            return [result for message in batch for result in await self.accept([message])]
        return await self._commit([replace(batch[0], content=Unstorable())])

    async def _commit(self, batch: Sequence[Message]) -> list[Result]:
        async with self._pool.acquire() as connection, connection.transaction():
            await acceptance.enter_gate(connection)
            head = await acceptance.read_head(connection, len(batch))
            await self._view.catch_up(head.version)
            judged, candidates = await self._sort(batch, head.event_keys, head.at)
            new = (
                await acceptance.claim_ids(connection, [c.digest for c in candidates.values()], list(candidates))
                if candidates
                else set()
            )
            accepted = {key: candidate for key, candidate in candidates.items() if key in new}
            await self._verify(connection, accepted)
            await self._write(connection, accepted)
            await self._correct(connection, accepted)
            rejections = [self._rejection(m, r) for m, r in zip(batch, judged, strict=True) if isinstance(r, Rejected)]
            if rejections:
                await acceptance.reject(connection, rejections)
            elif not accepted:
                await acceptance.be_durable(connection)  # all are known: acknowledging them relies on another's commit
        results = [each if isinstance(each, Rejected | Duplicate) else _result(each, accepted) for each in judged]
        _count(results, accepted)
        for candidate in accepted.values():
            if candidate.finding is not None:
                self.findings.add(*candidate.finding)
        return results

    async def _sort(
        self, batch: Sequence[Message], keys: Sequence[int], now: datetime
    ) -> tuple[list[int | Duplicate | Rejected], dict[int, _Candidate]]:
        """Judge and match each message; of one event twice in a batch the first is the candidate, by its key.

        Others come in between every few milliseconds; the view stays as it is, because the change gate is held.
        """
        results: list[int | Duplicate | Rejected] = []
        candidates: dict[int, _Candidate] = {}
        seen: set[bytes] = set()
        pause_at = time.perf_counter() + _AT_A_STRETCH
        for message, key in zip(batch, keys, strict=True):
            if time.perf_counter() > pause_at:
                await asyncio.sleep(0)
                pause_at = time.perf_counter() + _AT_A_STRETCH
            judged = self._judge(message, now)
            if isinstance(judged, Rejected):
                results.append(judged)
            elif judged.digest in seen:
                results.append(Duplicate())
            else:
                seen.add(judged.digest)
                candidates[key] = judged
                results.append(key)
        return results, candidates

    def _judge(self, message: Message, now: datetime) -> _Candidate | Rejected:
        event = message.content
        if isinstance(event, InvalidEvent):
            return Rejected(event.code, event.detail, event.attribute)
        if isinstance(event, Unstorable):
            return Rejected("not-storable", "the event holds what the database can't keep", None)
        directory = self._view.directory
        if message.recipient is not None:
            return self._candidate(event, message.recipient, message, now)
        if message.publisher is None:
            return Rejected("publisher-unknown", "the message carries no user_id that RabbitMQ has verified", None)
        organisation = directory.organisation_of_user(message.publisher)
        if organisation is None:
            return Rejected("publisher-unknown", "no organisation publishes as this user", None)
        if not directory.may_speak_for(organisation.id, event.source):
            return Rejected("source-not-yours", "this publisher may not speak for this source", "source")
        if directory.owner_of_type(event.type) != organisation.id:
            return Rejected("type-not-yours", "no domain of this publisher covers this type", "type")
        if message.routing_key is not None and message.routing_key != event.type:
            return Rejected("routing-key-mismatch", "the routing key must be the event's type", "type")
        if message.subject_header is not None and message.subject_header != event.subject:
            return Rejected(
                "subject-header-mismatch", "the header cloudEvents:subject differs from the event's subject", "subject"
            )
        judged = judge_data(directory, event)
        if isinstance(judged, Rejected):
            return judged
        try:
            correction = corrections.read(event)
        except InvalidCorrection as error:
            return Rejected("correction-invalid", f"{error.attribute} {error}", error.attribute)
        candidate = self._candidate(event, organisation.id, message, now)
        candidate.correction = correction
        delay = directory.delay_of(event.type)
        candidate.due_at = None if delay is None else now + delay
        candidate.finding = judged
        return candidate

    def _candidate(self, event: Event, organisation_id: UUID, message: Message, now: datetime) -> _Candidate:
        """The event with whom it is for. A notice reaches subscriptions of its recipient alone."""
        directory = self._view.directory
        lane = None if event.subject is None else self._fingerprints.lane(event.source, event.subject)
        matches = []
        for key in self._view.index.match(event):
            entry = directory.subscriptions[key]
            if message.recipient is not None and entry.organisation_id != message.recipient:
                continue
            grant = directory.granted(entry.organisation_id, event.type, now)
            if grant is not None:
                matches.append((key, _lane_for(entry.ordering, lane), grant))
        digest = self._fingerprints.event(event.source, event.id)
        return _Candidate(event, organisation_id, digest, lane, message.unheaded, matches)

    async def _verify(self, connection: asyncpg.Connection, accepted: dict[int, _Candidate]) -> None:
        subscriptions = self._view.directory.subscriptions
        await verify(
            connection,
            self._view.index,
            self._fingerprints,
            lambda key: subscriptions[key].organisation_id,
            accepted.values(),
        )

    async def _write(self, connection: asyncpg.Connection, accepted: dict[int, _Candidate]) -> None:
        if not accepted:
            return
        amounts: dict[int, int] = {}
        for candidate in accepted.values():
            for subscription, _, _ in candidate.matches:
                amounts[subscription] = amounts.get(subscription, 0) + 1
        await connection.copy_records_to_table(
            "events", columns=EVENT_COLUMNS, records=[self._event_row(key, c) for key, c in accepted.items()]
        )
        if not amounts:
            return
        next_number = await acceptance.take_numbers(connection, amounts)
        rows = []
        for key, candidate in accepted.items():
            for subscription, lane, grant in candidate.matches:
                number = next_number[subscription]
                next_number[subscription] = number + 1
                rows.append((subscription, number, key, lane, grant))
        if any(candidate.due_at is not None for candidate in accepted.values()):
            records = [(*row, accepted[row[2]].due_at) for row in rows]
            await connection.copy_records_to_table("deliveries", columns=DELAYED_COLUMNS, records=records)
        else:
            await connection.copy_records_to_table("deliveries", columns=DELIVERY_COLUMNS, records=rows)

    async def _correct(self, connection: asyncpg.Connection, accepted: dict[int, _Candidate]) -> None:
        """Cancel what of corrected events still waits; those of the same batch have been written by now."""
        rows = [
            CorrectionRow(
                self._fingerprints.event(candidate.event.source, candidate.correction.corrected),
                key,
                _storable(candidate.correction.reason),
                _storable(candidate.correction.own_reason) if candidate.correction.kind is Kind.WITHDRAW else None,
            )
            for key, candidate in accepted.items()
            if candidate.correction is not None
        ]
        if rows:
            for key, touched in (await correct(connection, rows)).items():
                accepted[key].corrected = tuple(touched)

    def _event_row(self, key: int, candidate: _Candidate) -> tuple[object, ...]:
        event = candidate.event
        return (
            key,
            candidate.organisation_id,
            event.source,
            event.id,
            event.type,
            len(event.body),
            candidate.lane,
            seal_body(self._keys, key, event.body),
        )

    def _rejection(self, message: Message, rejected: Rejected) -> Rejection:
        event = message.content if isinstance(message.content, Event) else None
        organisation = self._view.directory.organisation_of_user(message.publisher) if message.publisher else None
        return Rejection(
            self._fingerprints.message(message.publisher or "", message.identity),
            organisation.id if organisation else None,
            rejected.code,
            _storable(rejected.detail),
            None if rejected.attribute is None else _storable(rejected.attribute),
            event.source if event else None,
            event.id if event else None,
            event.type if event else None,
            len(message.raw),
        )


def judge_data(directory: Directory, event: Event) -> tuple[UUID, Finding] | Rejected | None:
    """Hold the data of an event against the schema of its type, as its registry chose: to report, or to reject."""
    described = directory.validated(event.type)
    finding = None if described is None or described.schema is None else described.schema.find(event.body)
    if described is None or finding is None:
        return None
    if described.validation is DataValidation.REPORT:
        return described.id, finding
    return Rejected("data-invalid", f"data does not meet '{finding.keyword}' of its schema", f"data{finding.pointer}")


def _lane_for(ordering: Ordering, lane: int | None) -> int | None:
    match ordering:
        case Ordering.SUBJECT:
            return lane
        case Ordering.SUBSCRIPTION:
            return 0
        case Ordering.NONE:
            return None


def _storable(words: str) -> str:
    """What PostgreSQL can keep as text: a name with a NUL in it would else make its message poison."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in words)


def _result(key: int, accepted: dict[int, _Candidate]) -> Result:
    candidate = accepted.get(key)
    return (
        Duplicate()
        if candidate is None
        else Accepted(key, (*candidate.subscriptions, *corrections.subscriptions_told(candidate.corrected)))
    )


def _count(results: Sequence[Result], accepted: dict[int, _Candidate]) -> None:
    ACCEPTED.inc(len(accepted))
    CORRECTED.inc(sum(len(candidate.corrected) for candidate in accepted.values()))
    MATCHED.inc(sum(len(candidate.matches) for candidate in accepted.values()))
    UNHEADED.inc(sum(candidate.unheaded for candidate in accepted.values()))
    DATA_FINDINGS.inc(sum(candidate.finding is not None for candidate in accepted.values()))
    for candidate in accepted.values():
        for warning in candidate.event.warnings:
            WARNINGS.labels(warning).inc()
    for result in results:
        if isinstance(result, Duplicate):
            DUPLICATES.inc()
        elif isinstance(result, Rejected):
            REJECTED.labels(result.code).inc()
