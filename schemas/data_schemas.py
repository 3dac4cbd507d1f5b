"""JSON Schemas of `data` (2020-12), as registries give them: judged before they are taken, then run on every event.

A schema comes from outside and runs while events are being accepted, so what it can cost is bounded before it is taken:
its size, its depth, and its weight, the number of subschemas that it is when every reference is written out. References
lead only to places in the schema itself and never in a circle; patterns are of RE2's kind, matched in linear time.
So a validation costs at most its weight for each value in `data`.

    InvalidSchema    what was given is no schema that we take; points at the place
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import jsonschema_rs
import msgspec
import orjson

from schemas.problems import pointer as json_pointer

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
MAX_BYTES: Final = 64 * 1024
MAX_DEPTH: Final = 32
MAX_WEIGHT: Final = 1_000
_PATTERN_BYTES: Final = 1 << 20
"""Largest compiled pattern: `a{1000}{1000}` is refused, not built."""
_LONGEST_POINTER: Final = 200

_ONE: Final = (
    "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not", "propertyNames", "then",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_LISTED: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_NAMED: Final = ("dependentSchemas", "patternProperties", "properties")
_REFUSED: Final = ("$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "$anchor", "$vocabulary")


class InvalidSchema(ValueError):
    """A schema that we don't take, and where in it."""

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(detail)
        self.pointer = pointer
        self.detail = detail


class Finding(NamedTuple):
    """The first thing that `data` has against its schema: where, and which keyword. Never a value."""

    pointer: str
    """JSON Pointer into `data`; a name that the schema doesn't spell out stands as `*`: it may identify a person."""
    keyword: str


NO_DATA: Final = Finding("", "data")
"""There is no JSON data to validate."""


class _WithData(msgspec.Struct):
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_data_of = msgspec.json.Decoder(_WithData)


class DataSchema:
    """One schema, compiled when it is first used; a process that never validates never compiles."""

    __slots__ = ("_names", "_schema", "_validator")

    def __init__(self, schema: dict[str, Any] | bool) -> None:
        """Take a schema that `check` has judged."""
        self._schema = schema
        self._validator: jsonschema_rs.Draft202012Validator | None = None
        self._names: frozenset[str] = frozenset()

    def find(self, body: bytes) -> Finding | None:
        """Hold the data of an event, given in canonical form, against the schema; None: it meets it."""
        try:
            data = _data_of.decode(body).data
            if isinstance(data, msgspec.UnsetType):
                return NO_DATA
            value = orjson.loads(bytes(data))
        except (msgspec.DecodeError, orjson.JSONDecodeError):  # a lone surrogate, say: nothing a schema can speak of
            return NO_DATA
        if self._validator is None:
            self._validator = _compile(self._schema)
            self._names = frozenset(_names(self._schema))
        if self._validator.is_valid(value):
            return None
        error = next(self._validator.iter_errors(value))
        place = json_pointer(list(self._said(error.instance_path, value)))
        return Finding(place[:_LONGEST_POINTER], error.kind.name)

    def _said(self, path: Iterable[str | int], value: Any) -> Iterator[str | int]:
        # The value says what a step is: the validator gives a name of digits (a BSN) as a number too.
        for step in path:
            if isinstance(value, list):
                yield step
                value = value[int(step)]
            else:
                name = str(step)
                yield name if name in self._names else "*"
                value = value.get(name) if isinstance(value, dict) else None


def check(schema: Any) -> None:
    """Judge a schema that a registry gives.

    Raises:
        InvalidSchema: it isn't valid 2020-12, refers to something outside it, or could cost too much.
    """
    if not isinstance(schema, dict | bool):
        raise InvalidSchema("", "must be an object or a boolean")
    if len(orjson.dumps(schema)) > MAX_BYTES:
        raise InvalidSchema("", f"must not be larger than {MAX_BYTES} bytes")
    if isinstance(schema, dict) and schema.get("$schema", DIALECT) not in (DIALECT, DIALECT + "#"):
        raise InvalidSchema("/$schema", f"must be {DIALECT}, or absent")
    _check_depth(schema, 0)
    _Weights(schema).of(())
    try:
        _compile(schema)
    except jsonschema_rs.ValidationError as error:
        raise InvalidSchema(json_pointer(error.instance_path), "is not valid JSON Schema 2020-12") from None
    except (ValueError, jsonschema_rs.ReferencingError):
        raise InvalidSchema("", "can't be compiled: a reference or a pattern in it is not valid") from None


