"""`/subscriptions`: a provider's own; the operator sees all of them, without what may name persons."""

from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.problems import InvalidInput
from schemas.resources import (
    Health,
    RotatedSecret,
    SecretRotation,
    SinkIdentity,
    Status,
    Subscription,
    SubscriptionBody,
    SubscriptionCreated,
    SubscriptionPage,
    SubscriptionPatch,
    SubscriptionReplacement,
)
from subscriptions import credentials, life_cycle, protocols
from subscriptions import subscriptions as service
from subscriptions.callers import Caller, Scope
from subscriptions.context import api_url, context_of
from subscriptions.database import AnyRow
from subscriptions.http import ByCaller, ExpectedVersion, InContext, Route, etag, operation
from subscriptions.idempotency import Repeatable
from subscriptions.organisations import get_organisation
from subscriptions.paging import Paging
from subscriptions.secrets import KeyRing, SealError
from subscriptions.tables import Protocol, organisations, subscriptions

router = APIRouter(prefix="/subscriptions", tags=["subscriptions"], route_class=Route)

_OWN = (Scope.CONSUME,)
_READ = (Scope.CONSUME, Scope.OPERATE)


@router.post(
    "",
    response_model=SubscriptionCreated,
    **operation(
        "createSubscription",
        "Subscribe to events",
        scopes=_OWN,
        problems=(409,),
        body=True,
        success=201,
        headers=("Location", "ETag"),
    ),
)
async def create_subscription(
    request: Request,
    response: Response,
    body: SubscriptionBody,
    caller: ByCaller,
    context: InContext,
    once: Repeatable,
) -> SubscriptionCreated:
    """Makes a subscription. The answer, and no other, holds its secret.

    It becomes active once a registry has granted something that it asks for, and the sink has consented in the
    CloudEvents webhook handshake. One with `protocol: PULL` has no sink, so it needs no consent and has no secret.
    """
    own = caller.own
    async with context.changing(caller.acting_as("provider")) as connection, once.within(connection):
        row, secret = await service.create(
            connection, body, organisation_id=own.id, keys=context.keys, sinks=context.sinks, filters=context.filters
        )
        members = _members(request, row, own.oin, Health.of_nothing(), caller)
        created = SubscriptionCreated(**members, **({} if secret is None else {"secret": secret}))
        response.headers["Location"] = created.url
        response.headers["ETag"] = etag(row.version)
        await once.keep(connection, created, response)
    return created


@router.get(
    "",
    response_model=SubscriptionPage,
    **operation("listSubscriptions", "List subscriptions", scopes=_READ),
)
async def list_subscriptions(
    request: Request,
    caller: ByCaller,
    context: InContext,
    paging: Annotated[Paging, Depends()],
    status: Annotated[Status | None, Query(description="Only those in this state; ended ones only if asked.")] = None,
) -> SubscriptionPage:
    """Lists your subscriptions in order of creation; those that ended are left out unless `status=ended`."""
    statement = select(subscriptions, organisations.c.oin.label("oin")).join_from(subscriptions, organisations)
    if not caller.is_operator:
        statement = statement.where(subscriptions.c.organisation_id == caller.own.id)
    if status is None:
        statement = statement.where(subscriptions.c.status != Status.ENDED)
    else:
        statement = statement.where(subscriptions.c.status == status)
    async with context.engine.connect() as connection:
        page = await paging.read(connection, statement, (subscriptions.c.key,))
    health = await context.health_of([row.key for row in page.rows])
    results = [
        Subscription(**_members(request, row, row.oin, health.get(row.key) or Health.of_nothing(), caller))
        for row in page.rows
    ]
    return SubscriptionPage(count=page.count, next=page.next, previous=page.previous, results=results)


@router.get(
    "/{id}",
    response_model=Subscription,
    **operation("getSubscription", "Read a subscription", scopes=_READ, problems=(404,), headers=("ETag",)),
)
async def get_subscription(
    request: Request, response: Response, id: UUID, caller: ByCaller, context: InContext
) -> Subscription:
    """Reads a subscription, with its state and the health of its deliveries."""
    async with context.engine.connect() as connection:
        row = await service.get(connection, id, organisation_id=_visible_to(caller))
        oin = (await get_organisation(connection, row.organisation_id)).oin
    return await _answer(request, response, row, oin, caller)


@router.put(
    "/{id}",
    response_model=Subscription,
    **operation(
        "replaceSubscription",
        "Replace a subscription",
        scopes=_OWN,
        problems=(404, 409, 412),
        body=True,
        headers=("ETag",),
    ),
)
async def replace_subscription(
    request: Request,
    response: Response,
    id: UUID,
    body: SubscriptionReplacement,
    caller: ByCaller,
    context: InContext,
    expected: ExpectedVersion,
) -> Subscription:
    """Replaces what you said of a subscription: what is absent gets its default. Its status and secret stay.

    The change is in force for every event accepted after the answer. A new sink must consent first: until then the
    subscription is `disabled`, and what matches is numbered and kept.
    """
    own = caller.own
    async with context.changing(caller.acting_as("provider")) as connection:
        row = await _to_change(connection, id, own.id, expected)
        _check_secret(row, body.secret, context.keys)
        row = await service.replace(
            connection, row, body, keys=context.keys, sinks=context.sinks, filters=context.filters
        )
    return await _answer(request, response, row, own.oin, caller)


