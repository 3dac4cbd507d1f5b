"""CloudEvents SQL beyond its conformance cases: places of errors, limits, precedence, casts that don't overflow."""

import pytest

from schemas.cesql import CesqlSyntaxError, Outcome, compile_expression

EVENT: dict[str, str | int | bool] = {"id": "1", "source": "s", "type": "t", "n": 7, "big": 2**31 - 1, "flag": True}


@pytest.mark.parametrize(
    ("text", "line", "column", "kind"),
    [
        ("", 1, 1, "parse"),
        ("id = ", 1, 6, "parse"),
        ("id =\n\n  ? 5", 3, 3, "parse"),
        ("id = 5 5", 1, 8, "parse"),
        ("id IN ()", 1, 8, "parse"),
        ("id LIKE 5", 1, 9, "parse"),
        ("id LIKE type", 1, 9, "parse"),
        ("'open", 1, 1, "parse"),
        ("a_b = 1", 1, 2, "parse"),
        ("n < 2147483648", 1, 5, "parse"),
        ("n < 99999999999999999999", 1, 5, "parse"),
        ("\n NOPE(id)", 2, 2, "missingFunction"),
        ("LEFT(id)", 1, 1, "missingFunction"),
        ("x LIKE '" + "%" * 257 + "'", 1, 8, "parse"),
        ("(" * 60 + "NOT " * 60 + "TRUE" + ")" * 60, 1, 1, "parse"),
        (" + ".join(["1"] * 60), 1, 1, "parse"),
        (" OR ".join(["a = b"] * 400), 1, 1, "parse"),
        ("id = '" + "x" * 4096 + "'", 1, 4097, "parse"),
    ],
)
def test_an_invalid_expression_is_refused_with_its_place(text: str, line: int, column: int, kind: str) -> None:
    with pytest.raises(CesqlSyntaxError) as refused:
        compile_expression(text)
    assert (refused.value.line, refused.value.column, refused.value.kind) == (line, column, kind)


@pytest.mark.parametrize(
    ("text", "value", "error"),
    [
        ("-2147483648", -(2**31), None),
        ("big + 1", 0, "math"),
        ("big * big", 0, "math"),
        ("-2147483648 / -1", 0, "math"),
        ("-(-2147483648 + 0)", 0, "math"),
        ("-7 / 2", -3, None),
        ("-7 % 2", -1, None),
        ("INT('2147483648')", 0, "cast"),
        ("INT('" + "9" * 3000 + "')", 0, "cast"),
        ("INT('+0007')", 7, None),
        ("INT(' 7')", 0, "cast"),
        ("INT('\u0661')", 0, "cast"),
        ("INT('')", 0, "cast"),
        ("TRUE = 1", True, None),
        ("flag = 1", True, None),
        ("1 = TRUE", True, None),
        ("n IN (7, 'x')", True, None),
        ("n IN ('x', 7)", False, "cast"),
        ("1 + TRUE = 2", True, None),
        ("TRUE OR FALSE AND FALSE", False, None),
        ("FALSE AND FALSE OR TRUE", True, None),
        ("TRUE XOR TRUE OR TRUE", True, None),
        ("NOT 'TRUE' = FALSE", True, None),
        ("TRIM('\u2003a\u001f\u00a0')", "a\u001f", None),
        ("'a\nb' LIKE 'a_b'", True, None),
        ("'\U0001f600' LIKE '_'", True, None),
        ("EXISTS missing OR missing = 1", False, "missingAttribute"),
        ("FALSE AND missing = 1", False, None),
        ("CONCAT_WS('-', n, flag, 'x')", "7-true-x", None),
        ("notes = 1 OR TRUE", False, "missingAttribute"),
    ],
)
def test_evaluates_to(text: str, value: object, error: str | None) -> None:
    found = compile_expression(text).evaluate(EVENT)
    assert found == Outcome(value, error)  # type: ignore[arg-type] # the table's values are of these types
    assert type(found.value) is type(value)


def test_strings_cannot_grow_without_bound() -> None:
    expression = compile_expression("LENGTH(CONCAT(" + ", ".join(["x"] * 100) + ")) > 5")
    assert expression.holds({"x": "a" * 40})
    assert expression.evaluate({"x": "a" * 41}).error == "functionEvaluation"


@pytest.mark.parametrize("function", ["LOWER", "UPPER"])
def test_the_case_of_a_long_text_is_not_changed(function: str) -> None:
    expression = compile_expression(f"LENGTH({function}(x)) > 0")
    assert expression.holds({"x": "é" * 4_096})
    assert expression.evaluate({"x": "é" * 4_097}).error == "functionEvaluation"


def test_expressions_that_differ_in_spaces_only_are_equal() -> None:
    first, second = compile_expression("id='1'AND type='t'"), compile_expression("id = '1'\n and TYPE = 't'")
    assert first == second
    assert hash(first) == hash(second)
    assert first != compile_expression("id = '1' AND type = 'u'")


def test_a_literal_true_is_not_a_literal_1() -> None:
    assert compile_expression("n = TRUE") != compile_expression("n = 1")
