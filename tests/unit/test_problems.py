import json

import pytest

from schemas.problems import (
    BodyTooLarge,
    InternalError,
    InvalidInput,
    InvalidParam,
    KeyReused,
    PreconditionFailed,
    Problem,
    ProblemDetails,
    TooManyRequests,
    Unauthenticated,
    Unavailable,
    ValidationProblemDetails,
    pointer,
)

INSTANCE = "urn:uuid:6b1e3b0c-6f0e-4b0a-9a55-0c7d0e6f2a11"
KINDS = sorted(Problem.__subclasses__(), key=lambda kind: kind.status)


def test_each_kind_has_a_status_and_a_code_of_its_own() -> None:
    assert len({kind.status for kind in KINDS}) == len({kind.code for kind in KINDS}) == len(KINDS) == 13


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_a_problem_document_with_the_members_of_the_notification_api(kind: type[Problem]) -> None:
    problem = kind(2.0) if kind is TooManyRequests else kind()
    body = problem.body(INSTANCE)
    model = ValidationProblemDetails if kind is InvalidInput else ProblemDetails
    assert model.model_validate(body).instance == INSTANCE
    assert {"type", "code", "title", "status", "detail", "instance"} <= set(body)
    assert body["type"] == f"urn:bode:problem:{kind.code}"
    assert json.dumps(body)


def test_invalid_input_names_each_field() -> None:
    params = [
        InvalidParam(name="/sink", code="sink", reason="must be a URL"),
        InvalidParam(location="query", name="limit", code="int", reason="must be a number"),
    ]
    body = InvalidInput(params=params).body(INSTANCE)
    assert body["detail"] == "sink: must be a URL; limit: must be a number."
    assert body["invalidParams"] == [
        {"in": "body", "name": "/sink", "code": "sink", "reason": "must be a URL"},
        {"in": "query", "name": "limit", "code": "int", "reason": "must be a number"},
    ]


@pytest.mark.parametrize(("seconds", "header"), [(0.001, "1"), (1, "1"), (1.2, "2"), (60, "60")])
def test_who_comes_too_often_is_told_when_to_come_back_in_whole_seconds(seconds: float, header: str) -> None:
    assert TooManyRequests(seconds).headers == {"Retry-After": header}


def test_who_is_not_known_is_told_how_to_be() -> None:
    assert Unauthenticated().headers == {"WWW-Authenticate": 'Bearer realm="bode"'}
    assert "invalid_token" in Unauthenticated(known=True).headers["WWW-Authenticate"]


def test_a_passing_failure_says_when_to_try_again() -> None:
    assert Unavailable(retry_after_seconds=7).headers == {"Retry-After": "7"}


def test_a_failure_of_ours_has_a_text_of_its_own() -> None:
    assert InternalError().detail == Problem.default_detail


def test_a_body_over_the_limit_is_told_the_limit() -> None:
    assert "1024 bytes" in BodyTooLarge(1024).detail


@pytest.mark.parametrize(
    ("parts", "text"),
    [([], ""), (["filters", 0, "all"], "/filters/0/all"), (["a/b", "c~d"], "/a~1b/c~0d"), ([""], "/")],
)
def test_json_pointers_are_escaped(parts: list[str | int], text: str) -> None:
    assert pointer(parts) == text


def test_a_header_at_fault_is_named_too() -> None:
    for problem, name in ((KeyReused(), "Idempotency-Key"), (PreconditionFailed(), "If-Match")):
        body = problem.body(INSTANCE)
        assert ProblemDetails.model_validate(body).invalid_params[0].name == name
        assert body["invalidParams"][0]["in"] == "header"  # type: ignore[index]
