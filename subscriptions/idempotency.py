"""Idempotency-Key: a creation that is asked for again, because its answer was lost, isn't made again.

The answer is written in the transaction that makes the thing, so there is never one without the other. Two requests
with one key follow each other: the second waits for the first, and repeats its answer; when the first failed, the
second is carried out. A key belongs to its organisation (to the operator, if none), and is good for
`idempotency_seconds`. Only what succeeded is repeated; a problem is found again.

Neither the key nor the request is stored, but keyed digests of both; the answer, which may hold a secret, is sealed.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, TypeAlias

import orjson
from fastapi import Depends, Header, Request, Response
from sqlalchemy import delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from schemas.problems import InvalidInput, InvalidParam, KeyReused
from schemas.resources import Resource
from subscriptions.context import caller_of, context_of
from subscriptions.tables import idempotency_keys

REPLAYED: Final = "Idempotency-Replayed"
_HEADER: Final = "Idempotency-Key"
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_KEPT_HEADERS: Final = ("location", "etag")
_LOCKS: Final = 0x1DE4  # the first of PostgreSQL's two-part advisory locks; nothing else here has two parts


class Repeated(Exception):
    """What was asked for was done before; `response` is the answer of then."""

    def __init__(self, response: Response) -> None:
        super().__init__("done before")
        self.response = response


class Once:
    """One request that may be repeated; without a key it is simply carried out."""

    def __init__(self, request: Request, key: str | None, body: bytes) -> None:
        context, caller = context_of(request), caller_of(request)
        self._keys = context.keys
        self._lifetime = timedelta(seconds=context.settings.idempotency_seconds)
        self._digests: list[bytes] = []
        self._requests: list[bytes] = []
        self._kept = key is None
        if key is not None:
            owner = "operator" if caller.organisation is None else str(caller.organisation.id)
            asked = f"{request.method} {request.url.path}\n".encode() + body
            self._digests = self._keys.digests(f"{owner}\n{key}".encode(), b"idempotency key")
            self._requests = self._keys.digests(asked, b"idempotency request")

    @asynccontextmanager
    async def within(self, connection: AsyncConnection) -> AsyncIterator[None]:
        """Lets the block make the thing and `keep` its answer, in the transaction of `connection`.

        Raises:
            Repeated: it was done before; nothing was done now.
            KeyReused: the key came before with another request.
        """
        if self._digests:
            await self._claim(connection)
        yield
        if not self._kept:
            raise RuntimeError("the answer to a request with an Idempotency-Key was not kept")

    async def repeat(self, connection: AsyncConnection) -> None:
        """Answers what was done before, without doing anything; for what has to be done before the transaction.

        Raises:
            Repeated, KeyReused: as `within`.
        """
        if self._digests:
            await self._claim(connection)

    async def _claim(self, connection: AsyncConnection) -> None:
        number = int.from_bytes(self._digests[0][:4], signed=True)
        # Guarantees that of two requests with one key the second goes on only after the first has committed or failed.
        await connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCKS}, :number)").bindparams(number=number))
        found = await connection.execute(
            select(idempotency_keys).where(
                idempotency_keys.c.digest.in_(self._digests), idempotency_keys.c.expires_at > func.now()
            )
        )
        known = found.first()
        if known is None:
            return
        if known.request_digest not in self._requests:
            raise KeyReused
        status, headers, body = orjson.loads(self._keys.open(known.answer, kept_answer_purpose(known.digest)))
        content = body.encode()
        raise Repeated(Response(content, status, {**headers, REPLAYED: "true"}, media_type="application/json"))

    async def keep(self, connection: AsyncConnection, answer: Resource, response: Response, status: int = 201) -> None:
        """Keeps the answer, as it is about to be given, for who asks again; and forgets what has expired."""
        if not self._digests:
            return
        headers = {name: value for name in _KEPT_HEADERS if (value := response.headers.get(name)) is not None}
        body = answer.model_dump_json(by_alias=True, exclude_unset=True)
        sealed = self._keys.seal(orjson.dumps([status, headers, body]), kept_answer_purpose(self._digests[0]))
        await forget_expired(connection)
        fresh = {
            "request_digest": self._requests[0],
            "answer": sealed,
            "expires_at": datetime.now(UTC) + self._lifetime,
        }
        await connection.execute(
            insert(idempotency_keys)
            .values(digest=self._digests[0], **fresh)
            .on_conflict_do_update(index_elements=[idempotency_keys.c.digest], set_=fresh)  # one that has expired
        )
        self._kept = True


async def once(
    request: Request,
    key: Annotated[
        str | None,
        Header(
            alias=_HEADER,
            max_length=257,
            description="A value of your own, such as a UUID, that makes it safe to ask again when the answer was "
            "lost: the same request with the same key is answered with what was made the first time, for a day, and "
            "with `Idempotency-Replayed: true`. With another request it is a conflict.",
            examples=["8e03978e-40d5-43e8-bc93-6894a57f9324"],
        ),
    ] = None,
) -> Once:
    """Reads the key of a request; quotes around it, as the draft of the IETF has them, are taken off.

    Raises:
        InvalidInput: it is empty, longer than 255 characters, or not printable ASCII.
    """
    if key is not None:
        key = key[1:-1] if len(key) > 1 and key[0] == key[-1] == '"' else key
        if _KEY.fullmatch(key) is None:
            reason = "must be 1 to 255 printable ASCII characters"
            raise InvalidInput(params=[InvalidParam(location="header", name=_HEADER, code="key", reason=reason)])
    return Once(request, key, b"" if key is None else await request.body())


async def forget_expired(connection: AsyncConnection) -> None:
    """Deletes the answers that are no longer repeated, in as far as nobody else is deleting them."""
    expired = (
        select(idempotency_keys.c.digest)
        .where(idempotency_keys.c.expires_at <= func.now())
        .with_for_update(skip_locked=True)
    )
    await connection.execute(delete(idempotency_keys).where(idempotency_keys.c.digest.in_(expired)))


def kept_answer_purpose(digest: bytes) -> bytes:
    """Returns what the kept answer to a repeatable request is bound to."""
    return b"idempotent answer " + digest


Repeatable: TypeAlias = Annotated[Once, Depends(once)]
