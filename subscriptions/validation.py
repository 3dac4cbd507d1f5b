"""Pydantic's findings as the fields of a problem, without the values that were given."""

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias

from schemas.problems import InvalidParam, pointer

Location: TypeAlias = Literal["body", "query", "path", "header"]

_REASONS: Final = {
    "missing": "is required",
    "extra_forbidden": "is not a known field",
    "json_invalid": "must be valid JSON",
    "model_attributes_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
}
_LIMIT: Final = 50


def invalid_params(errors: Iterable[Mapping[str, Any]], location: Location | None = None) -> list[InvalidParam]:
    """Turns pydantic's errors into `invalidParams`; without `location`, the first part of each place names it."""
    params: dict[tuple[str, str], InvalidParam] = {}
    for error in errors:
        place = list(error["loc"])
        where: Location = location or (
            place.pop(0) if place and place[0] in ("body", "query", "path", "header") else "body"
        )
        kind = error["type"]
        if kind == "json_invalid":
            place = []  # what follows is the offset, not a field
        if place[:1] in (["sinkCredential"], ["protocolSettings"]):
            del place[1:2]  # the kind of credential or settings, by which pydantic chose the model: not a member
        name = pointer(place) if where == "body" else ".".join(map(str, place))
        reason = _REASONS.get(kind) or error["msg"].removeprefix("Value error, ").replace("Input should", "must", 1)
        param = InvalidParam(location=where, name=name, code=kind.replace("_", "-"), reason=reason[:500])
        params.setdefault((name, kind), param)
        if len(params) >= _LIMIT:
            break
    return list(params.values())
