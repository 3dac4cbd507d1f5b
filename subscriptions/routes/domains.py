"""`/domains`: namespaces of event types, readable by all callers, registered by their registries."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy import select

from schemas.problems import Forbidden, InvalidInput, NotFound
from schemas.resources import Domain, DomainBody, DomainPage
from subscriptions import organisations as service
from subscriptions.callers import Scope
from subscriptions.context import api_url
from subscriptions.database import AnyRow, AnySelect
from subscriptions.http import ByCaller, InContext, Route, operation
from subscriptions.idempotency import Repeatable
from subscriptions.paging import Paging
from subscriptions.tables import domains, organisations

router = APIRouter(prefix="/domains", tags=["domains"], route_class=Route)

_READ = tuple(Scope)
_MANAGE = (Scope.MANAGE, Scope.OPERATE)


@router.get("", response_model=DomainPage, **operation("listDomains", "List domains", scopes=_READ))
async def list_domains(
    request: Request,
    context: InContext,
    paging: Annotated[Paging, Depends()],
    name: Annotated[str | None, Query(max_length=255, description="Only the domain with this name.")] = None,
) -> DomainPage:
    """Lists all domains in order of creation."""
    statement = _domains() if name is None else _domains().where(domains.c.name == name)
    async with context.engine.connect() as connection:
        page = await paging.read(connection, statement, (domains.c.created_at, domains.c.id))
    results = [_domain(request, row) for row in page.rows]
    return DomainPage(count=page.count, next=page.next, previous=page.previous, results=results)


@router.post(
    "",
    response_model=Domain,
    **operation(
        "createDomain",
        "Register a domain",
        scopes=_MANAGE,
        problems=(409,),
        body=True,
        success=201,
        headers=("Location",),
    ),
)
async def create_domain(
    request: Request,
    response: Response,
    body: DomainBody,
    caller: ByCaller,
    context: InContext,
    once: Repeatable,
) -> Domain:
    """Registers a domain for your organisation; never inside or around a domain of another one."""
    if caller.is_operator and body.organisation is None:
        raise InvalidInput.field("/organisation", "missing", "is required of an operator")
    if not caller.is_operator and body.organisation not in (None, caller.own.oin):
        raise Forbidden("Only the operator registers a domain for another organisation.")
    async with context.engine.begin() as connection:
        await once.repeat(connection)
        owner = await service.find_organisation(connection, oin=body.organisation or caller.own.oin)
        if owner is None:
            raise InvalidInput.field("/organisation", "organisation", "must be the OIN of a registered organisation")
        await service.check_domain(connection, owner.id, body.name, by_operator=caller.is_operator)
    async with (
        context.route_domain(owner.id, owner.oin, body.name),
        context.changing() as connection,
        once.within(connection),
    ):
        created = await service.create_domain(
            connection,
            organisation_id=owner.id,
            name=body.name,
            description=body.description,
            documentation_link=body.documentation_link,
            filter_attributes=body.filter_attributes,
            by_operator=caller.is_operator,
        )
        row = (await connection.execute(_domains().where(domains.c.id == created.id))).one()
        domain = _domain(request, row)
        response.headers["Location"] = domain.url
        await once.keep(connection, domain, response)
    return domain


@router.get(
    "/{id}",
    response_model=Domain,
    **operation("getDomain", "Read a domain", scopes=_READ, problems=(404,)),
)
async def get_domain(request: Request, id: UUID, context: InContext) -> Domain:
    """Reads a domain."""
    async with context.engine.connect() as connection:
        row = (await connection.execute(_domains().where(domains.c.id == id))).one_or_none()
    if row is None:
        raise NotFound
    return _domain(request, row)


def _domains() -> AnySelect:
    return select(domains, organisations.c.oin.label("oin")).join_from(domains, organisations)


def _domain(request: Request, row: AnyRow) -> Domain:
    optional = {"description": row.description, "documentation_link": row.documentation_link}
    return Domain(
        url=f"{api_url(request)}/domains/{row.id}",
        uuid=row.id,
        name=row.name,
        organisation=row.oin,
        filter_attributes=row.filter_attributes,
        **{name: value for name, value in optional.items() if value is not None},
    )
