"""CloudEvents SQL 1.0: compiled once when subscribing, evaluated for events without ever failing.

`compile_expression` refuses what can't be right and says where; `Expression.holds` is the filter's answer,
false where anything errs (CloudEvents Subscriptions 3.2.4.1.2); `Expression.evaluate` shows value and error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from schemas.cesql import grammar, like
from schemas.cesql.closures import Closure, compile_node, type_of
from schemas.cesql.tree import Attribute, Call, Exists, Like, Node, Value, children
from schemas.cesql.values import ZERO, CesqlError, CesqlSyntaxError, Failure

__all__ = ["CesqlError", "CesqlSyntaxError", "Expression", "Outcome", "compile_expression", "from_node"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an evaluation gave: a value, and the kind of the first error if there was one."""

    value: Value
    error: str | None


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled expression; two with the same tree are equal."""

    node: Node
    text: str = field(compare=False)
    warnings: tuple[str, ...] = field(compare=False, repr=False)
    _run: Closure = field(compare=False, repr=False)
    _hash: int = field(compare=False, repr=False)

    def __hash__(self) -> int:
        """Worked out once: trees are looked up often."""
        return self._hash

    @property
    def names(self) -> frozenset[str]:
        """The attributes that the expression refers to."""
        return frozenset(node.name for node in self._nodes() if isinstance(node, Attribute | Exists))

    @property
    def size(self) -> int:
        """How many operators and operands it has."""
        return sum(1 for _ in self._nodes())

    @property
    def scans(self) -> int:
        """How many of its patterns go through the value character by character."""
        return sum(isinstance(node, Like) and like.parse(node.pattern).scans for node in self._nodes())

    def holds(self, attributes: Mapping[str, Value]) -> bool:
        """Whether the result is the Boolean true and nothing erred."""
        try:
            return self._run(attributes) is True
        except Failure:
            return False

    def value(self, attributes: Mapping[str, Value]) -> Value | None:
        """The value, or nothing where something erred."""
        try:
            return self._run(attributes)
        except Failure:
            return None

    def evaluate(self, attributes: Mapping[str, Value]) -> Outcome:
        """The value, or after an error the value that the specification gives beside it."""
        try:
            return Outcome(self._run(attributes), None)
        except Failure as failure:
            # Only functions give another value than zero beside an error: it shows where the function is the root.
            value = failure.value if failure.value is not None and self._root_failed(attributes) else None
            return Outcome(ZERO[type_of(self.node)] if value is None else value, failure.kind)

    def _nodes(self) -> Iterator[Node]:
        waiting = [self.node]
        while waiting:
            node = waiting.pop()
            yield node
            waiting.extend(children(node))

    def _root_failed(self, attributes: Mapping[str, Value]) -> bool:
        if not isinstance(self.node, Call):
            return False
        return all(from_node(argument).evaluate(attributes).error is None for argument in self.node.arguments)


def compile_expression(text: str) -> Expression:
    """Compile an expression.

    Raises:
        CesqlSyntaxError: with line and column of what is wrong.
    """
    node, warnings = grammar.parse(text)
    if type_of(node) not in ("boolean", None):
        warnings = (*warnings, "never-boolean")
    return Expression(node, text, warnings, compile_node(node), hash(node))


def from_node(node: Node, text: str = "") -> Expression:
    """Compile a part of an expression that was parsed before."""
    return Expression(node, text, (), compile_node(node), hash(node))
