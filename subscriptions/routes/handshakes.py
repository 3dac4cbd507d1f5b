"""`/handshakes/{token}`: where a sink consents by callback. Open to all: the token is the proof."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request

from schemas.problems import InvalidInput, InvalidParam
from schemas.resources import HandshakeConsent, Status
from subscriptions import consent
from subscriptions.history import Actor
from subscriptions.http import InContext, Route, operation

router = APIRouter(prefix=consent.CALLBACK_PATH.rstrip("/"), tags=["handshakes"], route_class=Route)

_RATE_HEADER = "WebHook-Allowed-Rate"
AllowedRate = Annotated[
    str | None,
    Query(
        alias="allowedRate",
        max_length=40,
        description="As the header WebHook-Allowed-Rate, for those who call from a browser.",
    ),
]


@router.get(
    "/{token}",
    response_model=HandshakeConsent,
    **operation("consentByLink", "Consent to notifications, from a browser", scopes=(), problems=(404,)),
)
async def consent_by_link(
    request: Request, token: str, context: InContext, allowed_rate: AllowedRate = None
) -> HandshakeConsent:
    """Records the consent of a sink (CloudEvents HTTP webhook 1.0.2, 4.1.3); by POST it does the same."""
    return await _consent(request, token, context, allowed_rate)


@router.post(
    "/{token}",
    response_model=HandshakeConsent,
    **operation("consentByCallback", "Consent to notifications", scopes=(), problems=(404,)),
)
async def consent_by_callback(
    request: Request, token: str, context: InContext, allowed_rate: AllowedRate = None
) -> HandshakeConsent:
    """Records the consent of a sink: the token came in WebHook-Request-Callback, works once, and for a day.

    `WebHook-Allowed-Rate` may say how many notifications a minute are allowed; without it, any.
    """
    return await _consent(request, token, context, allowed_rate)


async def _consent(request: Request, token: str, context: InContext, given: str | None) -> HandshakeConsent:
    headers = request.headers.getlist(_RATE_HEADER)
    if len(headers) > 1:
        raise _invalid("header", _RATE_HEADER, "must be given once")
    in_header = bool(headers)
    try:
        rate = consent.parse_rate(headers[0].strip() if in_header else "*" if given is None else given)
    except consent.InvalidRate:
        reason = "must be a number of notifications a minute, from 1, or *"
        if in_header:
            raise _invalid("header", _RATE_HEADER, reason) from None
        raise _invalid("query", "allowedRate", reason) from None
    async with context.changing(Actor("sink")) as connection:
        recorded = await consent.redeem(connection, token, allowed_rate=rate, settings=context.handshakes)
    return HandshakeConsent(status=Status(recorded.status), allowed_rate=recorded.allowed_rate)


def _invalid(where: Literal["header", "query"], name: str, reason: str) -> InvalidInput:
    return InvalidInput(params=[InvalidParam(location=where, name=name, code="rate", reason=reason)])