@router.patch(
    "/{id}",
    response_model=Subscription,
    **operation(
        "changeSubscription",
        "Change, pause or resume a subscription",
        scopes=_OWN,
        problems=(404, 409, 412),
        body=True,
        headers=("ETag",),
    ),
)
async def change_subscription(
    request: Request,
    response: Response,
    id: UUID,
    body: Annotated[SubscriptionPatch, Body(media_type="application/merge-patch+json")],
    caller: ByCaller,
    context: InContext,
    expected: ExpectedVersion,
) -> Subscription:
    """Changes the members that are given (JSON merge patch): absent ones stay, null returns to the default.

    `{"status": "paused"}` stops sending; what matches is numbered and kept. `{"status": "active"}` resumes.
    """
    own = caller.own
    patch = body.model_dump(mode="json", by_alias=True, exclude_unset=True)
    content = {name: value for name, value in patch.items() if name in _CONTENT}
    async with context.changing(caller.acting_as("provider")) as connection:
        row = await _to_change(connection, id, own.id, expected)
        _check_secret(row, body.secret, context.keys)
        if content:
            row = await service.replace(
                connection,
                row,
                service.merged(row, content),
                keys=context.keys,
                sinks=context.sinks,
                filters=context.filters,
            )
        if body.status is not None and body.status != row.status:
            step = life_cycle.pause if body.status == Status.PAUSED.value else life_cycle.resume
            await step(connection, id)
            row = await service.get(connection, id, organisation_id=own.id)
    return await _answer(request, response, row, own.oin, caller)


@router.delete(
    "/{id}",
    response_class=Response,
    **operation("endSubscription", "End a subscription", scopes=_OWN, problems=(404, 412), success=204),
)
async def end_subscription(id: UUID, caller: ByCaller, context: InContext, expected: ExpectedVersion) -> None:
    """Ends a subscription for good: nothing matches any more, and what is pending is cancelled."""
    own = caller.own
    async with context.changing(caller.acting_as("provider")) as connection:
        await _to_change(connection, id, own.id, expected)
        await life_cycle.end(connection, id, organisation_id=own.id, cancel=context.cancel_subscription)


@router.post(
    "/{id}/secret",
    response_model=RotatedSecret,
    **operation("rotateSecret", "Rotate the secret of a subscription", scopes=_OWN, problems=(404, 409), body=True),
)
async def rotate_secret(
    response: Response,
    id: UUID,
    caller: ByCaller,
    context: InContext,
    once: Repeatable,
    body: SecretRotation | None = None,
) -> RotatedSecret:
    """Makes a new signing secret. Both sign for the time of the overlap, so that no notification fails to verify."""
    overlap = timedelta(seconds=(body or SecretRotation()).overlap_seconds)
    async with context.changing(caller.acting_as("provider")) as connection, once.within(connection):
        row = await service.get(connection, id, organisation_id=caller.own.id)
        row = await service.rotate_secret(connection, row, overlap, keys=context.keys)
        rotated = RotatedSecret(
            secret=service.secret_of(row, context.keys), previous_expires_at=row.previous_secret_expires_at
        )
        await once.keep(connection, rotated, response, 200)
    return rotated


_CONTENT = frozenset(field.alias or name for name, field in SubscriptionBody.model_fields.items())
_NAMES_PERSONS = ("filters", "config", "subscriberReference")


def _visible_to(caller: Caller) -> UUID | None:
    return None if caller.is_operator else caller.own.id


async def _to_change(connection: AsyncConnection, id: UUID, organisation_id: UUID, expected: int | None) -> AnyRow:
    row = await service.get(connection, id, organisation_id=organisation_id)
    service.expect_version(row, expected)
    return row


def _check_secret(row: AnyRow, given: str | None, keys: KeyRing) -> None:
    if given is not None and (row.secret is None or given != service.secret_of(row, keys)):
        raise InvalidInput.field("/secret", "read-only", "can't be set: POST to its secret to have a new one")


async def _answer(request: Request, response: Response, row: AnyRow, oin: str, caller: Caller) -> Subscription:
    health = await context_of(request).health_of([row.key])
    response.headers["ETag"] = etag(row.version)
    return Subscription(**_members(request, row, oin, health.get(row.key) or Health.of_nothing(), caller))


def _members(request: Request, row: AnyRow, oin: str, health: Health, caller: Caller) -> dict[str, Any]:
    said = service.content(row).model_dump(mode="json", exclude_unset=True)
    if caller.is_operator:
        said = {name: value for name, value in said.items() if name not in _NAMES_PERSONS}
    identity = _sink_identity(request, row)
    if identity is not None:
        said["sinkIdentity"] = identity
    if row.protocol == Protocol.AMQP and row.sink is None:
        said["queue"] = protocols.queue_name(oin, row.id)
    return said | {
        "url": f"{api_url(request)}/subscriptions/{row.id}",
        "id": row.id,
        "organisation": oin,
        "status": row.status,
        "statusReason": row.status_reason,
        "allowedRate": row.allowed_rate,
        "version": row.version,
        "createdAt": row.created_at,
        "updatedAt": row.updated_at,
        "health": health,
    }


def _sink_identity(request: Request, row: AnyRow) -> SinkIdentity | None:
    try:
        return credentials.show(credentials.open_identity(row, context_of(request).keys))
    except SealError:  # a key that is missing comes back; what can be read is shown meanwhile
        return None
