"""`/subscription-requests`: subscriptions that wait for a grant, answered by the registries that they ask."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response

from schemas.resources import (
    ApprovalBody,
    Grant,
    Refusal,
    RefusalBody,
    SubscriptionRequest,
    SubscriptionRequestPage,
)
from subscriptions import grants, requests
from subscriptions.callers import Scope
from subscriptions.context import api_url
from subscriptions.database import AnyRow
from subscriptions.http import ByCaller, InContext, Route, operation
from subscriptions.idempotency import Repeatable
from subscriptions.paging import Paging
from subscriptions.routes.grants import grant_of, grants_with_oins
from subscriptions.tables import grants as grants_table
from subscriptions.tables import subscriptions

router = APIRouter(prefix="/subscription-requests", tags=["subscription-requests"], route_class=Route)

_MANAGE = (Scope.MANAGE,)


@router.get(
    "",
    response_model=SubscriptionRequestPage,
    **operation("listSubscriptionRequests", "List what asks for your approval", scopes=_MANAGE),
)
async def list_subscription_requests(
    request: Request, caller: ByCaller, context: InContext, paging: Annotated[Paging, Depends()]
) -> SubscriptionRequestPage:
    """Lists subscriptions that wait for a grant of yours, by the types or the domain that they name. No filters."""
    statement = requests.asked_of(caller.own.id)
    async with context.engine.connect() as connection:
        page = await paging.read(connection, statement, (subscriptions.c.key,))
    results = [_request(request, row) for row in page.rows]
    return SubscriptionRequestPage(count=page.count, next=page.next, previous=page.previous, results=results)


@router.get(
    "/{id}",
    response_model=SubscriptionRequest,
    **operation("getSubscriptionRequest", "Read a request for approval", scopes=_MANAGE, problems=(404,)),
)
async def get_subscription_request(
    request: Request, id: UUID, caller: ByCaller, context: InContext
) -> SubscriptionRequest:
    """Reads a subscription that waits for a grant of yours; once you answered it is no longer here."""
    async with context.engine.connect() as connection:
        row = await requests.get(connection, id, registry_id=caller.own.id)
    return _request(request, row)


@router.post(
    "/{id}/approvals",
    response_model=Grant,
    **operation(
        "approveSubscription",
        "Approve a subscription",
        scopes=_MANAGE,
        problems=(404, 409),
        body=True,
        success=201,
        headers=("Location",),
    ),
)
async def approve_subscription(
    request: Request,
    response: Response,
    id: UUID,
    body: ApprovalBody,
    caller: ByCaller,
    context: InContext,
    once: Repeatable,
) -> Grant:
    """Gives the provider a grant of what the subscription asks for in your domains. The subscription is taken up.

    The grant stands for itself: other subscriptions of the provider fall under it too, and revoking it ends it for all.
    """
    own = caller.own
    async with context.changing(caller.acting_as("registry")) as connection, once.within(connection):
        asked = await requests.get(connection, id, registry_id=own.id)
        created = await grants.create_grant(
            connection,
            registry_id=own.id,
            provider_oin=asked.oin,
            types=body.types or await requests.types_to_grant(connection, asked, registry_id=own.id),
            legal_basis=body.legal_basis,
            valid_from=body.valid_from,
            valid_until=body.valid_until,
        )
        row = (await connection.execute(grants_with_oins().where(grants_table.c.id == created.id))).one()
        grant = grant_of(request, row)
        response.headers["Location"] = grant.url
        await once.keep(connection, grant, response)
    return grant


@router.post(
    "/{id}/refusals",
    response_model=Refusal,
    **operation("refuseSubscription", "Refuse a subscription", scopes=_MANAGE, problems=(404, 409), body=True),
)
async def refuse_subscription(
    response: Response, id: UUID, body: RefusalBody, caller: ByCaller, context: InContext, once: Repeatable
) -> Refusal:
    """Refuses a subscription, with a reason that its provider reads. It is `refused` when all that it asks have.

    A grant that you give later takes it up all the same.
    """
    own = caller.own
    async with context.changing(caller.acting_as("registry")) as connection, once.within(connection):
        row = await requests.refuse(connection, id, registry_id=own.id, oin=own.oin, reason=body.reason)
        refusal = Refusal(subscription=id, reason=body.reason, refused_at=row.refused_at, status=row.status)
        await once.keep(connection, refusal, response, 200)
    return refusal


def _request(request: Request, row: AnyRow) -> SubscriptionRequest:
    return SubscriptionRequest(
        url=f"{api_url(request)}/subscription-requests/{row.id}",
        id=row.id,
        provider=row.oin,
        provider_name=row.name,
        types=row.types,
        domain=row.domain,
        source=row.source,
        created_at=row.created_at,
    )
