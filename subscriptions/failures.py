"""Every failure becomes a problem.

What failed is logged with the request's id, without the texts of exceptions: they may hold what was sent.
"""

import traceback
from collections.abc import Mapping
from typing import Final

import asyncpg
import orjson
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.responses import Response

from schemas.problems import (
    PROBLEM_JSON,
    BodyTooLarge,
    Conflict,
    Forbidden,
    InternalError,
    InvalidInput,
    MethodNotAllowed,
    NotAcceptable,
    NotFound,
    Problem,
    Unauthenticated,
    Unavailable,
    UnsupportedMediaType,
)
from subscriptions.database import passes
from subscriptions.methods import allow
from subscriptions.validation import invalid_params

_BY_STATUS: Final[Mapping[int, type[Problem]]] = {
    problem.status: problem
    for problem in (
        InvalidInput,
        Unauthenticated,
        Forbidden,
        NotFound,
        MethodNotAllowed,
        NotAcceptable,
        Conflict,
        BodyTooLarge,
        UnsupportedMediaType,
    )
}
# SQLSTATEs of text that PostgreSQL can't hold.
_UNSTORABLE: Final = ("22021", "22P05")


def problem_response(problem: Problem, request_id: str) -> Response:
    """Makes the answer that tells a problem."""
    body = orjson.dumps(problem.body(f"urn:uuid:{request_id}"))
    return Response(body, problem.status, headers=problem.headers, media_type=PROBLEM_JSON)


def handle_problems(app: FastAPI) -> None:
    """Makes an application answer every failure as a problem."""
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(DBAPIError, _on_database)
    for unreachable in (PoolTimeout, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        app.add_exception_handler(unreachable, _on_unreachable)


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return problem_response(error, request.state.request_id)


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    if any(found["loc"][:1] == ("path",) for found in errors):
        return await _on_problem(request, NotFound())  # what isn't an id names nothing
    return await _on_problem(request, InvalidInput(params=invalid_params(errors)))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _BY_STATUS.get(error.status_code, InvalidInput if error.status_code < 500 else InternalError)
    problem = kind()
    if kind in (InvalidInput, BodyTooLarge):
        problem.detail = error.detail
    problem.headers |= error.headers or {}
    if kind is MethodNotAllowed:
        problem.headers["Allow"] = allow(request.app, request.scope)
    return await _on_problem(request, problem)


async def _on_database(request: Request, error: Exception) -> Response:
    assert isinstance(error, DBAPIError)
    state = getattr(error.orig, "sqlstate", None) or ""
    if state in _UNSTORABLE:
        return await _on_problem(request, InvalidInput("A value holds a character that can't be kept, such as U+0000."))
    if not passes(error):
        raise error
    return await _on_unreachable(request, error)


async def _on_unreachable(request: Request, error: Exception) -> Response:
    log_failure(request.state.request_id, error)
    detail = "The database can't be reached at the moment, or is too busy. Look whether it was done, and try again."
    return await _on_problem(request, Unavailable(detail))


def log_failure(request_id: str, error: Exception) -> None:
    """Logs a failure of ours by its class and place, never by its text."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    structlog.get_logger("bode.api").error(
        "request-failed",
        request_id=request_id,
        error=type(error).__name__,
        where=[f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames],
    )
