"""TLS towards sinks: client certificates and trust of our own, against real servers that ask for them."""

import asyncio
import json
import os
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from typing import Any

import pytest
from accepting import Publisher
from authorities import CLIENT, SERVER, Authority, Issued, issue
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from delivering import Delivering, RawSink
from fixtures import IN_ONE_LOOP, one_process, own_types, raw_sink

from broker.delivery.client import Client
from broker.delivery.exchanges import SendError, Target
from broker.delivery.fence import Fence
from broker.delivery.outcomes import Reason
from broker.delivery.tls import TlsIdentity

pytestmark = IN_ONE_LOOP
SINKS, PROVIDER, OTHER = Authority("Sinks"), Authority("Provider"), Authority("Other")
TRUST = {"trustedCertificates": SINKS.root.pem}
SELF_SIGNED = issue("alone", None, authority=True)

bode = one_process()
publisher = own_types()
sink = raw_sink(lambda: SINKS.server_context(clients=PROVIDER))
"""A sink that asks for a certificate of the provider's authority."""


async def change(bode: Delivering, identity: Any, **body: Any) -> Any:
    answered = await bode.world.call("PATCH", f"/subscriptions/{identity}", key=bode.provider_key, body=body)
    assert answered.status == 200, answered.text
    return answered.json


