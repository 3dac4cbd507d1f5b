"""Completes the OpenAPI document: problems, security, version header, and the base path in `servers`."""

from typing import Any, Final

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from schemas.problems import ProblemDetails, ValidationProblemDetails
from subscriptions.context import API_PREFIX
from subscriptions.http import SECURITY_SCHEME

_METHODS: Final = ("get", "put", "post", "patch", "delete")
_VERSION_HEADER: Final = {
    "description": "Full version of the API.",
    "schema": {"type": "string", "examples": ["0.1.0"]},
}


def describe(app: FastAPI, *, public_url: str | None) -> None:
    """Makes `app.openapi()` return the completed document."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(generate(), public_url or API_PREFIX)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _complete(document: dict[str, Any], server: str) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    _, problems = models_json_schema(
        [(ProblemDetails, "serialization"), (ValidationProblemDetails, "serialization")],
        ref_template="#/components/schemas/{model}",
    )
    schemas |= problems["$defs"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    components["securitySchemes"] = {
        SECURITY_SCHEME: {"type": "http", "scheme": "bearer", "description": "A key that Bode issued: `bode_…`."}
    }
    document["servers"] = [{"url": server}]
    document["paths"] = {path.removeprefix(API_PREFIX) or "/": item for path, item in document["paths"].items()}
    for item in document["paths"].values():
        for method in _METHODS:
            if method in item:
                _complete_responses(item[method]["responses"])
    return document


def _complete_responses(responses: dict[str, Any]) -> None:
    responses.pop("422", None)  # malformed input is 400 here
    for response in responses.values():
        response.setdefault("headers", {})["API-Version"] = _VERSION_HEADER
