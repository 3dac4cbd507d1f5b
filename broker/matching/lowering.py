"""CloudEvents SQL taken apart for the index, only where that is provably the same.

An expression is true, false or in error. For each node we keep three two-valued conditions: `yes` (true, no error),
`no` (false, no error) and `sure` (no error), and combine them exactly as evaluation from left to right with
short-circuits does. A filter is its root's `yes`. What isn't understood stays a whole expression, evaluated as is:
`sure` is then the either-or of its `yes` and `no`. `NOT x = 'v'` therefore never becomes the dialect `not`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any as Anything
from typing import Final, cast

from broker.matching.atoms import REQUIRED, TEXTUAL, Computed, ComputedNumber, Contains, Number, NumberIs, Whole
from schemas import cesql
from schemas.cesql import like, tree
from schemas.cesql.closures import type_of
from schemas.cesql.values import type_of_value
from schemas.filters.algebra import (
    EVERYTHING,
    NOTHING,
    All,
    Any,
    Bound,
    Condition,
    Exact,
    Not,
    OneOf,
    Prefix,
    Present,
    Sql,
    Suffix,
    conjunction,
    disjunction,
)

MAX_SIZE: Final = 512
"""Terms that one node may become; beyond it stays a whole expression."""
_BOUNDS: Final[dict[str, Bound]] = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge"}
_OPPOSITE: Final[dict[Bound, Bound]] = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}


@dataclass(frozen=True, slots=True)
class Truth:
    """When a node is true, when false, and when either, as conditions."""

    yes: Condition
    no: Condition
    sure: Condition


def lower(sql: Sql) -> Condition:
    """The condition under which the expression is true without error."""
    node = sql.expression.node
    return _truth(node).yes if type_of(node) == "boolean" else cast(Condition, Whole(sql.expression))


def _truth(node: tree.Node) -> Truth:
    """For a node used as a Boolean."""
    match node:
        case tree.Literal(bool(value)):
            return Truth(EVERYTHING, NOTHING, EVERYTHING) if value else Truth(NOTHING, EVERYTHING, EVERYTHING)
        case tree.Negation("NOT", operand):
            inner = _truth(operand)
            return Truth(inner.no, inner.yes, inner.sure)
        case tree.Logic():
            return _chain(node)
        case tree.Exists(name):
            return _flipped(_present(name), EVERYTHING, negated=False)
        case tree.Like(tree.Attribute(name)):
            return _like(name, node)
        case tree.Comparison(operator, tree.Attribute(name), tree.Literal(value)):
            if operator in ("=", "!="):
                return _equality(node, name, value, negated=operator == "!=")
            return _order(node, name, operator)
        case tree.Comparison("=" | "!=", tree.Literal(str(value)), tree.Attribute(name)) if name in TEXTUAL:
            return _equality(node, name, value, negated=node.operator == "!=")
        case tree.In(tree.Attribute(name)):
            return _in(name, node)
        case tree.Comparison(operator, _, tree.Literal(value)):
            return _computed(node, operator, value)
        case tree.Like():
            return _computed_like(node)
    return _whole(node)


def _whole(node: tree.Node) -> Truth:
    truth = node if type_of(node) == "boolean" else tree.Call("BOOL", (node,))
    yes = _opaque(truth)
    no = _opaque(tree.Negation("NOT", truth))
    return Truth(yes, no, disjunction([yes, no]))


def _opaque(node: tree.Node) -> Condition:
    return cast(Condition, Whole(cesql.from_node(node)))


def _present(name: str) -> Condition:
    return EVERYTHING if name in REQUIRED else Present(name)


def _flipped(yes: Condition, sure: Condition, *, negated: bool) -> Truth:
    no = conjunction([sure, Not(yes)])
    return Truth(no, yes, sure) if negated else Truth(yes, no, sure)


def _chain(node: tree.Logic) -> Truth:
    """Left to right, run by run: operands joined by the same operator are taken together."""
    done = _truth(node.first)
    position = 0
    while position < len(node.rest):
        operator = node.rest[position][0]
        end = position + 1
        while operator != "XOR" and end < len(node.rest) and node.rest[end][0] == operator:
            end += 1
        operands = [done, *(_truth(operand) for _, operand in node.rest[position:end])]
        whole = _whole(tree.Logic(node.first, node.rest[:end]))
        done = _xor(operands, whole) if operator == "XOR" else _run(operands, operator, whole)
        position = end
    return done


def _run(operands: list[Truth], operator: tree.LogicOperator, whole: Truth) -> Truth:
    """`a AND b AND …` is false at the first that is false after only true ones; OR is its mirror image."""
    ending, passing = [], []
    so_far: Condition = EVERYTHING
    for operand in operands:
        stop, go = (operand.no, operand.yes) if operator == "AND" else (operand.yes, operand.no)
        # For OR, "no error so far" may stand for "all false so far": where one was true, the answer is the same.
        ending.append(conjunction([so_far, stop]))
        passing.append(go)
        so_far = conjunction([so_far, go if operator == "AND" else operand.sure])
    stopped, passed = disjunction(ending), conjunction(passing)
    yes, no = (passed, stopped) if operator == "AND" else (stopped, passed)
    yes, no = yes if _fits(yes) else whole.yes, no if _fits(no) else whole.no
    if all(operand.sure == EVERYTHING for operand in operands):
        return Truth(yes, no, EVERYTHING)
    return Truth(yes, no, disjunction([yes, no]))


def _xor(operands: list[Truth], whole: Truth) -> Truth:
    left, right = operands
    yes = disjunction([conjunction([left.yes, right.no]), conjunction([left.no, right.yes])])
    no = disjunction([conjunction([left.yes, right.yes]), conjunction([left.no, right.no])])
    if not (_fits(yes) and _fits(no)):
        return whole
    return Truth(yes, no, conjunction([left.sure, right.sure]))


def _fits(condition: Condition) -> bool:
    """Whether it has at most `MAX_SIZE` terms; stops counting there."""
    waiting, count = [condition], 0
    while waiting and count <= MAX_SIZE:
        count += 1
        match waiting.pop():
            case All(operands) | Any(operands):
                waiting.extend(operands)
            case Not(operand):
                waiting.append(operand)
    return count <= MAX_SIZE


def _like(name: str, node: tree.Like) -> Truth:
    pattern = like.parse(node.pattern)
    pieces = pattern.literal
    sure = _present(name)
    if pieces is not None and len(pieces) == 1:
        return _flipped(Exact(name, pieces[0]), sure, negated=node.negated)
    parts: list[Anything] = []
    if pieces is None:
        if (run := _longest_run(pattern)) is not None:
            parts = [Contains(name, run)]
    else:
        first, *middle, last = pieces
        parts += [Prefix(name, first)] if first else []
        parts += [Suffix(name, last)] if last else []
        parts += [Contains(name, piece) for piece in middle]
    if not parts and pieces is not None:  # only `%`: any value will do
        return _flipped(sure, sure, negated=node.negated)
    if len(parts) != 1 or pieces is None:
        # Pieces may overlap in the value or stand in another order: they only narrow; the whole decides.
        whole = _opaque(tree.Like(node.operand, node.pattern, negated=False))
        yes = conjunction([*parts, whole])
        truth = Truth(yes, conjunction([sure, Not(whole)]), sure)
    else:
        truth = _flipped(parts[0], sure, negated=False)
    return Truth(truth.no, truth.yes, truth.sure) if node.negated else truth


def _longest_run(pattern: like.Pattern) -> str | None:
    """The longest text without wildcards: a value that matches has it."""
    runs = ["".join(run) for piece in pattern.pieces for run in _runs(piece)]
    return max(runs, key=len, default="") or None


def _runs(piece: like.Piece) -> list[list[str]]:
    runs: list[list[str]] = [[]]
    for part in piece:
        if part is None:
            runs.append([])
        else:
            runs[-1].append(part)
    return runs


def _equality(node: tree.Node, name: str, value: tree.Value, *, negated: bool) -> Truth:
    if isinstance(value, str):
        return _flipped(Exact(name, value), _present(name), negated=negated)
    if isinstance(value, bool):
        return _whole(node)
    yes: Anything = NumberIs(name, value)
    no = disjunction([cast(Anything, Number(name, "lt", value)), cast(Anything, Number(name, "gt", value))])
    sure = disjunction([yes, no])
    return Truth(no, yes, sure) if negated else Truth(yes, no, sure)


def _order(node: tree.Comparison, name: str, operator: str) -> Truth:
    if not isinstance(node.right, tree.Literal) or type(node.right.value) is not int:
        return _whole(node)
    bound = _BOUNDS[operator]
    yes: Anything = Number(name, bound, node.right.value)
    no: Anything = Number(name, _OPPOSITE[bound], node.right.value)
    return Truth(yes, no, disjunction([yes, no]))


def _cast(node: tree.Node, wanted: tree.Type) -> cesql.Expression:
    return cesql.from_node(tree.Call({"string": "STRING", "integer": "INT", "boolean": "BOOL"}[wanted], (node,)))


def _computed(node: tree.Comparison, operator: str, value: tree.Value) -> Truth:
    """A value that is worked out once for each event, whatever it is compared with."""
    whole = _whole(node)
    if operator in ("=", "!="):
        yes = cast(Condition, Computed("computed", _cast(node.left, type_of_value(value)), value))
        if operator == "=":
            return Truth(yes, whole.no, disjunction([yes, whole.no]))
        return Truth(whole.yes, yes, disjunction([whole.yes, yes]))
    if type(value) is not int:
        return whole
    expression, bound = _cast(node.left, "integer"), _BOUNDS[operator]
    yes = cast(Condition, ComputedNumber(expression, bound, value))
    no = cast(Condition, ComputedNumber(expression, _OPPOSITE[bound], value))
    return Truth(yes, no, disjunction([yes, no]))


def _computed_like(node: tree.Like) -> Truth:
    whole = _whole(tree.Like(node.operand, node.pattern, negated=False))
    pieces = like.parse(node.pattern).literal
    yes = whole.yes
    if pieces is not None and len(pieces) <= 2 and sum(map(bool, pieces)) == 1:
        text = _cast(node.operand, "string")
        if len(pieces) == 1:
            yes = cast(Condition, Computed("computed", text, pieces[0]))
        else:
            kind: Anything = "computed-prefix" if pieces[0] else "computed-suffix"
            yes = cast(Condition, Computed(kind, text, pieces[0] or pieces[1]))
    truth = Truth(yes, whole.no, disjunction([yes, whole.no]))
    return Truth(truth.no, truth.yes, truth.sure) if node.negated else truth


def _in(name: str, node: tree.In) -> Truth:
    values = [element.value for element in node.elements if isinstance(element, tree.Literal)]
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) != len(node.elements):
        return _whole(node)
    # An integer or Boolean attribute casts the elements, and errs at the first that doesn't cast. Only where that
    # can't change the answer is the list the same as a list of canonical strings.
    if name not in TEXTUAL and any(_casts(text) for text in texts):
        return _whole(node)
    yes = OneOf(name, frozenset(texts))
    if name in TEXTUAL:
        return _flipped(yes, _present(name), negated=node.negated)
    whole = _whole(tree.In(node.operand, node.elements, negated=False))
    truth = Truth(yes, whole.no, disjunction([yes, whole.no]))
    return Truth(truth.no, truth.yes, truth.sure) if node.negated else truth


def _casts(text: str) -> bool:
    digits = text[1:] if text[:1] in ("+", "-") else text
    return (digits.isascii() and digits.isdigit()) or text.lower() in ("true", "false")
