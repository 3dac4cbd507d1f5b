"""One event while it is being matched: what guards read, each part at most once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from schemas.filters import canonical, values
from schemas.filters.algebra import Pointer

if TYPE_CHECKING:
    from broker.matching.guards import Guard
    from schemas.cesql import Expression
    from schemas.cesql.tree import Value

Attributes = Mapping[str, str | int | bool]
ListsOf = Callable[[str], Sequence[str]]
Reader = tuple[tuple[Pointer, ...], Callable[[bytes], tuple[values.JsonValue, ...]]]


class Context:
    """Attributes and body of one event, with what has been found out about it so far."""

    __slots__ = ("_data", "_fields", "_lists", "_reader", "_values", "attributes", "body", "known", "lists_of")

    def __init__(self, attributes: Attributes, body: bytes, lists_of: ListsOf, reader: Reader | None = None) -> None:
        """Read nothing yet; `reader` gives the fields that guards are known to ask for."""
        self._reader = reader
        self.attributes = attributes
        self.body = body
        self.lists_of = lists_of
        self.known: dict[Guard, bool] = {}
        self._fields: dict[Pointer, values.JsonValue] = {}
        self._lists: dict[str, frozenset[str]] = {}
        self._values: dict[Expression, Value | None] = {}
        self._data: values.JsonValue = self  # stands for "not parsed"

    def text(self, name: str) -> str | None:
        """The canonical string of an attribute."""
        value = self.attributes.get(name)
        return value if value is None or value.__class__ is str else canonical(value)

    def value(self, expression: Expression) -> Value | None:
        """What an expression gives, worked out once however many guards ask; nothing where it errs."""
        try:
            return self._values[expression]
        except KeyError:
            found = self._values[expression] = expression.value(self.attributes)
            return found

    def field(self, pointer: Pointer) -> values.JsonValue:
        """What a pointer finds in `data`."""
        found = self._fields.get(pointer, self)
        if found is self:
            if self._reader is not None:
                (pointers, read), self._reader = self._reader, None
                self.learn(zip(pointers, read(self.body), strict=True))
                return self.field(pointer)
            if self._data is self:
                self._data = values.data_of(self.body)
            found = self._fields[pointer] = values.find(self._data, pointer)
        return found

    def learn(self, fields: Iterable[tuple[Pointer, values.JsonValue]]) -> None:
        """Take what a projection has read already."""
        self._fields.update(fields)

    def follows(self, name: str, list_id: str) -> bool:
        """Whether the follow list seems to hold the attribute's value."""
        found = self._lists.get(name)
        if found is None:
            text = self.text(name)
            found = self._lists[name] = frozenset(self.lists_of(text)) if text is not None else frozenset()
        return list_id in found
