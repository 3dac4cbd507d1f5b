"""How routes are declared and guarded: authentication, then authorisation, then the body; never in another order.

A route says who may call it in its OpenAPI declaration (`operation`), and that declaration is what is enforced.
"""

from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, Final, TypeAlias

import orjson
from fastapi import Depends, Header, Request
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Receive

from schemas.problems import PROBLEM_JSON, InvalidInput, InvalidParam, NotAcceptable, UnsupportedMediaType
from subscriptions.callers import Caller, Scope
from subscriptions.context import Context, caller_of, context_of

SECURITY_SCHEME: Final = "bearer"

_PROBLEM_TITLES: Final = {
    400: "Malformed, or breaks a rule; names the field",
    401: "No credentials, or unknown ones",
    403: "Not allowed to this caller",
    404: "Absent, or another's",
    406: "No media type that was asked for can be given",
    409: "Not possible in the present state, or taken",
    412: "Changed since it was read",
    413: "The body is too large",
    415: "The body's media type isn't understood",
    429: "Over the rate of this key",
    500: "A failure on our side",
    503: "Not possible at the moment",
}
_ALWAYS: Final = (400, 406, 429, 500, 503)
_GUARDED: Final = (401, 403)
_WITH_BODY: Final = (413, 415)


def operation(
    operation_id: str,
    summary: str,
    *,
    scopes: Sequence[Scope],
    problems: Sequence[int] = (),
    body: bool = False,
    success: int = 200,
    headers: Sequence[str] = (),
) -> dict[str, Any]:
    """Declares an operation, as keyword arguments for a router's method.

    Any one of `scopes` suffices; none at all opens the operation to everyone. `problems` are those beyond what every
    such operation can answer. Members of the answer that were never set are left out of it.
    """
    statuses = {*_ALWAYS, *problems, *(_WITH_BODY if body else ()), *(_GUARDED if scopes else ())}
    responses: dict[int | str, dict[str, Any]] = {status: problem_declaration(status) for status in sorted(statuses)}
    responses[success] = {"headers": {name: _HEADER_DECLARATIONS[name] for name in headers}}
    return {
        "operation_id": operation_id,
        "summary": summary,
        "status_code": success,
        "response_model_exclude_unset": True,
        "responses": responses,
        "openapi_extra": {"security": [{SECURITY_SCHEME: [scope.value]} for scope in scopes]},
    }


def problem_declaration(status: int) -> dict[str, Any]:
    """Declares the answer of a status from 400 on."""
    schema = "ValidationProblemDetails" if status == 400 else "ProblemDetails"
    content = {PROBLEM_JSON: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": _PROBLEM_TITLES[status], "content": content}


_HEADER_DECLARATIONS: Final[dict[str, dict[str, Any]]] = {
    "Location": {"description": "URL of what was made.", "schema": {"type": "string", "format": "uri"}},
    "ETag": {"description": "Version of the resource, for If-Match.", "schema": {"type": "string"}},
}


class JsonRequest(Request):
    """A request whose JSON is strict: no NaN, no lone surrogates, no U+0000 (PostgreSQL can't keep it)."""

    async def json(self) -> Any:
        """Returns the body, parsed."""
        raw = await self.body()
        parsed = orjson.loads(raw)
        if b"\\u0000" in raw and _holds_nul(parsed):
            raise HTTPException(400, "The body must not hold the character U+0000.")
        return parsed


class Route(APIRoute):
    """A route that authenticates and authorises before it looks at the body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Puts the guards before the handler."""
        handle = super().get_route_handler()
        declared = (self.openapi_extra or {}).get("security", [])
        scopes = [scope for alternative in declared for scope in alternative.get(SECURITY_SCHEME, ())]
        takes_json = self.body_field is not None

        async def guarded(request: Request) -> Response:
            context = context_of(request)
            if scopes:
                caller = await context.callers.authenticate(request.headers.get("authorization"))
                context.callers.take(caller)
                caller.require(scopes)
                request.state.caller = caller
            _check_accept(request)
            if not takes_json:
                return await handle(request)
            _check_media_type(request)
            limit = context.settings.max_body_bytes
            return await handle(JsonRequest(request.scope, limited(request, limit)))

        return guarded


def limited(request: Request, limit: int) -> Receive:
    """Returns the request's `receive`, which ends in 413 as soon as the body is over the limit.

    Raises:
        HTTPException: 413, when the length that was announced is over it already.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise HTTPException(413)
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise HTTPException(413)
        return message

    return receive


def _check_accept(request: Request) -> None:
    accept = request.headers.get("accept", "*/*")
    for part in accept.split(","):
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        refused = any(parameter.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for parameter in parameters)
        if media_type in ("*/*", "application/*", "application/json", PROBLEM_JSON, "") and not refused:
            return
    raise NotAcceptable


def _check_media_type(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    accepted = ("application/json", "application/merge-patch+json")
    if media_type == accepted[0] or (media_type == accepted[1] and request.method == "PATCH"):
        return
    if media_type == "" and request.headers.get("content-length", "0") == "0" and not _is_chunked(request):
        return  # no body at all: the problem is that it's missing
    raise UnsupportedMediaType


def _is_chunked(request: Request) -> bool:
    return "chunked" in request.headers.get("transfer-encoding", "").lower()


def _holds_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_holds_nul(member) for item in value.items() for member in item)
    return isinstance(value, list) and any(map(_holds_nul, value))


def expected_version(
    if_match: Annotated[
        str | None, Header(description="ETag of the version that is to be changed; otherwise 412.", max_length=200)
    ] = None,
) -> int | None:
    """Returns the version that the caller wants to change; None: whichever there is.

    Raises:
        InvalidInput: it isn't an ETag that we gave.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    tag = if_match.strip().removeprefix("W/").strip('"')
    if not (tag.isascii() and tag.isdecimal() and len(tag) <= 18):
        reason = "must be an ETag that this resource was answered with"
        raise InvalidInput(params=[InvalidParam(location="header", name="If-Match", code="etag", reason=reason)])
    return int(tag)


InContext: TypeAlias = Annotated[Context, Depends(context_of)]
ByCaller: TypeAlias = Annotated[Caller, Depends(caller_of)]
ExpectedVersion: TypeAlias = Annotated[int | None, Depends(expected_version)]
