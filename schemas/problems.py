"""The problems that the API answers with (RFC 9457), as one tree of errors.

    Problem
    ├── InvalidInput 400          names each field and what was expected
    ├── Unauthenticated 401       no credentials, or unknown ones
    ├── Forbidden 403             known, but not allowed to do this
    ├── NotFound 404              absent, or another's
    ├── MethodNotAllowed 405
    ├── NotAcceptable 406
    ├── Conflict 409              not in this state, or taken
    │   └── KeyReused 409         an Idempotency-Key that came with another request
    ├── PreconditionFailed 412    If-Match doesn't hold
    ├── BodyTooLarge 413
    ├── UnsupportedMediaType 415
    ├── TooManyRequests 429       says when to try again
    ├── InternalError 500         says nothing of the inside
    └── Unavailable 503           nothing was done; try again

A problem never repeats the values it was given: they may identify a person.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

PROBLEM_JSON: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:bode:problem:"


class InvalidParam(BaseModel):
    """One field or parameter that was not as expected."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    location: Literal["body", "query", "path", "header"] = Field(
        default="body", alias="in", description="Where the value was given."
    )
    name: str = Field(
        description="JSON Pointer to the field in the body; elsewhere the name of the parameter.",
        examples=["/filters/0/all"],
    )
    code: str = Field(description="What kind of error it is, in kebab case.", examples=["filter"])
    reason: str = Field(description="What was expected.", examples=["must hold at least one filter"])


class ProblemDetails(BaseModel):
    """A problem (RFC 9457), with the members that the Notification API adds."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:bode:problem:not-found",
                    "code": "not-found",
                    "title": "Not found",
                    "status": 404,
                    "detail": "There is no such resource, or it is not yours.",
                    "instance": "urn:uuid:6b1e3b0c-6f0e-4b0a-9a55-0c7d0e6f2a11",
                }
            ]
        }
    )

    type: str = Field(description="URI of the kind of problem.", examples=["urn:bode:problem:not-found"])
    code: str = Field(description="Last part of the type, to switch on.", examples=["not-found"])
    title: str = Field(description="The kind of problem, in words.", examples=["Not found"])
    status: int = Field(description="The HTTP status code.", ge=400, le=599, examples=[404])
    detail: str = Field(
        description="What was wrong with this request, and what would be right.",
        examples=["There is no such resource, or it is not yours."],
    )
    instance: str = Field(
        description="URI of this occurrence: the request id, also found in the log.",
        examples=["urn:uuid:6b1e3b0c-6f0e-4b0a-9a55-0c7d0e6f2a11"],
    )
    invalid_params: list[InvalidParam] = Field(
        default=[], alias="invalidParams", description="What was at fault, where it is a parameter that can be named."
    )


class ValidationProblemDetails(ProblemDetails):
    """A problem with the input, naming each field."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:bode:problem:invalid-input",
                    "code": "invalid-input",
                    "title": "Invalid input",
                    "status": 400,
                    "detail": "sink: must be an absolute http or https URL.",
                    "instance": "urn:uuid:6b1e3b0c-6f0e-4b0a-9a55-0c7d0e6f2a11",
                    "invalidParams": [
                        {
                            "in": "body",
                            "name": "/sink",
                            "code": "sink",
                            "reason": "must be an absolute http or https URL",
                        }
                    ],
                }
            ]
        }
    )

    invalid_params: list[InvalidParam] = Field(
        alias="invalidParams", description="Each field that was not as expected; empty when the body as a whole wasn't."
    )


