"""Completes the OpenAPI document: problems, security, version header, examples, and the base path in `servers`."""

from typing import Any, Final

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from schemas.problems import ProblemDetails, ValidationProblemDetails
from subscriptions.callers import ApiSettings
from subscriptions.context import API_PREFIX
from subscriptions.examples import MISSING, example_of
from subscriptions.operations import SECURITY_SCHEME, problem_declaration

_METHODS: Final = ("get", "put", "post", "patch", "delete")
_HEADERS: Final = {
    "API-Version": {"description": "Full version of the API.", "schema": {"type": "string", "examples": ["0.1.0"]}},
    "X-Request-Id": {
        "description": "Id of the request, to quote to the operator; the log has it.",
        "schema": {"type": "string", "format": "uuid"},
    },
}

_CREDENTIALS: Final = (
    "A key that Bode issued (`bode_…`), or an access token (JWT) of the authorization server that this installation "
    "trusts; a token needs the OIN of a registered organisation."
)


def describe(app: FastAPI, settings: ApiSettings) -> None:
    """Makes `app.openapi()` return the completed document."""
    contact = {"name": settings.contact_name, "email": settings.contact_email, "url": settings.contact_url}
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(generate(), settings.public_url or API_PREFIX)
            app.openapi_schema["info"]["contact"] = contact
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _complete(document: dict[str, Any], server: str) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    _, problems = models_json_schema(
        [(ProblemDetails, "validation"), (ValidationProblemDetails, "validation")],
        ref_template="#/components/schemas/{model}",
    )
    schemas |= problems["$defs"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    components["securitySchemes"] = {SECURITY_SCHEME: {"type": "http", "scheme": "bearer", "description": _CREDENTIALS}}
    document["servers"] = [{"url": server}]
    document["paths"] = {path.removeprefix(API_PREFIX) or "/": item for path, item in document["paths"].items()}
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                _complete_operation(path, item[method], schemas)
    return document


def _complete_operation(path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)  # malformed input is 400 here
    if "{" in path:
        responses.setdefault("404", problem_declaration(404))
    for response in responses.values():
        response["headers"] = {**_HEADERS, **response.get("headers", {})}
    for content in (operation.get("requestBody", {}), *responses.values()):
        for media in content.get("content", {}).values():
            if media.keys().isdisjoint(("example", "examples")):
                example = example_of(media["schema"], schemas)
                if example is not MISSING:
                    media["example"] = example
