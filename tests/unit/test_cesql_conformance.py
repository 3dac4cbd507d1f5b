"""The conformance cases of CloudEvents SQL 1.0, by file.

One case of 275 contradicts the specification: `NOT 10` is given with a cast error, but the specification's cast
table (3.7) casts every integer to Boolean, so that `NOT 10` is plainly false. We follow the table.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from cesql_summary import RESULTS

from schemas.cesql import CesqlSyntaxError, compile_expression

FOLDER = Path(__file__).parents[2].parent / "shared" / "specs" / "cesql_tck"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))
CONTRADICTION = ("not_operator.yaml", "Invalid int cast")
EVENT = {
    "specversion": "1.0",
    "id": "A234-1234-1234",
    "source": "https://github.com/cloudevents/sdk-go/v2/test",
    "type": "com.example.someevent",
    "time": "2018-04-26T14:48:09+02:00",
    "subject": "a-subject",
    "datacontenttype": "application/json",
}

pytestmark = pytest.mark.skipif(not FILES, reason="the conformance cases are not on this machine")


class Cases(yaml.SafeLoader):
    """YAML 1.1 without its surprises: timestamps stay text."""


Cases.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def cases(name: str) -> list[dict[str, Any]]:
    text = (FOLDER / name).read_text()
    typed = yaml.load(text, Loader=Cases)["tests"]
    raw = yaml.load(text, Loader=yaml.BaseLoader)["tests"]
    for case, source in zip(typed, raw, strict=True):
        case["expression"] = source["expression"]  # an unquoted TRUE is text here
    return list(typed)


def outcome(case: dict[str, Any]) -> tuple[object, str | None]:
    event = case["event"] if "event" in case else {**EVENT, **case.get("eventOverrides", {})}
    try:
        found = compile_expression(case["expression"]).evaluate(event)
    except CesqlSyntaxError as error:
        return False, error.kind
    return found.value, found.error


def expected(case: dict[str, Any]) -> tuple[object, str | None]:
    return case.get("result", False), case.get("error")


def test_there_are_275_cases_in_18_files() -> None:
    assert (len(FILES), sum(len(cases(name)) for name in FILES)) == (18, 275)


@pytest.mark.parametrize("name", FILES)
def test_all_cases_of_a_file_pass(name: str) -> None:
    found = cases(name)
    wrong = [
        (case["name"], case["expression"], outcome(case), expected(case))
        for case in found
        if outcome(case) != expected(case) or type(outcome(case)[0]) is not type(expected(case)[0])
    ]
    RESULTS[name] = len(found) - len(wrong), len(found)
    assert [case for case in wrong if (name, case[0]) != CONTRADICTION] == []


def test_not_10_is_false_without_an_error_as_the_cast_table_says() -> None:
    (case,) = [case for case in cases(CONTRADICTION[0]) if case["name"] == CONTRADICTION[1]]
    assert case["expression"] == "NOT 10"
    assert expected(case) == (True, "cast")
    assert outcome(case) == (False, None)
