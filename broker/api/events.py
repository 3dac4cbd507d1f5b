"""Publishing over HTTP: structured, binary and batched CloudEvents. An answer below 300 means: it is safe."""

from collections.abc import Sequence

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from broker.api.context import BrokerContext, broker_context_of
from broker.ingest.accept import Rejected, judge_data
from broker.ingest.publishing import NotPublished, first_rejection
from schemas import cloudevents
from schemas.cloudevents import Event, InvalidEvent
from schemas.cloudevents_bindings import ContentMode, content_mode, http_attributes
from schemas.problems import Forbidden, InvalidInput, InvalidParam, Unavailable, UnsupportedMediaType
from subscriptions.bodies import limited
from subscriptions.callers import Organisation, Scope
from subscriptions.context import caller_of
from subscriptions.http import Route, operation

STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
_EXAMPLE = {
    "specversion": "1.0",
    "id": "f3dce042-cd6e-4977-844d-05be8dce7cea",
    "source": "urn:nld:oin:00000001823288444000:systeem:BRP-component",
    "type": "nl.brp.persoon-verhuisd",
    "subject": "999990342",
    "time": "2026-11-23T10:00:00Z",
    "data": {"gemeente": "9999"},
}
_EVENT_SCHEMA = {
    "type": "object",
    "description": "A CloudEvent 1.0 that keeps to the NL GOV profile; extension attributes are kept.",
    "required": ["specversion", "id", "source", "type"],
    "properties": {
        name: {"type": "string", "minLength": 1, "description": f"CloudEvents attribute `{name}`."}
        for name in ("id", "source", "type", "subject", "time", "dataschema", "datacontenttype")
    }
    | {"specversion": {"const": "1.0", "description": "CloudEvents attribute `specversion`."}},
    "additionalProperties": True,
    "examples": [_EXAMPLE],
}
_CONTENT = {
    STRUCTURED: {"schema": _EVENT_SCHEMA, "example": _EXAMPLE},
    BATCH: {
        "schema": {"type": "array", "description": "CloudEvents, all or none.", "items": _EVENT_SCHEMA},
        "example": [_EXAMPLE],
    },
}
_BINARY = {"schema": {"description": "`data`, in binary mode."}, "example": _EXAMPLE["data"]}
_DECLARATION = operation(
    "publishEvents",
    "Publish events",
    scopes=(Scope.PUBLISH,),
    body=True,
)
_DECLARATION["responses"] |= {
    200: {"description": "Accepted: committed with all deliveries, or known already.", "content": _CONTENT},
    202: {"description": "Received: confirmed by the message broker; it will be accepted.", "content": _CONTENT},
}
_DECLARATION["openapi_extra"] |= {
    "requestBody": {
        "required": True,
        "description": "One event (structured, or binary with `ce-` headers), or a batch.",
        "content": {**_CONTENT, "application/json": _BINARY},
    }
}

router = APIRouter(route_class=Route, tags=["events"])


@router.post("/events", response_class=Response, **_DECLARATION)
async def publish_events(request: Request) -> Response:
    """Publish one event or a batch; a batch is all or nothing. Publishing again does no harm: duplicates are known."""
    context = broker_context_of(request)
    organisation = caller_of(request).own
    mode, events = await _read(request, context)
    await context.view.freshen()
    for position, event in enumerate(events):
        _check_rights(context, organisation, event, f"/{position}" if mode is ContentMode.BATCH else "")
    user = context.view.directory.organisations[organisation.id].amqp_user or organisation.oin
    try:
        results = await context.publisher.publish(user, events)
    except NotPublished as error:
        detail = "The events could not be made safe now. Publishing them again does no harm: duplicates are known."
        raise Unavailable(detail) from error
    rejected = None if results is None else first_rejection(results)
    if rejected is not None:
        raise _refusal(rejected, "")
    return _answer(mode, events, 202 if results is None else 200)


async def _read(request: Request, context: BrokerContext) -> tuple[ContentMode, Sequence[Event]]:
    content_type = request.headers.get("content-type")
    try:
        mode = content_mode(content_type)
    except InvalidEvent as error:
        raise UnsupportedMediaType(error.detail) from error
    limit = context.batch_max_bytes if mode is ContentMode.BATCH else context.event_max_bytes
    body = await Request(request.scope, limited(request, limit)).body()
    try:
        match mode:
            case ContentMode.STRUCTURED:
                return mode, [cloudevents.from_structured(body, max_bytes=context.event_max_bytes)]
            case ContentMode.BATCH:
                events = cloudevents.from_batch(body, max_bytes=context.event_max_bytes)
            case ContentMode.BINARY:
                if not any(name.lower().startswith("ce-") for name in request.headers):
                    raise UnsupportedMediaType(f"Send {STRUCTURED}, {BATCH}, or binary mode with ce- headers.")
                attributes = http_attributes(request.headers.items())
                return mode, [
                    cloudevents.from_binary(attributes, content_type, body, max_bytes=context.event_max_bytes)
                ]
    except InvalidEvent as error:
        raise _problem(error, mode) from error
    if len(events) > context.batch_max_events:
        raise InvalidInput(f"A batch holds {context.batch_max_events} events at most.")
    return mode, events


def _problem(error: InvalidEvent, mode: ContentMode) -> InvalidInput:
    name = error.attribute or ""
    if mode is ContentMode.BINARY and name:
        return InvalidInput(
            params=[InvalidParam(location="header", name=f"ce-{name}", code=error.code, reason=error.detail)]
        )
    return InvalidInput.field(f"/{name}" if name else "", error.code, error.detail)


def _check_rights(context: BrokerContext, organisation: Organisation, event: Event, place: str) -> None:
    directory = context.view.directory
    if not directory.may_speak_for(organisation.id, event.source):
        raise Forbidden(f"This organisation may not speak for the source of the event at '{place or '/'}'.")
    if directory.owner_of_type(event.type) != organisation.id:
        raise Forbidden(f"No domain of this organisation covers the type of the event at '{place or '/'}'.")
    judged = judge_data(directory, event)
    if isinstance(judged, Rejected):
        raise _refusal(judged, place)


def _refusal(rejected: Rejected, place: str) -> InvalidInput:
    return InvalidInput.field(f"{place}/{rejected.attribute or ''}", rejected.code, rejected.detail)


def _answer(mode: ContentMode, events: Sequence[Event], status: int) -> Response:
    if mode is ContentMode.BATCH:
        return Response(b"[" + b",".join(event.body for event in events) + b"]", status, media_type=BATCH)
    return Response(events[0].body, status, media_type=STRUCTURED)