class Problem(Exception):
    """The root: an error that the API answers as a problem."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"
    default_detail: ClassVar[str] = "Something failed on our side. Nothing is known to be wrong with the request."

    def __init__(
        self,
        detail: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        params: Sequence[InvalidParam] = (),
    ) -> None:
        self.detail = detail or self.default_detail
        self.headers: dict[str, str] = dict(headers or {})
        self.params = tuple(params)
        super().__init__(self.detail)

    def body(self, instance: str) -> dict[str, object]:
        """Returns the members of the problem document; `instance` names this occurrence."""
        members: dict[str, object] = {
            "type": TYPE_PREFIX + self.code,
            "code": self.code,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
        }
        if self.params:
            members["invalidParams"] = [param.model_dump(by_alias=True) for param in self.params]
        return members


class InvalidInput(Problem):
    """400: what was sent is malformed or breaks a rule."""

    status = 400
    code = "invalid-input"
    title = "Invalid input"
    default_detail = "The request could not be understood."

    def __init__(self, detail: str | None = None, *, params: Sequence[InvalidParam] = ()) -> None:
        if detail is None and params:
            detail = "; ".join(f"{param.name.lstrip('/') or 'body'}: {param.reason}" for param in params[:5]) + "."
        super().__init__(detail, params=params)

    @classmethod
    def field(cls, name: str, code: str, reason: str) -> "InvalidInput":
        """Makes the problem for one field of the body, named by its JSON Pointer."""
        return cls(params=[InvalidParam(name=name, code=code, reason=reason)])

    def body(self, instance: str) -> dict[str, object]:
        """Returns the members of the problem document, with `invalidParams`."""
        return {"invalidParams": [], **super().body(instance)}


class Unauthenticated(Problem):
    """401: no credentials, or none that we know."""

    status = 401
    code = "unauthenticated"
    title = "Unauthenticated"
    default_detail = "Send a valid key as 'Authorization: Bearer <key>'."

    def __init__(self, detail: str | None = None, *, known: bool = False) -> None:
        challenge = 'Bearer realm="bode", error="invalid_token"' if known else 'Bearer realm="bode"'
        super().__init__(detail, headers={"WWW-Authenticate": challenge})


class Forbidden(Problem):
    """403: the caller is known, and may not do this."""

    status = 403
    code = "forbidden"
    title = "Forbidden"
    default_detail = "This key may not do this."


class NotFound(Problem):
    """404: absent, or another's; the caller can't tell which."""

    status = 404
    code = "not-found"
    title = "Not found"
    default_detail = "There is no such resource, or it is not yours."


class MethodNotAllowed(Problem):
    """405: the resource is there, but not for this method."""

    status = 405
    code = "method-not-allowed"
    title = "Method not allowed"
    default_detail = "This resource does not know this method."


class NotAcceptable(Problem):
    """406: none of the media types asked for can be given."""

    status = 406
    code = "not-acceptable"
    title = "Not acceptable"
    default_detail = "This API answers in application/json."


class Conflict(Problem):
    """409: not possible in the present state, or already taken."""

    status = 409
    code = "conflict"
    title = "Conflict"
    default_detail = "The resource is not in a state that allows this."


class KeyReused(Conflict):
    """409: the Idempotency-Key came before, with another request."""

    code = "idempotency-key-reused"
    title = "Idempotency key reused"

    def __init__(self) -> None:
        reason = "came before with another request: use a new key for each request that is not a repetition"
        super().__init__(
            f"Idempotency-Key: {reason}.",
            params=[InvalidParam(location="header", name="Idempotency-Key", code="reused", reason=reason)],
        )


class PreconditionFailed(Problem):
    """412: the resource has changed since the caller read it."""

    status = 412
    code = "precondition-failed"
    title = "Precondition failed"
    default_detail = "The resource has changed since it was read: read it again and repeat the change."

    def __init__(self, detail: str | None = None) -> None:
        reason = "is not the ETag of the present version"
        super().__init__(detail, params=[InvalidParam(location="header", name="If-Match", code="stale", reason=reason)])


class BodyTooLarge(Problem):
    """413: the body is larger than the limit."""

    status = 413
    code = "body-too-large"
    title = "Body too large"
    default_detail = "The body is larger than is accepted here."

    def __init__(self, limit: int | None = None) -> None:
        super().__init__(
            None if limit is None else f"The body is larger than the {limit} bytes that are accepted here."
        )


class UnsupportedMediaType(Problem):
    """415: the body's media type isn't understood."""

    status = 415
    code = "unsupported-media-type"
    title = "Unsupported media type"
    default_detail = "Send the body as application/json."


class TooManyRequests(Problem):
    """429: the key is over its rate."""

    status = 429
    code = "too-many-requests"
    title = "Too many requests"
    default_detail = "This key is over its rate of requests."

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(headers={"Retry-After": str(max(1, ceil(retry_after_seconds)))})


class InternalError(Problem):
    """500: a failure of ours."""


class Unavailable(Problem):
    """503: a failure of ours that passes; nothing was done."""

    status = 503
    code = "unavailable"
    title = "Unavailable"
    default_detail = "This can't be done at the moment; nothing was done. Try again."

    def __init__(self, detail: str | None = None, *, retry_after_seconds: int = 1) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after_seconds)})


def pointer(parts: Sequence[str | int]) -> str:
    """Writes a JSON Pointer (RFC 6901) from its parts; the empty string points at the whole body."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in parts)
