"""How operations are declared: what the OpenAPI document says of them, and what `http.Route` enforces.

`operation` demands an id, a summary, who may call and the problems beyond the usual; the docstring of the function is
the description, and examples are made of the models'. `tests/unit/test_openapi.py` walks the whole document.
"""

from collections.abc import Sequence
from typing import Any, Final

from schemas.problems import (
    PROBLEM_JSON,
    BodyTooLarge,
    Conflict,
    Forbidden,
    InternalError,
    InvalidInput,
    NotAcceptable,
    NotFound,
    PreconditionFailed,
    Problem,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
)
from subscriptions.callers import Scope

SECURITY_SCHEME: Final = "bearer"

_ALWAYS: Final = (400, 406, 429, 500, 503)
_GUARDED: Final = (401, 403)
_WITH_BODY: Final = (413, 415)
_EXAMPLE_INSTANCE: Final = "urn:uuid:6b1e3b0c-6f0e-4b0a-9a55-0c7d0e6f2a11"
_PROBLEMS: Final[dict[int, tuple[str, Problem]]] = {
    400: (
        "Malformed, or breaks a rule; names the field",
        InvalidInput.field("/sink", "sink", "must be an absolute http or https URL"),
    ),
    401: ("No credentials, or unknown ones", Unauthenticated()),
    403: ("Not allowed to this caller", Forbidden()),
    404: ("Absent, or another's", NotFound()),
    406: ("No media type that was asked for can be given", NotAcceptable()),
    409: ("Not possible in the present state, or taken, or an Idempotency-Key of another request", Conflict()),
    412: ("Changed since it was read", PreconditionFailed()),
    413: ("The body is too large", BodyTooLarge()),
    415: ("The body's media type isn't understood", UnsupportedMediaType()),
    429: ("Over the rate of this key", TooManyRequests(1)),
    500: ("A failure on our side", InternalError()),
    503: ("Not possible at the moment", Unavailable()),
}


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
    such operation can answer. Members of the answer that were never set are left out of it. The function's docstring
    is the description; examples come from the models (`examples.example_of`).
    """
    if not (operation_id.isalnum() and operation_id[0].islower() and summary and not summary.endswith(".")):
        raise TypeError(f"operation {operation_id!r} needs an id in camelCase and a summary without a full stop")
    statuses = {*_ALWAYS, *problems, *(_WITH_BODY if body else ()), *(_GUARDED if scopes else ())}
    responses: dict[int | str, dict[str, Any]] = {status: problem_declaration(status) for status in sorted(statuses)}
    responses[success] = {"headers": {name: _HEADER_DECLARATIONS[name] for name in headers}}
    return {
        "operation_id": operation_id,
        "summary": summary,
        "status_code": success,
        "response_description": _SUCCESSES[success],
        "response_model_exclude_unset": True,
        "responses": responses,
        "openapi_extra": {"security": [{SECURITY_SCHEME: [scope.value]} for scope in scopes]},
    }


def problem_declaration(status: int) -> dict[str, Any]:
    """Declares the answer of a status from 400 on, with an example."""
    description, example = _PROBLEMS[status]
    schema = "ValidationProblemDetails" if status == 400 else "ProblemDetails"
    content = {
        PROBLEM_JSON: {
            "schema": {"$ref": f"#/components/schemas/{schema}"},
            "example": example.body(_EXAMPLE_INSTANCE),
        }
    }
    declared: dict[str, Any] = {"description": description, "content": content}
    if example.headers:
        declared["headers"] = {name: _HEADER_DECLARATIONS[name] for name in example.headers}
    return declared


_SUCCESSES: Final = {200: "Done; this is the answer", 201: "Made; this is what was made", 202: "Taken", 204: "Done"}
_HEADER_DECLARATIONS: Final[dict[str, dict[str, Any]]] = {
    "Location": {"description": "URL of what was made.", "schema": {"type": "string", "format": "uri"}},
    "ETag": {"description": "Version of the resource, for If-Match.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds to wait before trying again.", "schema": {"type": "integer", "minimum": 1}},
    "WWW-Authenticate": {"description": "How to identify yourself (RFC 6750).", "schema": {"type": "string"}},
}
