"""`/event-types`: the catalogue, readable by all callers; whoever owns a type describes it."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy import or_, select

from schemas.problems import Forbidden
from schemas.resources import (
    DataFinding,
    DataFindingPage,
    EventType,
    EventTypeBody,
    EventTypePage,
    EventTypeReplacement,
    EventTypeVersion,
    EventTypeVersionPage,
)
from subscriptions import catalogue as service
from subscriptions.callers import Scope
from subscriptions.context import api_url
from subscriptions.database import AnyRow
from subscriptions.http import ByCaller, ExpectedVersion, InContext, Route, etag, operation
from subscriptions.idempotency import Repeatable
from subscriptions.paging import Paging
from subscriptions.tables import data_findings, event_type_versions, event_types

router = APIRouter(prefix="/event-types", tags=["event-types"], route_class=Route)

_READ = tuple(Scope)
_MANAGE = (Scope.MANAGE,)

Pages = Annotated[Paging, Depends()]


@router.post(
    "",
    response_model=EventType,
    **operation(
        "describeEventType",
        "Describe an event type",
        scopes=_MANAGE,
        problems=(409,),
        body=True,
        success=201,
        headers=("Location", "ETag"),
    ),
)
async def describe_event_type(
    request: Request,
    response: Response,
    body: EventTypeBody,
    caller: ByCaller,
    context: InContext,
    once: Repeatable,
) -> EventType:
    """Puts an event type of one of your domains in the catalogue.

    What it says of validation is in force for every event accepted after the answer.
    """
    async with context.changing() as connection, once.within(connection):
        row = await service.describe(connection, body, organisation_id=caller.own.id)
        described = _answer(request, response, row)
        response.headers["Location"] = described.url
        await once.keep(connection, described, response)
    return described


@router.get("", response_model=EventTypePage, **operation("listEventTypes", "List event types", scopes=_READ))
async def list_event_types(
    request: Request,
    context: InContext,
    paging: Pages,
    type: Annotated[str | None, Query(max_length=255, description="Only this type.")] = None,
    domain: Annotated[str | None, Query(max_length=255, description="Only types within this domain.")] = None,
) -> EventTypePage:
    """Lists the catalogue in order of creation."""
    statement = service.described()
    if type is not None:
        statement = statement.where(event_types.c.type == type)
    if domain is not None:
        inside = event_types.c.type.startswith(domain + ".", autoescape=True)
        statement = statement.where(or_(event_types.c.type == domain, inside))
    async with context.engine.connect() as connection:
        page = await paging.read(connection, statement, (event_types.c.created_at, event_types.c.id))
    results = [EventType(**members(request, row)) for row in page.rows]
    return EventTypePage(count=page.count, next=page.next, previous=page.previous, results=results)


@router.get(
    "/{id}",
    response_model=EventType,
    **operation("getEventType", "Read an event type", scopes=_READ, problems=(404,), headers=("ETag",)),
)
async def get_event_type(request: Request, response: Response, id: UUID, context: InContext) -> EventType:
    """Reads an event type: its meaning, its schema, what may be filtered on, and how long its events are kept."""
    async with context.engine.connect() as connection:
        row = await service.get(connection, id)
    return _answer(request, response, row)


@router.put(
    "/{id}",
    response_model=EventType,
    **operation(
        "replaceEventType",
        "Replace the description of an event type",
        scopes=_MANAGE,
        problems=(404, 412),
        body=True,
        headers=("ETag",),
    ),
)
async def replace_event_type(
    request: Request,
    response: Response,
    id: UUID,
    body: EventTypeReplacement,
    caller: ByCaller,
    context: InContext,
    expected: ExpectedVersion,
) -> EventType:
    """Replaces what you said of an event type: what is absent gets its default. The former version is kept.

    Subscriptions that were made before stay as they are, whatever may be filtered on from now.
    """
    async with context.changing() as connection:
        row = await service.replace(connection, id, body, organisation_id=caller.own.id, expected=expected)
    return _answer(request, response, row)


@router.delete(
    "/{id}",
    response_class=Response,
    **operation(
        "withdrawEventType", "Take an event type out of the catalogue", scopes=_MANAGE, problems=(404, 412), success=204
    ),
)
async def withdraw_event_type(id: UUID, caller: ByCaller, context: InContext, expected: ExpectedVersion) -> None:
    """Takes a description out of the catalogue, with its versions and its report. Events of the type go on."""
    async with context.changing() as connection:
        await service.withdraw(connection, id, organisation_id=caller.own.id, expected=expected)


@router.get(
    "/{id}/versions",
    response_model=EventTypeVersionPage,
    **operation("listEventTypeVersions", "List the versions of an event type", scopes=_READ, problems=(404,)),
)
async def list_event_type_versions(id: UUID, context: InContext, paging: Pages) -> EventTypeVersionPage:
    """Lists what was said of an event type, oldest version first, the present one included."""
    async with context.engine.connect() as connection:
        await service.get(connection, id)
        page = await paging.read(connection, service.versions_of(id), (event_type_versions.c.version,))
    results = [
        EventTypeVersion(version=row.version, created_at=row.created_at, description=row.description)
        for row in page.rows
    ]
    return EventTypeVersionPage(count=page.count, next=page.next, previous=page.previous, results=results)


@router.get(
    "/{id}/findings",
    response_model=DataFindingPage,
    **operation(
        "listDataFindings",
        "List what data had against its schema",
        scopes=(Scope.MANAGE, Scope.PUBLISH, Scope.OPERATE),
        problems=(404,),
    ),
)
async def list_data_findings(id: UUID, caller: ByCaller, context: InContext, paging: Pages) -> DataFindingPage:
    """Lists where the data of accepted events did not meet the schema, and how often: for types with `report`.

    Places and keywords only, never values, and about a hundred of them at most; written every second or so.
    """
    async with context.engine.connect() as connection:
        row = await service.get(connection, id)
        if not caller.is_operator and row.organisation_id != caller.own.id:
            raise Forbidden("This event type is another registry's.")
        found = select(data_findings).where(data_findings.c.event_type_id == id)
        order = (data_findings.c.first_at, data_findings.c.pointer, data_findings.c.keyword)
        page = await paging.read(connection, found, order)
    results = [
        DataFinding(
            pointer=row.pointer, keyword=row.keyword, times=row.times, first_at=row.first_at, last_at=row.last_at
        )
        for row in page.rows
    ]
    return DataFindingPage(count=page.count, next=page.next, previous=page.previous, results=results)


def members(request: Request, row: AnyRow) -> dict[str, Any]:
    """The members of an event type as the API says it."""
    return {
        "url": f"{api_url(request)}/event-types/{row.id}",
        "id": row.id,
        "registry": row.oin,
        "version": row.version,
        "created_at": row.created_at,
        "updated_at": row.updated_at,
        **{name: getattr(row, name) for name in service.DESCRIBED},
    }


def _answer(request: Request, response: Response, row: AnyRow) -> EventType:
    response.headers["ETag"] = etag(row.version)
    return EventType(**members(request, row))
