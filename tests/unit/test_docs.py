import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import annotated_types
import pytest
import typer.main
import yaml
from fastapi import FastAPI
from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from broker import api, telemetry
from broker.cli import compose
from broker.delivery.outcomes import Reason
from broker.delivery.retries import DEFAULT
from broker.settings import Settings
from broker.storage import tables
from broker.tools.up_settings import UpSettings
from schemas.cloudevents import REJECTION_CODES, WARNING_CODES
from schemas.problems import Problem
from subscriptions.database import metadata
from subscriptions.routes import build_router

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
SOURCES = [path for folder in ("broker", "subscriptions", "schemas") for path in (ROOT / folder).rglob("*.py")]
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}


def page(name: str) -> str:
    return (DOCS / name).read_text()


def rows(text: str, first: str) -> Iterator[list[str]]:
    """The cells of each table row whose first cell matches; `\\|` inside a cell is a bar."""
    for line in text.splitlines():
        if line.startswith("| "):
            cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip("|"))]
            if re.fullmatch(first, cells[0]):
                yield cells


def sections(text: str) -> dict[str, str]:
    """The text under each heading of the second level."""
    return {part.partition("\n")[0].strip(): part for part in re.split(r"^## ", text, flags=re.M)[1:]}


class Setting(NamedTuple):
    name: str
    unit: str
    default: str
    bound: str
    description: str


def declared_settings() -> list[Setting]:
    """Every setting of the processes and of `bode up`, by walking the models."""
    return [
        setting
        for group, model in [
            (name, field.annotation) for kind in (Settings, UpSettings) for name, field in kind.model_fields.items()
        ]
        if isinstance(model, type) and issubclass(model, BaseModel)
        for setting in (_setting(f"BODE_{group}_{name}".upper(), field) for name, field in model.model_fields.items())
    ]


def _setting(name: str, field: FieldInfo) -> Setting:
    unit = next((unit for end, unit in (("_SECONDS", "s"), ("_BYTES", "bytes")) if name.endswith(end)), "")
    return Setting(name, unit, _default(field.default), _bound(field), field.description or "")


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None or value == ():
        return "none"
    assert not isinstance(value, SecretStr)
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _bound(field: FieldInfo) -> str:
    said = []
    for rule in field.metadata:
        match rule:
            case annotated_types.Ge(least) | annotated_types.MinLen(least):
                said.append(f"≥ {least}")
            case annotated_types.Gt(least):
                said.append(f"> {least}")
            case annotated_types.Le(most) | annotated_types.MaxLen(most):
                said.append(f"≤ {most}")
            case _:
                said.append(f"`{rule.pattern}`")
    choices = getattr(field.annotation, "__args__", ())
    if choices and all(isinstance(choice, str) for choice in choices):
        said.append(", ".join(choices))
    return " ".join(said)


def test_every_setting_is_listed_with_its_unit_default_and_bound() -> None:
    listed = {cells[0].strip("`"): cells[1:4] for cells in rows(page("settings.md"), r"`BODE_\w+`")}
    declared = {setting.name: setting for setting in declared_settings()}
    assert listed.keys() == declared.keys()
    for name, (unit, default, bound) in listed.items():
        setting = declared[name]
        assert (default, bound) == (setting.default, setting.bound), name
        assert unit == setting.unit or not setting.unit, name


def test_variables_in_the_docs_are_settings_or_written_by_bode_up() -> None:
    known = {setting.name for setting in declared_settings()}
    written = (ROOT / "broker/tools/up.py").read_text() + (ROOT / "broker/processes/serving.py").read_text()
    names = {"BODE_BRP_KEY", "BODE_GEMEENTE_KEY"}  # made of the demo's names
    for path in PAGES:
        for name in re.findall(r"BODE_[A-Z][A-Z_]*[A-Z]", path.read_text()):
            assert name in known | names or f'"{name}"' in written, f"{path.name}: {name}"


def test_every_metric_is_listed_with_its_type_and_labels() -> None:
    declared = {}
    for metric in vars(telemetry).values():
        if isinstance(metric, MetricWrapperBase):
            name = f"{metric._name}_total" if isinstance(metric, Counter) else metric._name
            declared[name] = [metric._type, ", ".join(f"`{label}`" for label in metric._labelnames)]
    listed = {cells[0].strip("`"): cells[1:3] for cells in rows(page("telemetry.md"), r"`bode_\w+`")}
    assert listed == declared


def test_every_alert_is_explained_to_operators() -> None:
    rules = yaml.safe_load((ROOT / "docker/alerts.yml").read_text())
    declared = {rule["alert"] for group in rules["groups"] for rule in group["rules"]}
    assert {cells[0].strip("`") for cells in rows(page("operations.md"), r"`Bode\w+`")} == declared


def test_every_log_event_is_listed_with_its_level() -> None:
    written = {(event, level) for path in SOURCES for event, level in _log_calls(path)}
    listed = {(cells[0].strip("`"), cells[1]) for cells in rows(page("telemetry.md"), r"`[a-z]+(-[a-z]+)+`")}
    assert listed == written


