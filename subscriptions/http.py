"""How routes are guarded: authentication, then authorisation, then the body; never in another order.

A route says who may call it in its OpenAPI declaration (`operation`), and that declaration is what is enforced.
"""

import re
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final, TypeAlias

from fastapi import Depends, Header, Request
from fastapi.routing import APIRoute
from starlette.responses import Response

from schemas.problems import InvalidInput, InvalidParam
from subscriptions.bodies import JsonRequest, check_accept, check_media_type, limited
from subscriptions.callers import Caller
from subscriptions.context import Context, caller_of, context_of
from subscriptions.idempotency import Repeated
from subscriptions.operations import SECURITY_SCHEME
from subscriptions.operations import operation as operation


class Route(APIRoute):
    """A route that authenticates and authorises before it looks at the body.

    Raises:
        TypeError: when it is declared without `operation`, or its function has no docstring.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        if not (self.operation_id and self.summary and self.description and 400 in self.responses):
            raise TypeError(f"{path}: declare it with operation(), and say in its docstring what it does")

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Puts the guards before the handler."""
        handle = super().get_route_handler()
        declared = (self.openapi_extra or {}).get("security", [])
        scopes = [scope for alternative in declared for scope in alternative.get(SECURITY_SCHEME, ())]
        takes_json = self.body_field is not None

        async def guarded(request: Request) -> Response:
            context = context_of(request)
            request.state.operation = self.operation_id
            if scopes:
                caller = await context.callers.identify(request)
                context.callers.take(caller)
                caller.require(scopes)
                request.state.caller = caller
            check_accept(request)
            if takes_json:
                check_media_type(request)
            if takes_json or 413 in self.responses:
                request = JsonRequest(request.scope, limited(request, context.settings.max_body_bytes))
            try:
                return await handle(request)
            except Repeated as repeated:
                return repeated.response

        return guarded


def expected_version(
    if_match: Annotated[
        str | None,
        Header(
            alias="If-Match",
            description="ETag of the version that is to be changed; otherwise 412.",
            max_length=200,
            examples=['"1"'],
        ),
    ] = None,
) -> int | None:
    """Returns the version that the caller wants to change; None: whichever there is.

    Raises:
        InvalidInput: it isn't an ETag that we gave.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    found = _ETAG.fullmatch(if_match.strip())
    if found is None:
        reason = "must be the one ETag that this resource was answered with"
        raise InvalidInput(params=[InvalidParam(location="header", name="If-Match", code="etag", reason=reason)])
    return int(found[1])


def etag(version: int) -> str:
    """Returns the ETag of a version."""
    return f'"{version}"'


_ETAG: Final = re.compile(r'(?:W/)?"?([0-9]{1,18})"?')
"""As we give it; a proxy that compresses makes it weak, and some clients lose the quotes."""

InContext: TypeAlias = Annotated[Context, Depends(context_of)]
ByCaller: TypeAlias = Annotated[Caller, Depends(caller_of)]
ExpectedVersion: TypeAlias = Annotated[int | None, Depends(expected_version)]
