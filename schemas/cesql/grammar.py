"""Text to syntax tree, by lark (LALR): the precedence of specification 3.6, errors with line and column.

AND, OR and XOR share one precedence and are worked off from left to right, as the text says (the published
ANTLR grammar is right-associative). NOT and `-` bind more tightly than LIKE, IN and every binary operator.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, cast

from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedInput, UnexpectedToken, v_args
from lark.exceptions import VisitError

from schemas.cesql import functions
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
    LogicOperator,
    Negation,
    Node,
    children,
)
from schemas.cesql.values import MAX_INTEGER, MIN_INTEGER, CesqlSyntaxError

MAX_EXPRESSION: Final = 4_096
"""Characters of one expression."""
MAX_NODES: Final = 512
"""Nodes of its tree."""
MAX_TREE_DEPTH: Final = 48
"""Levels of its tree; a chain of AND, OR and XOR is one level."""
MAX_PATTERN: Final = 256
"""Characters of one LIKE pattern."""

_GRAMMAR = r"""
?start: logic
?logic: comparison (LOGIC comparison)*
?comparison: sum | comparison COMPARE sum
?sum: product | sum (PLUS | MINUS) product
?product: postfix | product TIMES postfix
?postfix: unary
    | postfix NOT? LIKE STRING           -> like
    | postfix NOT? IN "(" list ")"       -> in_
?unary: NOT unary                        -> not_
    | PLUS INTEGER                       -> integer
    | MINUS unary                        -> minus
    | EXISTS NAME                        -> exists
    | atom
?atom: "(" logic ")"                     -> group
    | FUNCTION "(" [list] ")"            -> call
    | INTEGER                            -> integer
    | STRING                             -> string
    | TRUE                               -> true
    | FALSE                              -> false
    | NAME                               -> attribute
list: logic ("," logic)*

