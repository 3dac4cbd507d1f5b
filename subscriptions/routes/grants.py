"""`/grants`: a registry gives and revokes its own; a provider sees those that it has, the operator all."""

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy import or_, select

from schemas.problems import NotFound
from schemas.resources import Grant, GrantBody, GrantPage
from subscriptions import grants as service
from subscriptions.callers import Caller, Scope
from subscriptions.context import api_url
from subscriptions.database import AnyRow, AnySelect
from subscriptions.http import ByCaller, InContext, Route, operation
from subscriptions.idempotency import Repeatable
from subscriptions.paging import Paging
from subscriptions.tables import grants, organisations

router = APIRouter(prefix="/grants", tags=["grants"], route_class=Route)

_READ = (Scope.CONSUME, Scope.MANAGE, Scope.OPERATE)
_MANAGE = (Scope.MANAGE,)


@router.post(
    "",
    response_model=Grant,
    **operation(
        "createGrant",
        "Grant event types to a provider",
        scopes=_MANAGE,
        problems=(409,),
        body=True,
        success=201,
        headers=("Location",),
    ),
)
async def create_grant(
    request: Request,
    response: Response,
    body: GrantBody,
    caller: ByCaller,
    context: InContext,
    once: Repeatable,
) -> Grant:
    """Grants types of your own domains to a provider; its subscriptions that waited for this are taken up."""
    async with context.changing(caller.acting_as("registry")) as connection, once.within(connection):
        created = await service.create_grant(
            connection,
            registry_id=caller.own.id,
            provider_oin=body.provider,
            types=body.types,
            legal_basis=body.legal_basis,
            valid_from=body.valid_from,
            valid_until=body.valid_until,
        )
        row = (await connection.execute(grants_with_oins().where(grants.c.id == created.id))).one()
        grant = grant_of(request, row)
        response.headers["Location"] = grant.url
        await once.keep(connection, grant, response)
    return grant


@router.get("", response_model=GrantPage, **operation("listGrants", "List grants", scopes=_READ))
async def list_grants(
    request: Request,
    caller: ByCaller,
    context: InContext,
    paging: Annotated[Paging, Depends()],
    status: Annotated[
        Literal["standing", "revoked"] | None, Query(description="Only those that stand, or that were revoked.")
    ] = None,
) -> GrantPage:
    """Lists the grants that you gave and those that you have, in order of creation."""
    statement = _visible_to(caller)
    if status is not None:
        revoked = grants.c.revoked_at.is_not(None)
        statement = statement.where(revoked if status == "revoked" else ~revoked)
    async with context.engine.connect() as connection:
        page = await paging.read(connection, statement, (grants.c.created_at, grants.c.id))
    results = [grant_of(request, row) for row in page.rows]
    return GrantPage(count=page.count, next=page.next, previous=page.previous, results=results)


@router.get("/{id}", response_model=Grant, **operation("getGrant", "Read a grant", scopes=_READ, problems=(404,)))
async def get_grant(request: Request, id: UUID, caller: ByCaller, context: InContext) -> Grant:
    """Reads a grant that stands; those that were revoked are in the list."""
    statement = _visible_to(caller).where(grants.c.id == id, grants.c.revoked_at.is_(None))
    async with context.engine.connect() as connection:
        row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise NotFound
    return grant_of(request, row)


@router.delete(
    "/{id}",
    response_class=Response,
    **operation("revokeGrant", "Revoke a grant", scopes=_MANAGE, problems=(404,), success=204),
)
async def revoke_grant(id: UUID, caller: ByCaller, context: InContext) -> None:
    """Revokes a grant. What is pending on it has been cancelled when the answer comes."""
    async with context.changing(caller.acting_as("registry")) as connection:
        await service.revoke_grant(connection, id, registry_id=caller.own.id, cancel_ungranted=context.cancel_ungranted)


def grants_with_oins() -> AnySelect:
    """The grants with the OINs of both sides."""
    registry, provider = organisations.alias(), organisations.alias()
    return (
        select(grants, registry.c.oin.label("registry"), provider.c.oin.label("provider"))
        .join_from(grants, registry, registry.c.id == grants.c.registry_id)
        .join(provider, provider.c.id == grants.c.provider_id)
    )


def _visible_to(caller: Caller) -> AnySelect:
    if caller.is_operator:
        return grants_with_oins()
    own_id = caller.own.id
    return grants_with_oins().where(or_(grants.c.registry_id == own_id, grants.c.provider_id == own_id))


def grant_of(request: Request, row: AnyRow) -> Grant:
    """A grant as the API says it."""
    return Grant(
        url=f"{api_url(request)}/grants/{row.id}",
        id=row.id,
        registry=row.registry,
        provider=row.provider,
        types=row.types,
        legal_basis=row.legal_basis,
        valid_from=row.valid_from,
        valid_until=row.valid_until,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )
