"""`/organisations/{id}/keys`: API keys of an organisation, given out and revoked by the operator."""

from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Request, Response
from sqlalchemy import select

from schemas.problems import InvalidInput, NotFound
from schemas.resources import Key, KeyBody, KeyCreated, KeyPage
from subscriptions import callers as service
from subscriptions.callers import Scope
from subscriptions.context import api_url
from subscriptions.database import AnyRow
from subscriptions.http import InContext, Route, operation
from subscriptions.idempotency import Repeatable
from subscriptions.organisations import get_organisation
from subscriptions.paging import Paging
from subscriptions.tables import api_keys

router = APIRouter(prefix="/organisations/{organisationId}/keys", tags=["keys"], route_class=Route)

_OPERATE = (Scope.OPERATE,)


@router.post(
    "",
    response_model=KeyCreated,
    **operation(
        "createKey",
        "Give out an API key",
        scopes=_OPERATE,
        problems=(404, 409),
        body=True,
        success=201,
        headers=("Location",),
    ),
)
async def create_key(
    request: Request, response: Response, organisationId: UUID, body: KeyBody, context: InContext, once: Repeatable
) -> KeyCreated:
    """Makes an API key for an organisation. The answer, and no other, holds the key."""
    if body.expires_at is not None and body.expires_at <= datetime.now(UTC):
        raise InvalidInput.field("/expiresAt", "expiry", "must be later than now")
    async with context.engine.begin() as connection, once.within(connection):
        await get_organisation(connection, organisationId)
        key, row = await service.create_key(
            connection,
            organisation_id=organisationId,
            scopes=[Scope(scope) for scope in body.scopes],
            label=body.label,
            expires_at=body.expires_at,
        )
        created = KeyCreated(**_members(request, row), key=key)
        response.headers["Location"] = created.url
        await once.keep(connection, created, response)
    return created


@router.get("", response_model=KeyPage, **operation("listKeys", "List API keys", scopes=_OPERATE, problems=(404,)))
async def list_keys(
    request: Request, organisationId: UUID, context: InContext, paging: Annotated[Paging, Depends()]
) -> KeyPage:
    """Lists the API keys of an organisation, revoked ones too, in order of creation."""
    statement = select(api_keys).where(api_keys.c.organisation_id == organisationId)
    async with context.engine.connect() as connection:
        await get_organisation(connection, organisationId)
        page = await paging.read(connection, statement, (api_keys.c.created_at, api_keys.c.id))
    results = [Key(**_members(request, row)) for row in page.rows]
    return KeyPage(count=page.count, next=page.next, previous=page.previous, results=results)


@router.get("/{id}", response_model=Key, **operation("getKey", "Read an API key", scopes=_OPERATE, problems=(404,)))
async def get_key(request: Request, organisationId: UUID, id: UUID, context: InContext) -> Key:
    """Reads what is known of an API key that works; revoked ones are in the list."""
    statement = select(api_keys).where(
        api_keys.c.organisation_id == organisationId, api_keys.c.id == id, api_keys.c.revoked_at.is_(None)
    )
    async with context.engine.connect() as connection:
        row = (await connection.execute(statement)).one_or_none()
    if row is None:
        raise NotFound
    return Key(**_members(request, row))


@router.delete(
    "/{id}",
    response_class=Response,
    **operation("revokeKey", "Revoke an API key", scopes=_OPERATE, problems=(404,), success=204),
)
async def revoke_key(organisationId: UUID, id: UUID, context: InContext) -> None:
    """Revokes an API key; it stops working within two seconds."""
    async with context.engine.begin() as connection:
        await service.revoke_key(connection, organisationId, id)


def _members(request: Request, row: AnyRow) -> dict[str, Any]:
    return {
        "url": f"{api_url(request)}/organisations/{row.organisation_id}/keys/{row.id}",
        "id": row.id,
        "hint": row.hint,
        "label": row.label,
        "scopes": row.scopes,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "last_used_at": row.last_used_at,
        "revoked_at": row.revoked_at,
    }
