"""Schemathesis calls every operation of a running broker, with data that the document allows and that it doesn't.

All its checks: no failure of ours, no status, header or body that isn't declared, nothing accepted that the document
forbids, no operation open that should be closed; and it follows what was made from one operation to the next.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.installation import Installation, installed
from tests.installed_tools import run

PROGRAM = str(Path(sys.executable).parent / "schemathesis")
FOLDER = Path(__file__).parent / "schemathesis"
SHORT_SECONDS, LONG_SECONDS = 12, 330
SLACK_SECONDS = 80


@pytest.fixture(scope="module")
def own_installation() -> Iterator[Installation]:
    """An installation that the operator's key may change at will."""
    with installed() as made:
        yield made


async def check(installation: Installation, seconds: int, *options: str) -> dict[str, int]:
    """Runs it; returns how many operations it tested and how many requests it made."""
    status, made, _ = await installation.call(
        "POST", "/organisations", "operator", {"oin": "00000099000000909000", "name": "Proef"},
        headers={"Idempotency-Key": "schemathesis"},
    )  # fmt: skip
    assert status == 201, made
    scopes = ["events.publish", "events.consume", "registry.manage", "disclosures.read"]
    _, key, _ = await installation.call("POST", f"/organisations/{made['id']}/keys", "operator", {"scopes": scopes})
    report = installation.folder.parent / "report.json"
    target = ["--config-file", str(FOLDER / "schemathesis.toml"), "run", f"{installation.about['api']}/openapi.json"]
    output = ["--no-color", "--report", "json", "--report-json-path", str(report)]
    limits = ["--max-time", str(seconds), "--request-timeout", "60"]
    done = run(
        [PROGRAM, *target, *limits, *output, *options],
        seconds + SLACK_SECONDS,
        OPERATOR_KEY=installation.key("operator"),
        ORGANISATION_KEY=key["key"],
        ORGANISATION_KEY_ID=key["id"],
        SCHEMATHESIS_HOOKS="hooks",
        PYTHONPATH=str(FOLDER),
    )
    assert done.returncode == 0, done.stdout[-12_000:] + done.stderr[-2_000:]
    return json.loads(report.read_text())


async def test_a_short_run_over_every_operation_finds_nothing(own_installation: Installation) -> None:
    await check(own_installation, SHORT_SECONDS, "--max-examples", "2", "--no-shrink")


@pytest.mark.long
@pytest.mark.timeout(LONG_SECONDS + SLACK_SECONDS + 120)
async def test_a_run_of_more_than_five_minutes_finds_nothing(own_installation: Installation) -> None:
    await check(own_installation, LONG_SECONDS, "--max-examples", "60")
