"""`/organisations`: registered and changed by the operator; every organisation can read itself."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from sqlalchemy import select

from schemas.problems import InvalidInput, NotFound, PreconditionFailed
from schemas.resources import Organisation, OrganisationBody, OrganisationPage, OrganisationPatch
from subscriptions import organisations as service
from subscriptions.callers import Scope
from subscriptions.context import api_url
from subscriptions.database import AnyRow
from subscriptions.http import ByCaller, ExpectedVersion, InContext, Route, etag, operation
from subscriptions.idempotency import Repeatable
from subscriptions.paging import Paging
from subscriptions.tables import organisations

router = APIRouter(prefix="/organisations", tags=["organisations"], route_class=Route)

_READ = tuple(Scope)
_OPERATE = (Scope.OPERATE,)


@router.post(
    "",
    response_model=Organisation,
    **operation(
        "createOrganisation",
        "Register an organisation",
        scopes=_OPERATE,
        problems=(409,),
        body=True,
        success=201,
        headers=("Location", "ETag"),
    ),
)
async def create_organisation(
    request: Request, response: Response, body: OrganisationBody, context: InContext, once: Repeatable
) -> Organisation:
    """Registers an organisation by its OIN."""
    async with context.changing() as connection, once.within(connection):
        row = await service.create_organisation(
            connection, oin=body.oin, name=body.name, amqp_user=body.amqp_user, sources=body.sources
        )
        organisation = _organisation(request, row)
        response.headers["Location"] = organisation.url
        response.headers["ETag"] = etag(_version(row))
        await once.keep(connection, organisation, response)
    return organisation


@router.get(
    "",
    response_model=OrganisationPage,
    **operation("listOrganisations", "List organisations", scopes=_READ),
)
async def list_organisations(
    request: Request,
    caller: ByCaller,
    context: InContext,
    paging: Annotated[Paging, Depends()],
    oin: Annotated[str | None, Query(max_length=20, description="Only the one with this OIN.")] = None,
) -> OrganisationPage:
    """Lists organisations: all of them for the operator, your own for others."""
    statement = select(organisations)
    if not caller.is_operator:
        statement = statement.where(organisations.c.id == caller.own.id)
    if oin is not None:
        statement = statement.where(organisations.c.oin == oin)
    async with context.engine.connect() as connection:
        page = await paging.read(connection, statement, (organisations.c.created_at, organisations.c.id))
    results = [_organisation(request, row) for row in page.rows]
    return OrganisationPage(count=page.count, next=page.next, previous=page.previous, results=results)


@router.get(
    "/{id}",
    response_model=Organisation,
    **operation("getOrganisation", "Read an organisation", scopes=_READ, problems=(404,), headers=("ETag",)),
)
async def get_organisation(
    request: Request, response: Response, id: UUID, caller: ByCaller, context: InContext
) -> Organisation:
    """Reads an organisation: any for the operator, your own for others."""
    if not caller.is_operator and id != caller.own.id:
        raise NotFound
    async with context.engine.connect() as connection:
        row = await service.get_organisation(connection, id)
    response.headers["ETag"] = etag(_version(row))
    return _organisation(request, row)


@router.patch(
    "/{id}",
    response_model=Organisation,
    **operation(
        "changeOrganisation",
        "Change an organisation",
        scopes=_OPERATE,
        problems=(404, 409, 412),
        body=True,
        headers=("ETag",),
    ),
)
async def change_organisation(
    request: Request,
    response: Response,
    id: UUID,
    body: Annotated[OrganisationPatch, Body(media_type="application/merge-patch+json")],
    context: InContext,
    expected: ExpectedVersion,
) -> Organisation:
    """Changes the members that are given (JSON merge patch); the OIN stays."""
    given = body.model_dump(exclude_unset=True, by_alias=False)
    if "name" in given and given["name"] is None:
        raise InvalidInput.field("/name", "required", "can't be removed")
    async with context.changing() as connection:
        row = await service.get_organisation(connection, id)
        if expected not in (None, _version(row)):
            raise PreconditionFailed
        row = await service.change_organisation(
            connection,
            id,
            name=given.get("name", row.name),
            amqp_user=given.get("amqp_user", row.amqp_user),
            sources=given.get("sources", row.sources) or [],
        )
    response.headers["ETag"] = etag(_version(row))
    return _organisation(request, row)


def _version(row: AnyRow) -> int:
    """The moment of the last change, in microseconds; changes follow each other, so no two have the same."""
    return int(row.updated_at.timestamp()) * 1_000_000 + int(row.updated_at.microsecond)


def _organisation(request: Request, row: AnyRow) -> Organisation:
    return Organisation(
        url=f"{api_url(request)}/organisations/{row.id}",
        id=row.id,
        oin=row.oin,
        name=row.name,
        amqp_user=row.amqp_user,
        sources=row.sources,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
