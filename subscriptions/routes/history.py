"""`/subscriptions/{id}/history`: who changed a subscription, when, and what."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends
from pydantic.alias_generators import to_camel
from sqlalchemy import select

from schemas.problems import NotFound
from schemas.resources import SubscriptionChange, SubscriptionChangePage
from subscriptions.callers import Scope
from subscriptions.history import subscription_history
from subscriptions.http import ByCaller, InContext, Route, operation
from subscriptions.paging import Paging
from subscriptions.tables import organisations, subscriptions

router = APIRouter(prefix="/subscriptions/{id}/history", tags=["subscriptions"], route_class=Route)


@router.get(
    "",
    response_model=SubscriptionChangePage,
    **operation(
        "listSubscriptionHistory",
        "List the changes of a subscription",
        scopes=(Scope.CONSUME, Scope.OPERATE),
        problems=(404,),
    ),
)
async def list_subscription_history(
    id: UUID, caller: ByCaller, context: InContext, paging: Annotated[Paging, Depends()]
) -> SubscriptionChangePage:
    """Lists every change of a subscription, oldest first: who, when, which members, and the status after it.

    Also of a subscription that ended. Names of members only, no values.
    """
    owned = select(subscriptions.c.organisation_id).where(subscriptions.c.id == id)
    statement = (
        select(subscription_history, organisations.c.oin)
        .outerjoin(organisations, organisations.c.id == subscription_history.c.organisation_id)
        .where(subscription_history.c.subscription_id == id)
    )
    async with context.engine.connect() as connection:
        owner = (await connection.execute(owned)).scalar_one_or_none()
        if owner is None or not (caller.is_operator or caller.own.id == owner):
            raise NotFound
        page = await paging.read(connection, statement, (subscription_history.c.id,))
    results = [
        SubscriptionChange(
            at=row.at,
            role=row.role,
            organisation=row.oin,
            key=row.key_id if row.organisation_id == owner and not caller.is_operator else None,
            version=row.version,
            status=row.status,
            status_reason=row.status_reason,
            changed=[to_camel(name) for name in row.changed],
        )
        for row in page.rows
    ]
    return SubscriptionChangePage(count=page.count, next=page.next, previous=page.previous, results=results)
