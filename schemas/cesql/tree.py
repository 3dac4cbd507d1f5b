"""The syntax tree of a CloudEvents SQL expression, and the static type of each node."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal as OneOf
from typing import TypeAlias

Value: TypeAlias = str | int | bool
Type: TypeAlias = OneOf["boolean", "integer", "string"]
LogicOperator: TypeAlias = OneOf["AND", "OR", "XOR"]


@dataclass(frozen=True, slots=True, eq=False)
class Literal:
    """A constant; its Python type is its CESQL type."""

    value: Value

    def __eq__(self, other: object) -> bool:
        """Equal in type and value: in Python `True == 1`."""
        return isinstance(other, Literal) and type(self.value) is type(other.value) and self.value == other.value

    def __hash__(self) -> int:
        """Apart for each type."""
        return hash((type(self.value), self.value))


@dataclass(frozen=True, slots=True)
class Attribute:
    """A context attribute of the event, by its lower-case name."""

    name: str


@dataclass(frozen=True, slots=True)
class Negation:
    """`NOT x` or `-x`. `grouped` remembers parentheses around it, for the warnings only."""

    operator: OneOf["NOT", "-"]
    operand: Node
    grouped: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Logic:
    """A chain of AND, OR and XOR, worked off from left to right (specification 3.6)."""

    first: Node
    rest: tuple[tuple[LogicOperator, Node], ...]


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """`x + y` and its like, on integers."""

    operator: OneOf["+", "-", "*", "/", "%"]
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Comparison:
    """`x = y` and its like; `<>` is kept as `!=`."""

    operator: OneOf["=", "!=", "<", "<=", ">", ">="]
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Like:
    """`x LIKE 'pattern'`, the pattern as written."""

    operand: Node
    pattern: str
    negated: bool


@dataclass(frozen=True, slots=True)
class Exists:
    """`EXISTS attribute`."""

    name: str


@dataclass(frozen=True, slots=True)
class In:
    """`x IN (y, …)`."""

    operand: Node
    elements: tuple[Node, ...]
    negated: bool


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a built-in function, by its upper-case name; name and arity are known to exist."""

    name: str
    arguments: tuple[Node, ...]


Node: TypeAlias = Literal | Attribute | Negation | Logic | Arithmetic | Comparison | Like | Exists | In | Call


def children(node: Node) -> tuple[Node, ...]:
    """The nodes directly under this one."""
    match node:
        case Negation():
            return (node.operand,)
        case Logic():
            return (node.first, *(operand for _, operand in node.rest))
        case Arithmetic() | Comparison():
            return (node.left, node.right)
        case Like():
            return (node.operand,)
        case In():
            return (node.operand, *node.elements)
        case Call():
            return node.arguments
    return ()
