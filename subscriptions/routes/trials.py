"""`/subscriptions/{id}/test-notifications`: something to try a sink with, and what it answered."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Request, Response

from schemas.resources import TestNotification, TestState
from subscriptions import trials as service
from subscriptions.callers import Scope
from subscriptions.change_log import wake_readers
from subscriptions.context import api_url
from subscriptions.database import AnyRow
from subscriptions.http import ByCaller, InContext, Route, operation
from subscriptions.idempotency import Repeatable
from subscriptions.secrets import KeyRing, answer_purpose

router = APIRouter(prefix="/subscriptions/{id}/test-notifications", tags=["subscriptions"], route_class=Route)

_OWN = (Scope.CONSUME,)


@router.post(
    "",
    response_model=TestNotification,
    **operation(
        "sendTestNotification",
        "Send a test notification",
        scopes=_OWN,
        problems=(404, 409, 413),
        success=202,
        headers=("Location",),
    ),
)
async def send_test_notification(
    request: Request, response: Response, id: UUID, caller: ByCaller, context: InContext, once: Repeatable
) -> TestNotification:
    """Has a synthetic notification sent to your sink or queue, signed like any other, but without a number.

    Its type is `nl.bode.test-notification`; it is sent once, within seconds. Read at `Location` what the sink answered.
    The sink must have consented. At most six a minute for each subscription.
    """
    async with context.engine.begin() as connection, once.within(connection):
        row = await service.ask(connection, id, organisation_id=caller.own.id)
        made = TestNotification(**_members(request, row, context.keys))
        response.headers["Location"] = made.url
        await once.keep(connection, made, response, 202)
    await wake_readers(context.engine)
    return made


@router.get(
    "/{notificationId}",
    response_model=TestNotification,
    **operation("getTestNotification", "Read a test notification", scopes=_OWN, problems=(404,)),
)
async def get_test_notification(
    request: Request, id: UUID, notificationId: UUID, caller: ByCaller, context: InContext
) -> TestNotification:
    """Reads a test notification, with status, first bytes and timing of the sink's answer. It is kept for a day."""
    async with context.engine.connect() as connection:
        row = await service.get(connection, id, notificationId, organisation_id=caller.own.id)
    return TestNotification(**_members(request, row, context.keys))


def _members(request: Request, row: AnyRow, keys: KeyRing) -> dict[str, Any]:
    unanswered = row.status is None and row.reason is not None
    state = TestState.WAITING if row.sent_at is None else TestState.FAILED if unanswered else TestState.ANSWERED
    excerpt = None if row.excerpt is None else keys.open(row.excerpt, answer_purpose(row.id)).decode(errors="replace")
    return {
        "url": f"{api_url(request)}/subscriptions/{row.subscription_id}/test-notifications/{row.id}",
        "id": row.id,
        "subscription": row.subscription_id,
        "state": state,
        "requested_at": row.requested_at,
        "sent_at": row.sent_at,
        "milliseconds": row.milliseconds,
        "status": row.status,
        "reason": row.reason,
        "answer": excerpt,
    }
