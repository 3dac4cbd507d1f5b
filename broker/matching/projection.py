"""Reading from JSON only what some filter refers to: msgspec skips the rest without building it.

Events of another shape than the pointers expect (a string where an object was thought, a number out of range) are
decoded whole and walked instead: slower, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any, Final, cast

import msgspec

from broker.matching.atoms import TEXTUAL
from schemas.filters import values
from schemas.filters.algebra import Pointer

Fields = tuple[values.JsonValue, ...]
Text = str | int | bool | None


_DATA: Final = b',"data":'


_UNNAMEABLE: Final = frozenset({'"', "\\", *map(chr, range(32))})


class _Node:
    """A step of the pointers: what lies under it, and whether itself is asked for."""

    __slots__ = ("below", "whole")

    def __init__(self) -> None:
        self.below: dict[str, _Node] = {}
        self.whole = False


def data_reader(pointers: Iterable[Pointer]) -> Callable[[bytes], Fields]:
    """A function from a structured-mode event to what the pointers find, in their order."""
    wanted = tuple(pointers)
    root = _Node()
    for pointer in wanted:
        node = root
        for token in pointer:
            # Digits may be an array's index, and msgspec renames to no such name: take the whole.
            if node.whole or token.isdigit() or not _UNNAMEABLE.isdisjoint(token):
                break
            node = node.below.setdefault(token, _Node())
        node.whole, node.below = True, {}
    kind, nothing = _build(root)
    decode = msgspec.json.Decoder(kind).decode
    paths = [_path(root, pointer) for pointer in wanted]
    direct = all(steps and not rest for steps, rest in paths)
    pick = _picker([steps for steps, _ in paths]) if direct else None

    def read(body: bytes) -> Fields:
        # In canonical form attributes are scalars and come first, so this is where `data` begins.
        at = body.find(_DATA)
        try:
            if at < 0 and b'"data"' in body:
                raise msgspec.DecodeError
            data = decode(memoryview(body)[at + len(_DATA) : -1]) if at >= 0 else nothing
        except msgspec.DecodeError:
            whole = values.data_of(body)
            return tuple(values.find(whole, pointer) for pointer in wanted)
        if pick is not None:
            return pick(data)
        return tuple(values.find(attrgetter(steps)(data) if steps else data, rest) for steps, rest in paths)

    return read


def _build(node: _Node) -> tuple[Any, Any]:
    """The type of a step and what stands for its absence: nothing for a value, a struct of nothings for an object.

    Field names are counted; the members' own names are only looked for.
    """
    if node.whole:
        return Any, values.ABSENT
    names = {f"f{place}": token for place, token in enumerate(node.below)}
    fields = [(name, *_build(node.below[token])) for name, token in names.items()]
    made = msgspec.defstruct("Fields", fields, rename=names, frozen=True, gc=False)
    return made, made()


def _picker(paths: list[str]) -> Callable[[Any], Fields]:
    if len(paths) > 1:
        return attrgetter(*paths)
    one = attrgetter(paths[0])
    return lambda data: (one(data),)


def _path(root: _Node, pointer: Pointer) -> tuple[str, Pointer]:
    """The struct fields that lead towards a pointer, with dots, and the steps that remain inside a whole value."""
    steps: list[str] = []
    node = root
    for place, token in enumerate(pointer):
        if node.whole:
            return ".".join(steps), pointer[place:]
        steps.append(f"f{list(node.below).index(token)}")
        node = node.below[token]
    return ".".join(steps), ()


class Projection:
    """The context attributes that filters refer to, as one struct with counted field names."""

    def __init__(self, names: Iterable[str]) -> None:
        """Prepare for these attributes; `type` always comes along."""
        self.names: Final = ("type", *sorted(set(names) - {"type"}))
        self.fields: Final[Mapping[str, str]] = {name: f"f{place}" for place, name in enumerate(self.names)}
        made = msgspec.defstruct(
            "Attributes",
            [(self.fields[name], str | None if name in TEXTUAL else Text, None) for name in self.names],
            rename={field: name for name, field in self.fields.items()},
            frozen=True,
            gc=False,
        )
        self.decode: Final = cast("Callable[[bytes], Any]", msgspec.json.Decoder(made).decode)

    def attributes(self, struct: Any) -> dict[str, str | int | bool]:
        """The struct as a mapping, without what is absent."""
        pairs = zip(self.names, msgspec.structs.astuple(struct), strict=True)
        return {name: value for name, value in pairs if value is not None}


def all_attributes(body: bytes) -> dict[str, str | int | bool]:
    """Every context attribute of a structured-mode event, by decoding it whole."""
    document = values.decode(body)
    if not isinstance(document, dict):
        return {}
    return {
        name: value
        for name, value in document.items()
        if isinstance(value, str | int | bool) and name not in ("data", "data_base64")
    }
