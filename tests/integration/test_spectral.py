"""The linter rules of the Dutch API Design Rules find nothing in our document, and something in a bad one."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from broker.api.app import create_app
from broker.api.context import BrokerContext
from subscriptions.callers import ApiSettings
from subscriptions.context import Context
from tests.installed_tools import TIMEOUT_SECONDS, npm_tool, run

pytestmark = pytest.mark.timeout(TIMEOUT_SECONDS)

RULES = Path(__file__).parents[2].parent / "shared" / "specs" / "nl-adr-linter.yaml"
LINT_SECONDS = 200


def document() -> dict[str, Any]:
    context = Mock(spec=Context, settings=ApiSettings(public_url="https://bode.example.nl/v1"))
    return json.loads(json.dumps(create_app(context, Mock(spec=BrokerContext), []).openapi()))


@pytest.fixture(scope="module")
def spectral() -> Path:
    if not RULES.exists():
        pytest.skip(f"the linter rules of the API Design Rules are not there: {RULES}")
    return npm_tool("spectral", "spectral")


def lint(spectral: Path, folder: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    """Everything that Spectral finds: errors, warnings, information and hints."""
    path = folder / "openapi.json"
    path.write_text(json.dumps(content))
    done = run([str(spectral), "lint", "-r", str(RULES), "-f", "json", "-q", str(path)], LINT_SECONDS)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout or "[]")
    assert isinstance(found, list)
    return found


def test_the_linter_of_the_api_design_rules_finds_nothing(spectral: Path, tmp_path: Path) -> None:
    found = lint(spectral, tmp_path, document())
    assert [(each["code"], each["path"], each["message"]) for each in found] == []


def test_the_linter_finds_what_is_wrong(spectral: Path, tmp_path: Path) -> None:
    broken = document()
    broken["info"].pop("contact")
    broken["paths"] = {"/Odd_Path": broken["paths"]["/domains"]}
    broken["components"]["schemas"] = {"odd_name": {"type": "object"}}
    codes = {each["code"] for each in lint(spectral, tmp_path, broken)}
    assert {"info-contact", "nlgov:paths-kebab-case", "nlgov:schema-camel-case"} <= codes