async def test_a_sink_sees_the_certificate_in_handshake_test_and_notification(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    one = PROVIDER.client("afdeling-1")
    identity = await bode.active(publisher, sink.url("/"), sinkTls=one.members | TRUST)
    await bode.world.call("POST", f"/subscriptions/{identity}/test-notifications", key=bode.provider_key)
    await sink.wait_for("POST", "/", 1)
    await bode.publish(publisher, "a")
    await sink.wait_for("POST", "/", 2)
    assert {asked.peer for asked in sink.asked} == {"afdeling-1"}
    shown = (await bode.shown(identity))["sinkIdentity"]
    assert shown["certificate"]["subject"] == "CN=afdeling-1,O=Voorbeeld"
    assert shown["certificate"]["issuer"] == "CN=Provider intermediate,O=Voorbeeld"
    assert shown["trustedCertificates"][0]["subject"] == "CN=Sinks root,O=Voorbeeld"
    stored = await bode.row(identity)
    assert b"PRIVATE" not in stored["sink_tls"]
    assert "PRIVATE" not in json.dumps(shown)


async def test_two_subscriptions_at_one_host_never_share_a_connection(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    for name in ("een", "twee"):
        await bode.active(publisher, sink.url(f"/{name}"), sinkTls=PROVIDER.client(name).members | TRUST)
    for round_ in range(1, 4):
        await bode.publish(publisher, f"s{round_}")
        for name in ("een", "twee"):
            await sink.wait_for("POST", f"/{name}", round_)
    assert {(asked.target, asked.peer) for asked in sink.asked} == {("/een", "een"), ("/twee", "twee")}


async def test_a_certificate_that_is_replaced_under_way_is_the_one_that_counts(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    identity = await bode.active(publisher, sink.url("/"), sinkTls=PROVIDER.client("oud").members | TRUST)
    await bode.publish(publisher, "a")
    await sink.wait_for("POST", "/", 1)
    await change(bode, identity, sinkTls=PROVIDER.client("nieuw").members | TRUST)
    for number in range(2, 8):
        await bode.publish(publisher, f"s{number}")
        await sink.wait_for("POST", "/", number)
    assert [asked.peer for asked in sink.of("POST", "/")] == ["oud"] + ["nieuw"] * 6


async def test_a_revoked_certificate_is_replaced_and_what_waited_goes(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    identity = await bode.active(publisher, sink.url("/"), sinkTls=PROVIDER.client("gelekt").members | TRUST)
    sink.answers["POST", "/"] = lambda asked: b"" if asked.peer == "gelekt" else b"HTTP/1.1 204 No Content\r\n\r\n"
    await bode.publish(publisher, "a")
    assert (await bode.tried(identity))["reason"] == "connection-closed"
    await change(bode, identity, sinkTls=PROVIDER.client("nieuw").members | TRUST)
    await bode.tried(identity, "delivered")


NOT_TAKEN = {"tls-failed", "connection-closed"}
"""asyncio's server resets the connection instead of saying why; others tell, as the test below has it."""


@pytest.mark.parametrize(
    ("tls", "reasons"),
    [
        (OTHER.client().members | TRUST, NOT_TAKEN),  # of an authority that the sink doesn't know
        (TRUST, NOT_TAKEN),  # none at all
        (
            PROVIDER.client().members | {"trustedCertificates": OTHER.root.pem},
            {"tls-failed"},
        ),  # we don't know the sink's
        (PROVIDER.client().members, {"tls-failed"}),  # nor does the system
    ],
)
async def test_who_does_not_know_the_other_does_not_talk(
    bode: Delivering, publisher: Publisher, sink: RawSink, tls: Any, reasons: set[str]
) -> None:
    identity = await bode.active(publisher, sink.url("/"), sinkTls=PROVIDER.client().members | TRUST)
    await change(bode, identity, sinkTls=tls)
    await bode.publish(publisher, "a")
    assert (await bode.tried(identity))["reason"] in reasons
    assert not sink.of("POST", "/")


async def test_a_server_that_says_that_our_certificate_is_not_taken_is_believed() -> None:
    """In TLS 1.3 it says so after the handshake, as we see it."""
    context = SINKS.server_context(clients=PROVIDER)

    def refuse_one() -> None:
        connection, _ = listening.accept()
        with context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as refusing:
            with pytest.raises(ssl.SSLError):
                refusing.do_handshake()
            with socket.socket(fileno=os.dup(refusing.fileno())) as plain:
                plain.shutdown(socket.SHUT_WR)
                while plain.recv(65536):  # unread bytes would make a reset of the end, and lose what it said
                    pass

    fence = Fence(allow=[ip_network("127.0.0.0/8")])
    client = Client(fence, total_seconds=10)
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as threads:
        refusing = threads.submit(refuse_one)
        stranger = OTHER.client()
        identity = TlsIdentity.of(stranger.chain, stranger.key_pem, SINKS.root.pem)
        wrong = Target.of(f"https://127.0.0.1:{listening.getsockname()[1]}/", identity)
        with pytest.raises(SendError) as raised:
            await client.request("POST", wrong, {})
        await asyncio.wrap_future(refusing)
    client.close()
    assert raised.value.reason is Reason.TLS


async def test_an_intermediate_alone_may_be_trusted(bode: Delivering, publisher: Publisher, sink: RawSink) -> None:
    tls = PROVIDER.client().members | {"trustedCertificates": SINKS.intermediate.pem}
    await bode.active(publisher, sink.url("/"), sinkTls=tls)


async def test_a_server_whose_certificate_has_expired_is_not_talked_to(bode: Delivering, publisher: Publisher) -> None:
    expired = SINKS.server(days=-1, since_days=10)
    async with RawSink(tls=SINKS.server_context(expired)) as sink:
        identity = await bode.subscribe_to(publisher, sink.url("/"), sinkTls=TRUST)
        async with asyncio.timeout(15):
            while "tls-failed" not in ((await bode.row(identity))["status_reason"] or ""):
                await asyncio.sleep(0.02)
        assert not sink.asked


async def test_a_token_endpoint_sees_the_certificate_where_it_is_the_clients_proof(
    bode: Delivering, publisher: Publisher, sink: RawSink
) -> None:
    async with RawSink(tls=SINKS.server_context(clients=PROVIDER)) as server:
        body = b'{"access_token": "x", "token_type": "Bearer", "expires_in": 100}'
        server.answers["POST", "/token"] = lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        given = {
            "credentialType": "CLIENTCREDENTIALS", "tokenEndpoint": server.url("/token"), "clientId": "bode",
            "authentication": "tls_client_auth",
        }  # fmt: skip
        tls = PROVIDER.client("bode-client").members | TRUST
        await bode.active(publisher, sink.url("/"), sinkCredential=given, sinkTls=tls)
        [asked] = server.asked
        assert (asked.peer, asked.all("authorization")) == ("bode-client", [])
        refused = await bode.world.call(
            "POST", "/subscriptions", key=bode.provider_key,
            body={"sink": sink.url("/"), "protocol": "HTTP", "sinkCredential": given, "sinkTls": TRUST},
        )  # fmt: skip
        assert refused.status == 400
        assert refused.json["invalidParams"][0]["name"] == "/sinkCredential/authentication"


def locked(key: Any) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"geheim")).decode()


def pem(*certificates: Issued) -> str:
    return "".join(each.pem for each in certificates)


CLIENT_1 = PROVIDER.client("een")
OLD = issue("oud", None, days=-1, since_days=9)
SMALL = rsa.generate_private_key(public_exponent=65537, key_size=1024)
EDWARDS = ed25519.Ed25519PrivateKey.generate()
BAD = [
    ("not-pem", {"certificate": "x", "privateKey": CLIENT_1.key_pem}, "/certificate", "in PEM"),
    ("cut", {"certificate": CLIENT_1.pem[:300], "privateKey": CLIENT_1.key_pem}, "/certificate", "in PEM"),
    ("key-not-pem", {"certificate": CLIENT_1.chain, "privateKey": "geheim"}, "/privateKey", "in PEM"),
    ("key-locked", {"certificate": CLIENT_1.chain, "privateKey": locked(CLIENT_1.key)}, "/privateKey", "password"),
    ("key-of-another", {"certificate": CLIENT_1.chain, "privateKey": SELF_SIGNED.key_pem}, "/privateKey", "belong"),
    ("expired", PROVIDER.client(days=-1, since_days=9).members, "/certificate", "expired"),
    ("too-early", PROVIDER.client(since_days=-1).members, "/certificate", "not valid yet"),
    ("for-servers", PROVIDER.server().members, "/certificate", "not for TLS clients"),
    ("small", PROVIDER.client(key=SMALL).members, "/privateKey", "2048 bits"),
    ("edwards", PROVIDER.client(key=EDWARDS).members, "/privateKey", "Ed25519"),
    (
        "wrong-order",
        {"certificate": pem(PROVIDER.intermediate, CLIENT_1), "privateKey": CLIENT_1.key_pem},
        "/certificate",
        "must not be that of an authority",
    ),
    (
        "wrong-issuer",
        {"certificate": pem(CLIENT_1, OTHER.intermediate), "privateKey": CLIENT_1.key_pem},
        "/certificate",
        "certificate 2 of the chain is not the issuer",
    ),
    (
        "two-leaves",
        {"certificate": pem(CLIENT_1, CLIENT_1), "privateKey": CLIENT_1.key_pem},
        "/certificate",
        "must be that of an authority",
    ),
    (
        "too-long",
        {"certificate": pem(CLIENT_1, *[PROVIDER.intermediate] * 10), "privateKey": CLIENT_1.key_pem},
        "/certificate",
        "10 certificates at most",
    ),
    ("too-large", {"certificate": "x" * 70_000, "privateKey": "x"}, "/certificate", "65536"),
    ("alone", {"certificate": CLIENT_1.chain}, "", "together"),
    ("nothing", {}, "", "must give"),
    ("trust-not-pem", {"trustedCertificates": "x"}, "/trustedCertificates", "in PEM"),
    ("trust-expired", {"trustedCertificates": OLD.pem}, "/trustedCertificates", "certificate 1 has expired"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "member", "reason"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
async def test_what_cannot_work_is_refused_with_member_and_reason(
    bode: Delivering, publisher: Publisher, given: Any, member: str, reason: str
) -> None:
    body = {"sink": "https://afnemer.example.nl/", "protocol": "HTTP", "sinkTls": given}
    refused = await bode.world.call("POST", "/subscriptions", key=bode.provider_key, body=body)
    [param] = refused.json["invalidParams"]
    assert (refused.status, param["name"]) == (400, f"/sinkTls{member}")
    assert reason in param["reason"]
    assert "PRIVATE" not in refused.text
    assert "geheim" not in refused.text


async def test_a_self_signed_certificate_and_a_whole_chain_are_taken(bode: Delivering, publisher: Publisher) -> None:
    whole = {"certificate": pem(CLIENT_1, PROVIDER.intermediate, PROVIDER.root), "privateKey": CLIENT_1.key_pem}
    any_use = issue("any", PROVIDER.intermediate, uses=[x509.oid.ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])
    old_form = CLIENT_1.members | {"privateKey": traditional(CLIENT_1.key)}
    both = issue("both", PROVIDER.intermediate, uses=[SERVER, CLIENT])
    for given in (whole, SELF_SIGNED.members, any_use.members, old_form, both.members):
        await bode.subscribe_to(publisher, "https://afnemer.example.nl/", sinkTls=given)


def traditional(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()).decode()


async def test_a_plain_sink_has_no_tls(bode: Delivering, publisher: Publisher) -> None:
    body = {"sink": "http://127.0.0.1:9/", "protocol": "HTTP", "sinkTls": CLIENT_1.members}
    refused = await bode.world.call("POST", "/subscriptions", key=bode.provider_key, body=body)
    assert (refused.status, refused.json["invalidParams"][0]["name"]) == (400, "/sinkTls")
