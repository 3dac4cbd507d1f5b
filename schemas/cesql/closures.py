"""Syntax trees to Python closures: each takes the attributes and gives a value or raises `Failure`.

Evaluation fails fast (specification 4.1), which is all that a filter needs: an expression that errs is false.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, assert_never

from schemas.cesql import functions, like
from schemas.cesql.tree import (
    Arithmetic,
    Attribute,
    Call,
    Comparison,
    Exists,
    In,
    Like,
    Literal,
    Logic,
    Negation,
    Node,
    Type,
    Value,
)
from schemas.cesql.values import Failure, checked, to_boolean, to_integer, to_string, type_of_value

Attributes = Mapping[str, Value]
Closure = Callable[[Attributes], Value]
CASTS: Final[dict[Type, Callable[[Value], Value]]] = {
    "boolean": to_boolean,
    "integer": to_integer,
    "string": to_string,
}


def type_of(node: Node) -> Type | None:
    """The type that the node always gives; nothing for an attribute, whose type the event decides."""
    match node:
        case Literal():
            return type_of_value(node.value)
        case Attribute():
            return None
        case Negation():
            return "boolean" if node.operator == "NOT" else "integer"
        case Arithmetic():
            return "integer"
        case Call():
            return _function(node).result
        case Logic() | Comparison() | Like() | Exists() | In():
            return "boolean"
    assert_never(node)


def compile_node(node: Node) -> Closure:
    """Compile a tree whose functions are known to exist."""
    match node:
        case Literal():
            value = node.value
            return lambda attributes: value
        case Attribute():
            return _attribute(node.name)
        case Exists():
            name = node.name
            return lambda attributes: name in attributes
        case Negation():
            if node.operator == "NOT":
                truth = _cast(node.operand, "boolean")
                return lambda attributes: not truth(attributes)
            number: Callable[[Attributes], Any] = _cast(node.operand, "integer")
            return lambda attributes: checked(-number(attributes))
        case Logic():
            return _logic(node)
        case Arithmetic():
            return _arithmetic(node)
        case Comparison():
            return _comparison(node)
        case Like():
            text: Callable[[Attributes], Any] = _cast(node.operand, "string")
            matches, wanted = like.matcher(like.parse(node.pattern)), not node.negated
            return lambda attributes: matches(text(attributes)) is wanted
        case In():
            return _in(node)
        case Call():
            return _call(node)
    assert_never(node)


def _attribute(name: str) -> Closure:
    def read(attributes: Attributes) -> Value:
        value = attributes.get(name)
        if value is None:
            raise Failure("missingAttribute", f"the event has no attribute {name}")
        return value

    return read


def _cast(node: Node, wanted: Type) -> Closure:
    closure = compile_node(node)
    if type_of(node) == wanted and wanted != "integer":
        return closure
    cast = CASTS[wanted]
    return lambda attributes: cast(closure(attributes))


def _logic(node: Logic) -> Closure:
    first = _cast(node.first, "boolean")
    rest = [(operator, _cast(operand, "boolean")) for operator, operand in node.rest]

    def evaluate(attributes: Attributes) -> Value:
        value = first(attributes)
        for operator, operand in rest:
            if operator == "XOR":
                value = value is not operand(attributes)
            elif value is (operator == "AND"):  # else short-circuited: false AND …, true OR …
                value = operand(attributes)
        return value

    return evaluate


def _arithmetic(node: Arithmetic) -> Closure:
    left: Callable[[Attributes], Any] = _cast(node.left, "integer")
    right: Callable[[Attributes], Any] = _cast(node.right, "integer")
    match node.operator:
        case "+":
            return lambda attributes: checked(left(attributes) + right(attributes))
        case "-":
            return lambda attributes: checked(left(attributes) - right(attributes))
        case "*":
            return lambda attributes: checked(left(attributes) * right(attributes))
        case "/":
            return lambda attributes: checked(_divided(left(attributes), right(attributes))[0])
        case "%":
            return lambda attributes: _divided(left(attributes), right(attributes))[1]
    assert_never(node.operator)


def _divided(dividend: int, divisor: int) -> tuple[int, int]:
    """Quotient rounded towards zero, and the remainder with the sign of the dividend."""
    if divisor == 0:
        raise Failure("math", "division by zero", 0)
    quotient, remainder = divmod(abs(dividend), abs(divisor))
    return (
        quotient if (dividend < 0) == (divisor < 0) else -quotient,
        remainder if dividend >= 0 else -remainder,
    )


def _comparison(node: Comparison) -> Closure:
    if node.operator in ("=", "!="):
        left, right, wanted = compile_node(node.left), compile_node(node.right), node.operator == "="
        fixed = type_of(node.right)

        def equal(attributes: Attributes) -> Value:
            first, second = left(attributes), right(attributes)
            # The type of the right operand decides; the cast also keeps True and 1 apart.
            return (CASTS[fixed or type_of_value(second)](first) == second) is wanted

        return equal
    low: Callable[[Attributes], Any] = _cast(node.left, "integer")
    high: Callable[[Attributes], Any] = _cast(node.right, "integer")
    match node.operator:
        case "<":
            return lambda attributes: bool(low(attributes) < high(attributes))
        case "<=":
            return lambda attributes: bool(low(attributes) <= high(attributes))
        case ">":
            return lambda attributes: bool(low(attributes) > high(attributes))
        case _:
            return lambda attributes: bool(low(attributes) >= high(attributes))


def _in(node: In) -> Closure:
    operand, wanted = compile_node(node.operand), not node.negated
    elements = [compile_node(element) for element in node.elements]

    def member(attributes: Attributes) -> Value:
        value = operand(attributes)
        cast = CASTS[type_of_value(value)]
        return any(cast(element(attributes)) == value for element in elements) is wanted

    return member


def _function(node: Call) -> functions.Function:
    function = functions.find(node.name, len(node.arguments))
    if function is None:
        raise Failure("missingFunction", f"there is no function {node.name} with {len(node.arguments)} arguments")
    return function


def _call(node: Call) -> Closure:
    function = _function(node)
    further = function.further or "string"
    types = function.parameters + (further,) * (len(node.arguments) - len(function.parameters))
    arguments = [_cast(argument, wanted) for argument, wanted in zip(node.arguments, types, strict=True)]
    body = function.body
    return lambda attributes: body(*[argument(attributes) for argument in arguments])
