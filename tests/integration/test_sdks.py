"""What we send is understood by the libraries that providers use: Standard Webhooks and CloudEvents, Python and npm.

The npm packages are installed into a folder that goes away; without Node, or a registry to install from, those tests
are skipped and say why.
"""

import base64
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from delivering import ORIGIN, RawSink
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from broker.delivery.client import Client
from broker.delivery.fence import Fence
from broker.delivery.sender import Sender, Sink, delivery_id
from schemas.cloudevents import from_structured
from subscriptions.secrets import signing_secret
from subscriptions.sinks import SinkConfig
from subscriptions.tables import Status

pytestmark = pytest.mark.asyncio(loop_scope="module")

PACKAGES = ("standardwebhooks@1.1.1", "cloudevents@10.0.0")
INSTALL_SECONDS, RUN_SECONDS = 60, 20
SUBSCRIPTION = UUID("5148d940-aaaa-4f8e-aaef-c559e26e09dc")
OLD, NEW, FOREIGN = signing_secret(), signing_secret(), signing_secret()

EVENTS: dict[str, dict[str, Any]] = {
    "object": {"data": {"naam": "Ĳsbrand Çelik", "getal": 1.50, "leeg": None, "lijst": [1, "a", True]}},
    "text": {"data": "een \"tekst\" met \\ en \n en 😀", "datacontenttype": "text/plain"},
    "number": {"data": 42, "datacontenttype": "application/json"},
    "list": {"data": [], "datacontenttype": "application/json"},
    "binary": {"data_base64": base64.b64encode(bytes(range(256))).decode(), "datacontenttype": "application/x-bytes"},
    "nothing": {},
    "all attributes": {
        "subject": "0088010000222300", "time": "2026-11-23T09:30:00.123456+01:00", "data": {},
        "datacontenttype": "application/json", "dataschema": "https://schema.example/pand.json",
    },
    "extensions": {"dataref": "https://bag.example/1", "sequence": "17", "geometrie": True, "aantal": 12, "data": {}},
}  # fmt: skip
ADDED = {"subscription": str(SUBSCRIPTION), "subscriberreference": 'afdeling "één"'}

SCRIPT = """
const { Webhook } = require("standardwebhooks");
const { HTTP } = require("cloudevents");
const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
const holds = (secret, body, headers) => {
  try { new Webhook(secret).verify(body, headers); return true; } catch (error) { return String(error.message); }
};
const results = {};
for (const [name, { body, headers }] of Object.entries(given.notifications)) {
  const event = HTTP.toEvent({ headers, body });
  results[name] = {
    valid: event.validate(),
    event: event.toJSON(),
    signatures: given.secrets.map((secret) => holds(secret, body, headers)),
    tampered: holds(given.secrets[0], body.replace("1.0", "1.1"), headers),
    old: holds(given.secrets[0], body, { ...headers, "webhook-timestamp": "1600000000" }),
  };
}
console.log(JSON.stringify(results));
"""


@dataclass(frozen=True)
class Sent:
    """A notification as it came in, and the event that was published."""

    published: dict[str, Any]
    body: bytes
    headers: dict[str, str]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sent() -> AsyncIterator[dict[str, Sent]]:
    """Each event, sent over a socket and signed with two secrets, as during a rotation."""
    fence = Fence(allow=[ip_network("127.0.0.0/8")])
    client = Client(fence, total_seconds=5)
    received = {}
    async with RawSink() as sink:
        config = SinkConfig(
            key=1,
            id=SUBSCRIPTION,
            organisation_id=SUBSCRIPTION,
            sink=sink.url("/"),
            status=Status.ACTIVE,
            secrets=(NEW, OLD),
            signing_seeds=(),
            secrets_change_in=None,
            retry=None,
            subscriber_reference=ADDED["subscriberreference"],
            allowed_rate=None,
            headers={},
        )
        sender = Sender(client)
        for number, (name, members) in enumerate(EVENTS.items(), 1):
            published = {"specversion": "1.0", "id": f"e-{number}", "source": "urn:nld:oin:1:systeem:BAG",
                         "type": "nl.bag.pand-gewijzigd", **members}  # fmt: skip
            body = from_structured(json.dumps(published).encode()).body
            made = Sink.of(config, ORIGIN)
            outcome = await sender.send(
                made, delivery_id(SUBSCRIPTION, number), 1 << 62, made.envelope.compose(body, number)
            )
            assert outcome.reason is None
            asked = sink.asked[-1]
            received[name] = Sent(published | {"subscriptionsequence": str(number)}, asked.body, dict(asked.fields))
    client.close()
    fence.close()
    yield received


