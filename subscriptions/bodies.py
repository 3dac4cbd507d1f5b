"""Bodies of requests: strict JSON, of the announced media type, up to a limit; and the media types of answers."""

import asyncio
from typing import Any, Final

import orjson
from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from schemas.problems import PROBLEM_JSON, BodyTooLarge, NotAcceptable, UnsupportedMediaType

BODY_SECONDS: Final = 30.0
"""For a whole body to come."""


class JsonRequest(Request):
    """A request whose JSON is strict: no NaN, no lone surrogates, no U+0000 (PostgreSQL can't keep it)."""

    async def json(self) -> Any:
        """Returns the body, parsed."""
        raw = await self.body()
        parsed = orjson.loads(raw)
        if b"\\u0000" in raw and _holds_nul(parsed):
            raise HTTPException(400, "The body must not hold the character U+0000.")
        return parsed


def limited(request: Request, limit: int) -> Receive:
    """Returns the request's `receive`: 413 as soon as the body is over the limit, 400 when it isn't there in time.

    Raises:
        HTTPException: 413, when the length that was announced is over it already.
    """
    announced = request.headers.get("content-length", "")
    too_large = HTTPException(413, BodyTooLarge(limit).detail)
    if announced.isdecimal() and int(announced) > limit:
        raise too_large
    received = 0
    deadline = asyncio.get_running_loop().time() + BODY_SECONDS

    async def receive() -> Message:
        nonlocal received
        try:
            async with asyncio.timeout_at(deadline):
                message = await request.receive()
        except TimeoutError:
            raise HTTPException(400, "The body did not come in time, or is shorter than was announced.") from None
        received += len(message.get("body", b""))
        if received > limit:
            raise too_large
        return message

    return receive


def check_accept(request: Request) -> None:
    """Raises `NotAcceptable` unless JSON may be answered."""
    accept = request.headers.get("accept", "*/*")
    for part in accept.split(","):
        media_type, *parameters = (piece.strip().lower() for piece in part.split(";"))
        refused = any(parameter.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for parameter in parameters)
        if media_type in ("*/*", "application/*", "application/json", PROBLEM_JSON, "") and not refused:
            return
    raise NotAcceptable


def check_media_type(request: Request) -> None:
    """Raises `UnsupportedMediaType` unless the body is said to be JSON, or a merge patch where one can be."""
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
