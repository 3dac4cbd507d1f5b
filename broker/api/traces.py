"""Traces: what became of an event, each caller seeing its own part.

| who | sees |
|---|---|
| its registry | the event, how many subscriptions matched, counts for each provider; rejections under the id |
| a provider | its own deliveries with attempts, and its filters held against the event, matched or not |
| the operator | deliveries with attempts and counts, rejections; no filters, no payload |

The body is opened on the server to hold a filter against it; nothing of it is shown. A filter is only held against
events that a grant covers, now and when they were accepted: otherwise filters could be used to read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from broker.api.context import broker_context_of
from broker.api.outcomes import rejection_of
from broker.delivery.sender import delivery_id
from broker.ingest.view import View
from broker.matching.index import Index
from broker.matching.projection import all_attributes
from broker.storage import evidence
from broker.storage.fingerprints import Fingerprints
from broker.storage.sealing import excerpt_purpose, open_body
from broker.storage.tables import accepted_at
from schemas.cloudevents import Event
from schemas.filters import canonical, parse
from schemas.notices import is_own
from schemas.problems import NotFound
from schemas.resources.evidence import (
    Condition,
    DeliveryCounts,
    DeliveryState,
    Explanation,
    FailedAttempt,
    NotDelivered,
    ProviderCounts,
    Trace,
    TracedDelivery,
    TracedEvent,
    Why,
)
from schemas.resources.outcomes import Rejection
from subscriptions.callers import Caller, Scope
from subscriptions.http import ByCaller, InContext, Route, operation
from subscriptions.secrets import KeyRing
from subscriptions.tables import MATCHED

router = APIRouter(route_class=Route, tags=["traces"])


@dataclass(frozen=True, slots=True)
class _Accepted:
    """An accepted event, with its body opened to hold filters against it."""

    row: Row[Any]
    content: Event
    at: datetime
    followed: Mapping[str, tuple[str, ...]]
    """The caller's follow lists that hold a value of the event's attributes, by value."""

    @property
    def key(self) -> int:
        key: int = self.row.key
        return key


@router.get(
    "/traces/{id:path}",
    response_model=Trace,
    **operation(
        "traceEvent",
        "Trace an event",
        scopes=(Scope.CONSUME, Scope.PUBLISH, Scope.MANAGE, Scope.OPERATE),
        problems=(404,),
    ),
)
async def trace_event(
    request: Request,
    id: Annotated[str, Path(description="`id` of the event, percent-encoded.", min_length=1)],
    caller: ByCaller,
    context: InContext,
    source: Annotated[str | None, Query(description="`source` of the event; by default any.", max_length=2048)] = None,
) -> Trace:
    """Tells what became of an event: when it was accepted, whom it matched, each delivery and each attempt.

    A provider sees its own deliveries, and why those of its subscriptions that got none didn't. The event's registry
    sees counts for each provider, and what was rejected under the id. The operator sees states and counts.
    """
    broker = broker_context_of(request)
    await broker.view.freshen()
    events: list[TracedEvent] = []
    rejections: list[Rejection] | None = None
    async with context.engine.connect() as connection:
        for row in await evidence.find_events(connection, id, source):
            body = open_body(context.keys, row.key, row.body)
            content = Event(all_attributes(body), body)
            followed = await _followed(connection, broker.fingerprints, caller, content)
            accepted = _Accepted(row, content, accepted_at(row.key), followed)
            event = await _trace(connection, broker.view, context.keys, caller, accepted)
            if event is not None:
                events.append(event)
        if caller.is_operator or _is_registry(caller):
            registry_id = None if caller.is_operator else caller.own.id
            found = await evidence.find_rejections(connection, id, source, registry_id)
            rejections = [rejection_of(row) for row in found]
    if not events and not rejections:
        raise NotFound
    return Trace(id=id, events=events) if rejections is None else Trace(id=id, events=events, rejections=rejections)


async def _followed(
    connection: AsyncConnection, fingerprints: Fingerprints, caller: Caller, event: Event
) -> dict[str, tuple[str, ...]]:
    if caller.organisation is None:
        return {}
    digests = {fingerprints.subject(text): text for text in map(canonical, event.attributes.values())}
    lists: dict[str, tuple[str, ...]] = {}
    for list_id, digest in await evidence.read_followed(connection, caller.organisation.id, list(digests)):
        text = digests[digest]
        lists[text] = (*lists.get(text, ()), str(list_id))
    return lists


def _is_registry(caller: Caller) -> bool:
    return caller.organisation is not None and not caller.scopes.isdisjoint((Scope.PUBLISH, Scope.MANAGE))


async def _trace(
    connection: AsyncConnection, view: View, keys: KeyRing, caller: Caller, accepted: _Accepted
) -> TracedEvent | None:
    """An event as this caller may see it; None: it may not."""
    row = accepted.row
    of_bode = is_own(row.type)
    if of_bode and not caller.is_operator and caller.own.id != row.organisation_id:
        return None  # a notice is for one organisation, whatever others' filters say
    sees_all = caller.is_operator or (_is_registry(caller) and caller.own.id == row.organisation_id)
    parts: dict[str, Any] = {}
    if caller.is_operator:
        parts["deliveries"] = await _deliveries(connection, keys, accepted, None, explained=False)
    elif Scope.CONSUME in caller.scopes:
        own = caller.own.id
        directory = view.directory
        granted = directory.granted(own, row.type, view.clock.now()) is not None
        parts["deliveries"] = await _deliveries(connection, keys, accepted, own, explained=granted)
        if granted:
            granted_then = directory.granted_then(own, row.type, accepted.at)
            parts["not_delivered"] = await _not_delivered(connection, accepted, own, granted_then=granted_then)
    if not sees_all and not any(parts.values()):
        return None
    counted = await evidence.count_deliveries(connection, row.key, None if sees_all else caller.own.id)
    if sees_all:
        parts["providers"] = [
            ProviderCounts(organisation=one.oin, name=one.name, subscriptions=one.subscriptions, counts=_sum([one]))
            for one in counted
        ]
    return TracedEvent(
        source=row.source,
        type=row.type,
        registry=None if of_bode else row.oin,
        accepted_at=accepted.at,
        matched=sum(one.subscriptions for one in counted),
        counts=_sum(counted),
        **parts,
    )


def _sum(counted: Sequence[Row[Any]]) -> DeliveryCounts:
    return DeliveryCounts(**{state.value: sum(getattr(one, state.value) for one in counted) for state in DeliveryState})


async def _deliveries(
    connection: AsyncConnection, keys: KeyRing, accepted: _Accepted, provider_id: UUID | None, *, explained: bool
) -> list[TracedDelivery]:
    """The deliveries of the event: all, or those of a provider."""
    rows = await evidence.read_deliveries(connection, accepted.key, provider_id)
    failed: dict[int, list[FailedAttempt]] = {row.subscription: [] for row in rows}
    identities = {row.subscription: row.subscription_id for row in rows}
    for row in await evidence.read_attempts(connection, accepted.key, rows):
        attempt = _failed_attempt(row)
        if provider_id is not None and row.excerpt is not None:
            excerpt = keys.open(row.excerpt, excerpt_purpose(identities[row.subscription]))
            attempt = attempt.model_copy(update={"excerpt": excerpt.decode(errors="replace")})
        failed[row.subscription].append(attempt)
    filters: dict[int, Row[Any]] = {}
    if explained:
        found = await evidence.read_subscriptions(connection, list(failed))
        filters = {subscription.key: subscription for subscription in found}
    return [
        TracedDelivery(
            id=delivery_id(row.subscription_id, row.sequence),
            subscription=row.subscription_id,
            organisation=row.oin,
            subscription_sequence=row.sequence,
            state=row.state,
            attempts=row.attempts,
            next_attempt_at=row.next_attempt_at,
            ended_at=row.ended_at,
            status=row.status,
            reason=row.reason,
            failed_attempts=failed[row.subscription],
            **({"explanation": _explain(filters[row.subscription], accepted)} if explained else {}),
        )
        for row in rows
    ]


def _failed_attempt(row: Row[Any]) -> FailedAttempt:
    return FailedAttempt(
        attempt=row.attempt,
        started_at=row.started_at,
        milliseconds=row.milliseconds,
        status=row.status,
        reason=row.reason,
    )


async def _not_delivered(
    connection: AsyncConnection, accepted: _Accepted, provider_id: UUID, *, granted_then: bool
) -> list[NotDelivered]:
    """The subscriptions of a provider that got no delivery, and why."""
    found = []
    for row in await evidence.read_unnumbered(connection, accepted.key, provider_id):
        explanation = _explain(row, accepted) if granted_then else None
        said = {} if explanation is None else {"explanation": explanation}
        found.append(
            NotDelivered(
                subscription=row.id,
                why=_why(row, accepted, explanation),
                changed_since=row.updated_at > accepted.at,
                **said,
            )
        )
    return found


def _why(row: Row[Any], accepted: _Accepted, explanation: Explanation | None) -> Why:
    """The first reason that suffices; `explanation` is None where no grant covered the event."""
    if row.created_at > accepted.at:
        return Why.YOUNGER
    if explanation is None:
        return Why.NOT_GRANTED
    if not explanation.matches:
        return Why.FILTER
    return Why.CHANGED if row.status in MATCHED else Why.INACTIVE


def _explain(row: Row[Any], accepted: _Accepted) -> Explanation:
    """Hold the filter of a subscription, as it is now, against the event."""
    index = Index(lambda value: accepted.followed.get(value, ()))
    index.put(row.key, parse(row.filters, source=row.source, types=row.types or None, domain=row.domain))
    explained = index.explain(row.key, accepted.content)
    return Explanation(
        matches=explained.matched,
        alternatives=[
            [Condition(text=check.text, holds=check.holds) for check in alternative.checks]
            for alternative in explained.alternatives
        ],
    )
