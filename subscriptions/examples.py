"""Examples of bodies, made of what the schemas say: the example of a whole, or else of each of its members.

A member whose schema gives nothing to go by is left out; `tests/unit/test_openapi.py` finds it.
"""

from collections.abc import Mapping
from typing import Any, Final

MISSING: Final = object()
"""There is no example, and none can be made."""

_OF_FORMAT: Final = {
    "date": "2026-11-24",
    "date-time": "2026-11-24T09:30:00Z",
    "duration": "PT5M",
    "uri": "https://bode.example.nl/v1/subscriptions/5148d940-aaaa-4f8e-aaef-c559e26e09dc",
    "uuid": "5148d940-aaaa-4f8e-aaef-c559e26e09dc",
}
_NULL: Final = {"type": "null"}


def example_of(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Any:
    """Returns an example that is valid under a schema of the document, or `MISSING`; `schemas` are its components."""
    if "examples" in schema:
        return schema["examples"][0]
    for word in ("example", "const"):
        if word in schema:
            return schema[word]
    if "$ref" in schema:
        return example_of(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    if "enum" in schema:
        return schema["enum"][0]
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            found = (example_of(part, schemas) for part in schema[word] if part != _NULL)
            return next((example for example in found if example is not MISSING), MISSING)
    match schema.get("type"):
        case "object":
            return _object(schema, schemas)
        case "array":
            item = example_of(schema.get("items", {}), schemas)
            return MISSING if item is MISSING else [item]
        case "string":
            return _OF_FORMAT.get(schema.get("format", ""), MISSING)
        case "integer" | "number":
            return max(schema.get("minimum", 0), min(1, schema.get("maximum", 1)))
        case "boolean":
            return schema.get("default", True)
    return MISSING


def _object(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Any:
    members = {name: example_of(part, schemas) for name, part in schema.get("properties", {}).items()}
    if any(members[name] is MISSING for name in schema.get("required", ())):
        return MISSING
    return {name: example for name, example in members.items() if example is not MISSING}
