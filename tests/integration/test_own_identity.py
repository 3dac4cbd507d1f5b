"""The broker's own certificate and trust, from files that are replaced while it runs."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest
import pytest_asyncio
from authorities import Authority, Issued
from delivering import RawSink
from pydantic import ValidationError

from broker.delivery.client import Client
from broker.delivery.exchanges import SendError, Target
from broker.delivery.fence import Fence
from broker.delivery.outcomes import Reason
from broker.delivery.own_identity import OwnIdentity, UnusableFile
from broker.delivery.settings import DeliverySettings
from broker.delivery.tls import Contexts, TlsIdentity

pytestmark = pytest.mark.asyncio
SINKS, BROKERS, OTHER = Authority("Sinks"), Authority("Brokers"), Authority("Other")


@dataclass
class Files:
    folder: Path

    def write(self, certificate: str | None = None, key: str | None = None, trust: str | None = None) -> None:
        for name, content in (("client.pem", certificate), ("client.key", key), ("ca.pem", trust)):
            if content is not None:
                new = self.folder / f"{name}.new"
                new.write_text(content)
                new.replace(self.folder / name)

    def of(self, issued: Issued, trust: str = SINKS.root.pem) -> None:
        self.write(issued.chain, issued.key_pem, trust)

    @property
    def settings(self) -> DeliverySettings:
        return DeliverySettings(
            ca_file=self.folder / "ca.pem",
            client_certificate_file=self.folder / "client.pem",
            client_key_file=self.folder / "client.key",
        )


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = Files(tmp_path)
    made.of(BROKERS.client("een"))
    return made


@pytest_asyncio.fixture
async def sink() -> AsyncIterator[RawSink]:
    async with RawSink(tls=SINKS.server_context(clients=BROKERS)) as running:
        yield running


@pytest_asyncio.fixture
async def client(files: Files) -> AsyncIterator[Client]:
    fence = Fence(allow=[ip_network("127.0.0.0/8")])
    made = Client(fence, total_seconds=5, tls=Contexts(OwnIdentity(files.settings).read()))
    yield made
    made.close()
    fence.close()


async def peers(client: Client, sink: RawSink, target: Target, times: int = 1) -> list[str | None]:
    for _ in range(times):
        await client.request("POST", target, {})
    return [asked.peer for asked in sink.asked[-times:]]


async def test_what_the_files_hold_is_shown_and_a_replaced_one_closes_the_old_connections(
    files: Files, client: Client, sink: RawSink
) -> None:
    target, own = Target.of(sink.url("/")), OwnIdentity(files.settings)
    own.read()
    assert await peers(client, sink, target, 2) == ["een", "een"]
    await own.follow(client)  # nothing is new
    assert client._idle_count == 1
    files.of(BROKERS.client("twee"))
    await own.follow(client)
    assert client._idle_count == 0
    assert await peers(client, sink, target, 2) == ["twee", "twee"]


async def test_a_connection_that_was_busy_while_the_certificate_was_replaced_is_not_used_again(
    files: Files, client: Client, sink: RawSink
) -> None:
    target, own = Target.of(sink.url("/")), OwnIdentity(files.settings)
    own.read()

    async def replace(_: object) -> bytes:
        files.of(BROKERS.client("twee"))
        await own.follow(client)
        return b"HTTP/1.1 204 No Content\r\n\r\n"

    sink.answers["POST", "/"] = replace
    assert await peers(client, sink, target) == ["een"]
    sink.answers.clear()
    assert await peers(client, sink, target) == ["twee"]


async def test_what_cannot_be_used_leaves_the_former_in_place(files: Files, client: Client, sink: RawSink) -> None:
    target, own = Target.of(sink.url("/")), OwnIdentity(files.settings)
    own.read()
    two = BROKERS.client("twee")
    files.write(certificate=two.chain)  # and its key a little later
    await own.follow(client)
    assert await peers(client, sink, target) == ["een"]
    (files.folder / "ca.pem").unlink()
    await own.follow(client)
    assert await peers(client, sink, target) == ["een"]
    files.write(key=two.key_pem, trust=SINKS.root.pem)
    await own.follow(client)
    assert await peers(client, sink, target) == ["twee"]
    files.write(trust=OTHER.root.pem)
    await own.follow(client)
    with pytest.raises(SendError) as raised:
        await peers(client, sink, target)
    assert raised.value.reason is Reason.TLS


async def test_a_subscription_that_says_less_gets_the_rest_from_the_broker(client: Client, sink: RawSink) -> None:
    own = BROKERS.client("eigen")
    trust_only = TlsIdentity.of(None, None, SINKS.root.pem)
    certificate_only = TlsIdentity.of(own.chain, own.key_pem, None)
    assert await peers(client, sink, Target.of(sink.url("/"), trust_only)) == ["een"]
    assert await peers(client, sink, Target.of(sink.url("/"), certificate_only)) == ["eigen"]
    assert await peers(client, sink, Target.of(sink.url("/"))) == ["een"]


async def test_an_expired_certificate_of_the_broker_stops_no_process_and_is_seen(files: Files) -> None:
    files.of(BROKERS.client("oud", days=-1, since_days=9))
    own = OwnIdentity(files.settings)
    assert own.read() is not None
    assert set(own.expiries()) == {"broker-certificate", "broker-trust"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("ca.pem", "x", "BODE_DELIVERY_CA_FILE must hold certificates in PEM"),
        ("client.pem", "x", "BODE_DELIVERY_CLIENT_CERTIFICATE_FILE must hold certificates in PEM"),
        ("client.key", "geheim", "BODE_DELIVERY_CLIENT_KEY_FILE must be a private key in PEM"),
        ("client.key", BROKERS.client().key_pem, "BODE_DELIVERY_CLIENT_KEY_FILE must belong to the certificate"),
        ("client.key", None, "BODE_DELIVERY_CLIENT_KEY_FILE can't be read"),
    ],
)
async def test_a_file_that_cannot_be_used_is_named_by_its_setting(
    files: Files, name: str, content: str | None, said: str
) -> None:
    if content is None:
        (files.folder / name).unlink()
    else:
        (files.folder / name).write_text(content)
    with pytest.raises(UnusableFile) as raised:
        OwnIdentity(files.settings).read()
    assert str(raised.value) == said


async def test_certificate_and_key_are_set_together(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="belong together"):
        DeliverySettings(client_key_file=tmp_path / "x")