def _log_calls(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(
                func=ast.Attribute(
                    value=ast.Call(func=ast.Name(id="log") | ast.Attribute(attr="get_logger")), attr=str(level)
                ),
                args=[ast.Constant(value=str(event)), *_],
            ) if level in LEVELS:
                yield event, level


def test_every_code_of_rejections_and_warnings_is_explained_to_registries() -> None:
    own = set()
    for node in ast.walk(ast.parse((ROOT / "broker/ingest/accept.py").read_text())):
        match node:
            case ast.Call(func=ast.Name(id="Rejected"), args=[ast.Constant(value=str(code)), *_]):
                own.add(code)
    parts = sections(page("publishing.md"))
    code = r"`[a-z0-9]+(-[a-z0-9]+)+`"
    assert {cells[0].strip("`") for cells in rows(parts["Rejection codes"], code)} == REJECTION_CODES | own
    assert {cells[0].strip("`") for cells in rows(parts["Warnings"], code)} == WARNING_CODES


def test_every_reason_of_a_failed_attempt_is_explained_to_providers() -> None:
    part = sections(page("receiving.md"))["Reasons of failure"]
    assert {cells[0].strip("`") for cells in rows(part, r"`[a-z]+(-[a-z]+)*`")} == {str(reason) for reason in Reason}


def test_the_retry_schedule_is_the_one_in_the_code() -> None:
    part = sections(page("receiving.md"))["Retries"]
    units = {"s": 1, "min": 60, "h": 3600}
    waits = [int(amount) * units[unit] for amount, unit in re.findall(r"^\| \d+ \| (\d+) (s|min|h) \|", part, re.M)]
    assert waits == [wait.total_seconds() for wait in DEFAULT.waits]


def test_every_operation_of_the_api_is_listed() -> None:
    application = FastAPI()
    modules = [importlib.import_module(found.name) for found in pkgutil.iter_modules(api.__path__, "broker.api.")]
    routers = [module.router for module in modules if hasattr(module, "router")]
    assert routers
    for router in (*routers, build_router()):
        application.include_router(router)
    declared = {
        f"{method.upper()} {path.removeprefix('/v1')}"
        for path, item in application.openapi()["paths"].items()
        for method in item
    }
    listed = {cells[0].strip("`") for cells in rows(page("api.md"), r"`[A-Z]+ /\S+`")}
    assert listed == declared


def test_every_code_of_a_problem_is_listed_with_its_status() -> None:
    declared = {(problem.code, str(problem.status)) for problem in _tree(Problem)}
    listed = {(cells[0].strip("`"), cells[1]) for cells in rows(sections(page("api.md"))["Problems"], r"`[a-z-]+`")}
    assert listed == declared


def _tree(kind: type[Problem]) -> Iterator[type[Problem]]:
    for child in kind.__subclasses__():
        yield child
        yield from _tree(child)


def test_it_is_said_of_every_table_what_it_holds() -> None:
    assert tables.events.name in metadata.tables
    listed = {name for cells in rows(page("privacy.md"), r"`\w+`.*") for name in re.findall(r"`(\w+)`", cells[0])}
    assert listed == set(metadata.tables)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]*(?:#[^)\s]*)?)\)", path.read_text()):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        file, _, heading = target.partition("#")
        found = path.parent / file if file else path
        assert found.exists(), target
        if heading:
            assert heading in {_anchor(line) for line in re.findall(r"^#+ (.*)$", found.read_text(), re.M)}, target


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_in_the_docs_exist_with_their_options(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    text = path.read_text()
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines() if language == "sh" else ():
            if found := re.match(r"(?:\$ )?(?:\S+=\S+ )*(?:\S*/)?bode ([a-z].*)", line):
                _check_command(found[1].partition("  #")[0].split())
            elif found := re.match(r"(?:\$ )?make ([a-z]+)", line):
                assert found[1] in targets, line
    for words in re.findall(r"`bode ([a-z][^`]*)`", text):
        _check_command(words.split())


def _check_command(words: list[str]) -> None:
    command: Any = typer.main.get_command(compose())
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    missing = hasattr(command, "commands") and words and words[0][0].isalpha()
    assert not missing, f"there is no command {words[0]}"
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    for word in words:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, f"{command.name} has no {word}"


DECISIONS = sorted((DOCS / "decisions").glob("[0-9]*.md"))


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_has_its_context_decision_and_consequence_and_stands_in_the_index(path: Path) -> None:
    assert list(sections(path.read_text())) == ["Context", "Decision", "Consequence"]
    assert f"({path.name})" in (DOCS / "decisions/README.md").read_text()


def test_decisions_are_numbered_without_gaps() -> None:
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))


def test_publiccode_says_what_the_standard_requires_and_the_same_as_the_project() -> None:
    said = yaml.safe_load((ROOT / "publiccode.yml").read_text())
    project = (ROOT / "pyproject.toml").read_text()
    required = {
        "publiccodeYmlVersion", "name", "url", "platforms", "categories", "developmentStatus", "softwareType",
        "description", "legal", "maintenance", "localisation",
    }  # fmt: skip
    assert required <= said.keys()
    assert f'name = "{said["name"].lower()}"' in project
    assert f'license = "{said["legal"]["license"]}"' in project
    assert set(said["description"]) == {"nl", "en"}
    for text in said["description"].values():
        assert len(text["shortDescription"]) <= 150
        assert 150 <= len(text["longDescription"]) <= 10_000
        assert text["features"]
    assert said["maintenance"]["type"] == "none" or said["maintenance"].get("contacts")
