"""Lists in pages, by a cursor that says where a page ended.

Pages are in order of creation, so what is made or removed meanwhile neither repeats nor hides what was there. A cursor
is sealed for one list of one caller: it can't be read, altered, or used elsewhere.
"""

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import Query
from sqlalchemy import Column, func, select, tuple_
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.requests import Request

from schemas.problems import InvalidInput, InvalidParam
from subscriptions.context import API_PREFIX, api_url, caller_of, context_of
from subscriptions.database import AnyRow, AnySelect
from subscriptions.secrets import KeyRing, SealError

_LONGEST_CURSOR: Final = 500


@dataclass(frozen=True, slots=True)
class PageOf:
    """The rows of one page, how many there are in all, and the URLs of the page's neighbours."""

    rows: list[AnyRow]
    count: int
    next: str | None
    previous: str | None


@dataclass(frozen=True, slots=True)
class _Position:
    direction: Literal["next", "previous"]
    values: tuple[Any, ...]


class Paging:
    """The query parameters of a list, as a dependency of its route."""

    def __init__(
        self,
        request: Request,
        limit: Annotated[int, Query(ge=1, le=500, description="Most results on one page.")] = 100,
        cursor: Annotated[
            str | None,
            Query(max_length=_LONGEST_CURSOR, description="Where the page starts; take it from `next` or `previous`."),
        ] = None,
    ) -> None:
        self._request = request
        self._limit = limit
        self._cursor = cursor
        caller = caller_of(request)
        owner = "operator" if caller.organisation is None else str(caller.organisation.id)
        self._purpose = f"cursor {request.url.path} {owner}".encode()

    async def read(self, connection: AsyncConnection, statement: AnySelect, order: Sequence[Column[Any]]) -> PageOf:
        """Reads the page of a statement that the cursor points at; `order` is unique, and in order of creation."""
        keys = context_of(self._request).keys
        position = None if self._cursor is None else _open(keys, self._purpose, self._cursor, order)
        backwards = position is not None and position.direction == "previous"
        page = statement
        if position is not None:
            here, there = tuple_(*order), tuple_(*position.values)
            page = page.where(here < there if backwards else here > there)
        page = page.order_by(*(column.desc() if backwards else column.asc() for column in order))
        rows = list((await connection.execute(page.limit(self._limit + 1))).all())
        more = len(rows) > self._limit
        rows = rows[: self._limit]
        if backwards:
            rows.reverse()
        count = (await connection.execute(select(func.count()).select_from(statement.subquery()))).scalar_one()
        has_next = more or position is not None if backwards else more
        has_previous = more if backwards else position is not None
        return PageOf(
            rows,
            count,
            self._link(keys, "next", rows[-1], order) if rows and has_next else None,
            self._link(keys, "previous", rows[0], order) if rows and has_previous else None,
        )

    def _link(self, keys: KeyRing, direction: str, row: AnyRow, order: Sequence[Column[Any]]) -> str:
        values = [_text(row._mapping[column.name]) for column in order]
        sealed = keys.seal(json.dumps([direction, *values]).encode(), self._purpose)
        cursor = base64.urlsafe_b64encode(sealed).decode().rstrip("=")
        path = self._request.url.path.removeprefix(self._request.scope.get("root_path", "")).removeprefix(API_PREFIX)
        url = self._request.url.include_query_params(cursor=cursor)
        return f"{api_url(self._request)}{path}?{url.query}"


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _open(keys: KeyRing, purpose: bytes, cursor: str, order: Sequence[Column[Any]]) -> _Position:
    try:
        sealed = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        direction, *values = json.loads(keys.open(sealed, purpose))
    except (binascii.Error, ValueError, SealError):
        reason = "must be taken from next or previous of the same list"
        raise InvalidInput(
            params=[InvalidParam(location="query", name="cursor", code="cursor", reason=reason)]
        ) from None
    return _Position(direction, tuple(_value(column, text) for column, text in zip(order, values, strict=True)))


def _value(column: Column[Any], text: str) -> Any:
    kind = column.type.python_type
    if kind is datetime:
        return datetime.fromisoformat(text)
    return UUID(text) if kind is UUID else kind(text)
