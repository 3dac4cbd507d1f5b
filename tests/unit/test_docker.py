"""The files in docker/ agree with the code: commands, settings, metrics, permissions, and with each other."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from prometheus_client import REGISTRY

from broker.cli import compose
from broker.settings import Settings
from broker.tools.local.definitions import BROKER, Registry, definitions

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
PROCESSES = {name: service for name, service in COMPOSE["services"].items() if service.get("image") == "bode"}
PROMETHEUS: dict[str, Any] = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
RULES = [rule for group in yaml.safe_load((DOCKER / "alerts.yml").read_text())["groups"] for rule in group["rules"]]


def substituted(content: str, values: dict[str, str]) -> str:
    """What compose makes of `${NAME:?message}` and `$$`."""
    filled = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: values[found[1]], content)
    return filled.replace("$$", "$")


@pytest.fixture(scope="module")
def secrets() -> dict[str, str]:
    lines = subprocess.run([DOCKER / "new-env"], check=True, capture_output=True, text=True).stdout.splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_every_process_runs_a_command_that_exists() -> None:
    commands = getattr(typer.main.get_command(compose()), "commands")  # noqa: B009 - a group's; the type doesn't tell
    assert set(PROCESSES) == {"migrate", "api", "ingest", "deliver"}
    for name, service in PROCESSES.items():
        assert service["command"] == [name]
        assert name in commands


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_every_variable_of_ours_is_a_setting(name: str) -> None:
    for variable in PROCESSES[name]["environment"]:
        found = re.fullmatch(r"BODE_([A-Z]+)_([A-Z_]+)", variable)
        assert found is not None, variable
        group = Settings.model_fields[found[1].lower()].annotation
        assert found[2].lower() in getattr(group, "model_fields")  # noqa: B009 - the annotation's type doesn't tell


def test_settings_accept_what_the_processes_are_given(secrets: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in PROCESSES["deliver"]["environment"].items():
        monkeypatch.setenv(variable, substituted(value, secrets))
    settings = Settings()  # type: ignore[call-arg]  # the environment gives them
    assert settings.amqp.url is not None
    assert len(settings.secrets.keys) == 1


def test_every_secret_that_is_asked_for_is_made(secrets: dict[str, str]) -> None:
    asked = set(re.findall(r"\$\{(\w+)", (DOCKER / "compose.yaml").read_text()))
    assert asked == set(secrets)
    assert all(len(value) >= 32 for value in secrets.values())


def test_rabbitmq_users_may_do_what_those_of_the_private_server_may(secrets: dict[str, str]) -> None:
    told = json.loads(substituted(COMPOSE["configs"]["definitions"]["content"], secrets))
    expected = definitions([Registry("bag", "nl.bag.")], {BROKER: "x", "bag": "y"})
    for part in ("vhosts", "permissions", "topic_permissions"):
        assert told[part] == expected[part]
    assert [(user["name"], user["tags"]) for user in told["users"]] == [
        (user["name"], user["tags"]) for user in expected["users"]
    ]


def test_mounted_and_copied_files_exist() -> None:
    mounts = [mount.split(":")[0] for service in COMPOSE["services"].values() for mount in service.get("volumes", ())]
    for mount in mounts:
        assert mount in COMPOSE["volumes"] or (DOCKER / mount).is_file()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in (DOCKER / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists()
                assert f"!{source}" in ignored


def test_image_does_not_run_as_root_nor_with_the_embedded_database() -> None:
    assert re.search(r"^USER 1\d{4}:", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    assert "pgserver" not in (ROOT / "requirements.lock").read_text()


def test_prometheus_scrapes_every_process_that_runs_on() -> None:
    scraped = {
        name for job in PROMETHEUS["scrape_configs"] for at in job.get("dns_sd_configs", ()) for name in at["names"]
    }
    assert scraped == set(PROCESSES) - {"migrate"}
    assert set(PROMETHEUS["rule_files"]) == {"alerts.yml"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_metric_in_an_alert_exists(rule: dict[str, Any]) -> None:
    known = {sample for family in REGISTRY.collect() for sample in (family.name, f"{family.name}_total")}
    used = set(re.findall(r"\bbode_[a-z_]+", rule["expr"]))
    assert used <= known
    assert used or "rabbitmq_" in rule["expr"] or "up{" in rule["expr"]
