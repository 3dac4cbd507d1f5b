"""The outermost layer of the API: every request has an id and a trace, every answer its headers, and each a log line.

The line says which operation it was, never where it went: a path holds ids that somebody else chose.
"""

import time
from typing import Final
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from schemas.problems import InternalError
from subscriptions.callers import Caller
from subscriptions.context import API_PREFIX
from subscriptions.cors import Cors
from subscriptions.failures import log_failure, problem_response
from subscriptions.methods import allow
from subscriptions.trace_context import trace_id_of

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Strict-Transport-Security": "max-age=31536000",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Of every answer (API Design Rules, transport/security-headers). Plain http ignores Strict-Transport-Security."""


class Edge:
    """ASGI middleware: names each request, completes each answer, and turns what nobody caught into a problem."""

    def __init__(self, app: ASGIApp, *, version: str, cors: Cors) -> None:
        self._app = app
        self._version = version
        self._cors = cors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = Headers(scope=scope)
        request_id, trace_id = str(uuid4()), trace_id_of(asked.get("traceparent"))
        scope.setdefault("state", {})["request_id"] = request_id
        with structlog.contextvars.bound_contextvars(request_id=request_id, trace_id=trace_id):
            await self._handle(scope, asked, request_id, receive, send)

    async def _handle(self, scope: Scope, asked: Headers, request_id: str, receive: Receive, send: Send) -> None:
        started_at, status = time.perf_counter(), 0
        is_head = scope["method"] == "HEAD"

        async def send_complete(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._complete(scope, asked, request_id, MutableHeaders(scope=message))
            elif is_head:
                message = {**message, "body": b""}
            await send(message)

        if is_head:
            scope = {**scope, "method": "GET"}
        try:
            if scope["method"] == "OPTIONS" and (allowed := allow(scope["app"], scope)):
                headers = {"Allow": allowed, **self._cors.preflight(allowed, asked)}
                await Response(headers=headers)(scope, receive, send_complete)
            else:
                await self._app(scope, receive, send_complete)
        except Exception as error:
            log_failure(request_id, error)
            if status:
                raise
            await problem_response(InternalError(), request_id)(scope, receive, send_complete)
        finally:
            if scope["path"].startswith(API_PREFIX):
                _log_request(scope, asked, status, time.perf_counter() - started_at)

    def _complete(self, scope: Scope, asked: Headers, request_id: str, headers: MutableHeaders) -> None:
        headers["API-Version"] = self._version
        headers["X-Request-Id"] = request_id
        for name, value in _HEADERS.items():
            headers.setdefault(name, value)
        self._cors.complete(scope["path"], asked, headers)


def _log_request(scope: Scope, asked: Headers, status: int, seconds: float) -> None:
    state = scope["state"]
    caller: Caller | None = state.get("caller")
    organisation = None if caller is None or caller.organisation is None else str(caller.organisation.id)
    structlog.get_logger("bode.api").info(
        "request-answered",
        operation=state.get("operation"),
        status=status,
        milliseconds=round(seconds * 1000, 1),
        organisation=organisation,
        bytes=int(length) if (length := asked.get("content-length", "")).isdecimal() else None,
    )
