"""A client that was generated from our document creates, reads, changes and deletes a subscription."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.installation import Installation
from tests.installed_tools import TIMEOUT_SECONDS, python_tool, run

pytestmark = pytest.mark.timeout(TIMEOUT_SECONDS)

GENERATE_SECONDS, CALL_SECONDS = 120, 60

SCRIPT = """
import json, sys
from bode_client import AuthenticatedClient
from bode_client.api.subscriptions import (
    change_subscription, create_subscription, end_subscription, get_subscription, list_subscriptions,
    replace_subscription,
)
from bode_client.models import (
    Ordering, ProblemDetails, Protocol, SubscriptionBody, SubscriptionPatch, SubscriptionReplacement,
    ValidationProblemDetails,
)

url, key = sys.argv[1:]
client = AuthenticatedClient(base_url=url, token=key)
sink = "https://afnemer.example.nl/hook"
body = SubscriptionBody(sink=sink, protocol=Protocol.HTTP, types=["nl.brp.gegenereerd"], subscriber_reference="client")
made = create_subscription.sync_detailed(client=client, body=body, idempotency_key="generated-1")
again = create_subscription.sync(client=client, body=body, idempotency_key="generated-1")
assert made.status_code == 201 and made.parsed.secret.startswith("whsec_"), made
assert again.id == made.parsed.id and again.secret == made.parsed.secret
id = made.parsed.id
patch = SubscriptionPatch(ordering=Ordering.NONE)
for _ in range(20):  # it may be changed by its approval or its validation between the two
    read = get_subscription.sync_detailed(id, client=client)
    assert read.parsed.subscriber_reference == "client" and read.parsed.health.last_sequence == 0
    changed = change_subscription.sync(id, client=client, body=patch, if_match=read.headers["etag"])
    if not isinstance(changed, ProblemDetails) or changed.status != 412:
        break
assert not isinstance(changed, ProblemDetails), changed
assert changed.ordering == Ordering.NONE and changed.version > read.parsed.version
stale = change_subscription.sync_detailed(id, client=client, body=patch, if_match=read.headers["etag"])
assert stale.status_code == 412 and isinstance(stale.parsed, ProblemDetails), stale
replaced = replace_subscription.sync(id, client=client, body=SubscriptionReplacement(sink=sink, protocol=Protocol.HTTP))
assert replaced.ordering == Ordering.SUBJECT
wrong = create_subscription.sync(client=client, body=SubscriptionBody(sink="nowhere", protocol=Protocol.HTTP))
assert isinstance(wrong, ValidationProblemDetails) and wrong.invalid_params[0].name == "/sink", wrong
assert id in [each.id for each in list_subscriptions.sync(client=client).results]
ended = end_subscription.sync_detailed(id, client=client)
assert ended.status_code == 204, ended
gone = get_subscription.sync_detailed(id, client=client)
print(json.dumps({"id": str(id), "gone": gone.status_code}))
"""


@pytest.fixture(scope="module")
def programs() -> Path:
    return python_tool("openapi-python-client")


async def test_a_generated_client_creates_reads_changes_and_deletes_a_subscription(
    programs: Path, installation: Installation, tmp_path: Path
) -> None:
    _, document, _ = await installation.call("GET", "/openapi.json", None)
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    (tmp_path / "config.yml").write_text("post_hooks: []\npackage_name_override: bode_client\n")
    (tmp_path / "script.py").write_text(SCRIPT)
    generated = run(
        [
            str(programs / "openapi-python-client"), "generate", "--meta", "none", "--fail-on-warning",
            "--path", str(tmp_path / "openapi.json"), "--config", str(tmp_path / "config.yml"),
            "--output-path", str(tmp_path / "bode_client"),
        ],
        GENERATE_SECONDS,
    )  # fmt: skip
    assert generated.returncode == 0, generated.stdout + generated.stderr
    done = run(
        [
            str(programs / "python"),
            str(tmp_path / "script.py"),
            installation.about["api"],
            installation.key("gemeente"),
        ],
        CALL_SECONDS,
        tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["gone"] == 404