def _compile(schema: dict[str, Any] | bool) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(
        schema,
        validate_formats=True,
        pattern_options=jsonschema_rs.RegexOptions(size_limit=_PATTERN_BYTES),
        offline=True,
    )


def _check_depth(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidSchema("", f"must not be nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, dict | list):
        for content in value.values() if isinstance(value, dict) else value:
            _check_depth(content, depth + 1)


def rebased(schema: Any, base: str) -> Any:
    """A schema that stands at `base` (`#/components/…`) in another document, with its references leading there."""
    if not isinstance(schema, dict):
        return schema
    found: dict[str, Any] = {}
    for keyword, content in schema.items():
        if keyword == "$ref":
            found[keyword] = base + content.removeprefix("#")
        elif keyword in (*_NAMED, "$defs") and isinstance(content, dict):
            found[keyword] = {name: rebased(part, base) for name, part in content.items()}
        elif keyword in _LISTED:
            found[keyword] = [rebased(part, base) for part in content]
        elif keyword in _ONE:
            found[keyword] = rebased(content, base)
        elif keyword not in ("$id", "$schema"):
            found[keyword] = content
    return found


_Place = tuple[str, ...]


class _Weights:
    """Counts what a schema is with every reference written out; a reference that leads back to itself is refused."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[_Place, int] = {}
        self._open: set[_Place] = set()

    def of(self, place: _Place) -> int:
        known = self._known.get(place)
        if known is not None:
            return known
        if place in self._open:
            raise InvalidSchema(json_pointer(place), "is part of itself: recursive schemas are not taken")
        self._open.add(place)
        weight = 1 + sum(self.of(part) for part in self._parts(place))
        if weight > MAX_WEIGHT:
            raise InvalidSchema(
                json_pointer(place), f"has more than {MAX_WEIGHT} subschemas when its references are written out"
            )
        self._open.remove(place)
        self._known[place] = weight
        return weight

    def _parts(self, place: _Place) -> Iterator[_Place]:
        schema = self._at(place)
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise InvalidSchema(json_pointer(place), "must be a schema: an object or a boolean")
        for keyword in _REFUSED:
            if keyword in schema:
                raise InvalidSchema(json_pointer((*place, keyword)), "is not taken here")
        if place and "$id" in schema:
            raise InvalidSchema(json_pointer((*place, "$id")), "is taken at the top only")
        if "$ref" in schema:
            yield self._target(schema["$ref"], (*place, "$ref"))
        for keyword in _ONE:
            if keyword in schema:
                yield (*place, keyword)
        for keyword in (*_LISTED, *_NAMED):
            found = schema.get(keyword)
            if isinstance(found, list):
                yield from ((*place, keyword, str(number)) for number in range(len(found)))
            elif isinstance(found, dict):
                yield from ((*place, keyword, name) for name in found)

    def _target(self, reference: Any, place: _Place) -> _Place:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")) or "%" in reference:
            raise InvalidSchema(json_pointer(place), "must be a JSON Pointer within this schema, such as #/$defs/adres")
        target = tuple(step.replace("~1", "/").replace("~0", "~") for step in reference.split("/")[1:])
        try:
            self._at(target)
        except LookupError:
            raise InvalidSchema(json_pointer(place), "leads to a place that isn't there") from None
        return target

    def _at(self, place: _Place) -> Any:
        found = self._root
        for step in place:
            if isinstance(found, dict):
                found = found[step]
            elif isinstance(found, list) and step.isdecimal() and step.isascii():
                found = found[int(step)]
            else:
                raise LookupError(step)
        return found


def _names(schema: Any) -> Iterator[str]:
    """The names of properties that a schema spells out, wherever in it."""
    if isinstance(schema, Mapping):
        for keyword, content in schema.items():
            if keyword in ("properties", "dependentSchemas", "dependentRequired") and isinstance(content, Mapping):
                yield from content
            elif keyword == "required" and isinstance(content, list):
                yield from (name for name in content if isinstance(name, str))
            yield from _names(content)
    elif isinstance(schema, list):
        for content in schema:
            yield from _names(content)