@pytest.fixture(scope="module")
def npm(sent: dict[str, Sent], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the npm packages make of each notification."""
    node, installer = shutil.which("node"), shutil.which("npm")
    if node is None or installer is None:
        pytest.skip("node or npm is not installed")
    folder: Path = tmp_path_factory.mktemp("npm")
    run = partial(subprocess.run, cwd=folder, capture_output=True, text=True)
    options = ("--prefix", ".", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
    try:
        installed = run([installer, "install", *options, *PACKAGES], timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install {' and '.join(PACKAGES)} within {INSTALL_SECONDS} s")
    if installed.returncode != 0:
        pytest.skip(f"npm can't install {' and '.join(PACKAGES)}: {installed.stderr.strip()[-300:]}")
    notifications = {name: {"body": each.body.decode(), "headers": each.headers} for name, each in sent.items()}
    given = json.dumps({"secrets": [NEW, OLD, FOREIGN], "notifications": notifications})
    done = run([node, "-e", SCRIPT], input=given, timeout=RUN_SECONDS)
    assert done.returncode == 0, done.stderr
    yield json.loads(done.stdout)
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", EVENTS)
async def test_standardwebhooks_of_python_verifies_with_either_secret_and_no_other(
    name: str, sent: dict[str, Sent]
) -> None:
    got = sent[name]
    for secret in (OLD, NEW):
        assert Webhook(secret).verify(got.body, got.headers) == json.loads(got.body)
    for secret, body, headers in (
        (FOREIGN, got.body, got.headers),
        (NEW, got.body.replace(b"1.0", b"1.1"), got.headers),
        (NEW, got.body, got.headers | {"webhook-timestamp": "1600000000"}),
        (NEW, got.body, got.headers | {"webhook-id": "dlv_other_1"}),
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, headers)


@pytest.mark.parametrize("name", EVENTS)
async def test_cloudevents_of_python_reads_every_attribute_and_the_data(name: str, sent: dict[str, Sent]) -> None:
    got = sent[name]
    event = from_http_event(HTTPMessage(got.headers, got.body))
    attributes = {key: value for key, value in event.get_attributes().items() if value is not None}
    time = attributes.pop("time")  # of an event without one the library makes the present
    if "time" in got.published:
        assert time == datetime.fromisoformat(got.published["time"])
    expected = (got.published | ADDED).items()
    assert attributes == {key: value for key, value in expected if key not in ("data", "data_base64", "time")}
    if "data_base64" in got.published:
        assert event.get_data() == base64.b64decode(got.published["data_base64"])
    else:
        assert event.get_data() == got.published.get("data")


@pytest.mark.parametrize("name", EVENTS)
async def test_standardwebhooks_of_npm_verifies_with_either_secret_and_no_other(name: str, npm: dict[str, Any]) -> None:
    found = npm[name]
    assert found["signatures"] == [True, True, "No matching signature found"]
    assert found["tampered"] == "No matching signature found"
    assert found["old"] == "Message timestamp too old"


@pytest.mark.parametrize("name", EVENTS)
async def test_cloudevents_of_npm_reads_every_attribute_and_the_data(
    name: str, npm: dict[str, Any], sent: dict[str, Sent]
) -> None:
    assert npm[name]["valid"] is True
    event, expected = npm[name]["event"], sent[name].published | ADDED
    time = datetime.fromisoformat(event.pop("time"))  # likewise; and it keeps milliseconds only
    if "time" in expected:
        assert time == datetime.fromisoformat(expected.pop("time")).replace(microsecond=123_000)
    assert event == expected