LOGIC.3: /(and|or|xor)(?![a-z0-9_])/i
NOT.3: /not(?![a-z0-9_])/i
LIKE.3: /like(?![a-z0-9_])/i
IN.3: /in(?![a-z0-9_])/i
EXISTS.3: /exists(?![a-z0-9_])/i
TRUE.3: /true(?![a-z0-9_])/i
FALSE.3: /false(?![a-z0-9_])/i
FUNCTION.2: /[a-z][a-z_]*(?=[ \t\r\n]*\()/i
INTEGER.2: /[0-9]+(?![a-z0-9])/i
NAME: /[a-z0-9]+/i
STRING: /'(\\.|[^'\\])*'|"(\\.|[^"\\])*"/s
COMPARE: "=" | "!=" | "<>" | ">=" | "<=" | "<" | ">"
PLUS: "+"
MINUS: "-"
TIMES: "*" | "/" | "%"
%ignore /[ \t\r\n]+/
"""


def parse(text: str) -> tuple[Node, tuple[str, ...]]:
    """The tree of an expression, and warnings about what may not mean what it looks like.

    Raises:
        CesqlSyntaxError: the text is no expression, names an unknown function, or is over a limit.
    """
    if len(text) > MAX_EXPRESSION:
        raise CesqlSyntaxError(f"the expression is longer than {MAX_EXPRESSION} characters", 1, MAX_EXPRESSION + 1)
    builder = _Builder()
    try:
        tree = _PARSER.parse(text)
        node = builder.transform(tree)
    except UnexpectedInput as problem:
        raise _syntax_error(text, problem) from None
    except VisitError as problem:
        if isinstance(problem.orig_exc, CesqlSyntaxError):
            raise problem.orig_exc from None
        raise
    _check_size(node, builder.widest)
    return node, tuple(dict.fromkeys(builder.warnings))


def _syntax_error(text: str, problem: UnexpectedInput) -> CesqlSyntaxError:
    if isinstance(problem, UnexpectedCharacters):
        return CesqlSyntaxError("unexpected character", problem.line, problem.column)
    if isinstance(problem, UnexpectedToken) and problem.token.type != "$END":
        return CesqlSyntaxError("unexpected word or sign", problem.line, problem.column)
    lines = text.split("\n")
    return CesqlSyntaxError("the expression ends too early", len(lines), len(lines[-1]) + 1)


def _check_size(root: Node, widest: Token | None) -> None:
    nodes, level, depth = 0, [root], 0
    while level:
        nodes += len(level)
        depth += 1
        if nodes > MAX_NODES or depth > MAX_TREE_DEPTH:
            limit = f"{MAX_NODES} operators and operands" if nodes > MAX_NODES else f"{MAX_TREE_DEPTH} levels"
            raise CesqlSyntaxError(f"the expression has more than {limit}", 1, 1)
        if widest is not None and Literal(-MIN_INTEGER) in level:
            raise _too_wide(widest)
        level = [child for node in level for child in children(node)]


def _text(token: Token) -> str:
    quote = token[0]
    return token[1:-1].replace("\\" + quote, quote)


def _too_wide(token: Token) -> CesqlSyntaxError:
    return CesqlSyntaxError("the integer does not fit in 32 bits", token.line or 1, token.column or 1)


@v_args(inline=True)
class _Builder(Transformer[Token, Node]):
    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []
        self.widest: Token | None = None

    def _operand(self, node: Node) -> Node:
        if isinstance(node, Negation) and node.operator == "NOT" and not node.grouped:
            self.warnings.append("not-binds-tightly")
        return node

    def logic(self, first: Node, *rest: Any) -> Node:
        pairs = tuple((cast(LogicOperator, rest[i].upper()), rest[i + 1]) for i in range(0, len(rest), 2))
        if len({operator for operator, _ in pairs}) > 1:
            self.warnings.append("mixed-logic-without-parentheses")
        return Logic(first, pairs)

    def comparison(self, left: Node, operator: Token, right: Node) -> Node:
        sign = cast(Any, "!=" if operator == "<>" else str(operator))
        return Comparison(sign, self._operand(left), right)

    def sum(self, left: Node, operator: Token, right: Node) -> Node:
        return Arithmetic(cast(Any, str(operator)), self._operand(left), right)

    product = sum

    def like(self, operand: Node, *words: Token) -> Node:
        pattern = _text(words[-1])
        if len(pattern) > MAX_PATTERN:
            token = words[-1]
            detail = f"the pattern is longer than {MAX_PATTERN} characters"
            raise CesqlSyntaxError(detail, token.line or 1, token.column or 1)
        return Like(self._operand(operand), pattern, negated=words[0].type == "NOT")

    def in_(self, operand: Node, *words: Any) -> Node:
        return In(self._operand(operand), words[-1], negated=words[0].type == "NOT")

    def not_(self, _: Token, operand: Node) -> Node:
        return Negation("NOT", operand)

    def minus(self, _: Token, operand: Node) -> Node:
        if isinstance(operand, Literal) and type(operand.value) is int:
            return Literal(-operand.value)
        return Negation("-", operand)

    def integer(self, *tokens: Token) -> Node:
        token = tokens[-1]
        digits = token.lstrip("0") or "0"
        if len(digits) > 10 or int(digits) > -MIN_INTEGER:
            raise _too_wide(token)
        if int(digits) > MAX_INTEGER:
            self.widest = token  # right only under a minus sign: checked when the tree is whole
        return Literal(int(digits))

    def exists(self, _: Token, name: Token) -> Node:
        return Exists(name.lower())

    def group(self, node: Node) -> Node:
        return replace(node, grouped=True) if isinstance(node, Negation) else node

    def call(self, name: Token, arguments: tuple[Node, ...] | None) -> Node:
        called, given = name.upper(), arguments or ()
        if functions.find(called, len(given)) is None:
            detail = f"there is no function {called} with {len(given)} arguments"
            raise CesqlSyntaxError(detail, name.line or 1, name.column or 1, "missingFunction")
        return Call(called, given)

    def string(self, token: Token) -> Node:
        return Literal(_text(token))

    def true(self, _: Token) -> Node:
        return Literal(True)

    def false(self, _: Token) -> Node:
        return Literal(False)

    def attribute(self, name: Token) -> Node:
        return Attribute(name.lower())

    def list(self, *nodes: Node) -> Any:
        return nodes


_PARSER: Final = Lark(_GRAMMAR, parser="lalr", maybe_placeholders=True, propagate_positions=False)
